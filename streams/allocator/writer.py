"""Writes one partition number of several topics, every record acknowledged by all in-sync replicas.

Why a producer of its own: one that can be thrown away after an error. Whatever it may still have written late
is caught by the rule of the log. Idempotent, so that a batch that is sent again does not stand in the log
twice; such a producer never gives up, and stopping it waits for what it holds: both have deadlines here.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerClosed

from streams.config import Settings, TopicName
from streams.errors import DeadlineExceeded

__all__ = ["PartitionWriter"]

REQUEST_TIMEOUT_MS = 10_000
ACK_DEADLINE_S = 15.0
CLOSE_DEADLINE_S = 2.0
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
        DeadlineExceeded, KafkaError
            If one is not acknowledged in time: it may be in the log all the same. Call `close` before the
            next try.
        """
        try:
            async with asyncio.timeout(ACK_DEADLINE_S):
                return await self._sent(role, items)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{len(items)} records were not acknowledged within {ACK_DEADLINE_S:.0f} s",
                where=f"{self._settings.topic(role)}-{self._partition}",
                action="check that the partition has enough in-sync replicas; it is tried again",
            ) from error

    async def _sent(self, role: TopicName, items: Sequence[tuple[bytes | None, bytes | None]]) -> list[int]:
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
        """Disconnect, within seconds even when the broker is gone; may be called at any time."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await producer.stop()
        except (TimeoutError, KafkaError) as error:
            log.warning("producer of partition %d is cut off: %r", self._partition, error)
            await producer.client.close()
            with suppress(TimeoutError, KafkaError):
                async with asyncio.timeout(CLOSE_DEADLINE_S):
                    await producer._sender.close()
            producer._message_accumulator.fail_all(ProducerClosed())
