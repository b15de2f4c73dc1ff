"""What both parts of the demo do: wait until all is counted and allocated, check it, and sum it up.

What: :func:`until_counted` and :func:`until_allocated` follow the worker by what it publishes,
:func:`take_stock` reads the topics and compares with the oracle, and :class:`PartSummary` is one part's share
of the last line.

Why by progress: a wait fails when nothing has moved for a while, not after a fixed time, because nobody knows
how long a file is; and it fails at once when the worker has ended.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from streams.allocations import Allocation, decode_allocation
from streams.allocator.log import LogState, Outcome
from streams.config import Settings
from streams.deadletters import Filter, read_letters
from streams.demo.installation import Installation
from streams.demo.progress import Narrator
from streams.demo.verification import Counted, Journalled, compare_with_oracle, read_counts, read_journal
from streams.edge import EdgeClient
from streams.errors import DeadlineExceeded, RecordError
from streams.experiments.definition import ExperimentRecord
from streams.join.cells import HOUR_MS
from streams.join.step import END_MS
from streams.log_reader import LogReader

__all__ = ["PartSummary", "Stock", "last_boundaries", "take_stock", "until_allocated", "until_counted"]

_SILENCE_S: Final = 60.0
_POLL_S: Final = 0.01
_COUNTS_POLL_S: Final = 0.25


class PartSummary(Struct, frozen=True, kw_only=True):
    """Figures of one part, or of the whole demo.

    Attributes
    ----------
    events
        Records read by the worker from the two source topics, markers aside: ``exposures + conversions``.
    trials, successes
        Of the decision metrics, in the view that steers.
    duplicates, dead_letters
        Events not counted: the same id again, and rejected ones.
    allocations
        Allocations of interval boundaries.
    counts_equal_oracle
        Whether every cell equals the oracle's.
    seconds
        Wall clock.
    """

    events: int
    exposures: int
    conversions: int
    trials: int
    successes: int
    duplicates: int
    dead_letters: int
    allocations: int
    counts_equal_oracle: bool
    seconds: float


class Stock(Struct, frozen=True, kw_only=True):
    """What is in the topics at the end of a part.

    Attributes
    ----------
    journalled, counted
        Verdicts and totals; cells.
    differences
        Cells that differ from the oracle's, in words; empty if all are equal.
    allocations
        Every allocation that holds, by experiment, oldest first; the version is filled in.
    letters
        Distinct dead letters in their topic, by reason.
    """

    journalled: Journalled
    counted: Counted
    differences: tuple[str, ...]
    allocations: dict[str, list[Allocation]]
    letters: dict[str, int]

    def outcome(self, outcome: str, topic: str = "") -> int:
        """Return the number of records of an outcome, of one source topic or of both."""
        return sum(
            count
            for name, count in self.journalled.totals.items()
            if name.split("/")[1] == outcome and name.startswith(topic)
        )

    def events(self, topic: str) -> int:
        """Return the number of records of a source topic that are events: no markers."""
        kinds = ("accepted", "duplicate", "dead_letter", "test", "archived", "rerouted")
        return sum(self.outcome(kind, topic + "/") for kind in kinds)

    def summary(self, records: Sequence[ExperimentRecord], seconds: float) -> PartSummary:
        """Sum up the part."""
        metrics = {record.experiment_id: record.versions[-1].reward.metric for record in records}
        steering = {
            key: cell
            for key, cell in self.counted.cells.items()
            if key.view == "steering" and key.metric == metrics.get(key.experiment_id)
        }
        intervals = [a for history in self.allocations.values() for a in history if a.trigger == "interval"]
        exposures, conversions = self.events("exposures"), self.events("conversions")
        return PartSummary(
            events=exposures + conversions,
            exposures=exposures,
            conversions=conversions,
            trials=sum(cell.trials for cell in steering.values()),
            successes=sum(lag.successes for cell in steering.values() for lag in cell.lags.values()),
            duplicates=self.outcome("duplicate"),
            dead_letters=self.outcome("dead_letter"),
            allocations=len(intervals),
            counts_equal_oracle=not self.differences,
            seconds=round(seconds, 1),
        )


async def until_counted(installation: Installation, n_events: int, reach: Callable[[int], None]) -> Counted:
    """Wait until the worker has counted the whole stream, up to its end marker.

    Parameters
    ----------
    installation
        Where the worker runs.
    n_events
        Records to expect, for the progress.
    reach
        Told how many records the worker has read.

    Raises
    ------
    WorkerFailed, DeadlineExceeded
        The worker ended, or nothing moved for a minute.
    """
    settings = installation.settings
    last, moved_at = -1, time.monotonic()
    async with LogReader(settings) as reader:
        while True:
            installation.require_alive()
            n_read = await installation.events_read()
            reach(min(n_read, n_events))
            if n_read >= n_events:
                counted = await read_counts(settings, reader)
                ended = [p for p, at_ms in counted.watermarks_ms.items() if at_ms >= END_MS]
                if len(ended) == settings.partitions:
                    return counted
            if n_read > last:
                last, moved_at = n_read, time.monotonic()
            elif time.monotonic() - moved_at > _SILENCE_S:
                raise DeadlineExceeded(
                    f"worker has read {n_read:,} of {n_events:,} records, and none for {_SILENCE_S:.0f} s",
                    where=settings.topic("counts"),
                    action=f"read {installation.log_file}",
                )
            await asyncio.sleep(_COUNTS_POLL_S)


async def until_allocated(
    installation: Installation,
    edges: Sequence[EdgeClient],
    boundaries_ms: Mapping[str, int],
    reach: Callable[[int], None] = lambda _: None,
) -> None:
    """Wait until every edge has the allocation of a boundary, or of a later one, for every experiment.

    Parameters
    ----------
    installation
        Where the worker runs.
    edges
        Clients that must have it.
    boundaries_ms
        By experiment.
    reach
        Told the least boundary that any edge has.

    Raises
    ------
    WorkerFailed, DeadlineExceeded
        The worker ended, or nothing moved for a minute.
    """
    last: dict[str, int] = {}
    moved_at = time.monotonic()
    while True:
        held = {name: min(_boundary_ms(edge.allocation(name)) for edge in edges) for name in boundaries_ms}
        if held:
            reach(min(held.values()))
        missing = {name: at_ms for name, at_ms in boundaries_ms.items() if held[name] < at_ms}
        if not missing:
            return
        installation.require_alive()
        if held != last:
            last, moved_at = held, time.monotonic()
        elif time.monotonic() - moved_at > _SILENCE_S:
            wanted = ", ".join(f"{name} up to {at_ms} (has {held[name]})" for name, at_ms in missing.items())
            raise DeadlineExceeded(
                f"no new allocation for {_SILENCE_S:.0f} s; missing {wanted}",
                where=installation.settings.topic("allocations"),
                action=f"read {installation.log_file}",
            )
        await asyncio.sleep(_POLL_S)


def _boundary_ms(allocation: Allocation | None) -> int:
    return -1 if allocation is None else allocation.boundary_ms


def last_boundaries(counted: Counted, records: Sequence[ExperimentRecord]) -> dict[str, int]:
    """Return the first boundary after the last data of every experiment that has any."""
    intervals = {record.experiment_id: record.policy.interval_ms for record in records}
    last_hours: dict[str, int] = {}
    for key, cell in counted.cells.items():
        last_hour = key.bucket + max(cell.lags, default=0)
        last_hours[key.experiment_id] = max(last_hour, last_hours.get(key.experiment_id, 0))
    boundaries = {}
    for experiment_id, hour in last_hours.items():
        interval_ms = intervals[experiment_id]
        boundaries[experiment_id] = -(-(hour + 1) * HOUR_MS // interval_ms) * interval_ms
    return boundaries


async def take_stock(settings: Settings, records: Sequence[ExperimentRecord], narrator: Narrator) -> Stock:
    """Read every topic, compare with the oracle, and say the accounts."""
    async with LogReader(settings) as reader:
        with narrator.step("reading journal, counts and allocation log back from Kafka"):
            journalled = await read_journal(settings, reader)
            counted = await read_counts(settings, reader)
            allocations = await _read_allocations(settings, reader)
            letters = await _count_letters(settings, reader)
        with narrator.step("counting the same topics with DuckDB"):
            differences = await compare_with_oracle(settings, reader, records, journalled, counted)
    return Stock(
        journalled=journalled,
        counted=counted,
        differences=tuple(differences),
        allocations=allocations,
        letters=letters,
    )


async def _read_allocations(settings: Settings, reader: LogReader) -> dict[str, list[Allocation]]:
    """Read every allocation that holds, in the order of the log."""
    states: dict[int, LogState] = {}
    history: dict[str, list[Allocation]] = {}
    async for entry in reader.read(settings.topic("allocation-log")):
        state = states.setdefault(entry.partition, LogState())
        if state.apply(entry.offset, entry.key, entry.value) is Outcome.HOLDS:
            allocation = replace(decode_allocation(entry.value or b""), version=entry.offset)
            history.setdefault(allocation.experiment_id, []).append(allocation)
    return history


async def _count_letters(settings: Settings, reader: LogReader) -> dict[str, int]:
    problems: list[RecordError] = []
    letters: dict[str, int] = {}
    async for stored in read_letters(reader, settings.topic("dead-letters"), Filter(), problems):
        letters[stored.letter.reason] = letters.get(stored.letter.reason, 0) + 1
    return letters
