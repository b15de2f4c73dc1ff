"""The allocator as a service: which partitions are this worker's, and a task for each.

What: `AllocatorService` is a member of the consumer group ``<group>-allocator`` on the topic counts. The
group only says who owns which partition; it fetches nothing and commits nothing. Each owned partition has
a :class:`~streams.allocator.partition.PartitionAllocator`, which reads the partition whole by itself.

Why: what was read survives a rebalance in which the partition stays; safety comes from claims in the log,
so nothing depends on how quickly a worker learns that it has lost a partition.

It runs beside anything in an event loop, and alone: ``async with AllocatorService(...)``.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError
from mode import Service

from streams.allocator.context import AllocatorContext
from streams.allocator.log import Published
from streams.allocator.partition import HEARTBEAT_INTERVAL_MS, SESSION_TIMEOUT_MS, PartitionAllocator
from streams.allocator.pool import ComputePool
from streams.allocator.writer import REQUEST_TIMEOUT_MS
from streams.compacted import CompactedView
from streams.config import Settings
from streams.experiments.definition import ExperimentRecord
from streams.metrics import Metrics

__all__ = ["AllocatorService", "wall_clock_ms"]

POLL_MS = 1_000
RETRY_S = 1.0
RESULTS_NICENESS = 10  # a tenth of what allocations and the join get of a core they share

log = logging.getLogger(__name__)


def wall_clock_ms() -> int:
    """Epoch ms."""
    return time.time_ns() // 1_000_000


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no type information
    """Hands a rebalance to the service; the group waits for it, so it must be quick."""

    def __init__(self, service: "AllocatorService") -> None:
        self._service = service

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Stop publishing until it is known what stays."""
        self._service.suspend(tp.partition for tp in revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Take over what is new, go on with what stays, drop the rest."""
        await self._service.take_over({tp.partition for tp in assigned})


class AllocatorService(Service):
    """Publishes allocations of the partitions that the consumer group gives to this worker.

    Parameters
    ----------
    settings
        Addresses, topics, group, clock.
    experiments
        The definitions; started by the caller, and stopped by it afterwards.
    metrics
        Counters and gauges of the worker.
    clock
        Wall clock, epoch ms.
    pool
        Where allocations are computed; one of the service's own by default.
    """

    def __init__(
        self,
        settings: Settings,
        experiments: CompactedView[str, ExperimentRecord],
        metrics: Metrics,
        *,
        clock: Callable[[], int] = wall_clock_ms,
        pool: ComputePool | None = None,
    ) -> None:
        super().__init__()
        self._settings = settings
        results_pool = ComputePool(niceness=RESULTS_NICENESS)
        self._context = AllocatorContext(
            settings, experiments, pool or ComputePool(), results_pool, metrics, clock
        )
        self._consumer: Any = None
        self._owned: dict[int, PartitionAllocator] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        experiments.on_change(self._definitions_changed)

    @property
    def owned(self) -> frozenset[int]:
        """Partitions that are this worker's."""
        return frozenset(self._owned)

    @property
    def active(self) -> frozenset[int]:
        """Partitions that are claimed and served."""
        return frozenset(partition for partition, owner in self._owned.items() if owner.active)

    @property
    def pool(self) -> ComputePool:
        """Processes for heavy maths."""
        return self._context.pool

    def newest(self, experiment_id: str) -> Published | None:
        """Return the newest allocation of an experiment whose partition is claimed by this worker."""
        for owner in self._owned.values():
            if owner.active and (found := owner.newest(experiment_id)) is not None:
                return found
        return None

    def _definitions_changed(self, changes: Mapping[str, ExperimentRecord | None]) -> None:
        for owner in self._owned.values():
            owner.definitions_changed(changes)

    async def on_start(self) -> None:
        """Join the group."""
        self._consumer = AIOKafkaConsumer(
            **self._settings.kafka_options(),
            client_id=f"bandit-allocator-{self._settings.worker_id}",
            group_id=f"{self._settings.group}-allocator",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(StickyPartitionAssignor,),
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
        )
        self._consumer.subscribe([self._settings.topic("counts")], listener=_Listener(self))
        await self._consumer.start()

    async def on_stop(self) -> None:
        """Stop publishing, leave the group, end the processes."""
        for owner in self._owned.values():
            owner.suspend()
        for partition in list(self._running):
            await self._drop(partition)
        if self._consumer is not None:
            await self._consumer.stop()
        self._context.pool.close()
        self._context.results_pool.close()

    @Service.task
    async def _stay_in_group(self) -> None:
        """Poll, as a member of a group must; everything is paused, so nothing comes."""
        while not self.should_stop:
            try:
                await self._consumer.getmany(timeout_ms=POLL_MS)
            except KafkaError as error:
                log.warning("consumer group %s-allocator: %r", self._settings.group, error)
                await self.sleep(RETRY_S)

    def suspend(self, partitions: Iterable[int]) -> None:
        """Stop publishing for these partitions; what was read stays."""
        for partition in partitions:
            if partition in self._owned:
                self._owned[partition].suspend()

    async def take_over(self, partitions: set[int]) -> None:
        """Make these partitions, and no others, this worker's."""
        self._consumer.pause(*self._consumer.assignment())
        generation = self._consumer._coordinator.generation  # aiokafka has no public way
        log.info(
            "allocator: partitions %s of counts in generation %d", sorted(partitions) or "none", generation
        )
        for partition in self._owned.keys() - partitions:
            await self._drop(partition)
        for partition in sorted(partitions):
            if partition not in self._owned:
                self._start_owner(partition)
            self._owned[partition].resume(generation)

    def _start_owner(self, partition: int) -> None:
        owner = PartitionAllocator(partition, self._context)
        self._owned[partition] = owner
        task = asyncio.create_task(owner.run(), name=f"allocator of partition {partition}")
        task.add_done_callback(self._owner_ended)
        self._running[partition] = task

    def _owner_ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        log.error("%s has ended: %s", task.get_name(), error, exc_info=error)
        if not self.should_stop:
            self.add_future(self.crash(error))

    async def _drop(self, partition: int) -> None:
        """End an owner; what it has in flight is caught by the rule of the log."""
        self._owned.pop(partition)
        task = self._running.pop(partition)
        task.cancel()
        await asyncio.wait([task])
