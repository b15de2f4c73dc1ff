"""The allocator on a real Kafka: a week of boundaries, killed and paused owners, changes at once."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from streams.allocations import Allocation, decode_allocation, encode_allocation
from streams.allocator.log import LogState, Outcome, decode_claim
from streams.allocator.service import AllocatorService
from streams.audit import audit
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
from streams.errors import StateCorrupt
from streams.experiments import lifecycle
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Policy, Reward
from streams.experiments.store import ExperimentStore
from streams.experiments.view import ExperimentsView
from streams.join.cells import HOUR_MS, Cell, CellKey, LagCounts
from streams.join.step import END_MS
from streams.metrics import Metrics
from streams.partitioning import partition_of
from streams.topics import create_topics

pytestmark = pytest.mark.integration

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


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.end()


def total(allocation: Allocation) -> Decimal:
    weights = [Decimal(repr(arm.weight)) for arm in allocation.arms]
    return sum(weights, Decimal(repr(allocation.comparison)))


async def test_a_week_of_counts_gives_168_allocations_each_from_what_is_dated_before_it(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix) as world:
        await world.store.write(experiment("banner"))
        for hour in range(START_HOUR, START_HOUR + 168):
            await world.count("banner", hour, late=hour < START_HOUR + 167)
        await world.progress(END_MS)
        start_s = time.monotonic()
        async with allocator(world.settings):

            async def complete() -> bool:
                return len(await world.log()) >= 169

            await until(complete, "169 allocations in the log")
        print(f"168 allocations in {time.monotonic() - start_s:.1f} s")
        first, *tables = [allocation for _, allocation in await world.log()]
        assert (first.trigger, first.boundary_ms, first.state) == ("change", START_HOUR * HOUR_MS, "created")
        assert [arm.weight for arm in first.arms] == pytest.approx([1 / 3] * 3, abs=1e-9)
        assert [table.boundary_ms // HOUR_MS - START_HOUR for table in tables] == list(range(1, 169))
        for n_hours, table in enumerate(tables, 1):
            assert table.trigger == "interval"
            for arm in table.arms:
                rate, n_partitions = RATES[arm.arm_id], world.settings.partitions
                now, later = rate - rate // 2, rate // 2
                assert arm.trials == n_partitions * 100 * n_hours
                assert arm.successes == n_partitions * (now * n_hours + later * (n_hours - 1))
            assert total(table) == 1
        assert tables[-1].arms[1].weight > 0.95
        newest = (await world.edge())["banner"]
        assert newest.version == (await world.log())[-1][0].offset
        assert newest.boundary_ms == tables[-1].boundary_ms
        report = await audit(world.settings)
        assert (report.ok, report.compared, report.claims) == (True, 169, 2)
        await check_a_forgery_is_found(world)
        await check_results_are_shown(world)


async def check_results_are_shown(world: World) -> None:
    found = json.loads(await asyncio.to_thread(output_of, world.settings, "results", "banner", "--json"))
    n_trials = world.settings.partitions * 168 * 100
    assert [arm["trials"] for arm in found["arms"]] == [n_trials] * 3
    assert [arm["weight"] for arm in found["arms"]] == [
        arm.weight for arm in (await world.edge())["banner"].arms
    ]
    text = await asyncio.to_thread(output_of, world.settings, "results", "banner")
    assert "P(best)" in text
    assert "Shares changed 167 times" in text


def output_of(settings: Settings, *arguments: str) -> str:
    """Run a command of the product on these settings and return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", "import sys, streams.cli; sys.exit(streams.cli.main())", *arguments],
        env=environment_of(settings),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


