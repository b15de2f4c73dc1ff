"""The allocator on a real Kafka: a week of boundaries, killed and paused owners, changes at once."""

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import msgspec
import pytest
from aiokafka import ConsumerRecord

from streams.allocations import Allocation, decode_allocation, encode_allocation
from streams.allocator.log import decode_claim
from streams.allocator.service import AllocatorService
from streams.audit import audit
from streams.embedded import Broker
from streams.errors import StateCorrupt
from streams.experiments import lifecycle
from streams.experiments.definition import Counting, ExperimentRecord, Policy, Reward
from streams.experiments.view import ExperimentsView
from streams.join.cells import HOUR_MS
from streams.join.step import END_MS
from streams.metrics import Metrics
from streams.results import Results, decode_results
from tests.harness.allocator_world import (
    RATES,
    START_HOUR,
    Processes,
    World,
    allocator,
    experiment,
    main_with,
    output_of,
    total,
    until,
    world_of,
)

pytestmark = pytest.mark.integration


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.end()


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

            async def results_are_there() -> bool:
                results = await newest_results(world, "banner")
                last = (await world.edge())["banner"].version
                return results is not None and results.allocation_version == last

            await until(results_are_there, "results of the last allocation")
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


async def newest_results(world: World, experiment_id: str) -> Results | None:
    values = [each.value for each in await world.read("results") if each.key == experiment_id.encode()]
    return decode_results(values[-1]) if values and values[-1] is not None else None


async def check_results_are_shown(world: World) -> None:
    """Check that command and topic tell the same figures, and that these are the counts'."""
    raw = await asyncio.to_thread(output_of, world.settings, "results", "banner", "--json")
    found = json.loads(raw)
    published = await newest_results(world, "banner")
    assert published is not None
    worked_out = decode_results(raw.encode())
    assert msgspec.structs.replace(worked_out, computed_at_ms=published.computed_at_ms) == published
    shown = await asyncio.to_thread(output_of, world.settings, "results", "banner", "--json", "--published")
    assert decode_results(shown.encode()) == published
    assert published.allocation_version == (await world.edge())["banner"].version
    assert published.in_sample is not None
    assert published.inference is not None
    off_policy = published.inference.off_policy
    assert off_policy is None or all(each.snips or each.refused for each in off_policy.values)
    n_trials = world.settings.partitions * 168 * 100
    assert [arm["trials"] for arm in found["arms"]] == [n_trials] * 3
    assert [arm["weight"] for arm in found["arms"]] == [
        arm.weight for arm in (await world.edge())["banner"].arms
    ]
    inference = found["inference"]
    assert inference["warnings"] == [] or "name no allocation" in inference["warnings"][-1]
    assert set(inference["assumptions"]) >= {"contrasts", "bandit_effect", "sample_ratio", "safe_to_stop"}
    assert inference["weeks"] == pytest.approx(1, abs=0.02)
    assert not inference["safe_to_stop"]
    lines = (await asyncio.to_thread(output_of, world.settings, "results", "banner", "--csv")).splitlines()
    assert lines[0].startswith("arm,status,trials")
    assert len(lines) == 4
    text = await asyncio.to_thread(output_of, world.settings, "results", "banner")
    assert "P(best)" in text
    assert "It is not yet safe to stop" in " ".join(text.split())
    assert "Shares changed 167 times" in text


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


async def test_results_that_are_missing_are_made_by_the_next_owner_and_end_with_the_experiment(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix) as world:
        record = experiment("banner")
        await world.store.write(record)
        for hour in range(START_HOUR, START_HOUR + 4):
            await world.count("banner", hour)
        await world.progress(END_MS)

        async def there() -> bool:
            found, shown = await newest_results(world, "banner"), (await world.edge()).get("banner")
            return found is not None and shown is not None and found.allocation_version == shown.version

        async with allocator(world.settings):
            await until(there, "results of the last allocation")
        first = await newest_results(world, "banner")
        assert first is not None
        assert first.arms[0].trials == world.settings.partitions * 400
        # As if the owner had been killed between its last allocation and these results.
        await world.send("results", world.partition("banner"), b"banner", None)
        async with allocator(world.settings):
            await until(there, "results by the next owner")
            again = await newest_results(world, "banner")
            assert again is not None
            assert msgspec.structs.replace(again, computed_at_ms=first.computed_at_ms) == first
            n_before = len(await world.read("results"))
            completed = lifecycle.complete(record, winner="b", now_ms=1)
            await world.store.write(completed)
            await world.store.write(lifecycle.archive(completed, now_ms=2))

            async def ended() -> bool:
                records = (await world.read("results"))[n_before:]
                return bool(records) and records[-1].value is None

            await until(ended, "a tombstone of the results")
