"""The audit: every allocation ever published, computed again from its inputs and compared byte for byte.

What: `PartitionAudit` (pure) takes the records of one partition of allocation-log in order and says what is
wrong: a record that does not decode, an allocation that names no claim, has a version of its own, goes back
to an earlier boundary, or whose weights do not add up to 1; and `recheck` compares a table with what its
inputs give. `audit` reads the topics, computes in batches, and compares the topic ``allocations`` with what
the log says it must have.

Allocations of another engine (an earlier version of the maths) are counted and not compared: the same
inputs may rightly give other bytes. Records that did not hold (a zombie's) are counted: they were never in
force.

Cost: O(records); about a millisecond of one core for each table of ten arms.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from streams.allocations import Allocation
from streams.allocator.compute import ENGINE, Computed, Failure, Job, Stamp, inputs_in
from streams.allocator.log import LogState, Outcome, versioned
from streams.allocator.pool import ComputePool
from streams.config import Settings
from streams.errors import RecordError
from streams.log_reader import LogReader, Record

__all__ = ["AuditReport", "Difference", "PartitionAudit", "Table", "audit", "first_difference"]

BATCH_MAX_TABLES = 1_024
DIFFERENCES_KEPT = 100
IN_FLIGHT_MS = 60_000  # an allocation logged this recently may be on its way to the topic allocations


class Difference(NamedTuple):
    """Something that is not as it must be, and where."""

    topic: str
    partition: int
    offset: int
    experiment_id: str
    what: str

    def __str__(self) -> str:
        name = f"experiment {self.experiment_id!r}: " if self.experiment_id else ""
        return f"{self.topic}-{self.partition}@{self.offset}: {name}{self.what}"


@dataclass
class AuditReport:
    """What an audit found; ``differences`` has a hundred of ``n_differences`` at most, sorted at the end."""

    claims: int = 0
    tables: int = 0
    compared: int = 0
    foreign: int = 0
    other_engine: int = 0
    experiments: int = 0
    n_differences: int = 0
    differences: list[Difference] = field(default_factory=list)

    def add(self, difference: Difference) -> None:
        """Note a difference."""
        self.n_differences += 1
        if len(self.differences) < DIFFERENCES_KEPT:
            self.differences.append(difference)

    @property
    def ok(self) -> bool:
        """Whether everything is as it must be."""
        return self.n_differences == 0


class Table(NamedTuple):
    """An allocation of the log that holds, to be computed again."""

    offset: int
    raw: bytes
    allocation: Allocation
    job: Job


class PartitionAudit:
    """Audits one partition of the log.

    Parameters
    ----------
    topic, partition
        Where the records stand, for messages.
    start
        Offset of the first record there is; claims before it cannot be checked.
    report
        Where counts and differences go.
    """

    def __init__(self, topic: str, partition: int, start: int, report: AuditReport) -> None:
        self.log = LogState()
        self.logged_ms: dict[str, int] = {}
        self._topic = topic
        self._partition = partition
        self._start = start
        self._report = report
        self._claims: set[int] = set()

    def _add(self, offset: int, experiment_id: str, what: str) -> None:
        self._report.add(Difference(self._topic, self._partition, offset, experiment_id, what))

    def take(self, record: Record) -> Table | None:
        """Check one record; return the table to be computed again, if it is one."""
        known = self.log.newest.get((record.key or b"").decode(errors="replace"))
        try:
            outcome = self.log.apply(record.offset, record.key, record.value)
        except RecordError as error:
            self._add(record.offset, "", error.what)
            return None
        if outcome is Outcome.CLAIM:
            self._report.claims += 1
            self._claims.add(record.offset)
            return None
        if outcome is Outcome.FOREIGN:
            self._report.foreign += 1
            return None
        self._report.tables += 1
        allocation = msgspec.json.decode(record.value or b"", type=Allocation)
        self.logged_ms[allocation.experiment_id] = record.timestamp
        self._check(record.offset, allocation, None if known is None else known.boundary_ms)
        return self._table(record.offset, record.value or b"", allocation)

    def _check(self, offset: int, allocation: Allocation, before_ms: int | None) -> None:
        name = allocation.experiment_id
        if allocation.claim >= self._start and allocation.claim not in self._claims:
            self._add(offset, name, f"names claim {allocation.claim}, where there is none")
        if allocation.version != 0:
            self._add(offset, name, f"version is {allocation.version}; in the log it is 0, its offset counts")
        if before_ms is not None and allocation.boundary_ms < before_ms:
            self._add(offset, name, f"boundary went back from {before_ms} to {allocation.boundary_ms}")
        if allocation.status != "archived":
            weights = [Decimal(repr(arm.weight)) for arm in allocation.arms]
            total = sum(weights, Decimal(repr(allocation.comparison)))
            if total != 1:
                self._add(offset, name, f"weights and comparison group add up to {total}, not to 1")

    def _table(self, offset: int, raw: bytes, allocation: Allocation) -> Table | None:
        if allocation.inputs.get("engine") != ENGINE:
            self._report.other_engine += 1
            return None
        try:
            inputs = inputs_in(allocation)
        except msgspec.ValidationError as error:
            self._add(offset, allocation.experiment_id, f"inputs are not of the expected form: {error}")
            return None
        stamp = Stamp(allocation.claim, allocation.trigger, allocation.computed_at_ms)
        return Table(offset, raw, allocation, Job(inputs, stamp))

    def recheck(self, table: Table, computed: Computed | Failure) -> None:
        """Compare a table with what its inputs give."""
        self._report.compared += 1
        name = table.allocation.experiment_id
        if isinstance(computed, Failure):
            self._add(table.offset, name, f"cannot be computed from its inputs: {computed.message}")
            return
        if computed.raw != table.raw:
            self._add(table.offset, name, first_difference(table.raw, computed.raw))

    def check_published(self, topic: str, newest: dict[str, Record], now_ms: int, end: int) -> None:
        """Compare the newest records of the topic ``allocations`` with the newest of the log that hold."""
        for name, published in sorted(self.log.newest.items()):
            found = newest.get(name)
            if found is None and published.archived:
                continue  # its tombstone has been compacted away
            wanted = None if published.archived else versioned(published.raw, published.version)
            if found is not None and found.value == wanted:
                continue
            if found and wanted and found.value == versioned(published.raw, published.version, "training"):
                continue
            if now_ms - self.logged_ms[name] < IN_FLIGHT_MS or (found and _version(found.value) >= end):
                continue
            what = f"the log's newest version is {published.version}, here is " + _said(found)
            where = (topic, self._partition, -1 if found is None else found.offset)
            self._report.add(Difference(*where, name, what))
        self._report.experiments += len(self.log.newest)


def _version(raw: bytes | None) -> int:
    try:
        return -1 if raw is None else msgspec.json.decode(raw, type=Allocation).version
    except msgspec.DecodeError:
        return -1


def _said(found: Record | None) -> str:
    if found is None:
        return "none"
    if found.value is None:
        return "a tombstone"
    return f"version {_version(found.value)} with other content or age"


def first_difference(published: bytes, computed: bytes) -> str:
    """Say which field differs first, and how."""
    pairs = zip(
        _leaves(msgspec.json.decode(published), "$"),
        _leaves(msgspec.json.decode(computed), "$"),
        strict=False,
    )
    for (path, one), (other_path, other) in pairs:
        if path != other_path:
            return f"has {path} where its inputs give {other_path}"
        if one != other or type(one) is not type(other):
            return f"{path} is {one!r}, its inputs give {other!r}"
    position = next(
        (i for i, (a, b) in enumerate(zip(published, computed, strict=False)) if a != b),
        min(len(published), len(computed)),
    )
    return f"bytes differ from position {position} on: {published[position : position + 40]!r}"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


async def audit(
    settings: Settings, *, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> AuditReport:
    """Audit all partitions of allocation-log and allocations as they are now.

    Parameters
    ----------
    settings
        Where the topics are.
    progress
        Called with records read and records there are.

    Raises
    ------
    TopicsMismatch, BrokerUnavailable, DeadlineExceeded
        If the topics cannot be read.
    """
    report = AuditReport()
    pool = ComputePool()
    log_topic, published_topic = settings.topic("allocation-log"), settings.topic("allocations")
    try:
        async with LogReader(settings) as reader:
            spans = await reader.spans(log_topic)
            audits = {
                partition: PartitionAudit(log_topic, partition, span.start, report)
                for partition, span in spans.items()
            }
            total = sum(span.end - span.start for span in spans.values())
            waiting: list[tuple[PartitionAudit, Table]] = []
            done = 0
            async for record in reader.read(log_topic):
                done += 1
                table = audits[record.partition].take(record)
                if table is not None:
                    waiting.append((audits[record.partition], table))
                if len(waiting) >= BATCH_MAX_TABLES:
                    await _recheck(pool, waiting)
                    waiting = []
                    progress(done, total)
            await _recheck(pool, waiting)
            progress(total, total)
            newest: dict[int, dict[str, Record]] = {partition: {} for partition in audits}
            async for record in reader.read(published_topic):
                newest[record.partition][(record.key or b"").decode(errors="replace")] = record
        now_ms = time.time_ns() // 1_000_000
        for partition, each in audits.items():
            each.check_published(published_topic, newest[partition], now_ms, spans[partition].end)
    finally:
        pool.close()
    report.differences.sort()
    return report


async def _recheck(pool: ComputePool, waiting: Sequence[tuple[PartitionAudit, Table]]) -> None:
    computed = await pool.compute([table.job for _, table in waiting])
    for (each, table), result in zip(waiting, computed, strict=True):
        each.recheck(table, result)
