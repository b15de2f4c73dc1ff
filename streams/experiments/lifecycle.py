"""Lifecycle of an experiment: pure functions from record to record.

::

    draft --apply--> live <--resume-- paused
                      |  ---pause--->   |
                      +---- complete ---+--> completed --archive--> archived
    (a draft can be archived, too)

Paused: allocations freeze and edges show the default arm; what was exposed is still counted. Completed: the
winner is shown to everyone, or to each segment its own; late conversions are still counted. Archived is
terminal: cells are deleted and events ignored. Arms only ever change status; they stay in the record for
good, because exposures may still arrive for them.

Each function raises :class:`~streams.errors.LifecycleError` if the state does not allow the step, and
otherwise returns a record with the next revision; none has side effects.
"""

from typing import Any

import msgspec

from streams.allocations import Allocation
from streams.errors import LifecycleError
from streams.experiments.arms import ELIGIBLE
from streams.experiments.definition import Arm, ExperimentRecord, SegmentWinners, Spending, name_of
from streams.experiments.reader import IDENTIFIER


def pause(record: ExperimentRecord, *, now_ms: int) -> ExperimentRecord:
    """Show everyone the default arm until the experiment is resumed."""
    if record.status != "live":
        raise _refused(record, "pause", "only a live experiment can be paused")
    return _next(record, now_ms, status="paused")


def resume(record: ExperimentRecord, *, now_ms: int) -> ExperimentRecord:
    """Go on where :func:`pause` stopped."""
    if record.status == "draft":
        raise _refused(record, "resume", "apply its definition with `status: live` to launch it")
    if record.status != "paused":
        raise _refused(record, "resume", "only a paused experiment can be resumed")
    return _next(record, now_ms, status="live")


def stop_arm(record: ExperimentRecord, arm_id: str, *, now_ms: int) -> ExperimentRecord:
    """Take all traffic from an arm, for good or until a definition states ``status: active`` for it.

    Never the control arm, because everything is compared with it, and never the last arm with traffic. If it
    is the default arm, control becomes the default.
    """
    if record.status in ("completed", "archived"):
        raise _refused(record, "stop an arm of", "it is over and gives its arms no traffic")
    arm = record.find_arm(arm_id)
    if arm is None:
        shown = ", ".join(arm.arm_id for arm in record.arms)
        raise _refused(record, f"stop {arm_id} of", f"it has no such arm; the arms are {shown}")
    arm_id = arm.arm_id
    if arm_id == record.control:
        raise _refused(
            record,
            f"stop {arm_id} of",
            "it is the control arm; pause the experiment, or apply a definition with another control first",
        )
    if arm.status not in ELIGIBLE:
        raise _refused(record, f"stop {arm_id} of", f"it is {arm.status} and gets no traffic already")
    if sum(other.status in ELIGIBLE for other in record.arms) == 1:
        raise _refused(record, f"stop {arm_id} of", "it is the last arm with traffic; pause the experiment")
    arms = tuple(
        msgspec.structs.replace(other, status="stopped") if other.arm_id == arm_id else other
        for other in record.arms
    )
    default_arm = None if record.default_arm == arm_id else record.default_arm
    return _next(record, now_ms, arms=arms, default_arm=default_arm)


def complete(
    record: ExperimentRecord,
    *,
    winner: str | None = None,
    allocation: Allocation | None = None,
    now_ms: int,
) -> ExperimentRecord:
    """End the experiment; from then on everyone is shown the winner.

    Parameters
    ----------
    record
        The experiment.
    winner
        The arm for everybody. If none is named, a contextual experiment locks the arm that is most probably
        the best in each segment, and every other one control.
    allocation
        The newest one; only a contextual experiment without a named winner needs it.
    now_ms
        Present time.
    """
    if record.status not in ("live", "paused"):
        raise _refused(record, "complete", "only a live or paused experiment can be completed")
    if winner is None and record.policy.algorithm == "contextual":
        return _complete_by_segment(record, allocation, now_ms)
    winner = record.control if winner is None else winner
    arm = record.find_arm(winner)
    if arm is None or arm.status not in ELIGIBLE:
        shown = ", ".join(other.arm_id for other in record.arms if other.status in ELIGIBLE)
        raise _refused(
            record, "complete", f"{winner!r} cannot be the winner; the arms with traffic are {shown}"
        )
    return _next(record, now_ms, status="completed", winner=arm.arm_id)


def _complete_by_segment(
    record: ExperimentRecord, allocation: Allocation | None, now_ms: int
) -> ExperimentRecord:
    if allocation is None or not allocation.segment_best:
        raise _refused(record, "complete", "no model has been trained yet; name the winner with --winner")
    if allocation.definition_revision < record.revision:
        raise _refused(
            record,
            "complete",
            f"its allocation is of revision {allocation.definition_revision}, not of {record.revision};"
            " repeat it when the next one is there (seconds), or name the winner with --winner",
        )
    # For units whose segment nobody knows. What is still incubating has its share whatever it is worth.
    best = max(allocation.arms, key=lambda arm: (arm.status == "active", arm.assignment_weight))
    winners = SegmentWinners(version=allocation.definition_version, arms=allocation.segment_best)
    return _next(record, now_ms, status="completed", winner=best.arm_id, segment_winners=winners)


def archive(record: ExperimentRecord, *, now_ms: int) -> ExperimentRecord:
    """Put the experiment away for good: its counts are deleted and its events ignored."""
    if record.status == "archived":
        raise _refused(record, "archive", "it is archived already")
    if record.status not in ("completed", "draft"):
        raise _refused(record, "archive", "complete it first")
    return _next(record, now_ms, status="archived")


def clone(record: ExperimentRecord, experiment_id: str, *, now_ms: int) -> ExperimentRecord:
    """Make a draft of the same definition under another id, without history and without arms out of traffic.

    May be done in any state: it is how an experiment that is over runs again.
    """
    if not IDENTIFIER.fullmatch(experiment_id) or experiment_id == record.experiment_id:
        raise _refused(
            record,
            "clone",
            f"{experiment_id!r} cannot be the new id; use 1 to 128 letters, digits, '.', '_' or '-',"
            " and not the same id",
        )
    arms = tuple(
        Arm(arm_id=name, levels=arm.levels, content=arm.content)
        for name, arm in record.newest_arms.items()
        if arm.status in ELIGIBLE or arm.arm_id in (record.control, record.default_arm)
    )
    version = msgspec.structs.replace(record.versions[-1], version=1, effective_from_ms=now_ms)
    return msgspec.structs.replace(
        record,
        experiment_id=experiment_id,
        revision=1,
        status="draft",
        arms=arms,
        control=name_of(record.control),
        default_arm=None if record.default_arm is None else name_of(record.default_arm),
        versions=(version,),
        winner=None,
        ends_at_ms=None,  # it was the old experiment's
        segment_winners=None,
        proposals=(),
        spending=Spending(),
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
    )


def _next(record: ExperimentRecord, now_ms: int, **changes: Any) -> ExperimentRecord:
    return msgspec.structs.replace(record, revision=record.revision + 1, updated_at_ms=now_ms, **changes)


def _refused(record: ExperimentRecord, step: str, why: str) -> LifecycleError:
    return LifecycleError(
        f"cannot {step} experiment {record.experiment_id}, which is {record.status}: {why}",
        action=f"`bandit-streams experiments show {record.experiment_id}` shows its state",
    )