async def check_a_forgery_is_found(world: World) -> None:
    """Write a table with other weights under the valid claim, as nobody but an intruder would."""
    record, allocation = (await world.log())[-1]
    assert (await asyncio.to_thread(main_with, world.settings, "audit")) == 0
    first, *rest = allocation.arms
    arms = (msgspec.structs.replace(first, weight=first.weight / 2), *rest)
    forged = encode_allocation(msgspec.structs.replace(allocation, arms=arms))
    offset = await world.send("allocation-log", record.partition, record.key, forged)
    report = await audit(world.settings)
    where = [(difference.partition, difference.offset) for difference in report.differences]
    assert set(where) == {(record.partition, offset)}
    assert (await asyncio.to_thread(main_with, world.settings, "audit")) == 1


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


async def test_pause_and_stop_arm_reach_the_topic_within_five_seconds(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix, clock="wall") as world, allocator(world.settings):
        now_ms = time.time_ns() // 1_000_000
        record = experiment(
            "banner", versions=(Counting(version=1, effective_from_ms=now_ms, reward=Reward(metric="click")),)
        )
        await world.store.write(record)

        async def published(check: Callable[[Allocation], bool]) -> bool:
            allocation = (await world.edge()).get("banner")
            return allocation is not None and check(allocation)

        await until(partial(published, lambda table: table.status == "live"), "a first allocation")
        steps: list[
            tuple[str, Callable[[ExperimentRecord], ExperimentRecord], Callable[[Allocation], bool]]
        ] = [
            ("pause", partial(lifecycle.pause, now_ms=now_ms), lambda table: table.status == "paused"),
            ("resume", partial(lifecycle.resume, now_ms=now_ms), lambda table: table.status == "live"),
            (
                "stop-arm",
                partial(lifecycle.stop_arm, arm_id="c", now_ms=now_ms),
                lambda table: [arm.weight for arm in table.arms] == [0.5, 0.5, 0.0],
            ),
            (
                "complete",
                partial(lifecycle.complete, winner="b", now_ms=now_ms),
                lambda table: [arm.weight for arm in table.arms] == [0.0, 1.0, 0.0],
            ),
        ]
        for name, step, check in steps:
            await world.store.change("banner", step)
            took_s = await until(partial(published, check), name, 5)
            print(f"{name}: in the topic allocations after {took_s:.2f} s")
        await world.store.change("banner", partial(lifecycle.archive, now_ms=now_ms))

        async def gone() -> bool:
            return "banner" not in await world.edge()

        print(f"archive: a tombstone after {await until(gone, 'archived', 5):.2f} s")


def versions_kept(records: list[ConsumerRecord]) -> Mapping[str, list[int]]:
    """Versions per experiment in the order in which they stand in the topic allocations."""
    versions: dict[str, list[int]] = {}
    for record in records:
        versions.setdefault(record.key.decode(), []).append(decode_allocation(record.value).version)
    return versions


async def owners(world: World) -> dict[int, str]:
    """Read the newest claim of each partition of the log."""
    newest = {}
    for record in await world.read("allocation-log"):
        if record.key is None:
            claim = decode_claim(record.value)
            assert claim.generation > 0, "the group's generation, which aiokafka does not offer in public"
            newest[record.partition] = claim.owner
    return newest


async def at_boundary(world: World, experiment_ids: list[str], hour: int) -> bool:
    tables = await world.edge()
    return all(each in tables and tables[each].boundary_ms == hour * HOUR_MS for each in experiment_ids)


async def check_history(world: World) -> None:
    """What edges have is the newest that holds, and all that was ever published is in the log and holds."""
    holding = {(record.partition, record.offset): allocation for record, allocation in await world.log()}
    newest: dict[str, int] = {}
    for (_, offset), allocation in holding.items():
        newest[allocation.experiment_id] = offset
    for record in await world.read("allocations"):
        allocation = decode_allocation(record.value)
        assert (record.partition, allocation.version) in holding, "published, but does not hold"
    assert {each: table.version for each, table in (await world.edge()).items()} == newest


