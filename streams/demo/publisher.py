"""Bulk production of source events, and watermark markers.

What: :class:`Publisher` writes encoded events into the partitions that the murmur2 rule gives their keys, a
batch at a time, and waits for every acknowledgement; a marker says "nothing older than this will follow" in
one partition.

Why this way: whole batches of one partition skip the per-record work of the client (some ten times faster
than sending one by one), and keep each partition's records in the order given.

Cost: one request in flight for each partition; memory of one batch each.
"""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from aiokafka import AIOKafkaProducer

from streams.config import Settings, TopicName
from streams.demo.openbandit import Event
from streams.join.step import END_MS, WATERMARK_HEADER
from streams.partitioning import partitions_of

__all__ = ["Publisher"]

_BATCH_BYTES: Final = 512 * 1024
_SOURCES: Final[tuple[TopicName, ...]] = ("exposures", "conversions")


class Publisher:
    """Writes to the source topics; an asynchronous context manager.

    Parameters
    ----------
    settings
        Address, names and partition count of the topics.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = AIOKafkaProducer(
            **settings.kafka_options(),
            client_id="bandit-demo",
            enable_idempotence=True,
            max_batch_size=_BATCH_BYTES,
            max_request_size=2 * _BATCH_BYTES,
        )

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def publish(
        self, topic: TopicName, events: Sequence[Event], advance: Callable[[int], None] = lambda _: None
    ) -> None:
        """Write events; returns when the broker has acknowledged all of them.

        Parameters
        ----------
        topic
            Source topic, without prefix.
        events
            In the order in which each partition is to have them.
        advance
            Called with the number of events of each acknowledged batch.
        """
        n_partitions = self._settings.partitions
        by_partition: list[list[Event]] = [[] for _ in range(n_partitions)]
        targets = partitions_of([event.key for event in events], n_partitions).tolist()
        for event, partition in zip(events, targets, strict=True):
            by_partition[partition].append(event)
        async with asyncio.TaskGroup() as group:
            for partition, own in enumerate(by_partition):
                if own:
                    group.create_task(self._publish_partition(topic, partition, own, advance))

    async def mark(self, watermark_ms: int) -> None:
        """Write a marker into every partition of both source topics; ``END_MS`` ends the stream."""
        value = b"end" if watermark_ms >= END_MS else str(watermark_ms).encode()
        futures = [
            await self._producer.send(
                self._settings.topic(topic),
                value=b"",
                partition=partition,
                headers=[(WATERMARK_HEADER, value)],
            )
            for topic in _SOURCES
            for partition in range(self._settings.partitions)
        ]
        await asyncio.gather(*futures)

    async def _publish_partition(
        self, topic: TopicName, partition: int, events: Sequence[Event], advance: Callable[[int], None]
    ) -> None:
        name = self._settings.topic(topic)
        batch = self._producer.create_batch()
        size = 0
        for event in events:
            if batch.append(key=event.key, value=event.value, timestamp=None) is None:
                await self._send(batch, name, partition)
                advance(size)
                batch = self._producer.create_batch()
                size = 0
                batch.append(key=event.key, value=event.value, timestamp=None)
            size += 1
        if size:
            await self._send(batch, name, partition)
            advance(size)

    async def _send(self, batch: Any, topic: str, partition: int) -> None:
        batch.close()
        await (await self._producer.send_batch(batch, topic, partition=partition))
