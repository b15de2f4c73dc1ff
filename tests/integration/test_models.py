"""Models of contextual experiments on a real Kafka: created, training, trained; one winner a segment."""

import asyncio
import json
from functools import partial

import msgspec
import pytest

from streams.allocations import Allocation, decode_allocation, encode_allocation
from streams.allocator.service import AllocatorService
from streams.audit import audit
from streams.counts import CountsKey, CountsRecord, encode_counts, encode_key
from streams.edge import EdgeClient
from streams.embedded import Broker
from streams.experiments.definition import Counting, ExperimentRecord, Feature, Policy, Reward
from streams.experiments.view import ExperimentsView
from streams.join.cells import HOUR_MS, Cell, CellKey
from streams.join.segments import segment_of
from streams.metrics import Metrics
from tests.harness.allocator_world import (
    START_HOUR,
    World,
    allocator,
    experiment,
    increments,
    main_with,
    output_of,
    until,
    world_of,
)

pytestmark = pytest.mark.integration

FEATURES = (Feature(name="device", levels=("mobile", "desktop")),)
RATES = {"mobile": {"a": 30, "b": 5, "c": 5}, "desktop": {"a": 5, "b": 5, "c": 30}}  # of 100 trials
UNITS = [f"unit-{i}" for i in range(100)]


def contextual(mode: str = "laplace") -> ExperimentRecord:
    counting = Counting(
        version=1,
        effective_from_ms=START_HOUR * HOUR_MS,
        reward=Reward(metric="click", kind="click"),
        features=FEATURES,
    )
    policy = Policy(algorithm="contextual", parameters={"mode": mode})
    return experiment("banner", versions=(counting,), policy=policy)


async def count(world: World, hour: int) -> None:
    """Write an hour's cells by segment, and that the hour is over."""
    cells = {}
    for device, rates in RATES.items():
        segment = segment_of(FEATURES, {"device": device})
        for arm_id, rate in rates.items():
            for view in ("steering", "reporting"):
                key = CellKey("banner", 1, view, "click", arm_id, segment, "bandit", hour, hour)
                cells[key] = Cell(100, 0, {0: increments(rate)})
    place = CountsKey("banner", 0, hour)
    raw = encode_counts(place, CountsRecord(world.next_order(), cells))
    await world.send("counts", world.partition("banner"), encode_key(place), raw)
    await world.progress((hour + 1) * HOUR_MS)


async def published(world: World) -> list[Allocation]:
    return [decode_allocation(record.value) for record in await world.read("allocations")]


async def at_hour(world: World, hour: int) -> bool:
    """Whether the newest table is of this hour and its model is there."""
    tables = await published(world)
    return bool(tables) and (tables[-1].boundary_ms, tables[-1].state) == (hour * HOUR_MS, "trained")


async def test_the_old_table_serves_while_a_model_trains_and_completing_locks_each_segments_winner(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix) as world:
        await world.store.write(contextual("gibbs"))
        async with allocator(world.settings):

            async def created() -> bool:
                return bool(await published(world))

            await until(created, "a first table")
            for hour in (START_HOUR, START_HOUR + 1):
                await count(world, hour)
                await until(partial(at_hour, world, hour + 1), f"a model of hour {hour}")
        tables = await published(world)
        versions = [record.offset for record, _ in await world.log()]
        assert [(table.state, table.version) for table in tables] == [
            ("created", versions[0]),
            ("training", versions[0]),
            ("trained", versions[1]),
            ("training", versions[1]),
            ("trained", versions[2]),
        ]
        for before, training in ((tables[0], tables[1]), (tables[2], tables[3])):
            assert msgspec.structs.replace(training, state=before.state) == before, "the old table serves"
        assert tables[0].segments == {}
        assert [arm.weight for arm in tables[0].arms] == pytest.approx([1 / 3] * 3)
        assert tables[4].segment_best["device=mobile"] == "a"
        assert tables[4].segment_best["device=desktop"] == "c"
        assert {table.state for _, table in await world.log()} == {"created", "trained"}
        report = await audit(world.settings)
        assert (report.ok, report.compared) == (True, 3)
        await check_an_owner_killed_while_it_trained(world, tables[4])
        await check_winners_are_locked(world)


