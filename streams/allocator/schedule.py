"""Which allocations are due. Pure: watermark and time are arguments.

Boundaries are the multiples of the experiment's interval on the clock. ``[B - interval, B)`` is closed

- clock ``stream``: when every source partition's watermark has reached B. Every missed boundary is due, one
  after another, from the first hour with data on; the end of a replayed stream closes up to the first
  boundary after the last data, not up to infinity.
- clock ``wall``: the same, but never before B has come; and ``settle_ms`` after B in any case, so that a
  source partition that hangs does not hold up allocations. Only the newest boundary is due; those in between
  are counted as skipped.

A change of the definition is due at once, with the evidence as of the boundary already used: a boundary
never goes back, not even when the interval becomes longer.

Cost: O(1), or O(boundaries due).
"""

from typing import Literal, NamedTuple

from streams.allocations import Trigger
from streams.allocator.counts_state import CountsState
from streams.experiments.definition import ExperimentRecord
from streams.join.cells import HOUR_MS
from streams.join.step import END_MS

__all__ = ["Due", "Handled", "Now", "due", "next_boundary_ms"]


class Now(NamedTuple):
    """What time it is, for one partition of the counts."""

    clock: Literal["wall", "stream"]
    watermark_ms: int | None
    wall_ms: int
    settle_ms: int

    @property
    def ended(self) -> bool:
        """Whether the replayed stream has ended."""
        return self.watermark_ms is not None and self.watermark_ms >= END_MS

    def closed_ms(self) -> int | None:
        """Time up to which intervals are closed; None if nothing is known to be complete."""
        if self.clock == "stream":
            return self.watermark_ms
        settled_ms = self.wall_ms - self.settle_ms
        if self.watermark_ms is None:
            return settled_ms
        return max(settled_ms, min(self.watermark_ms, self.wall_ms))


class Handled(NamedTuple):
    """Where an experiment's allocations stand: what was published last, or could not be computed since."""

    boundary_ms: int
    definition_revision: int
    status: str


class Due(NamedTuple):
    """Boundaries to be computed, ascending, and how many were passed over."""

    boundaries_ms: tuple[int, ...]
    trigger: Trigger
    skipped: int = 0


_NOTHING = Due((), "interval")


def next_boundary_ms(boundary_ms: int, interval_ms: int) -> int:
    """First boundary after ``boundary_ms``, aligned to the clock."""
    return (boundary_ms // interval_ms + 1) * interval_ms


def due(
    record: ExperimentRecord,
    handled: Handled | None,
    now: Now,
    counts: CountsState,
    *,
    limit: int,
) -> Due:
    """Return what is due for one experiment.

    Parameters
    ----------
    record
        The definition.
    handled
        Where its allocations stand; None if there never was one.
    now
        Watermark and wall clock.
    counts
        Asked for the experiment's first and last hours with data; on the clock ``stream`` only.
    limit
        Most boundaries at a time; the rest is due again afterwards.
    """
    if record.status == "draft":
        return _NOTHING
    if record.status == "archived":
        if handled is None or handled.status == "archived":
            return _NOTHING
        return Due((handled.boundary_ms,), "change")
    interval_ms = record.policy.interval_ms
    if handled is None:
        return Due((_first_ms(record, now) // interval_ms * interval_ms,), "change")
    found = _closed_boundaries(record, handled.boundary_ms, now, counts)
    if found:
        if now.clock == "stream":
            return Due(tuple(found[:limit]), "interval")
        return Due((found[-1],), "interval", skipped=len(found) - 1)
    if handled.definition_revision != record.revision:
        return Due((handled.boundary_ms,), "change")
    return _NOTHING


def _first_ms(record: ExperimentRecord, now: Now) -> int:
    """Time of an experiment's first allocation: its start, or now where the clock is the wall's."""
    if now.clock == "wall":
        return now.wall_ms - now.settle_ms
    return min(version.effective_from_ms for version in record.versions)


def _closed_boundaries(record: ExperimentRecord, after_ms: int, now: Now, counts: CountsState) -> range:
    interval_ms = record.policy.interval_ms
    closed_ms = now.closed_ms()
    first_ms = next_boundary_ms(after_ms, interval_ms)
    if closed_ms is None or closed_ms < first_ms:
        return range(0)
    if now.clock == "stream":
        first_hour = counts.first_hour(record.experiment_id)
        if first_hour is None:
            return range(0)
        # Before the first hour with data there is nothing that an allocation could have learned.
        first_ms = max(first_ms, next_boundary_ms(first_hour * HOUR_MS, interval_ms))
        if now.ended:
            last_hour = counts.last_hour(record.experiment_id)
            after_last_ms = (first_hour if last_hour is None else last_hour + 1) * HOUR_MS
            closed_ms = next_boundary_ms(after_last_ms - 1, interval_ms)
    return range(first_ms, closed_ms + 1, interval_ms)
