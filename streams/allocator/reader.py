"""Reads one partition number of several topics, from where it is told, and follows them.

What: one Kafka consumer without a group. `poll` hands every record to a callback; `read_to` and
`read_to_end` poll until a partition is known up to an offset.

Why one consumer for all topics: a read-back of the log must not wait behind another topic's fetch, and what
arrives meanwhile is wanted anyway.

Cost: ten fetches a second when idle; at most `MAX_RECORDS` records between two turns of the loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from streams.config import Settings, TopicName
from streams.errors import BrokerUnavailable, DeadlineExceeded

__all__ = ["PartitionReader"]

MAX_RECORDS = 250
POLL_MS = 200
# A broker answers a connection's requests one after another: a fetch that waits for news holds up all others.
FETCH_WAIT_MS = 100
STALL_DEADLINE_S = 30.0


class _Followed:
    """How far one topic is known: everything below ``complete`` was handled or exists no longer."""

    def __init__(self, role: TopicName, position: int) -> None:
        self.role = role
        self.position = position
        self.complete = position
        self.answer: tuple[int, int] | None = None  # time and end of the newest fetch response that was seen
        self.empty_end: int | None = None  # end that a response gave which seems to have had no records

    def observe(self, position: int, answer: tuple[int, int] | None, *, had_records: bool) -> None:
        """Take in one poll.

        Where compaction removed the last records, the position never reaches the end. A response that came
        without records proves the topic known up to the end it gave. Its records, if it had any, would have
        been in the poll in which it was first seen or in the next one: so both must have brought none.
        """
        self.position = position
        self.complete = max(self.complete, position)
        if had_records:
            self.empty_end = None
        else:
            if self.empty_end is not None:
                self.complete = max(self.complete, self.empty_end)
            self.empty_end = answer[1] if answer is not None and answer != self.answer else None
        self.answer = answer


class PartitionReader:
    """Follows one partition number of several topics.

    Parameters
    ----------
    settings
        Addresses, security, topic names.
    partition
        The partition number, the same in every topic.
    handle
        Called with topic (without prefix) and record; must be quick and must not raise.
    """

    def __init__(
        self, settings: Settings, partition: int, handle: Callable[[TopicName, ConsumerRecord], None]
    ) -> None:
        self._settings = settings
        self._partition = partition
        self._handle = handle
        self._followed: dict[TopicPartition, _Followed] = {}
        self._consumer: Any = None

    async def start(self) -> None:
        """Connect; nothing is read until `follow`.

        Raises
        ------
        KafkaError
            If no broker answers.
        """
        self._consumer = AIOKafkaConsumer(
            **self._settings.kafka_options(),
            client_id=f"bandit-allocator-{self._partition}",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=4 * 1024 * 1024,
        )
        await self._consumer.start()

    async def stop(self) -> None:
        """Disconnect; may be called twice."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    def _topic_partition(self, role: TopicName) -> TopicPartition:
        return TopicPartition(self._settings.topic(role), self._partition)

    async def follow(self, role: TopicName, *, from_offset: int = 0) -> None:
        """Follow one more topic from an offset, or from its log start if that is later."""
        added = self._topic_partition(role)
        start = (await self._consumer.beginning_offsets([added]))[added]
        self._followed[added] = _Followed(role, max(start, from_offset))
        self._consumer.assign(list(self._followed))
        for partition, followed in self._followed.items():
            followed.answer = followed.empty_end = None
            self._consumer.seek(partition, followed.position)

    async def end(self, role: TopicName) -> int:
        """Offset that the next record of the topic will get."""
        partition = self._topic_partition(role)
        return int((await self._consumer.end_offsets([partition]))[partition])

    async def poll(self, timeout_ms: int = POLL_MS) -> bool:
        """Handle what has arrived, or wait up to ``timeout_ms`` for it; tell whether there was anything."""
        batches = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=MAX_RECORDS)
        for partition, records in batches.items():
            self._handle_all(self._followed[partition].role, records)
        # A full poll may have left records in the consumer's buffers, of any partition.
        full = sum(map(len, batches.values())) >= MAX_RECORDS
        for partition, followed in self._followed.items():
            timestamp_ms = self._consumer.last_poll_timestamp(partition)
            end = self._consumer.highwater(partition)
            followed.observe(
                await self._consumer.position(partition),
                None if timestamp_ms is None or end is None else (timestamp_ms, end),
                had_records=full or bool(batches.get(partition)),
            )
        return bool(batches)

    def _handle_all(self, role: TopicName, records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            self._handle(role, record)

    async def read_to(self, role: TopicName, offset: int) -> None:
        """Poll until everything below ``offset`` has been handled.

        Raises
        ------
        DeadlineExceeded
            If nothing at all arrives for 30 seconds.
        BrokerUnavailable
            If the consumer fails.
        """
        partition = self._topic_partition(role)
        followed = self._followed[partition]
        loop = asyncio.get_running_loop()
        moved_s, complete = loop.time(), followed.complete
        while followed.complete < offset:
            try:
                arrived = await self.poll()
            except KafkaError as error:
                raise BrokerUnavailable(
                    f"cannot be read: {error!r}",
                    where=f"{partition.topic}-{partition.partition}",
                    action="check that the brokers run; it is tried again",
                ) from error
            if arrived or followed.complete > complete:
                moved_s, complete = loop.time(), followed.complete
            elif loop.time() - moved_s > STALL_DEADLINE_S:
                raise DeadlineExceeded(
                    f"read up to {followed.complete} of {offset}, then nothing for {STALL_DEADLINE_S:.0f} s",
                    where=f"{partition.topic}-{partition.partition}",
                    action="check that the partition has a leader; it is tried again",
                )

    async def read_to_end(self, role: TopicName) -> int:
        """Poll until everything that was in the topic at the call has been handled; return its end then."""
        end = await self.end(role)
        await self.read_to(role, end)
        return end
