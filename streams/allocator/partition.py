"""The owner of one partition of the counts: claims it, computes what is due, publishes it.

What: `PartitionAllocator.run` reads the partition's allocations, log and counts, writes a claim, and then
repeats: take in what has arrived, compute what is due, publish.

How a table gets out: (1) it is written to allocation-log under the owner's claim; its offset is its
version; (2) the log is read back up to it: if no newer claim stands before it, it holds; (3) only then it
goes to ``allocations``. An owner that was paused and wakes up finds the newer claim in (2) and publishes
nothing. A write of (3) that comes late, after the new owner's, is seen by the new owner, who follows
``allocations``, too: it publishes the newest version again. The same comparison at the claim completes what
a killed owner had logged and not published. Nothing is published again that is there already: a rebalance
of 10,000 experiments writes nothing but claims.

Errors: what one experiment cannot have computed is logged and counted, and its last table stays in force
until the next boundary or change. A broker's error makes the owner claim again, which is always safe.

Cost: memory O(experiments + counts records of the partition); each poll looks at every next boundary.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence

import msgspec
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError

from streams.allocations import Allocation, decode_allocation
from streams.allocator.compute import Computed, Failure
from streams.allocator.context import AllocatorContext
from streams.allocator.counts_state import CountsState
from streams.allocator.inputs import Job, Stamp, gather_inputs, is_chained
from streams.allocator.log import Claim, LogState, Outcome, Published, encode_claim, versioned
from streams.allocator.reader import PartitionReader
from streams.allocator.results import PartitionResults
from streams.allocator.schedule import Handled, Now, due, next_boundary_ms
from streams.allocator.writer import PartitionWriter
from streams.config import TopicName
from streams.errors import Fenced, RecordError, Retry, StateCorrupt
from streams.partitioning import partition_of

__all__ = ["PartitionAllocator"]

RETRY_S = 1.0
HEARTBEAT_INTERVAL_MS = 1_000
SESSION_TIMEOUT_MS = 10_000
BOUNDARIES_PER_ROUND = 200  # of one experiment
MODELS_PER_ROUND = 8  # a fit takes as long as hundreds of other tables: nobody is to wait for a week of them
JOBS_PER_ROUND = 500
SLICE_S = 0.01  # of work between two turns of the event loop
NEVER_MS = 2**63

log = logging.getLogger(__name__)


class PartitionAllocator:
    """Owner of one partition number of counts, allocation-log and allocations.

    Parameters
    ----------
    partition
        The number.
    context
        What all owners share.
    """

    def __init__(self, partition: int, context: AllocatorContext) -> None:
        self.partition = partition
        self.active = False  # claimed, and not suspended
        self._context = context
        self._settings, self._experiments, self._pool, _, self._metrics, self._clock = context
        self._generation = -1
        self._resumed = asyncio.Event()
        self._claim_wanted = True
        self._claim = -1
        self._writer = PartitionWriter(context.settings, partition)
        self._reset()

    def _reset(self) -> None:
        """Forget everything that was read."""
        self._reader = PartitionReader(self._settings, self.partition, self._take)
        self._results = PartitionResults(self.partition, self._context, lambda: self.active)
        self._loaded = False
        self._counts = CountsState(views=("steering", "reporting"))
        self._log = LogState()
        self._current: dict[str, tuple[int, int | None]] = {}  # in allocations: offset, version or tombstone
        self._stale: set[str] = set()
        self._training: set[str] = set()  # said to be in training, in the topic allocations
        self._handled: dict[str, Handled] = {}
        self._next_ms: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._touched: set[str] = set()  # counts have changed
        self._ended = False

    def suspend(self) -> None:
        """Stop publishing: the group is rebalancing. What was read stays and is followed."""
        self._resumed.clear()
        self.active = False

    def resume(self, generation: int) -> None:
        """Claim, and publish: the partition is this worker's in this generation of the group."""
        self._generation = generation
        self._claim_wanted = True
        self._resumed.set()

    def definitions_changed(self, experiment_ids: Iterable[str]) -> None:
        """Look at these experiments' definitions again."""
        self._dirty.update(filter(self._is_mine, experiment_ids))

    def newest(self, experiment_id: str) -> Published | None:
        """Return the newest allocation of an experiment of this partition that holds."""
        return self._log.newest.get(experiment_id)

    def _is_mine(self, experiment_id: str) -> bool:
        return partition_of(experiment_id.encode(), self._settings.counts_partitions) == self.partition

    async def run(self) -> None:
        """Own the partition until cancelled.

        Raises
        ------
        StateCorrupt
            If allocations and allocation-log contradict each other.
        """
        fenced: Fenced | None = None
        try:
            while True:
                try:
                    if fenced is not None:
                        await self._yield_to(fenced)
                        fenced = None
                    await self._load()
                    await self._make_claim()
                    await self._serve()
                except Fenced as error:
                    fenced = error
                except (Retry, KafkaError, OSError) as error:
                    self.active = False
                    log.warning("allocator of partition %d: claiming again after: %s", self.partition, error)
                    await self._writer.close()
                    await asyncio.sleep(RETRY_S)
        finally:
            self.active = False
            await self._results.stop()
            await self._writer.close()
            await self._reader.stop()
            for experiment_id in self._log.newest:
                self._metrics.forget_experiment(experiment_id)

    async def _load(self) -> None:
        """Read allocations, the end of the log, and counts."""
        if self._loaded:
            return
        await self._reader.stop()
        await self._results.stop()
        self._reset()
        await self._reader.start()
        await self._reader.follow("allocations")
        await self._reader.read_to_end("allocations")
        versions = [version for _, version in self._current.values() if version is not None]
        # Whatever a killed owner has logged and not published comes after the oldest version published.
        known_from = min(versions, default=0)
        await self._reader.follow("allocation-log", from_offset=known_from)
        end = await self._reader.read_to_end("allocation-log")
        if versions and max(versions) >= end:
            raise StateCorrupt(
                f"version {max(versions)} is published, but the log ends at {end}: it was made anew",
                where=f"{self._settings.topic('allocation-log')}-{self.partition}",
                action="stop allocators and edges, delete the topic allocations, run `bandit-streams topics"
                " create` and start them again: edges keep the greatest version that they have seen",
            )
        await self._reader.follow("counts")
        await self._reader.read_to_end("counts")
        self.definitions_changed(experiment_id for experiment_id, _ in self._experiments.items())
        self._loaded = True
        self._results.start(known_from)

    async def _make_claim(self) -> None:
        """Write a claim and read everything before it; after that, nobody else's record can come to hold."""
        while not self._resumed.is_set():
            await self._reader.poll()
        self._claim_wanted = False
        generation = self._generation
        claim = Claim(owner=self._settings.worker_id, generation=generation, claimed_at_ms=self._clock())
        (self._claim,) = await self._writer.send("allocation-log", [(None, encode_claim(claim))])
        await self._reader.read_to("allocation-log", self._claim + 1)
        self._check_fence()
        await self._experiments.catch_up()
        await self._reader.read_to_end("allocations")
        self._stale.update(filter(self._differs, self._log.newest))
        self._metrics.allocator_claims_total.inc()
        log.info(
            "allocator of partition %d: claimed at %d in generation %d; %d experiments, %d with counts",
            self.partition,
            self._claim,
            generation,
            len(self._log.newest),
            len(self._counts),
        )

    async def _serve(self) -> None:
        while not self._claim_wanted:
            self.active = self._resumed.is_set()
            if self.active:
                self._check_fence()
                await self._publish_again()
                if await self._round():
                    continue
            await self._reader.poll()
        self.active = False

    def _check_fence(self) -> None:
        if self._log.claim != self._claim:
            raise Fenced(
                f"claim {self._claim} was followed by claim {self._log.claim}",
                where=f"{self._settings.topic('allocation-log')}-{self.partition}",
            )

    async def _yield_to(self, fenced: Fenced) -> None:
        """Wait until it is known whether this worker is still a member of the group.

        A fenced owner may have been out of the group for long without knowing. After a heartbeat it
        knows, and a lost partition ends this task. Against a higher generation it waits a session long.
        """
        self.active = False
        self._metrics.allocator_fenced_total.inc()
        log.warning("allocator of partition %d: %s; nothing was published", self.partition, fenced)
        newer = self._log.generation > self._generation
        deadline_s = time.monotonic() + (SESSION_TIMEOUT_MS if newer else 3 * HEARTBEAT_INTERVAL_MS) / 1000
        self._claim_wanted = False
        while time.monotonic() < deadline_s and not self._claim_wanted:
            await self._reader.poll()

    # --- what is read

    def _take(self, role: TopicName, record: ConsumerRecord) -> None:
        """Take in one record; what does not decode is reported, and what was known stays."""
        where = f"{record.topic}-{record.partition}@{record.offset}"
        try:
            if role == "counts":
                self._take_counts(record)
            elif role == "allocation-log":
                self._take_logged(record, where)
            else:
                self._take_published(record, where)
        except (RecordError, ValueError) as error:
            log.warning("allocator of partition %d: %s is skipped: %s", self.partition, where, error)

    def _take_counts(self, record: ConsumerRecord) -> None:
        key = self._counts.absorb(record.key or b"", record.value)
        if key is not None and key.experiment_id:
            self._touched.add(key.experiment_id)
            self._results.counted(record.key, record.value)

    def _take_logged(self, record: ConsumerRecord, where: str) -> None:
        outcome = self._log.apply(record.offset, record.key, record.value, where=where)
        if outcome is Outcome.HOLDS:
            self._set_handled(record.key.decode())
            self._results.logged(record.offset, record.key.decode(), record.value)
        elif outcome is Outcome.FOREIGN:
            log.warning(
                "allocator of partition %d: %s: ignored, written after a newer claim", self.partition, where
            )

    def _take_published(self, record: ConsumerRecord, where: str) -> None:
        experiment_id = (record.key or b"").decode()
        known = self._current.get(experiment_id)
        if known is not None and record.offset <= known[0]:
            return
        version = None
        if record.value is not None:
            allocation = decode_allocation(record.value, where=where)
            version = allocation.version
            if allocation.state == "training":  # by an owner that did not come to an end
                self._training.add(experiment_id)
            else:
                self._training.discard(experiment_id)
            if not self._loaded:
                self._results.known(allocation)
                self._log.seed(record.value, where=where)
                self._set_handled(experiment_id)
        self._current[experiment_id] = (record.offset, version)
        if self._loaded and self._differs(experiment_id):
            self._stale.add(experiment_id)

    def _set_handled(self, experiment_id: str) -> None:
        newest = self._log.newest[experiment_id]
        self._advance(experiment_id, Handled(newest.boundary_ms, newest.definition_revision, newest.status))

    def _advance(self, experiment_id: str, handled: Handled) -> None:
        self._handled[experiment_id] = handled
        record = self._experiments.get(experiment_id)
        if record is None or handled.status == "archived":
            self._next_ms[experiment_id] = NEVER_MS
        else:
            self._next_ms[experiment_id] = next_boundary_ms(handled.boundary_ms, record.policy.interval_ms)

    def _differs(self, experiment_id: str) -> bool:
        """Whether the topic allocations says something else than the newest in the log."""
        newest = self._log.newest.get(experiment_id)
        if newest is None:
            return False
        _, version = self._current.get(experiment_id, (-1, None))
        return experiment_id in self._training or version != (None if newest.archived else newest.version)

    # --- what is due

    async def _round(self) -> bool:
        """Compute and publish what is due; tell whether there may be more."""
        now = Now(
            self._settings.clock,
            self._counts.watermark_ms(self._settings.partitions),
            self._clock(),
            self._settings.settle_ms,
        )
        candidates = self._candidates(now)
        if not candidates:
            return False
        jobs: list[Job] = []
        slice_end_s = time.perf_counter() + SLICE_S
        for n_seen, experiment_id in enumerate(candidates, 1):
            jobs += self._jobs(experiment_id, now)
            if len(jobs) >= JOBS_PER_ROUND:
                self._dirty.update(candidates[n_seen:])
                break
            if time.perf_counter() > slice_end_s:
                await asyncio.sleep(0)
                slice_end_s = time.perf_counter() + SLICE_S
        if not jobs:
            return False
        fitted = {job.inputs.experiment_id for job in jobs if job.inputs.context is not None}
        quick = [job for job in jobs if job.inputs.experiment_id not in fitted]
        if quick:
            await self._publish(await self._compute(quick))
        if fitted:
            await self._say_training(sorted(fitted))
            models = [job for job in jobs if job.inputs.experiment_id in fitted]
            await self._publish(await self._compute(models))
            self._stale.update(self._training & fitted)  # what failed is as it was
        return True

    def _candidates(self, now: Now) -> list[str]:
        """Experiments that may be due, sorted, so that the log does not depend on hashes."""
        candidates, self._dirty = self._dirty, set()
        closed_ms = now.closed_ms()
        if now.ended and self._ended:
            candidates |= self._touched  # all others have had their last boundary
        elif closed_ms is not None:
            candidates |= {each for each, next_ms in self._next_ms.items() if next_ms <= closed_ms}
        self._ended = now.ended
        self._touched.clear()
        return sorted(candidates)

    def _jobs(self, experiment_id: str, now: Now) -> list[Job]:
        record = self._experiments.get(experiment_id)
        if record is None:
            return []
        try:
            handled = self._handled.get(experiment_id)
            most = MODELS_PER_ROUND if record.policy.algorithm == "contextual" else BOUNDARIES_PER_ROUND
            limit = 1 if is_chained(record) else most
            found = due(record, handled, now, self._counts, limit=limit)
            self._metrics.allocator_skipped_intervals_total.inc(found.skipped)
            if handled is not None:
                self._advance(experiment_id, handled)  # the interval may have changed
            if not found.boundaries_ms:
                return []
            newest = self._log.newest.get(experiment_id)
            last = decode_allocation(newest.raw) if newest else None
            stamp = Stamp(self._claim, found.trigger, now.wall_ms)
            return [
                Job(gather_inputs(record, boundary_ms, self._counts, last), stamp)
                for boundary_ms in found.boundaries_ms
            ]
        except Exception:  # whatever is wrong with one experiment, the others get their allocations
            log.exception(
                "allocator of partition %d: experiment %r: no allocation; its last one stays in force."
                " Operator action: see the error; correct it with `bandit-streams experiments apply`",
                self.partition,
                experiment_id,
            )
            self._fail(experiment_id, now.closed_ms() or 0)
            return []

    def _fail(self, experiment_id: str, boundary_ms: int) -> None:
        """Count it, and do not try the same again before the next boundary or change."""
        self._metrics.allocator_failures_total.inc()
        record = self._experiments.get(experiment_id)
        before = self._handled.get(experiment_id)
        if record is not None:
            boundary_ms = max(boundary_ms, before.boundary_ms if before else 0)
            self._advance(experiment_id, Handled(boundary_ms, record.revision, record.status))

    async def _compute(self, jobs: Sequence[Job]) -> list[Computed]:
        start_s = time.perf_counter()
        results = await self._pool.compute(jobs)
        self._metrics.recompute_duration_seconds.observe((time.perf_counter() - start_s) / len(jobs))
        found = []
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Computed):
                found.append(result)
                continue
            self._report(result)
            self._fail(result.experiment_id, job.inputs.boundary_ms)
        return found

    def _report(self, failure: Failure) -> None:
        log.error(
            "allocator of partition %d: experiment %r: %s; its last allocation stays in force."
            " Operator action: correct the definition with `bandit-streams experiments apply`",
            self.partition,
            failure.experiment_id,
            failure.message,
        )

    # --- what is published

    async def _publish(self, computed: Sequence[Computed]) -> None:
        """Log, read back, publish; raises Fenced before the last step if a newer claim is in the log."""
        offsets = await self._writer.send(
            "allocation-log", [(each.experiment_id.encode(), each.raw) for each in computed]
        )
        if not offsets:
            return
        await self._reader.read_to("allocation-log", max(offsets) + 1)
        self._check_fence()
        tables = [
            msgspec.structs.replace(decode_allocation(each.raw), version=offset, inputs={})
            for each, offset in zip(computed, offsets, strict=True)
        ]
        values = [
            (
                table.experiment_id.encode(),
                None if _is_archived(table) else versioned(each.raw, table.version),
            )
            for each, table in zip(computed, tables, strict=True)
        ]
        placed = await self._writer.send("allocations", values)
        for table, offset in zip(tables, placed, strict=True):
            self._note(table, offset, table.trigger)
        self._dirty.update(table.experiment_id for table in tables)

    def _note(self, table: Allocation, offset: int, trigger: str) -> None:
        archived = _is_archived(table)
        self._results.published(table)
        self._training.discard(table.experiment_id)
        self._current[table.experiment_id] = (offset, None if archived else table.version)
        if archived:
            self._metrics.forget_experiment(table.experiment_id)
            self._metrics.allocations_published_total.labels(trigger=trigger).inc()
            return
        weights = {arm.arm_id: arm.weight for arm in table.arms}
        self._metrics.allocation_published(table.experiment_id, trigger=trigger, weights=weights)
        self._metrics.allocation_state(table.experiment_id, table.state)

    async def _say_training(self, experiment_ids: Sequence[str]) -> None:
        """Say in the topic allocations, not in the log, that new models train: the same versions serve."""
        newest = {each: self._log.newest[each] for each in experiment_ids if each in self._log.newest}
        values = [versioned(each.raw, each.version, state="training") for each in newest.values()]
        self._training.update(newest)
        keys = [experiment_id.encode() for experiment_id in newest]
        placed = await self._writer.send("allocations", list(zip(keys, values, strict=True)))
        for (experiment_id, each), offset in zip(newest.items(), placed, strict=True):
            self._current[experiment_id] = (offset, each.version)
            self._metrics.allocation_state(experiment_id, "training")

    async def _publish_again(self) -> None:
        """Bring the topic allocations up to the newest versions in the log, where it is behind."""
        stale, self._stale = sorted(filter(self._differs, self._stale)), set()
        if not stale:
            return
        log.info("allocator of partition %d: publishing %d allocations again", self.partition, len(stale))
        newest: list[Published] = [self._log.newest[experiment_id] for experiment_id in stale]
        values = [None if each.archived else versioned(each.raw, each.version) for each in newest]
        try:
            keys = [experiment_id.encode() for experiment_id in stale]
            placed = await self._writer.send("allocations", list(zip(keys, values, strict=True)))
        except BaseException:
            self._stale.update(stale)
            raise
        for each, offset in zip(newest, placed, strict=True):
            table = msgspec.structs.replace(decode_allocation(each.raw), version=each.version)
            self._note(table, offset, "owner")


def _is_archived(table: Allocation) -> bool:
    return table.status == "archived"