async def test_a_killed_owner_is_followed_by_another_and_versions_never_go_back(
    broker: Broker, topic_prefix: str, processes: Processes
) -> None:
    names = [f"e{n}" for n in range(6)]
    async with world_of(broker, topic_prefix) as world:
        for name in names:
            await world.store.write(experiment(name))
        for worker_id in ("one", "two"):
            processes.start(world.settings, worker_id)

        async def both_own() -> bool:
            return set((await owners(world)).values()) == {"one", "two"}

        await until(both_own, "a claim of each worker")
        hour = START_HOUR
        for step in range(12):
            for name in names:
                await world.count(name, hour)
            hour += 1
            await world.progress(hour * HOUR_MS)
            if step == 5:
                await until(partial(at_boundary, world, names, hour), "tables of both owners")
                assert set((await owners(world)).values()) == {"one", "two"}
            if step == 6:
                processes.signal("one", signal.SIGKILL)
        took_s = await until(partial(at_boundary, world, names, hour), "all experiments at the last boundary")
        print(f"all at the last boundary {took_s:.1f} s after the kill")
        assert set((await owners(world)).values()) == {"two"}
        for versions in versions_kept(await world.read("allocations")).values():
            assert versions == sorted(versions)
        for name in names:
            hours = [t.boundary_ms // HOUR_MS for _, t in await world.log() if t.experiment_id == name]
            assert hours == list(range(START_HOUR, hour + 1)), "every boundary once, none left out"
        await check_history(world)


async def test_a_paused_owner_that_wakes_up_publishes_nothing(
    broker: Broker, topic_prefix: str, processes: Processes
) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world:
        await world.store.write(experiment("banner"))
        await world.count("banner", START_HOUR)
        await world.progress((START_HOUR + 1) * HOUR_MS)
        processes.start(world.settings, "zombie")
        await until(partial(at_boundary, world, ["banner"], START_HOUR + 1), "a table of the first owner")
        processes.signal("zombie", signal.SIGSTOP)
        processes.start(world.settings, "heir")

        async def inherited() -> bool:
            return (await owners(world)) == {0: "heir"}

        await until(inherited, "a claim of the second owner")
        for hour in range(START_HOUR + 1, START_HOUR + 4):
            await world.count("banner", hour)
            await world.progress((hour + 1) * HOUR_MS)
        await until(partial(at_boundary, world, ["banner"], START_HOUR + 4), "tables of the second owner")
        processes.signal("zombie", signal.SIGCONT)
        for hour in range(START_HOUR + 4, START_HOUR + 8):
            await world.count("banner", hour)
            await world.progress((hour + 1) * HOUR_MS)
            await until(partial(at_boundary, world, ["banner"], hour + 1), f"a table of hour {hour}")
        await check_history(world)
        versions = versions_kept(await world.read("allocations"))["banner"]
        assert versions == sorted(versions)


async def test_late_writes_of_a_zombie_are_ignored_in_the_log_and_mended_in_the_topic(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world, allocator(world.settings):
        await world.store.write(experiment("banner"))
        await world.count("banner", START_HOUR)
        await world.progress((START_HOUR + 1) * HOUR_MS)
        await until(partial(at_boundary, world, ["banner"], START_HOUR + 1), "a table")
        old = (await world.read("allocations"))[0]
        assert decode_allocation(old.value).version < (await world.edge())["banner"].version
        await world.send("allocations", 0, b"banner", old.value)

        async def mended() -> bool:
            records = await world.read("allocations")
            return records[-1].offset > old.offset + 2 and await at_boundary(
                world, ["banner"], START_HOUR + 1
            )

        await until(mended, "the newest version again, after the zombie's")
        # A claim of a zombie: the owner is fenced, publishes nothing under its old claim, and claims again.
        zombie = b'{"owner":"zombie","generation":0,"claimed_at_ms":1}'
        fence = await world.send("allocation-log", 0, None, zombie)
        logged = (await world.log())[-1][0]
        foreign = await world.send("allocation-log", 0, b"banner", logged.value)
        await world.count("banner", START_HOUR + 1)
        await world.progress((START_HOUR + 2) * HOUR_MS)
        await until(partial(at_boundary, world, ["banner"], START_HOUR + 2), "a table under a new claim")
        newest = (await world.edge())["banner"]
        assert newest.claim > fence
        assert foreign not in [record.offset for record, _ in await world.log()]
        await check_history_but(world, old.value)


async def check_history_but(world: World, late: bytes) -> None:
    """As `check_history`, with a record known to have been written late."""
    assert late in [record.value for record in await world.read("allocations")]
    await check_history(world)


async def test_on_the_wall_clock_the_newest_boundary_is_computed_and_a_bad_definition_harms_nobody_else(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix, clock="wall", counts_partitions=1) as world:
        now_ms = (START_HOUR + 1) * HOUR_MS + world.settings.settle_ms
        await world.store.write(experiment("bad", policy=Policy(algorithm="magic")))
        await world.store.write(experiment("good"))
        for hour in range(START_HOUR, START_HOUR + 4):
            await world.count("good", hour)
        experiments = ExperimentsView(world.settings)
        await experiments.start()
        metrics = Metrics()
        async with AllocatorService(world.settings, experiments, metrics, clock=lambda: now_ms):
            await until(partial(at_boundary, world, ["good"], START_HOUR + 1), "a first table")
            now_ms += 3 * HOUR_MS - 1
            await world.progress((START_HOUR + 3) * HOUR_MS)
            await until(partial(at_boundary, world, ["good"], START_HOUR + 3), "the newest settled boundary")
            now_ms += 1
            await until(
                partial(at_boundary, world, ["good"], START_HOUR + 4), "one more, without a watermark"
            )
        await experiments.stop()
        hours = [table.boundary_ms // HOUR_MS - START_HOUR for _, table in await world.log()]
        assert hours == [1, 3, 4]
        assert {table.experiment_id for _, table in await world.log()} == {"good"}
        counted = {
            name: metrics.registry.get_sample_value(f"bandit_allocator_{name}_total")
            for name in ("skipped_intervals", "failures")
        }
        assert counted["skipped_intervals"] == 2, "one of each experiment"
        assert counted["failures"] == 3, "once for each boundary, not once for each poll"


async def test_what_a_killed_owner_had_logged_is_published_by_the_next(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world:
        await world.store.write(experiment("banner"))
        await world.store.write(experiment("other"))
        await world.count("banner", START_HOUR)
        await world.progress((START_HOUR + 1) * HOUR_MS)
        async with allocator(world.settings):
            await until(partial(at_boundary, world, ["banner"], START_HOUR + 1), "a table")
        before = (await world.edge())["banner"]
        _, last = (await world.log())[-1]
        claim = await world.send("allocation-log", 0, None, b'{"owner":"x","generation":9,"claimed_at_ms":1}')
        logged = msgspec.structs.replace(last, claim=claim, computed_at_ms=last.computed_at_ms + 1)
        offset = await world.send("allocation-log", 0, b"banner", encode_allocation(logged))

        async def completed() -> bool:
            return (await world.edge())["banner"].version == offset

        n_before = len(await world.read("allocations"))
        async with allocator(world.settings):
            await until(completed, "the version that was only logged")
        assert (await world.edge())["banner"].version > before.version
        assert len(await world.read("allocations")) == n_before + 1, "nothing else is written again"
        await check_history(world)


async def test_a_log_made_anew_stops_the_allocator(broker: Broker, topic_prefix: str) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world:
        await world.store.write(experiment("banner"))
        async with allocator(world.settings):

            async def published() -> bool:
                return "banner" in await world.edge()

            await until(published, "a table")
        table = msgspec.structs.replace((await world.edge())["banner"], version=1000)
        await world.send("allocations", 0, b"banner", encode_allocation(table))
        experiments = ExperimentsView(world.settings)
        await experiments.start()
        service = AllocatorService(world.settings, experiments, Metrics())
        await service.start()

        async def crashed() -> bool:
            return service.crashed

        await until(crashed, "a crash")
        assert isinstance(service.crash_reason, StateCorrupt)
        assert "Operator action" in str(service.crash_reason)
        await service.stop()
        await experiments.stop()
