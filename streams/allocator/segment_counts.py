"""Counts by segment, as a contextual model is fitted to them.

What: `context_inputs` asks the counts for the steering view's trials and rewards by segment and arm, and by
day where the definition wants days to have effects of their own.

Cost: O(segments * arms), and the cells of so many days.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from streams.allocator.counts_state import ArmCounts
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Factor

__all__ = ["ContextInputs", "SegmentCounts", "context_inputs"]

_NOTHING = ArmCounts(0, 0, 0, 0)


class ContextInputs(Struct, frozen=True, kw_only=True):
    """Counts by segment: per arm trials and sum of rewards; names and levels are as in the definition.

    An arm that is no combination of the factors has empty levels. ``days`` tells the same counts apart by the
    day of the exposure, the last day first and all older ones together at the end; empty where the definition
    does not want it.
    """

    features: tuple[tuple[str, tuple[str, ...]], ...]
    factors: tuple[tuple[str, tuple[str, ...]], ...]
    levels: dict[str, tuple[str, ...]]
    segments: dict[str, tuple[tuple[int, int], ...]] = {}
    days: tuple[dict[str, tuple[tuple[int, int], ...]], ...] = ()


class SegmentCounts(Protocol):
    """What is asked of the counts as of a boundary, by segment."""

    def by_segment(
        self, experiment_id: str, version: int, metric: str, hour: int
    ) -> Mapping[str, Mapping[str, ArmCounts]]:
        """Tell it apart by segment."""
        ...

    def by_segment_and_day(
        self, experiment_id: str, version: int, metric: str, hour: int, *, n_days: int
    ) -> Sequence[Mapping[str, Mapping[str, ArmCounts]]]:
        """Tell it apart by segment, and by the last days and all time before them."""
        ...


def context_inputs(
    record: ExperimentRecord, counting: Counting, counts: SegmentCounts, hour: int
) -> ContextInputs | None:
    """Gather what a contextual model is fitted to; None while there is nothing to fit."""
    wanted = (record.experiment_id, counting.version, counting.reward.metric, hour)
    by_segment = counts.by_segment(*wanted)
    if not any(arm.trials for arms in by_segment.values() for arm in arms.values()):
        return None
    n_days = int(record.policy.parameters.get("interval_days", 0))
    days = counts.by_segment_and_day(*wanted, n_days=n_days) if n_days else ()
    arms = record.arms
    arm_ids = [arm.arm_id for arm in arms]
    factors = record.factors if any(arm.levels for arm in arms) else ()
    return ContextInputs(
        features=tuple((each.name, each.levels) for each in sorted(counting.features, key=lambda f: f.name)),
        factors=tuple((factor.name, factor.levels) for factor in factors),
        levels={arm.arm_id: _levels(arm, factors) for arm in arms},
        segments=_segments(by_segment, arm_ids),
        days=tuple(_segments(day, arm_ids) for day in days),
    )


def _segments(
    counts: Mapping[str, Mapping[str, ArmCounts]], arm_ids: Sequence[str]
) -> dict[str, tuple[tuple[int, int], ...]]:
    segments = {}
    for segment in sorted(counts):
        found = [counts[segment].get(arm_id, _NOTHING) for arm_id in arm_ids]
        segments[segment] = tuple((got.trials, got.value_micros) for got in found)
    return segments


def _levels(arm: Arm, factors: Sequence[Factor]) -> tuple[str, ...]:
    """Levels of an arm; empty ones where it is no combination of the factors."""
    levels = tuple(arm.levels.get(factor.name, "") for factor in factors)
    known = all(level in factor.levels for level, factor in zip(levels, factors, strict=True))
    return levels if known else ("",) * len(factors)