async def check_an_owner_killed_while_it_trained(world: World, newest: Allocation) -> None:
    training = msgspec.structs.replace(newest, state="training")
    key = world.partition("banner")
    await world.send("allocations", key, b"banner", encode_allocation(training))
    assert (await audit(world.settings)).ok, "the same version, and no more than that is said of it"
    results = await asyncio.to_thread(output_of, world.settings, "results", "banner", "--json")
    assert json.loads(results)["model_state"] == "training"
    results = await asyncio.to_thread(output_of, world.settings, "results", "banner")
    assert f"allocation {newest.version}, training" in " ".join(results.split())
    async with EdgeClient(world.settings, clock_ms=lambda: newest.computed_at_ms) as edge:
        held = edge.allocation("banner")
        assert held is not None
        assert held.state == "training"
        shown = [edge.decide("banner", unit, {"device": "mobile"}).arm_id for unit in UNITS]
        assert shown.count("a") > 90
        experiments = ExperimentsView(world.settings)
        await experiments.start()
        metrics = Metrics()
        async with AllocatorService(world.settings, experiments, metrics):

            async def mended() -> bool:
                return (await published(world))[-1] == newest

            await until(mended, "the version as it is in the log")
            label = {"experiment": "banner", "state": "trained"}
            assert metrics.registry.get_sample_value("bandit_allocation_model_state", label) == 1
        await experiments.stop()
        assert [edge.decide("banner", unit, {"device": "mobile"}).arm_id for unit in UNITS] == shown


async def check_winners_are_locked(world: World) -> None:
    shown = await asyncio.to_thread(output_of, world.settings, "experiments", "show", "banner")
    assert ": trained, of what is before " in shown
    assert await asyncio.to_thread(main_with, world.settings, "experiments", "complete", "banner") == 0
    shown = await asyncio.to_thread(output_of, world.settings, "experiments", "show", "banner")
    assert "# winner of device=mobile: a\n" in shown
    assert "# winner of device=desktop: c\n" in shown
    listed = await asyncio.to_thread(output_of, world.settings, "experiments", "list", "--json")
    assert json.loads(listed.splitlines()[0])["segment_winners"]["arms"]["device=desktop"] == "c"
    async with allocator(world.settings), EdgeClient(world.settings) as edge:
        for device, winner in (("mobile", "a"), ("desktop", "c")):
            decisions = [edge.decide("banner", unit, {"device": device}) for unit in UNITS]
            assert {(each.arm_id, each.reason) for each in decisions} == {(winner, "default:completed")}

        async def completed() -> bool:
            return (await published(world))[-1].status == "completed"

        await until(completed, "an allocation of the completed experiment")
    table = (await published(world))[-1]
    assert table.segments["device=mobile"] == (1.0, 0.0, 0.0)
    assert table.segments["device=desktop"] == (0.0, 0.0, 1.0)
    assert (await audit(world.settings)).ok


async def test_a_model_that_cannot_be_fitted_leaves_the_table_as_it_was(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world:
        record = await world.store.write(contextual())
        experiments = ExperimentsView(world.settings)
        await experiments.start()
        metrics = Metrics()
        async with AllocatorService(world.settings, experiments, metrics):
            await count(world, START_HOUR)
            await until(partial(at_hour, world, START_HOUR + 1), "a model")
            before = (await published(world))[-1]
            policy = Policy(algorithm="contextual", parameters={"mode": "magic"})
            await world.store.write(msgspec.structs.replace(record, revision=2, policy=policy))

            async def failed() -> bool:
                states = [table.state for table in await published(world)]
                return states[-2:] == ["training", "trained"] and states.count("training") == 2

            await until(failed, "a model that could not be fitted")
            assert (await published(world))[-1] == before
            assert metrics.registry.get_sample_value("bandit_allocator_failures_total") == 1
            label = {"experiment": "banner", "state": "trained"}
            assert metrics.registry.get_sample_value("bandit_allocation_model_state", label) == 1
        await experiments.stop()
