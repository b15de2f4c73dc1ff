"""The decision table of an edge: pure, in memory, no I/O.

What: holds the newest definition and the greatest allocation version of every experiment, compiled into a
plan, and answers :meth:`DecisionTable.decide` from it.

Why this way: all that can be worked out when a record arrives is worked out then, once; a decision only
hashes. The two topics race, so each experiment's status is taken from whichever of the two records knows the
higher definition revision. A plan is replaced whole, by one dictionary assignment, so threads may decide
while records arrive. An arm that the definition has stopped since the allocation was computed is not served
even before the next allocation: its units get the default, marked as such, and everyone else's propensity
stays what the allocation's version says.

Cost: a decision is two SHA-256 blocks for the groups (where there are any) and one for each live arm; memory
is one plan for each experiment and segment.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from msgspec import structs

from bandit_core.assignment import Assigner
from bandit_core.shares import Shares
from streams.allocations import Allocation
from streams.edge.decision import (
    ALLOCATION,
    COMPARISON,
    DEFAULT_ARCHIVED,
    DEFAULT_COMPLETED,
    DEFAULT_DRAFT,
    DEFAULT_MISSING,
    DEFAULT_NO_ARM,
    DEFAULT_PAUSED,
    DEFAULT_STALE,
    DEFAULT_STOPPED,
    DEFAULT_UNKNOWN,
    HOLDOUT,
    Decision,
)
from streams.experiments.definition import ExperimentRecord
from streams.join.segments import Segmenter

__all__ = ["DecisionTable", "assigner_from_allocation"]

_NOT_LIVE = {
    "draft": DEFAULT_DRAFT,
    "paused": DEFAULT_PAUSED,
    "archived": DEFAULT_ARCHIVED,
    "completed": DEFAULT_COMPLETED,
}
_OUT_OF_TRAFFIC = frozenset({"stopped", "dropped"})


def assigner_from_allocation(allocation: Allocation, segment: str = "") -> Assigner | None:
    """Make the assigner of one allocation, or of one of its segments.

    Parameters
    ----------
    allocation
        As published.
    segment
        A key of ``allocation.segments``; empty for the overall weights.

    Returns
    -------
    Assigner or None
        None when no arm has any weight.
    """
    arm_ids = [arm.arm_id for arm in allocation.arms]
    control = arm_ids.index(allocation.control) if allocation.control in arm_ids else None
    rest = (
        allocation.segments[segment] if segment else tuple(arm.assignment_weight for arm in allocation.arms)
    )
    if not any(weight > 0.0 for weight in rest):
        return None
    holdout = allocation.holdout if control is not None else 0.0
    weights = tuple(arm.weight for arm in allocation.arms)
    if segment:
        weights = tuple(
            (1.0 - allocation.comparison) * (holdout * (i == control) + (1.0 - holdout) * weight)
            for i, weight in enumerate(rest)
        )
    return Assigner(
        allocation.experiment_id, arm_ids, Shares(allocation.comparison, holdout, control, rest, weights)
    )


class _Plan:
    """Everything a decision about one experiment needs."""

    __slots__ = (
        "arm_ids",
        "assigner",
        "default_arm",
        "fixed_reason",
        "interval_id",
        "published_ms",
        "segmenter",
        "segments",
        "stopped",
        "version",
        "winners",
    )

    def __init__(
        self, record: ExperimentRecord | None, allocation: Allocation | None, published_ms: int
    ) -> None:
        newest_is_record = record is not None and (
            allocation is None or record.revision >= allocation.definition_revision
        )
        status: str = record.status if record is not None and newest_is_record else ""
        if not status and allocation is not None:
            status = allocation.status
        self.default_arm = _default_arm(record, allocation, status)
        self.fixed_reason = _NOT_LIVE.get(status)
        self.winners: dict[str, str] = {}
        self.published_ms = published_ms
        self.version = None if allocation is None else allocation.version
        self.interval_id: str | None = None
        self.arm_ids: tuple[str, ...] = ()
        self.assigner: Assigner | None = None
        self.segments: dict[str, Assigner] = {}
        self.segmenter = Segmenter(())
        self.stopped: frozenset[str] = frozenset()
        if status == "completed" and record is not None and record.segment_winners is not None:
            self.winners = record.segment_winners.arms
            self.segmenter = _segmenter(record, record.segment_winners.version)
            return
        if allocation is None:
            self.fixed_reason = self.fixed_reason or DEFAULT_MISSING
            return
        self.arm_ids = tuple(arm.arm_id for arm in allocation.arms)
        self.assigner = assigner_from_allocation(allocation)
        if allocation.sticky == "interval":
            self.interval_id = str(allocation.interval_id)
        if self.assigner is None:
            self.fixed_reason = self.fixed_reason or DEFAULT_NO_ARM
        if record is None:
            return
        if newest_is_record:
            self.stopped = frozenset(arm.arm_id for arm in record.arms if arm.status in _OUT_OF_TRAFFIC)
        if allocation.segments:
            self.segmenter = _segmenter(record, allocation.definition_version)
            for segment in allocation.segments:
                assigner = assigner_from_allocation(allocation, segment)
                if assigner is not None:
                    self.segments[segment] = assigner


def _segmenter(record: ExperimentRecord, version: int) -> Segmenter:
    """Segments of a counting version; of one that is not known, none."""
    features = [each.features for each in record.versions if each.version == version]
    return Segmenter(features[0] if features else ())


def _default_arm(record: ExperimentRecord | None, allocation: Allocation | None, status: str) -> str | None:
    """Winner of a completed experiment, else the named default, else control; never an arm out of traffic."""
    if record is not None:
        wanted = [record.default_arm, record.control]
        if status == "completed":
            wanted.insert(0, record.winner or _winner(allocation))
        out = {arm.arm_id for arm in record.arms if arm.status in _OUT_OF_TRAFFIC}
        if allocation is not None and allocation.definition_revision >= record.revision:
            # What the allocator has stopped or dropped by itself is in the allocation only.
            out |= {arm.arm_id for arm in allocation.arms if arm.status in _OUT_OF_TRAFFIC}
        wanted += [arm.arm_id for arm in record.arms if arm.status in ("active", "incubating")]
    elif allocation is not None:
        wanted = [_winner(allocation), allocation.default_arm, allocation.control]
        out = {arm.arm_id for arm in allocation.arms if arm.status in _OUT_OF_TRAFFIC}
    else:
        return None
    return next((arm_id for arm_id in wanted if arm_id and arm_id not in out), None)


def _winner(allocation: Allocation | None) -> str | None:
    """Winner by a completed experiment's allocation, for an edge that has not seen its definition yet."""
    if allocation is None or allocation.status != "completed":
        return None
    return next((arm.arm_id for arm in allocation.arms if arm.assignment_weight == 1.0), None)


