"""Hand-overs of partitions to their owner tasks: however they overlap, a partition has one owner here."""

import asyncio
from types import SimpleNamespace
from typing import Any

from streams.agents.join import REBALANCE_DEADLINE_S, Join
from streams.config import Settings
from streams.metrics import Metrics
from streams.web import Health


class Runner:
    """Stands in for an owner task; its stop takes until it is allowed to end."""

    def __init__(
        self, generation: int, may_end: asyncio.Event, owners: set[int], deadlines_s: list[float]
    ) -> None:
        self._deadlines_s = deadlines_s
        self.generation = generation
        self._may_end = may_end
        self._owners = owners

    def start(self) -> None:
        self._owners.add(self.generation)

    async def stop(self, deadline_s: float) -> None:
        self._deadlines_s.append(deadline_s)
        await self._may_end.wait()
        self._owners.discard(self.generation)


class Shards:
    """Databases that need no settling."""

    async def settle(self, number: int) -> None:  # noqa: ARG002 - as the real one
        await asyncio.sleep(0)

    def own(self, number: int) -> None:
        pass

    async def close(self) -> None:
        pass


class OverlappingJoin(Join):
    """A join whose owner tasks are stand-ins."""

    def __init__(self) -> None:
        context: Any = SimpleNamespace(
            settings=Settings(), metrics=Metrics(), health=Health(stall_deadline_ms=1000)
        )
        super().__init__(context, Shards())  # type: ignore[arg-type]  # as much of it as a hand-over needs
        self.may_end = asyncio.Event()
        self.owners: set[int] = set()
        self.deadlines_s: list[float] = []

    def _runner(self, number: int, partition: Any, generation: int) -> Any:  # noqa: ARG002
        return Runner(generation, self.may_end, self.owners, self.deadlines_s)

    async def _check_topics(self) -> None:
        pass


async def test_a_hand_over_that_waited_while_a_newer_one_went_through_starts_nobody() -> None:
    """Seed 1937156631: both started an owner; chunks went to the older one, which was fenced, and the newer
    one waited for them until the stall check ended the worker."""
    join = OverlappingJoin()
    partition: Any = object()
    await join.hand({0: partition}, set(), 15)
    older = asyncio.create_task(join.hand({0: partition}, set(), 16))
    await asyncio.sleep(0)  # it waits for the owner of 15
    await join.hand({0: partition}, set(), 17)
    assert join.owners == {15, 17}
    join.may_end.set()
    await older
    assert join.owners == {17}
    await join.release()
    assert join.owners == set()


async def test_a_rebalance_waits_less_for_a_batch_in_hand_than_the_end_does() -> None:
    """While it waits, all partitions do: one with a slow leader must not hold them up for long."""
    join = OverlappingJoin()
    partition: Any = object()
    join.may_end.set()
    await join.hand({0: partition}, set(), 1)
    await join.hand({0: partition}, set(), 2)
    await join.stop()
    assert join.deadlines_s == [REBALANCE_DEADLINE_S, Settings().shutdown_deadline_ms / 1000]
    assert join.owners == set()
