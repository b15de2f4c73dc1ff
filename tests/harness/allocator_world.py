"""Topics with counts as a join would write them, allocators beside them, and what edges would read."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from streams.allocations import Allocation, decode_allocation
from streams.allocator.log import LogState, Outcome
from streams.allocator.service import AllocatorService
from streams.config import Settings, TopicName
from streams.counts import (
    CountsKey,
    CountsRecord,
    Order,
    ProgressRecord,
    encode_counts,
    encode_key,
    encode_progress,
)
from streams.embedded import Broker
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.experiments.store import ExperimentStore
from streams.experiments.view import ExperimentsView
from streams.join.cells import HOUR_MS, Cell, CellKey, LagCounts
from streams.metrics import Metrics
from streams.partitioning import partition_of
from streams.topics import create_topics

START_HOUR = 480_000  # hours since the epoch: October 2024
PROCESS = Path(__file__).with_name("allocator_process.py")
RATES = {"a": 3, "b": 9, "c": 5}  # successes in 100 trials


def experiment(experiment_id: str, **fields: Any) -> ExperimentRecord:
    defaults: dict[str, Any] = {
        "experiment_id": experiment_id,
        "revision": 1,
        "status": "live",
        "arms": tuple(Arm(arm_id=arm_id) for arm_id in RATES),
        "control": "a",
        "versions": (
            Counting(version=1, effective_from_ms=START_HOUR * HOUR_MS, reward=Reward(metric="click")),
        ),
    }
    return ExperimentRecord(**(defaults | fields))


class World:
    """Topics of one test, and what a join would write to them."""

    def __init__(self, settings: Settings, producer: Any, store: ExperimentStore) -> None:
        self.settings = settings
        self.store = store
        self._producer = producer
        self._order = 0

    def partition(self, experiment_id: str) -> int:
        return partition_of(experiment_id.encode(), self.settings.counts_partitions)

    async def send(self, role: TopicName, partition: int, key: bytes | None, value: bytes | None) -> int:
        ack = await self._producer.send_and_wait(
            self.settings.topic(role), value, key=key, partition=partition
        )
        return int(ack.offset)

    def next_order(self) -> Order:
        self._order += 1
        return Order(1, 1, self._order)

    async def count(self, experiment_id: str, hour: int, *, late: bool = True) -> None:
        """Write an hour with 100 trials an arm and source partition; half of the successes an hour late."""
        for source_partition in range(self.settings.partitions):
            cells = {}
            for arm_id, rate in RATES.items():
                now, later = rate - rate // 2, rate // 2
                lags = {0: increments(now), 1: increments(later)} if late else {0: increments(now)}
                for view in ("steering", "reporting"):
                    key = CellKey(experiment_id, 1, view, "click", arm_id, "", "bandit", hour, hour)
                    cells[key] = Cell(100, 0, lags)
            counts_key = CountsKey(experiment_id, source_partition, hour)
            raw = encode_counts(counts_key, CountsRecord(self.next_order(), cells))
            await self.send("counts", self.partition(experiment_id), encode_key(counts_key), raw)

    async def progress(self, watermark_ms: int) -> None:
        """Raise the watermark of every source partition, in every counts partition."""
        for source_partition in range(self.settings.partitions):
            raw = encode_progress(ProgressRecord(self.next_order(), watermark_ms))
            for partition in range(self.settings.counts_partitions):
                await self.send("counts", partition, encode_key(CountsKey("", source_partition, 0)), raw)

    async def read(self, role: TopicName) -> list[ConsumerRecord]:
        """Read everything that is in a topic now, by partition and offset."""
        topic = self.settings.topic(role)
        partitions = [TopicPartition(topic, n) for n in range(self.settings.counts_partitions)]
        consumer = AIOKafkaConsumer(**self.settings.kafka_options(), auto_offset_reset="earliest")
        await consumer.start()
        try:
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            found: list[ConsumerRecord] = []
            while any([await consumer.position(tp) < end for tp, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
            return sorted(found, key=lambda record: (record.partition, record.offset))
        finally:
            await consumer.stop()

    async def log(self) -> list[tuple[ConsumerRecord, Allocation]]:
        """Read the allocations in the log that hold."""
        states: dict[int, LogState] = {}
        found = []
        for record in await self.read("allocation-log"):
            state = states.setdefault(record.partition, LogState())
            if state.apply(record.offset, record.key, record.value) is Outcome.HOLDS:
                found.append((record, decode_allocation(record.value)))
        return found

    async def edge(self) -> dict[str, Allocation]:
        """Read what an edge would have now: the newest record of each key; tombstones are left out."""
        newest: dict[str, Allocation] = {}
        for record in await self.read("allocations"):
            if record.value is None:
                newest.pop(record.key.decode(), None)
            else:
                newest[record.key.decode()] = decode_allocation(record.value)
        return newest


def increments(successes: int) -> LagCounts:
    return LagCounts(successes, successes * 10**6, successes * 10**12)


@asynccontextmanager
async def world_of(broker: Broker, prefix: str, **fields: Any) -> AsyncIterator[World]:
    defaults: dict[str, Any] = {
        "bootstrap_servers": broker.bootstrap_servers,
        "topic_prefix": prefix,
        "group": prefix + "workers",
        "partitions": 2,
        "counts_partitions": 2,
        "replication_factor": 1,
        "min_insync_replicas": 1,
        "clock": "stream",
    }
    settings = Settings(**(defaults | fields))
    await create_topics(settings)
    producer = AIOKafkaProducer(**settings.kafka_options(), acks="all", linger_ms=0)
    await producer.start()
    try:
        async with ExperimentStore(settings) as store:
            yield World(settings, producer, store)
    finally:
        await producer.stop()


@asynccontextmanager
async def allocator(settings: Settings, **fields: Any) -> AsyncIterator[AllocatorService]:
    experiments = ExperimentsView(settings)
    await experiments.start()
    try:
        service = AllocatorService(settings, experiments, Metrics(), **fields)
        async with service:
            yield service
    finally:
        await experiments.stop()


async def until(condition: Callable[[], Awaitable[bool]], what: str, deadline_s: float = 60) -> float:
    """Poll until a condition holds; return how many seconds that took."""
    start_s = time.monotonic()
    while not await condition():
        if time.monotonic() - start_s > deadline_s:
            pytest.fail(f"after {deadline_s:.0f} s still not: {what}")
        await asyncio.sleep(0.1)
    return time.monotonic() - start_s


class Processes:
    """Allocators in processes of their own; all are ended with the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, settings: Settings, worker_id: str) -> None:
        environment = environment_of(settings)
        environment["BANDIT_WORKER_ID"] = worker_id
        output = (self._folder / f"{worker_id}.log").open("wb")
        with output:
            self.running[worker_id] = subprocess.Popen(
                [sys.executable, str(PROCESS)], env=environment, stdout=output, stderr=output
            )

    def signal(self, worker_id: str, number: signal.Signals) -> None:
        self.running[worker_id].send_signal(number)

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
        for worker_id in self.running:
            text = (self._folder / f"{worker_id}.log").read_text()
            print(f"--- {worker_id}\n{text[-6000:]}")


def total(allocation: Allocation) -> Decimal:
    weights = [Decimal(repr(arm.weight)) for arm in allocation.arms]
    return sum(weights, Decimal(repr(allocation.comparison)))


def main_with(settings: Settings, *arguments: str) -> int:
    """Run a command of the product on these settings."""
    return subprocess.run(
        [sys.executable, "-c", "import sys, streams.cli; sys.exit(streams.cli.main())", *arguments],
        env=environment_of(settings),
        check=False,
    ).returncode


def environment_of(settings: Settings) -> dict[str, str]:
    names = {
        "bootstrap_servers",
        "topic_prefix",
        "group",
        "partitions",
        "counts_partitions",
        "replication_factor",
        "min_insync_replicas",
        "clock",
    }
    values = settings.model_dump(mode="json", include=names)
    return os.environ | {f"BANDIT_{name.upper()}": str(value) for name, value in values.items()}


def output_of(settings: Settings, *arguments: str) -> str:
    """Run a command of the product on these settings and return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", "import sys, streams.cli; sys.exit(streams.cli.main())", *arguments],
        env=environment_of(settings),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
