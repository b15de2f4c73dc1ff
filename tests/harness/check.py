"""Exact checks of what workers have made of the topics: positions, counts against the oracle, the account.

The journal is followed from its first record on, as it is written: sweeps trim it, and the verdicts of
trimmed records are wanted at the end.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.config import Settings
from streams.demo.verification import add_cells, read_counts
from streams.experiments.definition import ExperimentRecord
from streams.join.cells import Cell, CellKey
from streams.join.step import Limits, Verdict
from streams.log_reader import LogReader
from streams.oracle import EventRow, check_verdicts, compute_cells, read_row
from streams.state.journal import BatchRecord, Head, decode, unpack
from streams.state.replay import ignored_because, next_head
from tests.harness.workers import until

SOURCES = ("exposures", "conversions")
Position = tuple[str, int, int]


class JournalWatch:
    """Follows all journal partitions by the rules of replay; an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self.heads = dict.fromkeys(range(settings.partitions), Head())
        self.verdicts: dict[Position, Verdict] = {}
        self.ignored: Counter[str] = Counter()
        self.claims = 0

    async def __aenter__(self) -> Self:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._settings.bootstrap_servers,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=16 << 20,
        )
        await self._consumer.start()
        name = self._settings.topic("journal")
        self._consumer.assign([TopicPartition(name, number) for number in self.heads])
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.stop()

    async def _follow(self) -> None:
        assert self._consumer is not None
        while True:
            for tp, records in (await self._consumer.getmany(timeout_ms=200)).items():
                for record in records:
                    self._take(tp.partition, record.offset, unpack(record.value))

    def _take(self, number: int, offset: int, data: bytes) -> None:
        head = self.heads[number]
        record = decode(data, where=f"journal[{number}] offset {offset}")
        assert offset == head.journal_offset, (
            f"journal[{number}]: read {offset} after {head.journal_offset - 1}"
        )
        reason = ignored_because(head, offset, record)
        if reason is not None:
            self.ignored[reason] += 1
        elif isinstance(record, BatchRecord):
            self.verdicts.update(
                {(record.topic, number, verdict.offset): verdict for verdict in record.verdicts}
            )
        self.claims += record is not None and not isinstance(record, BatchRecord) and hasattr(record, "owner")
        self.heads[number] = next_head(head, offset, record, data_hash=b"", data_bytes=len(data))

    def failed(self) -> BaseException | None:
        """What ended the following, if anything did."""
        return self._task.exception() if self._task is not None and self._task.done() else None

    def totals(self) -> Counter[str]:
        """Totals of all partitions."""
        total: Counter[str] = Counter()
        for head in self.heads.values():
            total.update(head.totals)
        return total

    def pending(self) -> int:
        """Waiting conversions of all partitions."""
        return sum(head.pending for head in self.heads.values())


class Sources(NamedTuple):
    """All records of the source topics, and where they end."""

    rows: Mapping[str, list[EventRow]]
    n_records: Counter[tuple[str, int]]


async def read_sources(settings: Settings) -> Sources:
    """Read both source topics whole."""
    rows: dict[str, list[EventRow]] = {}
    n_records: Counter[tuple[str, int]] = Counter()
    async with LogReader(settings) as reader:
        for topic in SOURCES:
            rows[topic] = []
            async for r in reader.read(
                settings.topic("exposures" if topic == "exposures" else "conversions")
            ):
                n_records[topic, r.partition] += 1
                rows[topic].append(
                    read_row(topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
                )
    return Sources(rows, n_records)


async def wait_drained(settings: Settings, watch: JournalWatch, deadline_s: float) -> None:
    """Wait until the journals have reached the ends of the sources (re-routed records included)."""
    async with LogReader(settings) as reader:

        async def drained() -> bool:
            if (error := watch.failed()) is not None:
                raise error
            for topic in SOURCES:
                name = settings.topic("exposures" if topic == "exposures" else "conversions")
                spans = await reader.spans(name)
                for number, span in spans.items():
                    if watch.heads[number].positions.get(topic, 0) < span.end:
                        return False
            return True

        await until(drained, deadline_s=deadline_s, what="every source record is in the journal")


def limits_of(settings: Settings) -> Limits:
    """Limits of the join that these settings give."""
    return Limits(
        n_partitions=settings.partitions,
        grace_ms=settings.grace_ms,
        max_ahead_ms=settings.max_ahead_ms,
        unit_max_events=settings.unit_max_events,
    )


def account(watch: JournalWatch, sources: Sources) -> list[str]:
    """Check that every record read has exactly one outcome, and every conversion one fate; what differs."""
    problems = []
    for number, head in watch.heads.items():
        for topic in SOURCES:
            outcomes = {
                name: n
                for name, n in head.totals.items()
                if name.startswith(f"{topic}/") and name.split("/")[1] not in {"attributed", "expired"}
            }
            if sum(outcomes.values()) != sources.n_records[topic, number]:
                problems.append(
                    f"{topic}[{number}]: {sources.n_records[topic, number]} records, outcomes {outcomes}"
                )
    totals, pending = watch.totals(), watch.pending()
    fates = totals["conversions/attributed"] + totals["conversions/expired"] + pending
    if fates != totals["conversions/accepted"]:
        problems.append(
            f"accepted {totals['conversions/accepted']}, attributed + expired + pending = {fates}"
        )
    return problems


def differences(counted: Mapping[CellKey, Cell], expected: Mapping[CellKey, Cell]) -> list[str]:
    """Cells that differ, both ways."""
    return [
        f"{key}: counted {counted.get(key)}, the oracle says {expected.get(key)}"
        for key in sorted(counted.keys() | expected.keys())
        if counted.get(key) != expected.get(key)
    ]


async def verify(
    settings: Settings,
    watch: JournalWatch,
    experiments: list[ExperimentRecord],
    *,
    deadline_s: float = 120.0,
) -> Counter[str]:
    """Drain; require that counts equal the oracle's, verdicts hold and the account closes; the totals."""
    await wait_drained(settings, watch, deadline_s)
    sources = await read_sources(settings)
    limits, rows = limits_of(settings), sources.rows
    expected = add_cells(
        [compute_cells(rows["exposures"], rows["conversions"], experiments, watch.verdicts.keys(), limits)]
    )
    found: list[str] = []

    async def equal() -> bool:
        async with LogReader(settings) as reader:
            counted = await read_counts(settings, reader)
        found[:] = differences(counted.cells, expected)
        return not found

    try:
        await until(equal, deadline_s=20, what="counts equal the oracle", poll_s=0.5)
    except AssertionError as error:
        raise AssertionError(
            f"{error}: {len(found)} cells differ, the first are\n" + "\n".join(found[:10])
        ) from None
    reasons = {position: verdict.reason for position, verdict in watch.verdicts.items()}
    problems = check_verdicts(rows["exposures"], rows["conversions"], experiments, reasons, limits)
    problems += account(watch, sources)
    assert not problems, "\n".join(problems[:20])
    assert expected, "nothing was counted: the check would be empty"
    return watch.totals()
