"""Events of an edge on their way to Kafka: a bounded queue and one background producer.

What: :meth:`EventEmitter.offer` puts an encoded event into a bounded queue and returns; a task sends the
queue with an idempotent producer of its own and counts what became of every event.

Why this way: the request path may wait for nothing, so a full queue drops the new event and counts it instead
of growing or blocking. An event whose delivery failed goes back to the queue, unless it was refused for good:
sending twice is harmless, because the pipeline takes each event id once. A producer that reports a lasting
error (its sequence numbers no longer fit the broker's) is replaced by a new one.

Cost: an offer is a deque append, and one wake-up of the loop when the queue was empty; memory is bounded by
``queue_events`` events and the producer's batches.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from msgspec import Struct

__all__ = ["EmitterOptions", "EmitterStatistics", "EventEmitter"]

log = logging.getLogger(__name__)

_RETRY_BACKOFF_S: Final = 0.2
_CLOSE_DEADLINE_S: Final = 2.0
_REFUSED: Final = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    InvalidTopicError,
)


class EmitterOptions(Struct, frozen=True, kw_only=True):
    """How events are queued and sent.

    Parameters
    ----------
    queue_events
        Most events waiting to be sent; further ones are dropped and counted.
    linger_ms
        How long the producer waits to fill a batch.
    request_timeout_ms
        Longest wait for the broker before an event goes back to the queue.
    flush_deadline_ms
        Longest wait of ``stop`` for what is still queued.
    """

    queue_events: int = 100_000
    linger_ms: int = 10
    request_timeout_ms: int = 15_000
    flush_deadline_ms: int = 10_000

    def __post_init__(self) -> None:
        if self.queue_events < 1:
            raise ValueError(f"queue_events: {self.queue_events} leaves no room for any event")
        if self.linger_ms < 0:
            raise ValueError(f"linger_ms: {self.linger_ms} is negative")
        if self.request_timeout_ms < 1 or self.flush_deadline_ms < 0:
            raise ValueError(
                f"request_timeout_ms {self.request_timeout_ms} must be positive and flush_deadline_ms"
                f" {self.flush_deadline_ms} not negative"
            )


class EmitterStatistics(Struct, frozen=True, kw_only=True):
    """What became of the events offered: ``offered = sent + dropped + failed + queued + in_flight``.

    Attributes
    ----------
    sent
        Acknowledged by the broker.
    dropped
        Not taken, because the queue was full or the emitter stopped.
    failed
        Refused for good (too large, not authorised), or not delivered before the stop's deadline.
    queued, in_flight
        Waiting, and handed to the producer.
    retried
        Deliveries that went back to the queue; not part of the sum.
    """

    offered: int
    sent: int
    dropped: int
    failed: int
    queued: int
    in_flight: int
    retried: int


class _Event(NamedTuple):
    topic: str
    key: bytes
    value: bytes


class EventEmitter:
    """Sends events in the background; ``offer`` may be called from any thread.

    Parameters
    ----------
    kafka_options
        Keyword arguments of every aiokafka client (addresses, TLS, SASL).
    client_id
        Name shown in the broker's logs and quotas.
    options
        Bounds and times.
    """

    def __init__(self, kafka_options: dict[str, Any], *, client_id: str, options: EmitterOptions) -> None:
        self._kafka_options = kafka_options
        self._client_id = client_id
        self._options = options
        self._queue: deque[_Event] = deque()
        self._offer_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._producer: AIOKafkaProducer | None = None
        self._task: asyncio.Task[None] | None = None
        self._accepting = False
        self._ended = False
        self._offered = self._sent = self._dropped = self._failed = self._in_flight = self._retried = 0

    async def start(self) -> None:
        """Connect and begin to send.

        Raises
        ------
        aiokafka.errors.KafkaConnectionError
            No broker answers.
        """
        self._loop = asyncio.get_running_loop()
        self._producer = await self._connected_producer()
        self._task = asyncio.create_task(self._run(), name=f"{self._client_id}-emitter")
        self._accepting = True

    async def stop(self) -> None:
        """Send what is queued, for at most ``flush_deadline_ms``, then close; the rest counts as failed."""
        with self._offer_lock:
            self._accepting = False
        if self._task is None:
            return
        await self.flush(self._options.flush_deadline_ms)
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        self._failed += len(self._queue)
        self._queue.clear()
        if self._producer is not None:
            await self._close(self._producer)
            self._producer = None
        # What the producer still holds has no outcome and gets none any more.
        self._ended = True
        self._failed += self._in_flight
        self._in_flight = 0

    def offer(self, topic: str, key: bytes, value: bytes) -> bool:
        """Queue one event; never blocks.

        Returns
        -------
        bool
            False where it was dropped, because the queue is full or the emitter is not running.
        """
        loop = self._loop
        with self._offer_lock:
            self._offered += 1
            if not self._accepting or loop is None or len(self._queue) >= self._options.queue_events:
                self._dropped += 1
                return False
            was_empty = not self._queue
            self._queue.append(_Event(topic, key, value))
        if was_empty:
            loop.call_soon_threadsafe(self._wake.set)
        return True

    async def flush(self, deadline_ms: int) -> bool:
        """Wait until everything offered so far and since is settled.

        Returns
        -------
        bool
            False where ``deadline_ms`` passed first.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_ms / 1000):
                while self._queue or self._in_flight:
                    self._settled.clear()
                    await self._settled.wait()
        return not (self._queue or self._in_flight)

    def statistics(self) -> EmitterStatistics:
        """Return the counts so far."""
        return EmitterStatistics(
            offered=self._offered,
            sent=self._sent,
            dropped=self._dropped,
            failed=self._failed,
            queued=len(self._queue),
            in_flight=self._in_flight,
            retried=self._retried,
        )

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._wake.clear()
                self._settled.set()
                if not self._queue:
                    await self._wake.wait()
                continue
            await self._send(self._queue.popleft())

    async def _send(self, event: _Event) -> None:
        """Hand one event to the producer; it counts as in flight until its future settles."""
        self._in_flight += 1
        try:
            producer = self._producer
            if producer is None:
                producer = self._producer = await self._connected_producer()
            future = await producer.send(event.topic, key=event.key, value=event.value)
        except asyncio.CancelledError:
            self._in_flight -= 1
            self._failed += 1
            raise
        except KafkaError as error:
            self._finish(event, error)
            await self._recover(error)
            return
        future.add_done_callback(lambda done: self._delivered(event, done))

    def _delivered(self, event: _Event, done: "asyncio.Future[Any]") -> None:
        if done.cancelled():
            self._finish(event, KafkaError("the producer was closed before it delivered"))
        else:
            self._finish(event, done.exception())

    def _finish(self, event: _Event, error: BaseException | None) -> None:
        if self._ended:
            return
        self._in_flight -= 1
        if error is None:
            self._sent += 1
        elif isinstance(error, _REFUSED):
            self._failed += 1
            log.warning("event for topic %s was refused for good: %r", event.topic, error)
        else:
            self._retried += 1
            with self._offer_lock:
                if len(self._queue) < self._options.queue_events and self._task is not None:
                    self._queue.append(event)
                else:
                    self._failed += 1
            self._wake.set()
        if not self._in_flight:
            self._settled.set()

    async def _recover(self, error: KafkaError) -> None:
        """After an error of ``send`` itself: wait a little, and replace a producer that cannot go on."""
        if isinstance(error, _REFUSED):
            return
        if not error.retriable and not isinstance(error, KafkaTimeoutError) and self._producer is not None:
            log.warning("replacing the event producer after %r", error)
            broken, self._producer = self._producer, None
            await self._close(broken)
        await asyncio.sleep(_RETRY_BACKOFF_S)

    async def _connected_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._kafka_options,
            client_id=self._client_id,
            enable_idempotence=True,
            linger_ms=self._options.linger_ms,
            request_timeout_ms=self._options.request_timeout_ms,
            max_batch_size=128 * 1024,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def _close(self, producer: AIOKafkaProducer) -> None:
        """Close a producer, within some seconds even when the broker is gone."""
        try:
            async with asyncio.timeout(_CLOSE_DEADLINE_S):
                await producer.stop()
        except (TimeoutError, KafkaError) as error:
            log.warning("event producer did not close in order, its connections are cut: %r", error)
            with contextlib.suppress(TimeoutError, KafkaError):
                async with asyncio.timeout(_CLOSE_DEADLINE_S):
                    await producer._sender.close()
            await producer.client.close()
