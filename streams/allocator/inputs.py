"""What an allocation is computed from. It travels inside the published record, for `audit`.

What: `inputs_of` gathers definition, counts and what the last allocation hands on; `inputs_in` reads them
back from a record. Whatever a later allocation needs of an earlier one (statuses that the allocator itself
has given, how long an arm has incubated, the holdout) is in the earlier record, so a new owner goes on
where the last one stopped.

Cost: O(arms), besides reading the counts.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from msgspec import Struct

from bandit_core.shares import ArmStatus
from streams.allocations import Allocation, Trigger
from streams.allocator.counts_state import DAY_HOURS, LAG_MAX_HOURS, ArmCounts
from streams.allocator.history import MICRO, pack_history
from streams.allocator.packing import Period
from streams.allocator.segment_counts import ContextInputs, SegmentCounts, context_inputs
from streams.experiments.definition import (
    Counting,
    Delay,
    ExperimentRecord,
    ExperimentStatus,
    Policy,
    ValueModel,
)
from streams.join.cells import HOUR_MS, View

__all__ = [
    "ENGINE",
    "ArmBefore",
    "ArmInputs",
    "Before",
    "CountsSource",
    "Frozen",
    "GuardrailInputs",
    "Inputs",
    "Job",
    "LearningInputs",
    "LifecycleInputs",
    "Stamp",
    "counting_at",
    "gather_inputs",
    "inputs_in",
    "inputs_of",
    "is_chained",
    "learning_of",
]

ENGINE = 5
"""Raised whenever the same inputs give other bytes than before; `audit` does not compare across engines."""

PERIODS_MAX_HOURS = 672  # compared hour by hour: four weeks
HISTORY_MAX_HOURS = 2160
HALF_LIVES = 10  # beyond them a count is worth less than a thousandth
_NOTHING = ArmCounts(0, 0, 0, 0)


class ArmInputs(Struct, frozen=True, kw_only=True):
    """An arm as defined and its counts as of the boundary: steering view, bandit group, decision metric."""

    arm_id: str
    status: str
    trials: int
    successes: int
    value_micros: int
    value_sq_micros2: int


class Frozen(Struct, frozen=True, kw_only=True):
    """Shares as published, in inputs those from before a pause; per arm weight, assignment, selection."""

    comparison: float
    holdout: float
    arms: dict[str, tuple[float, float, float]]
    segments: dict[str, tuple[float, ...]] = {}
    segment_best: dict[str, str] = {}


class LearningInputs(Struct, frozen=True, kw_only=True):
    """What is made of the counts; ``n_hours`` hours are told apart, ``older``: those before count, too."""

    delay: Delay
    window_hours: int
    half_life_hours: int | None = None
    sliding_hours: int | None = None
    stratify: bool = False
    overdispersion: bool = False
    model: ValueModel = "hurdle"
    pooled: bool = False
    n_hours: int = 0
    older: bool = True


class LifecycleInputs(Struct, frozen=True, kw_only=True):
    """The definition's `Lifecycle` with every field: which are left out must not depend on a process."""

    adaptive_holdout: bool = False
    adaptive_floor: bool = False
    drop: bool = False
    drop_intervals: int = 24
    min_trials: int = 100
    max_trials: int = 10_000
    max_step: float | None = None


class GuardrailInputs(Struct, frozen=True, kw_only=True):
    """A guardrail that stops arms, and its counts by hour: reporting view."""

    metric: str
    margin: float
    cap_micros: int
    lower_is_better: bool
    history: str = ""


class ArmBefore(Struct, frozen=True, kw_only=True):
    """An arm in the last allocation: its status as defined then and as published, and its counters."""

    defined: str
    status: str
    intervals_incubated: int
    intervals_below: int
    assignment_weight: float
    against_rest: tuple[float, float] = (0.0, 0.0)


class Before(Struct, frozen=True, kw_only=True):
    """What the last allocation hands on."""

    boundary_ms: int
    holdout: float
    arms: dict[str, ArmBefore]


class Inputs(Struct, frozen=True, kw_only=True):
    """All that an allocation is computed from."""

    engine: int
    experiment_id: str
    status: ExperimentStatus
    boundary_ms: int
    interval_ms: int
    definition_version: int
    definition_revision: int
    sticky: str
    control: str
    default_arm: str
    winner: str | None
    segment_winners: dict[str, str]
    algorithm: str
    parameters: dict[str, Any]
    floor: float | None
    holdout: float
    comparison: float
    prior: tuple[float, float]
    metric: str
    cap_micros: int
    lower_is_better: bool
    arms: tuple[ArmInputs, ...]
    frozen: Frozen | None = None
    kind: Literal["rate", "value"] = "rate"
    learning: LearningInputs = LearningInputs(delay="none", window_hours=0)
    history: str | None = None
    lifecycle: LifecycleInputs = LifecycleInputs()
    guardrails: tuple[GuardrailInputs, ...] = ()
    before: Before | None = None
    context: ContextInputs | None = None
    finished: str | None = None


