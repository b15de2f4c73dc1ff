"""All partitions of one join worker: their owner tasks through assignments, and a watch over them."""

import asyncio
import logging

from streams.agents.context import SOURCES, JoinContext
from streams.agents.counts import CountsPublisher
from streams.agents.runner import PartitionRunner
from streams.agents.sweeper import JoinSweeper
from streams.errors import BanditError, TopicsMismatch
from streams.metrics import PartitionState
from streams.state.owner import Owner, OwnerLimits
from streams.state.partition import Partition
from streams.state.table import Shards
from streams.topics import require_topics
from streams.transport import Chunk

__all__ = ["Join"]

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 2.0
REBALANCE_DEADLINE_S = 5.0
"""For batches in hand when a rebalance begins: all partitions wait, also for the one whose leader is slow."""
RECORD_MARGIN_BYTES = 64 << 10


class Join:
    """Starts and stops the owner tasks as Faust assigns partitions, and hands chunks to them.

    Parameters
    ----------
    context
        What they share.
    shards
        The databases open in this worker.
    """

    def __init__(self, context: JoinContext, shards: Shards) -> None:
        self._context = context
        self._shards = shards
        self._runners: dict[int, PartitionRunner] = {}
        self._seen: set[int] = set()
        self._assignment = 0  # counts rebalances: one may begin while the hand-over of the last still runs
        self._ends = (
            False  # Faust goes on until it is stopped, and may hand over partitions after the end began
        )
        self._watcher: asyncio.Task[None] | None = None
        self._check: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin watching; owner tasks start with the first assignment."""
        self._watcher = asyncio.get_running_loop().create_task(self._watch(), name="join watch")

    async def stop(self) -> None:
        """Let every owner finish its batch, then close the databases."""
        self._ends = True
        for task in (self._watcher, self._check):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._release(self._context.settings.shutdown_deadline_ms / 1000)
        await self._shards.close()

    def accept(self, chunk: Chunk) -> None:
        """Hand a chunk to the partition's owner; without one it is dropped, and fetched again later."""
        runner = self._runners.get(chunk.partition)
        if runner is not None:
            runner.accept(chunk)

    async def release(self) -> int:
        """Stop every owner: a rebalance has begun; return the number of this release."""
        return await self._release(
            min(REBALANCE_DEADLINE_S, self._context.settings.shutdown_deadline_ms / 1000)
        )

    async def _release(self, deadline_s: float) -> int:
        self._assignment += 1
        assignment = self._assignment
        runners, self._runners = self._runners, {}
        await asyncio.gather(*(runner.stop(deadline_s) for runner in runners.values()))
        return assignment

    async def hand(self, active: dict[int, Partition], standby: set[int], generation: int) -> None:
        """Start an owner for every active partition; Faust's recovery is through with them."""
        assignment = await self.release()
        if self._ends or assignment != self._assignment:  # another hand-over came while owners were stopping
            return
        self._forget(self._seen - set(active) - standby)
        self._seen = set(active) | standby
        for number in standby:
            self._context.health.forget(f"partition-{number}")  # said by its owner, while that was here
            self._context.metrics.set_partition_state(number, PartitionState.STANDBY)
        for number, partition in active.items():
            await self._shards.settle(number)
            if assignment != self._assignment:
                return
            self._shards.own(number)
            self._runners[number] = self._runner(number, partition, generation)
            self._runners[number].start()
        self._context.health.ok("start")
        self._check = asyncio.get_running_loop().create_task(self._check_topics())
        log.info(
            "assigned in generation %d: active %s, standby %s", generation, sorted(active), sorted(standby)
        )

    async def _check_topics(self) -> None:
        """End the worker if the topics no longer fit: assignments come when partitions are added, too."""
        try:
            await require_topics(self._context.settings)
        except TopicsMismatch as error:
            self._context.crash(error)
        except BanditError as error:
            log.warning("topics not checked at this assignment: %s", error)

    def _runner(self, number: int, partition: Partition, generation: int) -> PartitionRunner:
        context = self._context
        counts = CountsPublisher(
            number,
            partition,
            context.producer,
            topic=context.settings.topic("counts"),
            n_partitions=context.settings.counts_partitions,
            metrics=context.metrics,
        )
        owner = self._owner(number, partition, generation, counts)
        return PartitionRunner(
            number, partition, owner, counts, context, generation, self._shards.assigned_at(number)
        )

    def _owner(self, number: int, partition: Partition, generation: int, counts: CountsPublisher) -> Owner:
        context, settings = self._context, self._context.settings

        async def heartbeat_fresh() -> bool:
            return await context.consumer().is_member(generation)

        return Owner(
            partition,
            self._shards.journal.log(number),
            name=settings.worker_id,
            heartbeat_fresh=heartbeat_fresh,
            clock_ms=context.clock_ms,
            limits=OwnerLimits(
                max_record_bytes=settings.journal_max_message_bytes - RECORD_MARGIN_BYTES,
                recovery_deadline_s=settings.recovery_deadline_ms / 1000,
            ),
            sweeper=JoinSweeper(context.definitions, context.limits),
            published=lambda: counts.highest_seen,
        )

    def _forget(self, numbers: set[int]) -> None:
        for number in numbers:
            self._context.metrics.forget_partition(number)
            self._context.health.forget(f"partition-{number}")

    async def _watch(self) -> None:
        """Ask the brokers for the ends of the owned partitions: lag must not depend on what was fetched."""
        context = self._context
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            statistics = context.view.statistics()
            context.metrics.definitions_age_seconds.set(min(statistics.age_ms / 1000, 1e9))
            context.metrics.definitions_problems.set(statistics.problems)
            runners = dict(self._runners)
            wanted = [(context.topic_names[topic], number) for topic in SOURCES for number in runners]
            try:
                ends = await context.source.ends(wanted)
            except BanditError as error:
                log.warning("ends of the source topics are not known: %s", error)
                continue
            for topic in SOURCES:
                for number, runner in runners.items():
                    runner.progress.observe_end(topic, ends[context.topic_names[topic], number])
