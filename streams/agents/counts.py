"""From a partition's database to the topic ``counts``: changed cells, then how far the partition has got.

A counts record holds all cells of one experiment and bucket, read from the database when it is published,
so many batches between two publications cost one record. Its order (journal id, claim, journal offset) is
the head's at that moment; the progress record goes out after the cells are acknowledged and carries the
watermark of the same moment, so whoever has read it has read every cell dated before it.

Nothing is remembered on disk: after a claim everything is published once, which also mends what a crash
left out. What the topic has of this partition and others wrote (:mod:`streams.agents.read_back`) is
published over: with the cells of today, or a tombstone where there are none. The first progress waits for
that, so that nobody takes cells into account which are about to go.

Cost: one range read and one record for each changed (experiment, bucket) and publication, some 80 us. Where
a backlog changes thousands of them in every interval, the pauses grow, so that all publishers of the process
together take about a fifth of its time.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import ClassVar

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from streams.counts import CountsKey, Order, ProgressRecord, encode_key, encode_progress, encode_rows
from streams.join.cells import bucket_prefix, decode_numbers, decode_prefix, decode_tail, split_key
from streams.metrics import Metrics
from streams.partitioning import partition_of
from streams.state.partition import CELL, Partition

__all__ = ["CountsPublisher", "pause_s"]

log = logging.getLogger(__name__)

IN_FLIGHT = 1000
PAUSE_TO_SPENT = 8.0
"""Pause for each second spent on making records; sending them takes about as long again."""
PAUSE_MOST_S = 5.0
Rank = tuple[int, int]  # journal id, claim: the greatest one wins, whatever the offset


def pause_s(interval_s: float, spent_s: float, n_publishers: int) -> float:
    """Seconds until a publisher's next turn, one of ``n_publishers``, after a turn that took ``spent_s``."""
    return max(interval_s, min(PAUSE_TO_SPENT * spent_s * n_publishers, PAUSE_MOST_S))


