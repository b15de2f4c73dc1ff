"""The source topics beside Faust's consumer: their ends, single records by offset, re-routing.

Used rarely: at a claim, for dead letters that a crash left behind, and for records found on a wrong
partition. Its consumer belongs to no group and is started when first needed.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from aiokafka.structs import TopicPartition

from streams.connection import explain
from streams.errors import BrokerUnavailable
from streams.join.step import REROUTED_HEADER, SourceRecord
from streams.partitioning import partition_of
from streams.transport import source_record

__all__ = ["SourceTopics", "explained"]

Record: TypeAlias = SourceRecord
FETCH_DEADLINE_S = 30.0


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Raise errors of Kafka as ours, with the place.

    Raises
    ------
    BanditError
        Saying what failed and what to do; a Retry for all that may pass.
    """
    try:
        yield
    except UnknownTopicOrPartitionError as error:
        # The topics were there when the worker started: a broker that has just come back does not know all
        # of them yet, and one that was deleted ends the worker at its next assignment.
        raise BrokerUnavailable(
            "the brokers do not know a topic or partition that was there",
            where=where,
            action="wait while brokers start; if it stays, run `bandit-streams topics check`",
        ) from error
    except (KafkaError, OSError) as error:
        raise explain(error, where=where) or BrokerUnavailable(repr(error), where=where) from error


class SourceTopics:
    """Reads and re-routes records of the source topics.

    Parameters
    ----------
    producer
        An idempotent producer with acks=all.
    kafka_options
        Options of any aiokafka client.
    n_partitions
        Partitions of each source topic.
    """

    def __init__(
        self, producer: AIOKafkaProducer, kafka_options: Mapping[str, Any], n_partitions: int
    ) -> None:
        self._producer = producer
        self._options = dict(kafka_options)
        self._n_partitions = n_partitions
        self._consumer: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="none", **self._options)
            await consumer.start()
            self._consumer = consumer
        return self._consumer

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset there is and the one after the last."""
        tp = TopicPartition(topic, partition)
        with explained(f"{topic}[{partition}]"):
            async with self._lock:
                consumer = await self._started()
                starts = await consumer.beginning_offsets([tp])
                ends = await consumer.end_offsets([tp])
        return starts[tp], ends[tp]

    async def ends(self, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the offset after the last record of each (topic, partition)."""
        with explained(f"{len(wanted)} source partitions"):
            async with self._lock:
                consumer = await self._started()
                ends = await consumer.end_offsets([TopicPartition(*each) for each in wanted])
        return {(tp.topic, tp.partition): end for tp, end in ends.items()}

    async def fetch(self, topic: str, partition: int, offsets: Sequence[int]) -> dict[int, Record]:
        """Return the records at these offsets; those that retention has deleted are left out.

        Raises
        ------
        BrokerUnavailable
            If they could not be read in time.
        """
        tp = TopicPartition(topic, partition)
        found: dict[int, Record] = {}
        start, end = await self.bounds(topic, partition)
        kept = [offset for offset in sorted(set(offsets)) if start <= offset < end]
        if not kept:
            return found
        with explained(f"{topic}[{partition}]"):
            async with self._lock:
                consumer = await self._started()
                consumer.assign([tp])
                try:
                    async with asyncio.timeout(FETCH_DEADLINE_S):
                        for offset in kept:
                            await self._fetch_one(consumer, tp, offset, found)
                except TimeoutError as error:
                    raise BrokerUnavailable(
                        f"records {kept} were not read within {FETCH_DEADLINE_S:.0f} s",
                        where=f"{topic}[{partition}]",
                        action="check the brokers; it is tried again",
                    ) from error
                finally:
                    # Not unsubscribed: aiokafka's fetcher ends for good if it wakes up for an assignment
                    # that is gone again.
                    consumer.pause(tp)
        return found

    @staticmethod
    async def _fetch_one(
        consumer: AIOKafkaConsumer, tp: TopicPartition, offset: int, found: dict[int, Record]
    ) -> None:
        if offset in found:
            return
        consumer.seek(tp, offset)
        while offset not in found:
            fetched = await consumer.getmany(tp, timeout_ms=500)
            records = fetched.get(tp, ())
            found.update((record.offset, source_record(record)) for record in records)
            if records and records[-1].offset > offset and offset not in found:
                return  # no record has this offset any more

    async def reroute(self, topic: str, unit_id: str, record: Record) -> None:
        """Produce a record again to the partition of its unit; acknowledged on return."""
        key = unit_id.encode()
        with explained(topic):
            await self._producer.send_and_wait(
                topic,
                record.value,
                key,
                partition=partition_of(key, self._n_partitions),
                headers=[*record.headers, (REROUTED_HEADER, b"1")],
            )

    async def stop(self) -> None:
        """Stop the consumer if it was started."""
        if self._consumer is not None:
            await self._consumer.stop()
            self._consumer = None
