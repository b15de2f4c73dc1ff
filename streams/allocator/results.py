"""The results of one partition's experiments: made after each allocation, and published.

What: the owner of a counts partition hands on what it reads and publishes (`counted`, `logged`,
`published`); `run` makes the results of what was published, as of the same boundary, and writes them to
the topic results. Of an experiment only the newest allocation is worked on: whoever is behind leaves out
what nobody would read.

Why apart from the owner's loop: allocations must not wait for results, which cost twenty times as much. So
these are made in processes of their own, which give way to everything else of the worker. Chances of units
from weeks ago are in the allocation log, so after a hand-over it is read from the oldest version that any
unit names, in the background; results wait for that, allocations do not. An owner that was paused may write
late results over a new owner's; they stand until the next interval, and claim nothing that the older counts
did not say.

Cost: memory, besides the counts, of some 60 bytes a cell and 300 bytes an allocation of ten arms; time in
those processes, measured in docs/experiments.md; after a hand-over one read of the log.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

import msgspec
from aiokafka.errors import KafkaError

from streams.allocations import Allocation
from streams.allocator.context import AllocatorContext
from streams.allocator.inputs import counting_at
from streams.allocator.logged import Logged, decode_logged
from streams.allocator.observed import Observation
from streams.allocator.reporting import ResultsJob, try_results
from streams.allocator.writer import PartitionWriter
from streams.counts import decode_key
from streams.errors import BanditError, RecordError
from streams.log_reader import LogReader
from streams.results import Results, decode_results, encode_results

__all__ = ["PartitionResults"]

AT_ONCE = 32  # of a partition: together they cost half, and are published a second or two later
AT_ONCE_BYTES = 8 << 20  # of counts
IDLE_S = 0.5
RETRY_S = 1.0
RECORDS_PER_TURN = 200

log = logging.getLogger(__name__)


class PartitionResults:
    """Makes and publishes the results of one partition number.

    Parameters
    ----------
    partition
        The number, the same in counts, allocation-log and results.
    context
        What all owners share.
    active
        Whether the partition is claimed and not suspended.
    """

    def __init__(
        self,
        partition: int,
        context: AllocatorContext,
        active: Callable[[], bool],
    ) -> None:
        self._partition = partition
        self._settings, self._experiments, _, self._pool, self._metrics, self._clock = context
        self._active = active
        self._observed: dict[str, Observation] = {}
        self._log: dict[str, dict[int, Logged]] = {}
        self._known: dict[str, Allocation] = {}  # until it is seen whose results are there
        self._due: dict[str, Allocation] = {}
        self._wake = asyncio.Event()
        self._writer = PartitionWriter(context.settings, partition)
        self._task: asyncio.Task[None] | None = None

    # --- what the owner hands on

    def counted(self, raw_key: bytes, raw_value: bytes | None) -> None:
        """Take in a record of the topic counts that changed something."""
        experiment_id = decode_key(raw_key).experiment_id
        observation = self._observed.setdefault(experiment_id, Observation())
        observation.absorb(raw_key, raw_value)
        if not observation:
            del self._observed[experiment_id]

    def logged(self, offset: int, experiment_id: str, raw: bytes) -> None:
        """Take in an allocation of the log that holds."""
        self._log.setdefault(experiment_id, {})[offset] = decode_logged(raw)

    def known(self, table: Allocation) -> None:
        """Take in what a former owner published: its results are due if it did not come to them."""
        self._known[table.experiment_id] = msgspec.structs.replace(table, inputs={})

    def published(self, table: Allocation) -> None:
        """Take in what was published: its results are due."""
        self._due[table.experiment_id] = msgspec.structs.replace(table, inputs={})
        self._wake.set()

    # --- life

    def start(self, known_from: int) -> None:
        """Begin; the owner hands on the log from the offset ``known_from`` itself."""
        self._task = asyncio.create_task(
            self._run(known_from), name=f"results of partition {self._partition}"
        )

    async def stop(self) -> None:
        """End; may be called at any time."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._writer.close()

    async def _run(self, known_from: int) -> None:
        loaded = False
        while True:
            try:
                if not loaded:
                    await self._load(known_from)
                    loaded = True
                await self._round()
            except (BanditError, KafkaError, OSError, BrokenProcessPool) as error:
                log.warning("results of partition %d: trying again after: %s", self._partition, error)
                await self._writer.close()
                await asyncio.sleep(RETRY_S)
            except Exception:  # whatever is wrong with results, allocations go on
                self._metrics.results_failures_total.inc()
                log.exception("results of partition %d: left out until the next interval", self._partition)
                await asyncio.sleep(RETRY_S)

    async def _load(self, known_from: int) -> None:
        """Read the log that the owner does not follow, and what a former owner has not come to publish."""
        first = min((each.first_version for each in self._observed.values()), default=known_from)
        async with LogReader(self._settings) as reader:
            if first < known_from:
                topic = self._settings.topic("allocation-log")
                n_seen = 0
                async for item in reader.read(topic, start={self._partition: first}):
                    if item.offset >= known_from:
                        break
                    n_seen += 1
                    if item.key is not None and item.value is not None:
                        self._take_logged(item.offset, item.key.decode(), item.value)
                    if n_seen % RECORDS_PER_TURN == 0:
                        await asyncio.sleep(0)
            topic = self._settings.topic("results")
            shown: dict[str, int | None] = {}
            async for item in reader.read(topic, start={self._partition: 0}):
                shown[(item.key or b"").decode()] = _allocation_version(item.value)
        for experiment_id, table in self._known.items():
            if shown.get(experiment_id) != table.version:
                self._due.setdefault(experiment_id, table)
        self._known.clear()

    def _take_logged(self, offset: int, experiment_id: str, raw: bytes) -> None:
        if experiment_id in self._observed:
            try:
                self.logged(offset, experiment_id, raw)
            except RecordError as error:
                log.warning("results of partition %d: offset %d: %s", self._partition, offset, error)

    # --- what is due

    async def _round(self) -> None:
        """Make and publish some of what is due, or wait for it."""
        if not self._due or not self._active():
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await self._wake.wait()
            if not self._due or not self._active():
                return
        taken = self._take()
        try:
            made = await self._made(taken)
            if self._active():  # else they are the next owner's
                await self._writer.send("results", made)
                self._metrics.results_published_total.inc(len(made))
        except (BanditError, KafkaError, OSError, BrokenProcessPool):
            self._due = taken | self._due
            raise

    def _take(self) -> dict[str, Allocation]:
        """Take some of what is due: no more than a process can well be given at once."""
        taken: dict[str, Allocation] = {}
        n_bytes = 0
        for experiment_id in sorted(self._due):
            observation = self._observed.get(experiment_id)
            n_bytes += observation.n_bytes if observation is not None else 0
            if taken and n_bytes > AT_ONCE_BYTES:
                break
            taken[experiment_id] = self._due.pop(experiment_id)
            if len(taken) == AT_ONCE:
                break
        return taken

    async def _made(self, tables: dict[str, Allocation]) -> list[tuple[bytes, bytes | None]]:
        found: list[tuple[bytes, bytes | None]] = []
        jobs: list[ResultsJob] = []
        for experiment_id, table in tables.items():
            if table.status == "archived":
                self._observed.pop(experiment_id, None)
                self._log.pop(experiment_id, None)
                found.append((experiment_id.encode(), None))
            elif (job := self._job(experiment_id, table)) is not None:
                jobs.append(job)
            await asyncio.sleep(0)  # putting a long one together takes milliseconds
        with self._metrics.results_duration_seconds.time():
            results = await self._pool.run(try_results, jobs) if jobs else []
        for result in results:
            if isinstance(result, Results):
                found.append((result.experiment_id.encode(), encode_results(result)))
                continue
            self._metrics.results_failures_total.inc()
            log.error(
                "results of partition %d: experiment %r: %s; its last results stay",
                self._partition,
                result.experiment_id,
                result.message,
            )
        return found

    def _job(self, experiment_id: str, table: Allocation) -> ResultsJob | None:
        record = self._experiments.get(experiment_id)
        if record is None:
            return None
        observation = self._observed.get(experiment_id)
        return ResultsJob(
            record=record,
            counting=counting_at(record, table.boundary_ms),
            records=observation.records() if observation is not None else (),
            log=self._log.get(experiment_id, {}),
            allocation=table,
            boundary_ms=table.boundary_ms,
            computed_at_ms=self._clock(),
        )


def _allocation_version(raw: bytes | None) -> int | None:
    try:
        return None if raw is None else decode_results(raw).allocation_version
    except RecordError:
        return None  # of another release: made again