class CountsPublisher:
    """Publishes one partition's cells and progress.

    Parameters
    ----------
    number
        The source partition.
    partition
        Its database.
    producer
        An idempotent producer with acks=all, shared by the worker.
    topic, n_partitions
        The counts topic and its partition count.
    """

    _n_running: ClassVar[int] = 0  # in this process

    def __init__(
        self,
        number: int,
        partition: Partition,
        producer: AIOKafkaProducer,
        *,
        topic: str,
        n_partitions: int,
        metrics: Metrics,
    ) -> None:
        self._number = number
        self._partition = partition
        self._producer = producer
        self._topic = topic
        self._n_partitions = n_partitions
        self._metrics = metrics
        self._dirty: set[bytes] = set()  # prefixes of the cells' keys: experiment and bucket
        self._flushing = asyncio.Lock()
        self._published_ms: int | None = None
        self._claimed: Rank | None = None
        self._seen_all = False
        self._spent_s = 0.0
        self.highest_seen: Rank = (0, 0)

    def mark(self, cell_keys: Iterable[bytes]) -> None:
        """Note that these cells (encoded keys) have changed."""
        self._dirty.update([split_key(raw)[0] for raw in cell_keys])
        self._metrics.counts_dirty_cells.labels(partition=str(self._number)).set(len(self._dirty))

    def mark_all(self) -> None:
        """Note that everything is to be published again: after a claim nobody knows what was."""
        self._claimed = self._rank()
        self.mark(key for key, _ in self._partition.cells())
        self._published_ms = None

    def _rank(self) -> Rank:
        return self._partition.head.journal_id, self._partition.head.claim

    # What the topic has

    @property
    def is_outranked(self) -> bool:
        """Whether records stand in the topic that readers would prefer to what is published here.

        They are of a newer owner, or of a journal that is no more: a new claim finds out.
        """
        return self.highest_seen > self._rank()

    def seen(self, key: CountsKey, order: Order | None) -> None:
        """Take in a record of this partition as the topic has it; what is not this owner's is marked."""
        prefix = bucket_prefix(key.experiment_id, key.bucket)
        if order is None:
            is_stale = any(True for _ in self._partition.scan(CELL + prefix))
        else:
            self.highest_seen = max(self.highest_seen, order[:2])
            is_stale = self._claimed is None or order[:2] < self._claimed
        if not is_stale:
            return
        if key.experiment_id == "":
            self._published_ms = None
        else:
            self._dirty.add(prefix)
        if self._seen_all:
            self._metrics.counts_written_over_total.inc()

    def seen_all(self) -> None:
        """Let the first progress go: what was in the topic before is marked."""
        self._seen_all = True

    async def flush(self) -> None:
        """Publish what has changed, then the progress; on an error the rest stays to be published.

        One at a time: what another call has in hand is acknowledged, or marked again, before this one begins.

        Raises
        ------
        KafkaError
            If a record was not acknowledged.
        """
        async with self._flushing:
            await self._flush()

    async def _flush(self) -> None:
        self._spent_s = 0.0
        head = self._partition.head
        watermark_ms = head.watermark_ms()
        if not self._dirty and watermark_ms == self._published_ms:
            return
        order = Order(head.journal_id, head.claim, head.journal_offset)
        left, self._dirty = self._dirty, set()
        try:
            await self._publish_cells(sorted(left), left, order)
            if self._seen_all and watermark_ms is not None and watermark_ms != self._published_ms:
                await self._publish_progress(ProgressRecord(order, watermark_ms))
                self._published_ms = watermark_ms
        except BaseException:
            self._dirty |= left
            raise
        self._metrics.counts_dirty_cells.labels(partition=str(self._number)).set(len(self._dirty))

    async def flush_last(self) -> None:
        """Publish at the end; what cannot be published now the next owner publishes after its claim."""
        try:
            await self.flush()
        except KafkaError as error:
            log.warning(
                "partition %d: last counts not published (%r); the next owner does", self._number, error
            )

    async def _publish_cells(self, prefixes: list[bytes], left: set[bytes], order: Order) -> None:
        # All values are read before the first await, so that they stand at ``order`` and no later batch is
        # in them.
        began_s = time.perf_counter()
        records = [self._record(prefix, order) for prefix in prefixes]
        self._spent_s = time.perf_counter() - began_s
        for first in range(0, len(records), IN_FLIGHT):
            part = records[first : first + IN_FLIGHT]
            sent = [
                await self._producer.send(
                    self._topic,
                    value,
                    encode_key(key),
                    partition=partition_of(key.experiment_id.encode(), self._n_partitions),
                )
                for key, value in part
            ]
            await asyncio.gather(*sent)
            left.difference_update(prefixes[first : first + IN_FLIGHT])
            self._metrics.counts_published_total.inc(len(part))

    def _record(self, prefix: bytes, order: Order) -> tuple[CountsKey, bytes | None]:
        start = len(CELL + prefix)
        rows = [
            (*decode_tail(raw[start:]), *decode_numbers(value))
            for raw, value in self._partition.scan(CELL + prefix)
        ]
        experiment_id, bucket = decode_prefix(prefix)
        return CountsKey(experiment_id, self._number, bucket), encode_rows(order, rows) if rows else None

    async def _publish_progress(self, progress: ProgressRecord) -> None:
        key, value = encode_key(CountsKey("", self._number, 0)), encode_progress(progress)
        sent = [
            await self._producer.send(self._topic, value, key, partition=number)
            for number in range(self._n_partitions)
        ]
        await asyncio.gather(*sent)

    async def run(self, interval_s: float) -> None:
        """Publish every ``interval_s`` or less often (:func:`pause_s`) until cancelled.

        Errors of Kafka are retried at the next turn.
        """
        CountsPublisher._n_running += 1
        try:
            while True:
                await asyncio.sleep(pause_s(interval_s, self._spent_s, CountsPublisher._n_running))
                try:
                    await self.flush()
                except KafkaError as error:
                    log.warning(
                        "partition %d: counts not published to %s (%r); tried again at the next turn",
                        self._number,
                        self._topic,
                        error,
                    )
        finally:
            CountsPublisher._n_running -= 1
