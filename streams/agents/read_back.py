"""Reading the topic counts back: what stands there that the owners of the partitions here did not write.

The newest record of a key in the log is what compaction keeps, and what an allocator reads that starts later.
It may be wrong although every owner published the right one: a worker that was suspended sends what it had in
hand after its successor has published; a journal made anew counts less than the one before it, and nobody
takes the rest back; a worker whose clock was ahead has left records that outrank those of today. So each
owner is shown every record of its partition that is in the topic when it begins and that comes after, and
publishes again what is not its own.

Cost: the whole topic is read by every worker that owns a partition, from its start at each assignment, keys
and orders only; nothing is kept.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from streams.compacted import stop_consumer
from streams.config import Settings
from streams.counts import CountsKey, Order, decode_key, decode_order
from streams.errors import RecordError
from streams.read_progress import ReadProgress, last_answer

__all__ = ["ReadBack", "Watcher"]

log = logging.getLogger(__name__)

POLL_MS = 500
FETCH_WAIT_MS = 500
RETRY_S = 0.5
MAX_RECORDS = 500
"""Records between two turns of the event loop."""


class Watcher(Protocol):
    """The owner's side."""

    def seen(self, key: CountsKey, order: Order | None) -> None:
        """Take in a record of the owner's partition; no order is a tombstone."""

    def seen_all(self) -> None:
        """Everything that was in the topic when watching began has been seen."""

    def mark_all(self) -> None:
        """Nothing of what was published is there any longer."""


class ReadBack:
    """Follows all partitions of the topic counts while somebody watches.

    Parameters
    ----------
    settings
        Addresses, security, topic name and partition count.
    monotonic
        Clock in seconds.
    """

    def __init__(self, settings: Settings, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._monotonic = monotonic
        topic = settings.topic("counts")
        self._tps = [TopicPartition(topic, number) for number in range(settings.counts_partitions)]
        self._watchers: dict[int, Watcher] = {}
        self._waiting: dict[int, dict[TopicPartition, int]] = {}  # source partition -> ends to be reached
        self._progress: dict[TopicPartition, ReadProgress] = {}
        self._from_start = False
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def watch(self, number: int, watcher: Watcher) -> None:
        """Show a source partition's owner what is in the topic, from its start on."""
        self._watchers[number] = watcher
        self._from_start = True
        self._wanted.set()

    def unwatch(self, number: int, watcher: Watcher) -> None:
        """Show this watcher nothing more."""
        if self._watchers.get(number) is watcher:
            del self._watchers[number]
            self._waiting.pop(number, None)
        if not self._watchers:
            self._wanted.clear()

    def start(self) -> None:
        """Begin; nothing is read until somebody watches."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="counts read back")

    async def stop(self) -> None:
        """End reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            consumer = AIOKafkaConsumer(
                **self._settings.kafka_options(),
                client_id=f"bandit-read-back-{self._settings.worker_id}",
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                fetch_max_wait_ms=FETCH_WAIT_MS,
            )
            try:
                await consumer.start()
                consumer.assign(self._tps)
                self._from_start = True
                while self._wanted.is_set():
                    await self._poll(consumer)
            except (KafkaError, OSError) as error:
                log.warning(
                    "%s: not read back, trying again: %r; the join needs the right to read it",
                    self._tps[0].topic,
                    error,
                )
                await asyncio.sleep(RETRY_S)
            finally:
                await stop_consumer(consumer)

    async def _poll(self, consumer: Any) -> None:
        if self._from_start:
            await self._go_to_start(consumer)
        batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_RECORDS)
        if self._from_start:
            return  # asked for meanwhile
        for tp in self._tps:
            records = batches.get(tp, ())
            position = await consumer.position(tp)
            progress = self._progress[tp]
            if position < progress.read:
                self._begun_anew(tp)
                progress = self._progress[tp] = ReadProgress(0, self._monotonic())
            for record in records:
                self._show(record)
            progress.observe(
                position=position,
                answer=last_answer(consumer, tp),
                had_records=bool(records),
                now_s=self._monotonic(),
            )
        self._tell_seen_all()

    async def _go_to_start(self, consumer: Any) -> None:
        self._from_start = False
        wanted = set(self._watchers)
        ends = await consumer.end_offsets(self._tps)
        await consumer.seek_to_beginning(*self._tps)
        now_s = self._monotonic()
        self._progress = {tp: ReadProgress(await consumer.position(tp), now_s) for tp in self._tps}
        self._waiting = {number: ends for number in wanted if number in self._watchers}

    def _begun_anew(self, tp: TopicPartition) -> None:
        log.warning("%s/%d: the log has begun anew; everything is published again", tp.topic, tp.partition)
        for watcher in self._watchers.values():
            watcher.mark_all()

    def _show(self, record: ConsumerRecord) -> None:
        try:
            key = decode_key(record.key or b"")
            watcher = self._watchers.get(key.source_partition)
            if watcher is not None:
                watcher.seen(key, None if record.value is None else decode_order(record.value))
        except RecordError as error:  # the allocator reports it, too, and what to do
            log.warning("%s/%d offset %d: %s", record.topic, record.partition, record.offset, error)

    def _tell_seen_all(self) -> None:
        for number, ends in list(self._waiting.items()):
            if all(self._progress[tp].complete >= end for tp, end in ends.items()):
                del self._waiting[number]
                self._watchers[number].seen_all()