class DecisionTable:
    """Definitions and allocations in, decisions out.

    Parameters
    ----------
    max_age_ms
        An allocation published longer ago than this is stale: the default arm is served.
    clock_ms
        Milliseconds since the epoch, on the clock that publication times are on.

    Attributes
    ----------
    decided
        Number of decisions by reason.
    ignored_allocations
        Allocations that came with a version not greater than the one held.
    """

    def __init__(self, *, max_age_ms: int, clock_ms: Callable[[], int]) -> None:
        if max_age_ms <= 0:
            raise ValueError(f"max_age_ms: {max_age_ms} is not positive: every allocation would be stale")
        self.decided: Counter[str] = Counter()
        self.ignored_allocations = 0
        self._max_age_ms = max_age_ms
        self._clock_ms = clock_ms
        self._plans: dict[str, _Plan] = {}
        self._records: dict[str, ExperimentRecord] = {}
        self._allocations: dict[str, tuple[Allocation, int]] = {}

    def set_experiment(self, experiment_id: str, record: ExperimentRecord | None) -> None:
        """Take a definition; None removes the experiment."""
        held = self._records.get(experiment_id)
        if record is None:
            self._records.pop(experiment_id, None)
        elif held is None or record.revision >= held.revision:
            self._records[experiment_id] = record
        self._compile(experiment_id)

    def set_allocation(self, experiment_id: str, allocation: Allocation | None, published_ms: int) -> bool:
        """Take an allocation, unless one with an equal or greater version is held.

        Parameters
        ----------
        experiment_id
            Key of the record.
        allocation
            Its value; None (a tombstone) forgets the experiment's allocation.
        published_ms
            When it was published.

        Returns
        -------
        bool
            Whether it is the one served from now on.
        """
        held = self._allocations.get(experiment_id)
        if allocation is None:
            self._allocations.pop(experiment_id, None)
        elif held is not None and allocation.version <= held[0].version:
            if allocation.version == held[0].version and allocation.state != held[0].state:
                # The same table, whose successor is being computed: to be looked at, nothing to decide by.
                self._allocations[experiment_id] = (
                    structs.replace(held[0], state=allocation.state),
                    held[1],
                )
            else:
                self.ignored_allocations += 1
            return False
        else:
            self._allocations[experiment_id] = (allocation, published_ms)
        self._compile(experiment_id)
        return True

    def allocation(self, experiment_id: str) -> Allocation | None:
        """Return the allocation held for an experiment."""
        held = self._allocations.get(experiment_id)
        return None if held is None else held[0]

    def content(self, experiment_id: str, arm_id: str) -> str | None:
        """Return the content of an arm's version, as defined; None if it has none or is not known."""
        record = self._records.get(experiment_id)
        arm = None if record is None else record.arm(arm_id)
        return None if arm is None else arm.content

    def published_ms(self) -> dict[str, int]:
        """When the allocation held was published, by experiment."""
        return {experiment_id: held[1] for experiment_id, held in list(self._allocations.items())}

    def experiments(self) -> tuple[str, ...]:
        """Ids of all experiments with a definition or an allocation, sorted."""
        return tuple(sorted(self._plans))

    def decide(
        self,
        experiment_id: str,
        unit_id: str,
        context: dict[str, str] | None = None,
        default_arm: str | None = None,
    ) -> Decision:
        """Decide for one unit; see :meth:`streams.edge.EdgeClient.decide`."""
        plan = self._plans.get(experiment_id)
        if plan is None:
            return self._default(experiment_id, unit_id, context, default_arm, None, DEFAULT_UNKNOWN)
        if plan.fixed_reason is not None:
            segment, arm_id = "", plan.default_arm
            if plan.winners:
                segment = plan.segmenter.segment(context)[0]
                arm_id = plan.winners.get(segment, arm_id)
            return self._default(
                experiment_id, unit_id, context, arm_id, plan.version, plan.fixed_reason, segment
            )
        if self._clock_ms() - plan.published_ms > self._max_age_ms:
            return self._default(
                experiment_id, unit_id, context, plan.default_arm, plan.version, DEFAULT_STALE
            )
        segment = ""
        assigner = plan.assigner
        if plan.segments:
            segment = plan.segmenter.segment(context)[0]
            found = plan.segments.get(segment)
            if found is None:
                segment = ""
            else:
                assigner = found
        if assigner is None:
            return self._default(
                experiment_id, unit_id, context, plan.default_arm, plan.version, DEFAULT_NO_ARM
            )
        assignment = assigner.assign(unit_id, interval_id=plan.interval_id)
        arm = assignment.arm
        if arm is None:
            self.decided[COMPARISON] += 1
            return Decision(
                experiment_id=experiment_id,
                unit_id=unit_id,
                arm_id=None,
                propensity=assignment.propensity,
                allocation_version=plan.version,
                reason=COMPARISON,
                group="comparison",
                segment=segment,
                context=context,
            )
        arm_id = plan.arm_ids[arm]
        if arm_id in plan.stopped:
            return self._default(
                experiment_id, unit_id, context, plan.default_arm, plan.version, DEFAULT_STOPPED
            )
        reason = HOLDOUT if assignment.holdout else ALLOCATION
        self.decided[reason] += 1
        return Decision(
            experiment_id=experiment_id,
            unit_id=unit_id,
            arm_id=arm_id,
            propensity=assignment.propensity,
            allocation_version=plan.version,
            reason=reason,
            segment=segment,
            context=context,
        )

    def decide_many(
        self, experiment_ids: Iterable[str], unit_id: str, context: dict[str, str] | None = None
    ) -> dict[str, Decision]:
        """Decide on several experiments for one unit; see :meth:`streams.edge.EdgeClient.decide_many`."""
        decide = self.decide
        return {experiment_id: decide(experiment_id, unit_id, context) for experiment_id in experiment_ids}

    def _default(
        self,
        experiment_id: str,
        unit_id: str,
        context: dict[str, str] | None,
        arm_id: str | None,
        version: int | None,
        reason: str,
        segment: str = "",
    ) -> Decision:
        self.decided[reason] += 1
        return Decision(
            experiment_id=experiment_id,
            unit_id=unit_id,
            arm_id=arm_id,
            propensity=1.0,
            allocation_version=version,
            reason=reason,
            segment=segment,
            context=context,
        )

    def _compile(self, experiment_id: str) -> None:
        record = self._records.get(experiment_id)
        allocation, published_ms = self._allocations.get(experiment_id, (None, 0))
        if record is None and allocation is None:
            self._plans.pop(experiment_id, None)
        else:
            self._plans[experiment_id] = _Plan(record, allocation, published_ms)
