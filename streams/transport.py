"""Faust's aiokafka driver, handing over whole fetched chunks instead of single records.

Faust delivers one message a record; that alone caps a worker at some thousand events a second. Here a
message of a source topic is a :class:`Chunk`: all records that one fetch returned for one partition.
Changelog (journal) partitions are left alone, one message a record, as Faust's recovery expects.

Every chunk carries the position it was fetched from and the epoch of the seek before it, both taken in the
consumer thread where the records are fetched. Chunks that Faust drops on the way (it does in rebalances)
are therefore seen: the next one starts later than the journal's position. Chunks fetched before a seek
carry an older epoch and are discarded by the reader. Committed offsets play no part: source topics are not
acknowledged, and positions are sought from the journal by :meth:`ChunkConsumer.seek_sources`.

Touches internals of faust-streaming 0.15.3 and aiokafka 0.14; ``tests/contract`` holds each of them.
Cost: O(1) Python calls a chunk.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import aiokafka
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.structs import TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from faust.types.transports import ConsumerT, ProducerT

from streams.errors import BrokerUnavailable
from streams.join.step import SourceRecord

BUSY_POLL_S = 0.02
SEEK_DEADLINE_S = 30.0

__all__ = [
    "Chunk",
    "ChunkConsumer",
    "ChunkConsumerThread",
    "ChunkProducer",
    "ChunkTransport",
    "source_record",
]


class Chunk(NamedTuple):
    """Records of one source partition, covering offsets ``[start, next)``.

    ``start`` is the position the consumer stood at, not the first record's offset: the two differ where
    offsets are legitimately unused (transaction markers) and where the log's start has moved past the
    position.
    """

    topic: str
    partition: int
    start: int
    next: int
    epoch: int
    records: Sequence[SourceRecord]
    highwater: int
    number: int  # of the chunk in this process; what Faust takes for an offset, so that it never goes back


class _LeanRecords(PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """A fetch of one partition, unpacked to :class:`SourceRecord` instead of aiokafka's ``ConsumerRecord``.

    What aiokafka does for one record costs 2 us; this 0.5 us. Aborted transactions do not matter, because
    the consumer reads uncommitted.
    """

    next_fetch_offset: int

    def __iter__(self) -> Iterator[SourceRecord]:
        fetched = self._records
        new = tuple.__new__
        while fetched.has_next():
            batch = fetched.next_batch()
            if self._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            if not batch.is_control_batch:
                for record in batch:
                    offset = record.offset
                    if offset < self.next_fetch_offset:
                        continue
                    self.next_fetch_offset = offset + 1
                    headers = record.headers
                    yield new(
                        SourceRecord,
                        (
                            offset,
                            record.key,
                            record.value,
                            record.timestamp,
                            tuple(headers) if headers else (),
                        ),
                    )
            self.next_fetch_offset = batch.next_offset


def source_record(record: Any) -> SourceRecord:
    """Make what the join reads of a ``ConsumerRecord``."""
    return SourceRecord(record.offset, record.key, record.value, record.timestamp, record.headers)


class _Fetches(dict[TopicPartition, Any]):
    """Fetches that wait to be read; those of source topics are unpacked by :class:`_LeanRecords`.

    Parameters
    ----------
    is_left_alone
        Whether a partition's records stay aiokafka's own.
    """

    def __init__(self, is_left_alone: Callable[[TopicPartition], bool]) -> None:
        super().__init__()
        self._is_left_alone = is_left_alone

    def __setitem__(self, tp: TopicPartition, fetched: Any) -> None:
        if type(fetched) is FetchResult and not self._is_left_alone(tp):
            fetched._partition_records.__class__ = _LeanRecords
        super().__setitem__(tp, fetched)


class ChunkConsumerThread(driver.AIOKafkaConsumerThread):
    """The consumer thread; tracks the next offset and the seek epoch of every source partition."""

    consumer: "ChunkConsumer"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positions: dict[TP, int] = {}
        self._epochs: dict[TP, int] = {}
        self._n_chunks = 0
        self._n_fetches = 0
        self._fetch_of: dict[TP, int] = {}

    def _create_worker_consumer(self, transport: Any) -> Any:
        options = transport.kafka_options
        conf = self.app.conf
        self._assignor = self.app.assignor
        return aiokafka.AIOKafkaConsumer(
            group_id=conf.id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=transport.fetch_bytes,
            fetch_max_bytes=max(transport.fetch_bytes, 52_428_800),
            # An idle partition's long poll holds up refetching of busy ones on the same broker: keep it
            # short.
            fetch_max_wait_ms=100,
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 0) * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            metadata_max_age_ms=60_000,
            **options,
        )

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        self._positions.clear()
        await super().on_partitions_revoked(revoked)

    async def seek_sources(self, offsets: Mapping[TP, int]) -> dict[TP, int]:
        """Seek source partitions; return the epoch that chunks fetched from here on carry."""
        await self.call_thread(self._seek_sources, offsets)
        return {tp: self._epochs[tp] for tp in offsets}

    async def _seek_sources(self, offsets: Mapping[TP, int]) -> None:
        # Not Faust's own _seek_wait: that sets the offset below which Faust drops messages, and a chunk of
        # before
        # the seek, delivered after it, would raise it again.
        consumer = self._ensure_consumer()
        for tp, offset in offsets.items():
            self._positions[tp] = offset
            self._epochs[tp] = self._epochs.get(tp, 0) + 1
            consumer.seek(tp, offset)
        async with asyncio.timeout(SEEK_DEADLINE_S):
            await asyncio.gather(*(consumer.position(tp) for tp in offsets))

    async def is_member(self, generation: int) -> bool:
        """Ask the group's coordinator now whether this worker is still a member with that generation.

        Raises
        ------
        BrokerUnavailable
            If the coordinator gave no answer: nothing is known then.
        """
        coordinator = self._ensure_consumer()._coordinator
        if coordinator.generation != generation:
            return False
        answered = await self.call_thread(coordinator._do_heartbeat)
        if coordinator.generation != generation:
            return False
        if not answered:
            raise BrokerUnavailable(
                "the group's coordinator does not answer heartbeats",
                where=f"group {self.app.conf.id}",
                action="check the brokers; it is tried again",
            )
        return True

    def fetched_to(self, tp: TP) -> int | None:
        """Offset up to which ``tp`` was fetched since its last seek; None before one."""
        return self._positions.get(tp)

    def is_handed_over(self, tp: TP) -> bool:
        """Whether Faust is through with the fetch that last had a chunk of ``tp``; it takes one by one."""
        return self._n_fetches > self._fetch_of.get(tp, 0)

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> dict[TP, Any]:
        self._n_fetches += 1
        if not isinstance(consumer._fetcher._records, _Fetches):
            waiting = consumer._fetcher._records
            consumer._fetcher._records = fetches = _Fetches(self.consumer.is_changelog)
            for tp, fetched in waiting.items():
                fetches[tp] = fetched
        found = await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        return {tp: self._chunked(consumer, tp, records) for tp, records in found.items()}

    def _chunked(self, consumer: Any, tp: TP, records: list[Any]) -> list[Any]:
        if self.consumer.is_changelog(tp):
            return records
        start = self._positions.get(tp)
        if start is None:
            return []  # fetched before the journal's position was known; the seek to it is still to come
        state = consumer._subscription.subscription.assignment.state_value(tp)
        following = self._positions[tp] = state.position
        self._n_chunks += 1
        self._fetch_of[tp] = self._n_fetches
        return [
            Chunk(
                tp.topic,
                tp.partition,
                start,
                following,
                self._epochs[tp],
                records,
                state.highwater or following,
                self._n_chunks,
            )
        ]


class ChunkConsumer(driver.Consumer):
    """Faust consumer whose messages of source topics are chunks."""

    _thread: ChunkConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._busy: set[TP] = set()

    def _new_consumer_thread(self) -> ChunkConsumerThread:
        return ChunkConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def is_changelog(self, tp: TopicPartition) -> bool:
        """Whether ``tp`` is a journal partition."""
        return tp.topic in self.app.tables.changelog_topics

    def set_busy(self, tp: TP, busy: bool) -> None:
        """Leave ``tp`` out of fetches while its reader has enough to do; the others go on."""
        if busy:
            self._busy.add(tp)
        else:
            self._busy.discard(tp)

    async def seek_sources(self, offsets: Mapping[TP, int]) -> dict[TP, int]:
        """Seek source partitions; chunks that follow carry the returned epoch."""
        return await self._thread.seek_sources(offsets)

    async def is_member(self, generation: int) -> bool:
        """Ask the group's coordinator now whether this worker is still a member with that generation.

        Raises
        ------
        BrokerUnavailable
            If the coordinator gave no answer: nothing is known then.
        """
        return await self._thread.is_member(generation)

    def fetched_to(self, tp: TP) -> int | None:
        """Offset up to which ``tp`` was fetched since its last seek; None before one."""
        return self._thread.fetched_to(tp)

    def is_handed_over(self, tp: TP) -> bool:
        """Whether Faust has handed over, or dropped, every chunk of ``tp`` that was fetched."""
        return self._thread.is_handed_over(tp)

    async def perform_seek(self) -> None:
        """Do nothing: the positions are the journal's, and each partition's owner seeks after its claim."""

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> dict[TP, Any]:
        wanted = active_partitions if active_partitions is None else active_partitions - self._busy
        if not wanted:
            await asyncio.sleep(BUSY_POLL_S)
            return {}
        return cast(
            "dict[TP, Any]",
            await self._thread.getmany(wanted, BUSY_POLL_S if self._busy else timeout),
        )

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if not isinstance(record, Chunk):
            return super()._to_message(tp, record)
        return ConsumerMessage(
            record.topic,
            record.partition,
            record.number,
            0.0,
            0,
            [],
            None,
            cast("bytes", record),  # what the message carries; RawSchema hands it on as it is
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )


class ChunkProducer(driver.Producer):
    """Faust's own producer; the pipeline has producers of its own, Faust only wants one to be there."""

    def _new_producer(self, transactional_id: str | None = None) -> Any:
        transport = cast("ChunkTransport", self.transport)
        return aiokafka.AIOKafkaProducer(acks="all", **transport.kafka_options)


class ChunkTransport(driver.Transport):
    """Transport with options given by the application: ``kafka_options`` go to every client it makes."""

    Consumer: ClassVar[type[ConsumerT]] = ChunkConsumer
    Producer: ClassVar[type[ProducerT]] = ChunkProducer

    def __init__(
        self,
        url: Any,
        app: Any,
        *,
        kafka_options: Mapping[str, Any],
        fetch_bytes: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(url, app, **kwargs)
        self.kafka_options = dict(kafka_options)
        self.fetch_bytes = fetch_bytes
