"""The journal on Kafka, by aiokafka, with clients of its own.

- One idempotent producer per partition, acks=all, made on the first append. aiokafka keeps one produce
  request per broker in flight, and an idempotent producer retries for ever: with one for all, a partition
  whose leader is slow would hold up the others. After a failed append the producer is replaced, because what
  it still holds would go before the new claim; whether that is written later does not matter to the protocol.
- Reads and ends by consumers without a group, from a small pool, each on one partition at a time.
- DeleteRecords by the admin client, made on the first use.
- Records are packed here, not by the producer: aiokafka has but one level for each codec, lz4's slowest
  (6.2 us an event) and zstd's third.

Cost: one produce request per append; a producer and its connections per owned partition, none per standby.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    ProducerClosed,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)

from streams.state.errors import JournalAppendError, JournalGap, JournalReadError, JournalRefused
from streams.state.journal import pack, unpack

logger = logging.getLogger(__name__)

_READERS = 4
_POLL_MS = 250
_RETIRE_S = 5.0
_RECORD_OVERHEAD_BYTES = 1024
_FOR_GOOD = (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)


def _refused(error: KafkaError, where: str) -> JournalRefused:
    return JournalRefused(
        f"Kafka refused: {type(error).__name__}: {error}",
        where=where,
        action="give the worker's user the rights to read, write and delete records of the journal topic, "
        "and set the topic's max.message.bytes to journal_max_message_bytes (`bandit-streams topics check`)",
    )


class KafkaJournal:
    """Clients for the journal topic, for all partitions of one worker; used on one event loop.

    Parameters
    ----------
    topic
        Full name of the journal topic.
    kafka_options
        Address and security, as every aiokafka client takes them.
    max_record_bytes
        Greatest record, not compressed.
    request_timeout_ms
        Of every request; also how long a read waits for its next record.
    """

    def __init__(
        self,
        *,
        topic: str,
        kafka_options: Mapping[str, Any],
        max_record_bytes: int = 8 * 2**20,
        request_timeout_ms: int = 10_000,
    ) -> None:
        self.topic = topic
        self._options = dict(kafka_options)
        self._max_record_bytes = max_record_bytes
        self._request_timeout_ms = request_timeout_ms
        self._logs: dict[int, KafkaJournalLog] = {}
        self._idle_readers: list[AIOKafkaConsumer] = []
        self._readers = asyncio.Semaphore(_READERS)
        self._admin: AIOKafkaAdminClient | None = None
        self._admin_lock = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    def log(self, partition: int) -> "KafkaJournalLog":
        """Journal of one partition; the same object every time, until it is released."""
        if partition not in self._logs:
            self._logs[partition] = KafkaJournalLog(self, partition)
        return self._logs[partition]

    async def release(self, partition: int) -> None:
        """Give a partition's producer back; its log stays usable. Unknown partitions do not matter."""
        if partition in self._logs:
            self._logs[partition].drop_producer()

    async def stop(self) -> None:
        """Stop all clients; what producers still hold gets a few seconds."""
        for log in self._logs.values():
            log.drop_producer()
        while self._retiring:
            await asyncio.wait(self._retiring)
        while self._idle_readers:
            await self._idle_readers.pop().stop()
        if self._admin is not None:
            admin, self._admin = self._admin, None
            await admin.close()

    # For KafkaJournalLog

    async def start_producer(self) -> AIOKafkaProducer:
        """Start an idempotent producer that sends records as they come."""
        producer = AIOKafkaProducer(
            **self._options,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_request_size=self._max_record_bytes + _RECORD_OVERHEAD_BYTES,
            request_timeout_ms=self._request_timeout_ms,
        )
        try:
            await producer.start()
        except BaseException:
            self.retire(producer)
            raise
        return producer

    def retire(self, producer: AIOKafkaProducer) -> None:
        """Stop a producer beside everything else; what it cannot send in a few seconds is given up."""
        task = asyncio.create_task(_retire(producer))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    @asynccontextmanager
    async def reader(self) -> AsyncGenerator[AIOKafkaConsumer, None]:
        """Lend a started consumer without group and assignment; one that met an error is not used again."""
        async with self._readers:
            consumer = self._idle_readers.pop() if self._idle_readers else await self._start_reader()
            healthy = False
            try:
                yield consumer
                healthy = True
            except GeneratorExit:  # whoever read has seen enough
                healthy = True
                raise
            finally:
                if healthy:
                    consumer.pause(*consumer.assignment())
                    self._idle_readers.append(consumer)
                else:
                    await consumer.stop()

    async def _start_reader(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **self._options,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=self._max_record_bytes,
            request_timeout_ms=self._request_timeout_ms,
        )
        try:
            await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    async def admin(self) -> AIOKafkaAdminClient:
        """Return the started admin client."""
        async with self._admin_lock:
            if self._admin is None:
                admin = AIOKafkaAdminClient(**self._options, request_timeout_ms=self._request_timeout_ms)
                try:
                    await admin.start()
                except BaseException:
                    await admin.close()
                    raise
                self._admin = admin
            return self._admin

    @property
    def request_timeout_s(self) -> float:
        """Of every request."""
        return self._request_timeout_ms / 1000


