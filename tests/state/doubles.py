"""A journal in memory or in a file that does, at an exact step, what Kafka does once in a blue moon.

And a join small enough to check by hand: a unit's state is the number of its records per topic, a cell is the
number of records of all units with the same first letter, and a record whose value is ``bad`` is a verdict.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from enum import StrEnum, auto
from pathlib import Path

from streams.join.step import Batch, SourceRecord, StepResult, Verdict
from streams.state.errors import JournalAppendError, JournalGap, JournalReadError
from streams.state.journal import JournalLog
from streams.state.owner import Committed, Fenced, Owner, OwnerLimits, Redo
from streams.state.partition import Partition


class Fault(StrEnum):
    """What the next append does instead of writing once and acknowledging."""

    LOST = auto()  # not written, error
    ACK_LOST = auto()  # written, error
    TWICE = auto()  # written twice, first offset acknowledged
    DELAYED = auto()  # error now; written by `release()`
    NO_OFFSET = (
        auto()
    )  # written, acknowledged without an offset (as for a duplicate of an idempotent producer)
    FOREIGN_FIRST = auto()  # somebody else's bytes come first
    FOREIGN_AFTER = auto()  # somebody else's bytes come right behind
    TIME_OUT_FOREVER = auto()  # never answers


class MemoryLog:
    """One journal partition; ``faults`` are used up in order, then everything works."""

    def __init__(self, records: Sequence[bytes] = (), *, name: str = "journal[0]") -> None:
        self.name = name
        self.records = list(records)
        self.start = 0
        self.faults: list[Fault | None] = []  # None: works
        self.delayed: list[bytes] = []
        self.reads = 0
        self.before_append: Callable[[], None] = lambda: None
        self.after_append: Callable[[], None] = lambda: None

    def _write(self, data: bytes) -> int:
        self.records.append(data)
        return len(self.records) - 1

    async def append(self, data: bytes, *, timeout_s: float) -> int:  # noqa: ARG002 - protocol
        self.before_append()
        match self.faults.pop(0) if self.faults else None:
            case Fault.LOST:
                raise JournalAppendError("lost", where=self.name)
            case Fault.ACK_LOST:
                self._write(data)
                raise JournalAppendError("acknowledgement lost", where=self.name)
            case Fault.TWICE:
                offset = self._write(data)
                self._write(data)
            case Fault.DELAYED:
                self.delayed.append(data)
                raise JournalAppendError("timed out", where=self.name)
            case Fault.NO_OFFSET:
                self._write(data)
                offset = -1
            case Fault.FOREIGN_FIRST:
                self._write(b"not a journal record")
                offset = self._write(data)
            case Fault.FOREIGN_AFTER:
                offset = self._write(data)
                self._write(b"not a journal record")
            case Fault.TIME_OUT_FOREVER:
                await asyncio.Event().wait()
                raise AssertionError
            case _:
                offset = self._write(data)
        self.after_append()
        return offset

    async def read(self, from_offset: int, to_offset: int) -> AsyncGenerator[tuple[int, bytes], None]:
        self.reads += 1
        if from_offset < self.start:
            raise JournalGap(f"starts at {self.start}, not {from_offset}", where=self.name)
        if to_offset > len(self.records):
            raise JournalReadError(f"ends at {len(self.records)}, not {to_offset}", where=self.name)
        for offset in range(from_offset, to_offset):
            yield offset, self.records[offset]

    async def start_offset(self) -> int:
        return self.start

    async def end_offset(self) -> int:
        return len(self.records)

    async def delete_before(self, offset: int) -> None:
        assert offset <= len(self.records)
        self.start = max(self.start, offset)

    def release(self) -> None:
        """Write what was delayed, as a paused producer does when it wakes up."""
        while self.delayed:
            self._write(self.delayed.pop(0))

    def truncate(self, end: int) -> None:
        del self.records[end:]

    def recreate(self) -> None:
        self.records.clear()
        self.start = 0


class FileLog(MemoryLog):
    """A journal in a file, so that it outlives a process that kills itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        data = path.read_bytes() if path.exists() else b""
        while data:
            size = int.from_bytes(data[:4], "big")
            self.records.append(data[4 : 4 + size])
            data = data[4 + size :]

    def _write(self, data: bytes) -> int:
        with self._path.open("ab") as file:
            file.write(len(data).to_bytes(4, "big") + data)
        return super()._write(data)


TOPICS = ("exposures", "conversions")