class Stamp(NamedTuple):
    """What a record says of its making; it does not change a number."""

    claim: int
    trigger: Trigger
    computed_at_ms: int


class Job(NamedTuple):
    """One allocation to compute."""

    inputs: Inputs
    stamp: Stamp


def counting_at(record: ExperimentRecord, boundary_ms: int) -> Counting:
    """Return the newest version in effect at a boundary; before the first takes effect, the first."""
    effective = [version for version in record.versions if version.effective_from_ms <= boundary_ms]
    return max(effective or record.versions[:1], key=lambda version: version.effective_from_ms)


def learning_of(policy: Policy, counting: Counting) -> LearningInputs:
    """Settle what is made of the counts, and which hours have to be told apart for it."""
    learning = policy.learning
    delay = learning.delay or ("none" if counting.reward.kind == "click" else "estimate")
    window = math.ceil(counting.conversion_window_ms / HOUR_MS)
    if delay != "gate":
        window = min(window, LAG_MAX_HOURS)
    half_life = None if learning.half_life_ms is None else learning.half_life_ms // HOUR_MS
    sliding = None if learning.window_ms is None else learning.window_ms // HOUR_MS
    n_hours = 0 if delay == "none" else window
    limits = []
    if half_life is not None:
        limits.append(max(HALF_LIVES * half_life, n_hours))
    if sliding is not None:
        limits.append(sliding + (window if delay == "gate" else 0))
    if learning.stratify or learning.overdispersion:
        limits.append(PERIODS_MAX_HOURS + (window if delay == "gate" else 0))
    if policy.lifecycle.adaptive_floor:
        n_hours = max(n_hours, DAY_HOURS)
    return LearningInputs(
        delay=delay,
        window_hours=window,
        half_life_hours=half_life,
        sliding_hours=sliding,
        stratify=learning.stratify,
        overdispersion=learning.overdispersion,
        model=learning.model,
        pooled=policy.prior.pooled,
        n_hours=min(min(limits) if limits else n_hours, HISTORY_MAX_HOURS),
        older=not limits,
    )


def is_chained(record: ExperimentRecord) -> bool:
    """Whether an allocation depends on the one before it, so that boundaries are computed one by one."""
    lifecycle = record.policy.lifecycle
    return (
        any(arm.status == "incubating" for arm in record.arms)
        or lifecycle.drop
        or lifecycle.adaptive_holdout
        or lifecycle.max_step is not None
        or any(guardrail.margin is not None for guardrail in record.versions[-1].guardrails)
    )


class CountsSource(SegmentCounts, Protocol):
    """What is asked of the counts as of a boundary; `CountsState` has it, and so have simulated counts."""

    def as_of(
        self, experiment_id: str, version: int, metric: str, hour: int, *, view: View | None = None
    ) -> Mapping[str, ArmCounts]:
        """Everything dated before the hour, per arm."""
        ...

    def periods(
        self,
        experiment_id: str,
        version: int,
        metric: str,
        hour: int,
        *,
        n_hours: int,
        older: bool,
        view: View | None = None,
    ) -> Mapping[int, Mapping[str, Period]]:
        """Tell it apart by hour of the exposure."""
        ...


def gather_inputs(
    record: ExperimentRecord, boundary_ms: int, counts: CountsSource, last: Allocation | None
) -> Inputs:
    """Gather what an allocation depends on from the counts of its partition; parameters as below."""
    counting = counting_at(record, boundary_ms)
    hour = boundary_ms // HOUR_MS
    name, version, metric = record.experiment_id, counting.version, counting.reward.metric
    inputs = inputs_of(record, boundary_ms, counts.as_of(name, version, metric, hour), last)
    arm_ids = [arm.arm_id for arm in inputs.arms]
    learning = inputs.learning
    history, guardrails, context = None, [], None
    if learning.n_hours and record.status != "archived":
        hours = counts.periods(name, version, metric, hour, n_hours=learning.n_hours, older=learning.older)
        history = pack_history(hours, arm_ids)
    # The first table waits for no model, and before there are counts there is nothing to fit.
    if record.policy.algorithm == "contextual" and record.status == "live" and last is not None:
        context = context_inputs(record, counting, counts, hour)
    for guardrail in counting.guardrails if record.status == "live" else ():
        if guardrail.margin is not None:
            hours = counts.periods(
                name,
                version,
                guardrail.reward.metric,
                hour,
                n_hours=PERIODS_MAX_HOURS,
                older=True,
                view="reporting",
            )
            guardrails.append(
                GuardrailInputs(
                    metric=guardrail.reward.metric,
                    margin=guardrail.margin,
                    cap_micros=round(guardrail.reward.cap * MICRO),
                    lower_is_better=guardrail.reward.lower_is_better,
                    history=pack_history(hours, arm_ids),
                )
            )
    finished = _finished(record, counting, boundary_ms, counts, last)
    return msgspec.structs.replace(
        inputs, history=history, guardrails=tuple(guardrails), context=context, finished=finished
    )


