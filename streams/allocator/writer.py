"""Writes one partition number of several topics, every record acknowledged by all in-sync replicas.

Why a producer of its own: short time-outs, and one that can be thrown away after an error. Whatever it may
still have written late is caught by the rule of the log.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from streams.config import Settings, TopicName

__all__ = ["PartitionWriter"]

REQUEST_TIMEOUT_MS = 10_000
BATCH_MAX_BYTES = 256 * 1024

log = logging.getLogger(__name__)


class PartitionWriter:
    """Producer for one partition number; connects when it is first used.

    Parameters
    ----------
    settings
        Addresses, security, topic names.
    partition
        The partition number, the same in every topic.
    """

    def __init__(self, settings: Settings, partition: int) -> None:
        self._settings = settings
        self._partition = partition
        self._producer: Any = None

    async def send(self, role: TopicName, items: Sequence[tuple[bytes | None, bytes | None]]) -> list[int]:
        """Write (key, value) pairs in order and return their offsets once all are acknowledged.

        Raises
        ------
        KafkaError
            If one is not acknowledged in time: it may be in the log all the same. Call `close` before the
            next try.
        """
        if self._producer is None:
            self._producer = await self._connected()
        topic = self._settings.topic(role)
        waiting = [
            await self._producer.send(topic, value, key=key, partition=self._partition)
            for key, value in items
        ]
        return [ack.offset for ack in await asyncio.gather(*waiting)]

    async def _connected(self) -> Any:
        producer = AIOKafkaProducer(
            **self._settings.kafka_options(),
            client_id=f"bandit-allocator-{self._partition}",
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            max_request_size=self._settings.journal_max_message_bytes,
            max_batch_size=BATCH_MAX_BYTES,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def close(self) -> None:
        """Disconnect; may be called at any time."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                await producer.stop()
            except KafkaError as error:
                log.warning("producer of partition %d: %r", self._partition, error)
