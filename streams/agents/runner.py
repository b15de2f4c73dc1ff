"""The owner task of one source partition: claim, then batch after batch from chunk to counts.

Order of one batch: records at or above the journal's position -> step (pure) -> re-routes acknowledged ->
journal record acknowledged and applied -> dead letters and counts follow in tasks of their own. Whatever
goes wrong before the journal's acknowledgement changes nothing; after it, everything else can be had again
from the database.

Positions: the journal's are the truth. A chunk that starts later than the position has a lost chunk before
it: seek back. One that was fetched before a seek has an older epoch: drop it. Records below the position
are skipped. A chunk lost with nothing behind it is found by comparing, while idle, how far the consumer has
fetched with the position.

Cost per batch: one await for the journal; everything else is the step's.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.errors import IllegalStateError
from faust.types import TP

from streams.agents.backlog import Backlog, Opened
from streams.agents.context import SOURCES, JoinContext
from streams.agents.counts import CountsPublisher
from streams.agents.progress import Progress
from streams.agents.source import Record, explained
from streams.agents.verdicts import VerdictEmitter
from streams.errors import Retry, Stop
from streams.events import decode_conversion, decode_exposure
from streams.join.step import Batch, StepResult, run_step
from streams.metrics import PartitionState
from streams.state.errors import JournalDiverged, StoreCorrupt, StoreUnavailable
from streams.state.owner import Committed, Fenced, Owner, Redo, TooLarge
from streams.state.partition import Partition
from streams.transport import Chunk

__all__ = ["PartitionRunner"]

log = logging.getLogger(__name__)

TICK_S = 0.2
LOST_AFTER_S = 3.0
RETRY_S = 0.5
SWEEP_EVERY_BATCHES = 4
SWEEP_STEP_BYTES = 1 << 20


class _Rewind(Exception):
    """Go back to the journal's positions and forget the chunks in hand."""


class _Lost(Exception):
    """The partition has another owner now."""


