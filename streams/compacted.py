"""The whole of a compacted topic in memory: read from the beginning, then followed.

A :class:`CompactedView` has no consumer group and commits nothing: whoever starts it reads every partition it
was given from the first record to the end, and from then on sees each change some milliseconds after it was
written. It is what workers and edges share for definitions and allocations.

Freshness is measured, not assumed: ``age_ms`` is the time since a broker last *answered* that there is
nothing newer, for the stalest partition. A view whose broker has gone away, or that lags, grows older
although polling goes on.

What cannot be decoded never stops the view: the last good value of its key stays, and the problem is kept
until a good record with that key arrives.

Cost: O(records in the topic) to start, O(keys) memory, one fetch each half second when idle. Belongs to one
event loop; nothing here is safe to call from other threads, except reading a ``snapshot``.
"""

import asyncio
import logging
import time
from collections.abc import Callable, ItemsView, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from streams.config import Settings, TopicName
from streams.errors import BrokerUnavailable, DeadlineExceeded, RecordError
from streams.read_progress import ReadProgress, last_answer
from streams.topics import CHECK_COMMAND, topic_specs

K = TypeVar("K")
V = TypeVar("V")

POLL_MS = 200
RETRY_S = 0.5
START_DEADLINE_MS = 60_000

log = logging.getLogger(__name__)


class ViewStatistics(NamedTuple):
    """Figures of a view: entries, records read, undecodable keys, age since the last answer at the end."""

    entries: int
    revision: int
    problems: int
    age_ms: float