async def _retire(producer: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(_RETIRE_S):
            await producer.stop()
    except TimeoutError:
        # An idempotent producer retries for ever and stop() waits for it: take its connections away, end its
        # sender, then fail what it holds, which lets the rest of stop() end.
        await producer.client.close()
        await producer._sender.close()
        producer._message_accumulator.fail_all(ProducerClosed())
    except (KafkaError, OSError) as error:
        logger.warning("stopping a journal producer: %s", error)


class KafkaJournalLog:
    """One partition of the journal topic; a :class:`streams.state.journal.JournalLog`."""

    def __init__(self, journal: KafkaJournal, partition: int) -> None:
        self._journal = journal
        self._tp = TopicPartition(journal.topic, partition)
        self._producer: AIOKafkaProducer | None = None

    @property
    def name(self) -> str:
        """Topic and partition."""
        return f"{self._tp.topic}[{self._tp.partition}]"

    def drop_producer(self) -> None:
        """Let the next append use a new producer."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            self._journal.retire(producer)

    async def append(self, data: bytes, *, timeout_s: float) -> int:
        """Write a record; see the protocol."""
        try:
            async with asyncio.timeout(timeout_s):
                if self._producer is None:
                    self._producer = await self._journal.start_producer()
                metadata = await self._producer.send_and_wait(
                    self._tp.topic, pack(data), partition=self._tp.partition
                )
        except _FOR_GOOD as error:
            self.drop_producer()
            raise _refused(error, self.name) from error
        except (KafkaError, OSError, TimeoutError) as error:
            self.drop_producer()
            text = str(error) or f"no acknowledgement within {timeout_s:g} s"
            raise JournalAppendError(f"{type(error).__name__}: {text}", where=self.name) from error
        except asyncio.CancelledError:
            self.drop_producer()
            raise
        return int(metadata.offset)

    async def read(self, from_offset: int, to_offset: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield the records of an offset range; see the protocol."""
        next_offset = from_offset
        try:
            async with self._journal.reader() as consumer:
                consumer.assign([self._tp])
                consumer.seek(self._tp, from_offset)
                while next_offset < to_offset:
                    records = await self._poll(consumer, to_offset)
                    if not records:  # the offsets up to the end hold no records, only markers of Kafka's own
                        return
                    for record in records:
                        if record.offset >= to_offset:
                            return
                        next_offset = record.offset + 1
                        yield record.offset, unpack(record.value)
        except OffsetOutOfRangeError as error:
            raise JournalGap(
                f"the journal no longer has, or does not have, offset {next_offset}", where=self.name
            ) from error
        except _FOR_GOOD as error:
            raise _refused(error, self.name) from error
        except (KafkaError, OSError, TimeoutError) as error:
            raise JournalReadError(
                f"reading offset {next_offset}: {type(error).__name__}: {error}", where=self.name
            ) from error

    async def _poll(self, consumer: AIOKafkaConsumer, to_offset: int) -> list[Any]:
        async with asyncio.timeout(self._journal.request_timeout_s):
            while await consumer.position(self._tp) < to_offset:
                records = (await consumer.getmany(self._tp, timeout_ms=_POLL_MS)).get(self._tp)
                if records:
                    return list(records)
        return []

    async def start_offset(self) -> int:
        """Offset of the first record that is still there."""
        return await self._end_of_log("beginning_offsets")

    async def end_offset(self) -> int:
        """Offset that the next record will get."""
        return await self._end_of_log("end_offsets")

    async def _end_of_log(self, which: str) -> int:
        try:
            async with self._journal.reader() as consumer:
                offsets = await getattr(consumer, which)([self._tp])
                return int(offsets[self._tp])
        except _FOR_GOOD as error:
            raise _refused(error, self.name) from error
        except (KafkaError, OSError, TimeoutError) as error:
            raise JournalReadError(f"{which}: {type(error).__name__}: {error}", where=self.name) from error

    async def delete_before(self, offset: int) -> None:
        """Delete all records below ``offset``."""
        try:
            admin = await self._journal.admin()
            await admin.delete_records({self._tp: RecordsToDelete(before_offset=offset)})
        except _FOR_GOOD as error:
            raise _refused(error, self.name) from error
        except (KafkaError, OSError, TimeoutError) as error:
            raise JournalReadError(
                f"DeleteRecords before {offset}: {type(error).__name__}: {error}", where=self.name
            ) from error