def _finished(
    record: ExperimentRecord,
    counting: Counting,
    boundary_ms: int,
    counts: CountsSource,
    last: Allocation | None,
) -> str | None:
    """Hours whose conversion window has ended since the last allocation, reporting view; for drops."""
    if not record.policy.lifecycle.drop or record.status != "live" or last is None:
        return None
    hour, window = boundary_ms // HOUR_MS, math.ceil(counting.conversion_window_ms / HOUR_MS)
    ended = min(hour - last.boundary_ms // HOUR_MS, PERIODS_MAX_HOURS)
    if ended < 1:
        return None
    hours = counts.periods(
        record.experiment_id,
        counting.version,
        counting.reward.metric,
        hour,
        n_hours=window + ended,
        older=False,
        view="reporting",
    )
    hours = {age: arms for age, arms in hours.items() if age >= window}
    return pack_history(hours, [arm.arm_id for arm in record.arms])


def inputs_of(
    record: ExperimentRecord, boundary_ms: int, counts: Mapping[str, ArmCounts], last: Allocation | None
) -> Inputs:
    """Gather what an allocation depends on, all hours taken together.

    Parameters
    ----------
    record
        The definition.
    boundary_ms
        Only what is dated before it is in ``counts``.
    counts
        Per arm, of the version and metric of :func:`counting_at`; arms left out got nothing.
    last
        The allocation now in force; its weights freeze while the experiment is paused.
    """
    counting = counting_at(record, boundary_ms)
    policy = record.policy
    arms = []
    for arm in record.arms if record.status != "archived" else ():
        got = counts.get(arm.arm_id, _NOTHING)
        arms.append(
            ArmInputs(
                arm_id=arm.arm_id,
                status=arm.status,
                trials=got.trials,
                successes=got.successes,
                value_micros=got.value_micros,
                value_sq_micros2=got.value_sq_micros2,
            )
        )
    return Inputs(
        engine=ENGINE,
        experiment_id=record.experiment_id,
        status=record.status,
        boundary_ms=boundary_ms,
        interval_ms=policy.interval_ms,
        definition_version=counting.version,
        definition_revision=record.revision,
        sticky=record.sticky,
        control=record.control,
        default_arm=record.default_arm or record.control,
        winner=record.winner,
        segment_winners=record.segment_winners.arms if record.segment_winners is not None else {},
        algorithm=policy.algorithm,
        parameters=policy.parameters,
        floor=policy.floor,
        holdout=policy.holdout,
        comparison=policy.comparison,
        prior=(policy.prior.alpha, policy.prior.beta),
        metric=counting.reward.metric,
        cap_micros=round(counting.reward.cap * MICRO),
        lower_is_better=counting.reward.lower_is_better,
        arms=tuple(arms),
        frozen=_frozen(record, last) if record.status == "paused" else None,
        kind="value" if counting.reward.kind == "value" else "rate",
        learning=learning_of(policy, counting),
        lifecycle=LifecycleInputs(**msgspec.structs.asdict(policy.lifecycle)),
        before=_before(last, counting),
    )


def _frozen(record: ExperimentRecord, last: Allocation | None) -> Frozen | None:
    """Shares to keep, or None if the arms have changed since, or there never were any."""
    if last is None or last.status not in ("live", "paused"):
        return None
    before = _defined(last)
    now = [(arm.arm_id, ArmStatus(arm.status).eligible) for arm in record.arms]
    if now != [(arm.arm_id, ArmStatus(before[arm.arm_id]).eligible) for arm in last.arms]:
        return None
    arms = {arm.arm_id: (arm.weight, arm.assignment_weight, arm.selection_probability) for arm in last.arms}
    return Frozen(
        comparison=last.comparison,
        holdout=last.holdout,
        arms=arms,
        segments=last.segments,
        segment_best=last.segment_best,
    )


def _before(last: Allocation | None, counting: Counting) -> Before | None:
    if last is None or last.status == "archived":
        return None
    defined = _defined(last)
    same = last.definition_version == counting.version  # what was counted in another way shows nothing
    arms = {
        arm.arm_id: ArmBefore(
            defined=defined[arm.arm_id],
            status=arm.status,
            intervals_incubated=arm.intervals_incubated,
            intervals_below=arm.intervals_below,
            assignment_weight=arm.assignment_weight,
            against_rest=arm.against_rest if same else (0.0, 0.0),
        )
        for arm in last.arms
    }
    return Before(boundary_ms=last.boundary_ms, holdout=last.holdout, arms=arms)


def _defined(last: Allocation) -> dict[str, str]:
    """Status of each arm in the definition of the last allocation; what was published may differ."""
    found = {arm.arm_id: arm.status for arm in last.arms}
    found.update({arm["arm_id"]: arm["status"] for arm in last.inputs.get("arms", ())})
    return found


def inputs_in(allocation: Allocation) -> Inputs:
    """Return the inputs that a published allocation carries.

    Raises
    ------
    msgspec.ValidationError
        If they are not of this form.
    """
    return msgspec.convert(allocation.inputs, Inputs)