class PartitionRunner:
    """Owns one partition from its claim until it is stopped or fenced.

    Parameters
    ----------
    number
        The source partition.
    partition
        Its open database.
    owner
        The protocol over its journal.
    counts
        What publishes its cells.
    context
        What all owner tasks of the worker share.
    generation
        The group's generation in which the partition was assigned.
    assigned_at
        Journal offset that the database had then.
    """

    def __init__(
        self,
        number: int,
        partition: Partition,
        owner: Owner,
        counts: CountsPublisher,
        context: JoinContext,
        generation: int,
        assigned_at: int,
    ) -> None:
        self.number = number
        self.name = f"partition-{number}"
        self.partition = partition
        self.owner = owner
        self.progress = Progress(number, partition, context)
        self._context = context
        self._generation = generation
        self._assigned_at = assigned_at
        self._tps = {topic: TP(context.topic_names[topic], number) for topic in SOURCES}
        self._logical = {name: topic for topic, name in context.topic_names.items()}
        self._epochs: Mapping[TP, int] = {}
        self._backlog = Backlog()
        self._stopping = asyncio.Event()
        self._known_claim = -1
        self._last_chunk_s = time.monotonic()
        self._batches = 0
        self._counts = counts
        self._verdicts = VerdictEmitter(number, context.dead_letters, context.source, context.topic_names)
        self._task: asyncio.Task[None] | None = None

    # Life

    def start(self) -> None:
        """Begin: claim the partition, then process what is accepted."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    async def stop(self, deadline_s: float) -> None:
        """Finish the batch in hand, publish what it counted, and end; cancelled after ``deadline_s``."""
        self._stopping.set()
        if self._task is None:
            return
        _, running = await asyncio.wait([self._task], timeout=deadline_s)
        if running:
            log.warning(
                "%s: not done within %.1f s; what is in hand is redone by the next owner",
                self.name,
                deadline_s,
            )
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def accept(self, chunk: Chunk) -> None:
        """Take a chunk to process; never waits, asks the consumer to pause instead."""
        topic = self._logical[chunk.topic]
        self._backlog.put(topic, chunk)
        self._last_chunk_s = time.monotonic()
        self._set_busy(topic, self._backlog.is_full(topic))

    def _set_busy(self, topic: str, busy: bool) -> None:
        self._context.consumer().set_busy(self._tps[topic], busy)

    async def _run(self) -> None:
        context = self._context
        tasks: list[asyncio.Task[None]] = []
        try:
            context.metrics.set_partition_state(self.number, PartitionState.CLAIMING)
            context.health.fail(
                self.name, "the partition is being claimed", "wait; the log says what it waits for"
            )
            began_s = time.monotonic()
            context.read_back.watch(self.number, self._counts)
            if not await self._become_owner():
                return
            create = asyncio.get_running_loop().create_task
            tasks = [
                create(self._counts.run(context.settings.counts_flush_ms / 1000), name=f"{self.name} counts"),
                create(self._verdicts.run(), name=f"{self.name} dead letters"),
            ]
            for task in tasks:
                task.add_done_callback(self._on_task_done)
            await self._verdicts.put_pending(self.partition.pending_verdicts())
            context.metrics.recovery_seconds.observe(time.monotonic() - began_s)
            context.metrics.set_partition_state(self.number, PartitionState.ACTIVE)
            log.info(
                "%s: owned after %.2f s; %d journal records replayed since the assignment; %s",
                self.name,
                time.monotonic() - began_s,
                self.partition.head.claim - self._assigned_at,
                self.progress.describe(),
            )
            await self._process_all()
            await self._counts.flush_last()
        except _Lost as lost:
            log.warning("%s: fenced (%s); it waits for its next assignment", self.name, lost)
            context.health.forget(self.name)
        except (JournalDiverged, StoreUnavailable) as error:
            context.crash(error)  # mended by a restart, once the cause is gone
        except Stop as error:
            log.error("%s: stopped: %s", self.name, error)  # noqa: TRY400 - the error says what to do
            context.health.forget(self.name)
            context.health.fail(self.name, str(error), "see the error; restart the worker when it is mended")
        except Exception as error:
            log.exception("%s: unexpected error", self.name)
            context.crash(error)
        finally:
            context.read_back.unwatch(self.number, self._counts)
            for topic in SOURCES:
                self._set_busy(topic, False)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.progress.report_statistics(self.owner)
            context.metrics.set_partition_state(self.number, PartitionState.STOPPED)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: task %s failed", self.name, task.get_name(), exc_info=error)
            self._context.crash(error)

    # Becoming the owner

    async def _become_owner(self) -> bool:
        if not await self._again(claim=True):
            return False
        self._known_claim = self.partition.head.claim
        self._counts.mark_all()
        return True

    async def _again(self, *, claim: bool) -> bool:
        """Check the ends of the sources and seek to the journal's positions, after a claim if one is due."""
        while not self._stopping.is_set():
            try:
                if claim:
                    await self._claim()
                for topic in SOURCES:
                    await self._check_source(topic)
                await self._seek()
            except JournalDiverged:
                raise
            except Retry as error:
                self._context.health.fail(
                    self.name, str(error), "check the brokers; it is tried again by itself"
                )
                log.warning("%s: not ready yet: %s", self.name, error)
                self._context.health.beat(self.name)  # it moves; what it waits for is told by the check
                await asyncio.sleep(RETRY_S)
                claim = claim or not self.owner.active
            else:
                self._context.health.ok(self.name)
                return True
        return False

    async def _claim(self) -> None:
        remaining = self._context.metrics.recovery_records_remaining.labels(str(self.number))
        claimed = await self.owner.claim(self._generation, on_progress=remaining.set)
        remaining.set(0)
        if isinstance(claimed, Fenced):
            raise _Lost(claimed.reason)

    async def _check_source(self, topic: str) -> None:
        start, end = await self._context.source.bounds(self._context.topic_names[topic], self.number)
        self.progress.observe_end(topic, end)
        before = self.partition.head.log_start_skips.get(topic, 0)
        while isinstance(outcome := await self.owner.check_source(topic, start, end), Redo):
            pass
        self._require_owned(outcome)
        self.progress.count_log_start_skips(topic, before)

    def _require_owned(self, outcome: object) -> None:
        if isinstance(outcome, Fenced):
            raise _Lost(outcome.reason)
        if isinstance(outcome, Redo):
            raise _Rewind(outcome.reason)

    async def _seek(self) -> None:
        self._backlog.clear()
        for topic in SOURCES:
            self._set_busy(topic, False)
        positions = self.partition.head.positions
        try:
            with explained(self.name):
                self._epochs = await self._context.consumer().seek_sources(
                    {tp: positions[topic] for topic, tp in self._tps.items()}
                )
        except Stop as error:
            # A rebalance may be through in the consumer's thread before anyone has told this task.
            if isinstance(error.__cause__, IllegalStateError):
                raise _Lost("the group has given the partition to another worker") from error
            raise
        self._last_chunk_s = time.monotonic()

    # Processing

    async def _process_all(self) -> None:
        while not self._stopping.is_set():
            try:
                topic = await self._next_topic()
                if topic is not None:
                    await self._process(topic)
                await self._between_batches(idle=topic is None)
            except _Rewind as reason:
                log.info("%s: back to the journal's positions: %s", self.name, reason)
                self._context.metrics.rewinds_total.inc()
                await self._go_on(claim=False)
            except StoreCorrupt as error:
                log.warning("%s: %s; set aside and rebuilt", self.name, error)
                self.partition.reset("corrupt")
                await self._go_on(claim=True)
            except JournalDiverged:
                raise
            except Retry as error:
                log.warning("%s: %s; tried again in %.1f s", self.name, error, RETRY_S)
                self._context.health.beat(self.name)
                await asyncio.sleep(RETRY_S)
                await self._go_on(claim=not self.owner.active)

    async def _go_on(self, *, claim: bool) -> None:
        """As `_again`; after a new claim, also publish what a record whose fate was in doubt has counted."""
        if await self._again(claim=claim) and self.partition.head.claim != self._known_claim:
            self._known_claim = self.partition.head.claim
            self._counts.mark_all()
            await self._verdicts.put_pending(self.partition.pending_verdicts())

    async def _next_topic(self) -> str | None:
        """Topic whose records are next; None if there are none."""
        backlog = self._backlog
        if backlog.is_empty and not await backlog.wait(TICK_S):
            return None
        for topic in SOURCES:
            while (chunk := backlog.next_chunk(topic)) is not None:
                backlog.open(topic, await self._open(chunk))
            self._set_busy(topic, backlog.is_full(topic))
        if self.progress.lag_records("exposures") and backlog.waits_for_exposures(self._reached_ms()):
            await backlog.wait(TICK_S)
            return None
        return backlog.next_topic(self._reached_ms())

    def _reached_ms(self) -> int:
        return self.partition.head.maxima.get("exposures", -1)

    async def _open(self, chunk: Chunk) -> Opened | None:
        """Check where a chunk starts; None if it is of before the last seek."""
        topic = self._logical[chunk.topic]
        if chunk.epoch != self._epochs[self._tps[topic]]:
            return None
        self.progress.observe_end(topic, chunk.highwater)
        position = self.partition.head.positions[topic]
        if chunk.start > position:
            raise _Rewind(f"{chunk.topic}: fetched from {chunk.start}, counted up to {position}")
        records = chunk.records
        if chunk.start < position:
            records = [record for record in records if record.offset >= position]
            self.progress.count_skipped(topic, len(chunk.records) - len(records))
        if records and records[0].offset > position:
            position = await self._over_gap(topic, position)
        if not records:
            if chunk.next > position:
                await self._commit(topic, (), chunk.next)
            return None
        return Opened(records, chunk.next)

    async def _process(self, topic: str) -> None:
        """Commit the next records of a topic."""
        settings = self._context.settings
        records, following = self._backlog.take(
            topic,
            settings.batch_max_records,
            settings.batch_max_bytes,
            self._reached_ms() if self.progress.lag_records("exposures") else None,
        )
        await self._commit(topic, records, following)

    async def _over_gap(self, topic: str, position: int) -> int:
        """Tell offsets that never held a record from records that retention has deleted."""
        start, _ = await self._context.source.bounds(self._context.topic_names[topic], self.number)
        if start > position:
            before = self.partition.head.log_start_skips.get(topic, 0)
            self._require_owned(await self.owner.skip(topic, start))
            self.progress.count_log_start_skips(topic, before)
        return self.partition.head.positions[topic]

    async def _commit(
        self, topic: str, records: Sequence[Record], following: int, *, oversize_bytes: int = 0
    ) -> None:
        context = self._context
        while not await context.definitions_fresh():
            if self._stopping.is_set():
                return
        batch = Batch(
            topic=topic,
            partition=self.number,
            start=self.partition.head.positions[topic],
            next=following,
            records=records,
            oversize_bytes=oversize_bytes,
        )
        async with context.turn:
            result = await self._step(batch)
        await self._reroute(topic, records, result.reroutes)
        self.owner.dead_lettered(self._verdicts.through)
        before = self.partition.head
        with self.progress.timed("journal"):
            outcome = await self.owner.commit(result, batch)
        if isinstance(outcome, TooLarge):
            if oversize_bytes or not records:
                raise Stop(
                    f"a journal record of {outcome.size_bytes} bytes, the limit is {outcome.limit_bytes}, "
                    "even without a new event",
                    where=f"{context.topic_names[topic]}[{self.number}] offset {following - 1}",
                    action="raise journal_max_message_bytes and the journal topic's max.message.bytes",
                )
            await self._split(topic, records, following, outcome)
            return
        self._require_owned(outcome)
        if isinstance(outcome, Committed):
            self._batches += 1
            self.progress.committed(before, result, len(records))
            self._counts.mark(result.cells)
            if result.verdicts:
                by_offset = {record.offset: record for record in records}
                await self._verdicts.put(outcome.offset, topic, result.verdicts, by_offset)

    async def _split(self, topic: str, records: Sequence[Record], following: int, outcome: TooLarge) -> None:
        if len(records) == 1:
            await self._commit(topic, records, following, oversize_bytes=outcome.size_bytes)
            return
        half = len(records) // 2
        await self._commit(topic, records[:half], records[half].offset)
        await self._commit(topic, records[half:], following)

    async def _step(self, batch: Batch) -> StepResult:
        context = self._context
        context.sync_definitions()
        result = self._run_step(batch, final=False)
        if result.unknown_experiments:
            await context.view.catch_up()
            context.sync_definitions()
            result = self._run_step(batch, final=True)
        return result

    def _run_step(self, batch: Batch, *, final: bool) -> StepResult:
        partition, context = self.partition, self._context
        with self.progress.timed("step"):
            return run_step(
                batch,
                partition.head,
                context.definitions,
                context.limits,
                partition.get_units,
                partition.get_cells,
                final=final,
                kernel=context.kernel,
            )

    async def _reroute(self, topic: str, records: Sequence[Record], offsets: Sequence[int]) -> None:
        if not offsets:
            return
        wanted = set(offsets)
        decode: Any = decode_exposure if topic == "exposures" else decode_conversion
        name = self._context.topic_names[topic]
        await asyncio.gather(
            *(
                self._context.source.reroute(name, decode(record.value).unit_id, record)
                for record in records
                if record.offset in wanted
            )
        )
        self._context.metrics.rerouted_total.labels(topic=topic).inc(len(wanted))

    # Between batches

    async def _between_batches(self, *, idle: bool) -> None:
        if self._counts.is_outranked:
            log.warning("%s: counts of a later owner or of another journal stand in the topic", self.name)
            await self._go_on(claim=True)
        if idle:
            await self._find_lost_chunk()
            await self._raise_idle()
        self.progress.report(self.owner, waiting=not self._backlog.is_empty)
        settings = self._context.settings
        due = idle or self._batches % SWEEP_EVERY_BATCHES == 0
        if due and self.owner.sweep_due(
            now_ms=self._context.clock_ms(),
            interval_ms=settings.sweep_interval_ms,
            max_bytes=settings.sweep_max_bytes,
        ):
            before = self.partition.head
            swept = await self.owner.sweep_step(max_bytes=SWEEP_STEP_BYTES)
            self._require_owned(swept)
            if not isinstance(swept, Fenced | Redo):
                self._counts.mark(key for key, _ in swept.cells)
                self._counts.mark(swept.dropped_cells)
                self.progress.swept(before, swept)
        if not idle:
            await asyncio.sleep(0)

    async def _find_lost_chunk(self) -> None:
        if time.monotonic() - self._last_chunk_s < LOST_AFTER_S or self._context.has_undelivered():
            return
        consumer = self._context.consumer()
        for topic, tp in self._tps.items():
            fetched = consumer.fetched_to(tp)
            position = self.partition.head.positions[topic]
            if fetched is not None and fetched > position and consumer.is_handed_over(tp):
                raise _Rewind(
                    f"{tp.topic}: fetched up to {fetched}, counted up to {position}, nothing on its way"
                )

    async def _raise_idle(self) -> None:
        for topic in SOURCES:
            maximum_ms = self.progress.idle_maximum_ms(topic)
            if maximum_ms is not None:
                self._require_owned(await self.owner.raise_watermark(topic, maximum_ms))