class Source:
    """The two source topics of one partition."""

    def __init__(self, *, n: int = 40, units: int = 7, bad_every: int = 9) -> None:
        self.records = {
            topic: [
                SourceRecord(i, f"{chr(97 + (i * step) % units)}-unit".encode(), value, 1_000 + i)
                for i in range(n)
                for value in (b"bad" if i % bad_every == bad_every - 1 else b"good",)
            ]
            for topic, step in zip(TOPICS, (1, 3), strict=True)
        }

    def batch(self, topic: str, start: int, size: int) -> Batch:
        records = self.records[topic][start : start + size]
        return Batch(topic=topic, partition=0, start=start, next=start + len(records), records=records)

    def expected(self, positions: dict[str, int]) -> tuple[dict[bytes, bytes], dict[bytes, bytes], int]:
        """Units, cells and verdicts after exactly the records below the positions."""
        units: dict[bytes, Counter[str]] = {}
        cells: Counter[bytes] = Counter()
        bad = 0
        for topic, end in positions.items():
            for record in self.records[topic][:end]:
                assert record.key is not None
                if record.value == b"bad":
                    bad += 1
                    continue
                units.setdefault(record.key, Counter())[topic] += 1
                cells[record.key[:1]] += 1
        return (
            {key: _state(counts) for key, counts in units.items()},
            {key: str(count).encode() for key, count in cells.items()},
            bad,
        )


def _state(counts: Counter[str]) -> bytes:
    return ",".join(f"{topic}={counts[topic]}" for topic in TOPICS if counts[topic]).encode()


def _parse(state: bytes | None) -> Counter[str]:
    counts: Counter[str] = Counter()
    for part in (state or b"").decode().split(",") if state else ():
        topic, _, count = part.partition("=")
        counts[topic] = int(count)
    return counts


def count_step(partition: Partition, batch: Batch) -> StepResult:
    """Count a batch's records per unit and per first letter."""
    good = [record for record in batch.records if record.value != b"bad"]
    bad = [record for record in batch.records if record.value == b"bad"]
    keys = sorted({record.key or b"" for record in good})
    letters = sorted({key[:1] for key in keys})
    units = dict(zip(keys, map(_parse, partition.get_units(keys)), strict=True))
    cells = {k: int(v or b"0") for k, v in zip(letters, partition.get_cells(letters), strict=True)}
    for record in good:
        assert record.key is not None
        units[record.key][batch.topic] += 1
        cells[record.key[:1]] += 1
    head = partition.head
    rejected = f"{batch.topic}/dead_letter/undecodable"
    accepted = f"{batch.topic}/accepted"
    return StepResult(
        units={key: _state(counts) for key, counts in units.items()},
        cells={key: str(count).encode() for key, count in cells.items()},
        verdicts=[Verdict(record.offset, "undecodable", "$", "bad") for record in bad],
        reroutes=[],
        maxima={batch.topic: max(record.timestamp_ms for record in batch.records)},
        totals={
            accepted: head.totals.get(accepted, 0) + len(good),
            rejected: head.totals.get(rejected, 0) + len(bad),
        },
        pending=head.pending,
        unknown_experiments=set(),
    )


async def always_fresh() -> bool:
    return True


def make_owner(partition: Partition, log: JournalLog, *, name: str = "w1", **overrides: object) -> Owner:
    """Owner with short bounds and a clock that stands."""
    options: dict[str, object] = {
        "heartbeat_fresh": always_fresh,
        "clock_ms": lambda: 1_700_000_000_000,
        "limits": OwnerLimits(append_timeout_s=5.0, claim_deadline_s=5.0, claim_backoff_s=0.0),
    }
    return Owner(partition, log, name=name, **{**options, **overrides})  # type: ignore[arg-type] # tests only


async def take(owner: Owner, source: Source, *, generation: int = 1) -> None:
    """Claim and set the first positions, as a worker does on assignment."""
    claimed = await owner.claim(generation)
    assert not isinstance(claimed, Fenced), claimed
    await check_sources(owner, source)


async def check_sources(owner: Owner, source: Source) -> None:
    for topic in TOPICS:
        while isinstance(await owner.check_source(topic, 0, len(source.records[topic])), Redo):
            pass


async def commit_next(owner: Owner, source: Source, topic: str, size: int = 7) -> Committed | Redo | Fenced:
    """Step and commit the next batch of a topic."""
    batch = source.batch(topic, owner.partition.head.positions[topic], size)
    outcome = await owner.commit(count_step(owner.partition, batch), batch)
    assert isinstance(outcome, Committed | Redo | Fenced)
    return outcome


async def run_to_end(owner: Owner, source: Source, size: int = 7) -> None:
    """Commit until both topics are read, going on after every redo."""
    for topic in TOPICS:
        while owner.partition.head.positions.get(topic, 0) < len(source.records[topic]):
            if topic not in owner.partition.head.positions:
                await check_sources(owner, source)
            outcome = await commit_next(owner, source, topic, size)
            assert not isinstance(outcome, Fenced), outcome


def content(partition: Partition) -> dict[bytes, bytes]:
    """Everything that the journal decides: all entries but the local one."""
    return {key: value for key, value in partition.scan(b"") if key != b"l"}


def check(partition: Partition, source: Source) -> None:
    """The state is exactly that of the records below the positions, each counted once."""
    units, cells, bad = source.expected(partition.head.positions)
    assert dict(partition.units()) == units
    assert dict(partition.cells()) == cells
    counted = sum(n for outcome, n in partition.head.totals.items())
    assert counted == sum(partition.head.positions.values())
    assert sum(n for outcome, n in partition.head.totals.items() if "dead_letter" in outcome) == bad
