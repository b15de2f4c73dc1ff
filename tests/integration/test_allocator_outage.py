"""The allocator while its broker freezes and dies: it claims again and goes on where it was."""

import asyncio
from functools import partial

import pytest

from streams.embedded import Broker, EmbeddedKafka
from streams.join.cells import HOUR_MS
from tests.harness.allocator_world import START_HOUR, World, allocator, experiment, until, world_of

pytestmark = [pytest.mark.integration, pytest.mark.slow]


async def boundary_reached(world: World, hour: int) -> bool:
    table = (await world.edge()).get("banner")
    return table is not None and table.boundary_ms == hour * HOUR_MS


async def test_an_outage_of_the_broker_costs_time_and_nothing_else(topic_prefix: str) -> None:
    kafka = await asyncio.to_thread(EmbeddedKafka().start)
    now_ms = (START_HOUR + 1) * HOUR_MS
    try:
        broker = Broker(kafka.bootstrap_servers, "embedded")
        async with (
            world_of(broker, topic_prefix, counts_partitions=1, clock="wall", settle_ms=0) as world,
            allocator(world.settings, clock=lambda: now_ms) as service,
        ):
            await world.store.write(experiment("banner"))
            await until(partial(boundary_reached, world, START_HOUR + 1), "a first table")

            async def gave_up() -> bool:
                return not service.active

            kafka.pause()
            now_ms += HOUR_MS
            await until(gave_up, "a produce request that timed out")
            kafka.resume()
            await until(partial(boundary_reached, world, START_HOUR + 2), "a table after the frost", 90)

            await asyncio.to_thread(kafka.kill)
            now_ms += HOUR_MS
            await until(gave_up, "a produce request that failed")
            await asyncio.to_thread(kafka.start)
            await until(partial(boundary_reached, world, START_HOUR + 3), "a table after the restart", 90)

            assert not service.crashed
            hours = [table.boundary_ms // HOUR_MS - START_HOUR for _, table in await world.log()]
            assert hours == sorted(hours)
            assert set(hours) == {1, 2, 3}
            assert (await world.edge())["banner"].version == (await world.log())[-1][0].offset
    finally:
        await asyncio.to_thread(kafka.close)