class CompactedView(Generic[K, V]):
    """Newest value of every key of a compacted topic.

    Parameters
    ----------
    settings
        Addresses, security, topic names and partition counts.
    role
        The topic, without prefix.
    decode_key
        Key bytes to key.
    decode_value
        Key and value bytes to value. Both raise :class:`~streams.errors.RecordError` (or ``ValueError``) for
        what they cannot read.
    partitions
        Partitions to read; all of them by default.
    supersedes
        ``supersedes(new, old)`` is false for a record that must not replace the value held; by default the
        later record in the log always does.
    monotonic
        Clock for ages, in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        role: TopicName,
        *,
        decode_key: Callable[[bytes], K],
        decode_value: Callable[[K, bytes], V],
        partitions: Sequence[int] | None = None,
        supersedes: Callable[[V, V], bool] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.topic = settings.topic(role)
        self._settings = settings
        self._decode_key = decode_key
        self._decode_value = decode_value
        self._supersedes = supersedes
        self._monotonic = monotonic
        if partitions is None:
            (count,) = (spec.partitions for spec in topic_specs(settings) if spec.role == role)
            partitions = range(count)
        self._partitions = [TopicPartition(self.topic, partition) for partition in partitions]
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._progress: dict[TopicPartition, ReadProgress] = {}
        self._entries: dict[K, V] = {}
        self._partition_of: dict[K, TopicPartition] = {}
        self._problems: dict[tuple[TopicPartition, bytes], str] = {}
        self._snapshot: Mapping[K, V] | None = None
        self._revision = 0
        self._loaded = False
        self._callbacks: list[Callable[[Mapping[K, V | None]], None]] = []
        self._advanced = asyncio.Event()

    # --- life ---

    async def start(self, deadline_ms: float = START_DEADLINE_MS) -> None:
        """Read the topic up to its end as of now, then follow it in the background.

        Raises
        ------
        DeadlineExceeded
            If the end was not reached within ``deadline_ms``.
        BrokerUnavailable
            If no broker answers.
        """
        if self._consumer is not None:
            raise RuntimeError(f"the view of {self.topic} was started before; make a new one")
        self._consumer = AIOKafkaConsumer(
            **self._settings.kafka_options(),
            client_id=f"bandit-view-{self.topic}",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await self._consumer.start()
                self._consumer.assign(self._partitions)
                for partition in self._partitions:
                    position = await self._consumer.position(partition)
                    self._progress[partition] = ReadProgress(position, self._monotonic())
                self._task = asyncio.create_task(self._follow(), name=f"view of {self.topic}")
                await self._reach_end()
        except TimeoutError as error:
            await self.stop()
            raise DeadlineExceeded(
                f"not read to its end within {deadline_ms / 1000:g} s; at {self._positions()}",
                where=self.topic,
                action=f"run `{CHECK_COMMAND}`; if the topic is there, look at the brokers' load",
            ) from error
        except KafkaError as error:
            await self.stop()
            raise BrokerUnavailable(
                f"cannot be read: {error!r}",
                where=f"{self.topic} at {self._settings.bootstrap_servers}",
                action="check that the brokers run; `bandit-streams doctor` tells which step fails",
            ) from error
        except BaseException:
            await self.stop()
            raise
        self._loaded = True

    async def stop(self) -> None:
        """Stop following; the content stays readable. May be called at any time, and twice."""
        task, self._task = self._task, None
        try:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        finally:  # also where whoever waits for it is cancelled
            if self._consumer is not None:
                await stop_consumer(self._consumer)

    async def catch_up(self, deadline_ms: float = START_DEADLINE_MS) -> None:
        """Read everything that was in the topic when this was called.

        Raises
        ------
        DeadlineExceeded
            If that took longer than ``deadline_ms``.
        BrokerUnavailable
            If the ends of the partitions cannot be had, or the view does not run.
        """
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await self._reach_end()
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"not read to its end within {deadline_ms / 1000:g} s; at {self._positions()}",
                where=self.topic,
                action="check that the brokers answer; it is tried again",
            ) from error
        except KafkaError as error:
            raise BrokerUnavailable(
                f"ends cannot be had: {error!r}", where=self.topic, action="check that the brokers answer"
            ) from error

    # --- content ---

    def get(self, key: K) -> V | None:
        """Newest value of a key; ``None`` if there is none."""
        return self._entries.get(key)

    def items(self) -> ItemsView[K, V]:
        """Keys and values; not to be iterated across an ``await``, see :meth:`snapshot`."""
        return self._entries.items()

    def __len__(self) -> int:
        return len(self._entries)

    def snapshot(self) -> Mapping[K, V]:
        """Content that no later record changes; made once for each revision."""
        if self._snapshot is None:
            self._snapshot = MappingProxyType(dict(self._entries))
        return self._snapshot

    def problems(self) -> dict[str, str]:
        """Return what could not be decoded and has not been replaced since, by topic, partition and key."""
        return {
            f"{self.topic}/{partition.partition} {key!r}": text
            for (partition, key), text in self._problems.items()
        }

    @property
    def revision(self) -> int:
        """Number of records read so far; changes whenever the content may have changed."""
        return self._revision

    def age_ms(self) -> float:
        """Return milliseconds since a broker last said that nothing is newer, of the stalest partition.

        Infinite until it has said so once for every partition.
        """
        stalest = min(
            (
                -float("inf") if progress.fresh_s is None else progress.fresh_s
                for progress in self._progress.values()
            ),
            default=-float("inf"),
        )
        return max(0.0, (self._monotonic() - stalest) * 1000)

    def statistics(self) -> ViewStatistics:
        """Figures for metrics."""
        return ViewStatistics(len(self._entries), self._revision, len(self._problems), self.age_ms())

    def on_change(self, callback: Callable[[Mapping[K, V | None]], None]) -> None:
        """Call ``callback(changes)`` after each poll that changed something, once ``start`` has returned.

        ``changes`` has the new value of every changed key, ``None`` for a deleted one. It runs in the event
        loop and must be quick; what it raises is logged, and the view goes on.
        """
        self._callbacks.append(callback)

    # --- following ---

    def _positions(self) -> dict[int, int]:
        return {partition.partition: progress.complete for partition, progress in self._progress.items()}

    async def _reach_end(self) -> None:
        if self._consumer is None or self._task is None:
            raise BrokerUnavailable("the view does not run", where=self.topic, action="start it first")
        ends = await self._consumer.end_offsets(self._partitions)
        while any(self._progress[partition].complete < end for partition, end in ends.items()):
            if self._task.done():
                raise BrokerUnavailable(
                    "the view has stopped", where=self.topic, action="see the log for why"
                )
            self._advanced.clear()
            await self._advanced.wait()

    async def _follow(self) -> None:
        try:
            while True:
                try:
                    await self._poll()
                except KafkaError as error:
                    log.warning("%s: cannot be read, trying again: %r", self.topic, error)
                    await asyncio.sleep(RETRY_S)
        except Exception:
            log.exception("%s: following has ended; the view only grows older from here", self.topic)
            raise
        finally:
            self._advanced.set()

    async def _poll(self) -> None:
        """One round: apply what has arrived, then note how far each partition is known."""
        consumer = self._consumer
        if consumer is None:
            return
        batches = await consumer.getmany(timeout_ms=POLL_MS)
        changes: dict[K, V | None] = {}
        for partition, records in batches.items():
            if records and records[0].offset < self._progress[partition].read:
                self._forget(partition, changes)
            for record in records:
                self._apply(partition, record, changes)
        for partition in self._partitions:
            position = await consumer.position(partition)
            had_records = bool(batches.get(partition))
            if position < self._progress[partition].read and not had_records:
                self._forget(partition, changes)
            self._progress[partition].observe(
                position=position,
                answer=last_answer(consumer, partition),
                had_records=had_records,
                now_s=self._monotonic(),
            )
        self._advanced.set()
        if changes and self._loaded:
            self._notify(changes)

    def _apply(self, partition: TopicPartition, record: ConsumerRecord, changes: dict[K, V | None]) -> None:
        self._revision += 1
        raw_key = record.key if record.key is not None else b""
        try:
            key = self._decode_key(raw_key)
            value = self._decode_value(key, record.value) if record.value is not None else None
        except (RecordError, ValueError) as error:
            text = f"offset {record.offset}: {error}"
            if self._problems.get((partition, raw_key)) != text:
                log.warning("%s/%d: undecodable record at %s", self.topic, partition.partition, text)
            self._problems[partition, raw_key] = text
            return
        self._problems.pop((partition, raw_key), None)
        old = self._entries.get(key)
        if value is None:
            if old is None:
                return
            del self._entries[key]
            self._partition_of.pop(key, None)
        else:
            if old is not None and self._supersedes is not None and not self._supersedes(value, old):
                return
            self._entries[key] = value
            self._partition_of[key] = partition
        self._snapshot = None
        changes[key] = value

    def _forget(self, partition: TopicPartition, changes: dict[K, V | None]) -> None:
        """Drop what was read from a partition whose log has begun anew: the topic was deleted and remade."""
        log.warning("%s/%d: the log has begun anew; reading it again", self.topic, partition.partition)
        for key in [key for key, found in self._partition_of.items() if found == partition]:
            del self._entries[key], self._partition_of[key]
            changes[key] = None
        for problem in [problem for problem in self._problems if problem[0] == partition]:
            del self._problems[problem]
        self._snapshot = None
        self._progress[partition] = ReadProgress(0, self._monotonic())

    def _notify(self, changes: Mapping[K, V | None]) -> None:
        for callback in self._callbacks:
            try:
                callback(changes)
            except Exception:
                log.exception("%s: a callback failed; the view goes on", self.topic)


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer, also while its brokers are away.

    Its fetch tasks then sit in a back-off. aiokafka cancels them and lets that cancellation out of its own
    ``stop``, before it has closed the connections; the rest of what it would have done is done here.
    """
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.wait([stopping])
    if not stopping.cancelled():
        stopping.result()
        return
    fetches = set(consumer._fetcher._pending_tasks)
    for fetch in fetches:
        fetch.cancel()
    await asyncio.gather(*fetches, return_exceptions=True)
    await consumer._client.close()
