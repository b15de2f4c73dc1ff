"""Followers of the topics while a run goes on: what was there is known at the end, whatever is deleted.

Retention, trimming, truncation and re-creation take records away; the checks want all of them. Both
followers read through the broker's own listener, past the proxies.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.config import Settings
from streams.join.step import Verdict
from streams.state.journal import NO_POSITION, BatchRecord, Claim, Head, SweepRecord, decode, unpack
from streams.state.replay import ignored_because, next_head

SOURCES = ("exposures", "conversions")
Position = tuple[str, int, int]


class Follower(ABC):
    """Reads all partitions of some topics from their beginning on; an async context manager."""

    def __init__(self, settings: Settings, topics: tuple[str, ...]) -> None:
        self.settings = settings
        self.topics = {settings.topic(topic): topic for topic in topics}  # type: ignore[arg-type]  # names from SOURCES
        self.read_to: dict[TopicPartition, int] = {}
        self.failure: BaseException | None = None
        self._again: set[TopicPartition] = set()
        self._consumer: Any = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.bootstrap_servers,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=16 << 20,
        )
        await self._consumer.start()
        tps = [TopicPartition(name, n) for name in self.topics for n in range(self.settings.partitions)]
        self._consumer.assign(tps)
        self.read_to = dict.fromkeys(tps, 0)
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(asyncio.CancelledError):
            await self._consumer.stop()

    async def _follow(self) -> None:
        try:
            while True:
                try:
                    await self._poll()
                except (KafkaError, OSError):  # the broker is away: that is what runs are about
                    await asyncio.sleep(0.3)
        except Exception as error:
            self.failure = error
            raise

    async def _poll(self) -> None:
        for tp in list(self._again):
            starts = await self._consumer.beginning_offsets([tp])
            self._consumer.seek(tp, starts[tp])
            self._again.discard(tp)
            self.begin(tp)
        for tp, records in (await self._consumer.getmany(timeout_ms=200)).items():
            if tp in self._again:
                continue
            for record in records:
                self.take(tp, record)
                self.read_to[tp] = record.offset + 1

    def read_again(self, topic: str, partition: int) -> None:
        """Go back to the beginning of a partition: its log is not the one that was read."""
        self._again.add(TopicPartition(topic, partition))

    @abstractmethod
    def begin(self, tp: TopicPartition) -> None:
        """Called when reading starts at the beginning again."""

    @abstractmethod
    def take(self, tp: TopicPartition, record: Any) -> None:
        """Called with every record."""

    async def ends(self) -> dict[TopicPartition, int]:
        """End offsets as of now."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.bootstrap_servers)
        await consumer.start()
        try:
            return dict(await consumer.end_offsets(list(self.read_to)))
        finally:
            await consumer.stop()


class SourceWatch(Follower):
    """All records of the source topics, by topic (without prefix), partition and offset."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, SOURCES)
        self.records: dict[Position, Any] = {}

    def begin(self, tp: TopicPartition) -> None:
        """Nothing: sources are never made anew."""

    def take(self, tp: TopicPartition, record: Any) -> None:
        """Keep a record."""
        self.records[self.topics[tp.topic], tp.partition, record.offset] = record


class Skip(NamedTuple):
    """Source offsets ``[start, next)`` that were never read; ``start`` is -1 at the first claim."""

    start: int
    next: int
    journal_offset: int


class JournalWatch(Follower):
    """What the journals say, by the rules of replay, of records trimmed meanwhile, too.

    Where a log is read again from offset S, everything from S on replaces what was known of it.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, ("journal",))
        self.heads = dict.fromkeys(range(settings.partitions), Head())
        self.verdicts: dict[Position, tuple[int, Verdict]] = {}
        self.withdrawn: set[Position] = set()
        self.skips: dict[tuple[str, int], list[Skip]] = defaultdict(list)
        self.ignored: Counter[str] = Counter()
        self.owners: dict[int, set[str]] = defaultdict(set)
        self.n_claims = 0
        self.n_sweeps: Counter[int] = Counter()
        self.n_missed = 0
        self._beginning: set[int] = set(self.heads)

    def begin(self, tp: TopicPartition) -> None:
        """The next record is the first of the log."""
        self._beginning.add(tp.partition)

    def take(self, tp: TopicPartition, record: Any) -> None:
        """Apply a record to what is known."""
        number, offset, data = tp.partition, int(record.offset), unpack(record.value)
        entry = decode(data, where=f"journal[{number}] offset {offset}")
        if number in self._beginning or offset != self.heads[number].journal_offset:
            self._start(number, offset, entry)
        head = self.heads[number]
        reason = ignored_because(head, offset, entry)
        if reason is not None:
            self.ignored[reason] += 1
        elif isinstance(entry, BatchRecord):
            for verdict in entry.verdicts:
                self.verdicts[entry.topic, number, verdict.offset] = (offset, verdict)
            if entry.flag == "skip":
                self.skips[entry.topic, number].append(Skip(entry.start, entry.next, offset))
        elif isinstance(entry, Claim):
            self.n_claims += 1
            self.owners[number].add(entry.owner)
        elif isinstance(entry, SweepRecord) and entry.last:
            self.n_sweeps[number] += 1
        self.heads[number] = next_head(head, offset, entry, data_hash=b"", data_bytes=len(data))

    def _start(self, number: int, offset: int, entry: Any) -> None:
        known = self.heads[number].journal_offset
        if number not in self._beginning and offset > known:
            self.n_missed += offset - known
        self._beginning.discard(number)
        for position, (journal_offset, _) in list(self.verdicts.items()):
            if position[1] == number and journal_offset >= offset:
                del self.verdicts[position]
                self.withdrawn.add(position)
        for (topic, n), skips in self.skips.items():
            if n == number:
                self.skips[topic, n] = [skip for skip in skips if skip.journal_offset < offset]
        if offset == 0:
            self.heads[number] = Head()
            return
        head = entry.head if isinstance(entry, SweepRecord) else None
        assert head is not None, f"journal[{number}] starts at {offset}, which is no sweep's start"
        self.heads[number] = head

    def skipped(self) -> set[Position]:
        """Source positions that the journals say were never read."""
        return {
            (topic, number, offset)
            for (topic, number), skips in self.skips.items()
            for skip in skips
            for offset in range(max(0, skip.start if skip.start != NO_POSITION else 0), skip.next)
        }
