"""Proposals on a real Kafka, with a real HTTP endpoint: after drops, by hand, within the budget."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from streams.allocations import Allocation
from streams.allocator.service import AllocatorService
from streams.config import GenerateSettings, Settings
from streams.embedded import Broker
from streams.errors import BudgetExhausted, EndpointFailed, LifecycleError
from streams.experiments import proposals
from streams.experiments.definition import (
    Arm,
    Counting,
    ExperimentRecord,
    Factor,
    Lifecycle,
    Policy,
    Proposal,
    Proposing,
    Reward,
    Spending,
)
from streams.experiments.store import ExperimentStore
from streams.experiments.view import ExperimentsView
from streams.join.cells import HOUR_MS
from streams.metrics import Metrics
from streams.proposals.endpoint import Endpoint
from streams.proposals.generating import Outcome, add_proposals, change, generate
from streams.proposals.service import Proposer
from tests.edge.conftest import allocation
from tests.harness.allocator_world import (
    START_HOUR,
    World,
    allocator,
    environment_of,
    experiment,
    until,
    world_of,
)
from tests.proposals.server import FakeEndpoint, moderation, serving, variants

pytestmark = pytest.mark.integration

TABLE = allocation({"a": 0.5, "b": 0.25, "c": 0.25})


def settings(server: FakeEndpoint, **fields: object) -> GenerateSettings:
    given = {"url": server.url, "model": "small", "max_answer_tokens": 100, "timeout_ms": 60_000}
    return GenerateSettings.model_validate(given | fields)


async def at_once(_: float) -> None:
    """Wait for nothing."""


async def generated(
    world: World, server: FakeEndpoint, *, moderated: bool = False, store: ExperimentStore | None = None
) -> Outcome:
    async with Endpoint(settings(server), sleep=at_once) as endpoint:
        return await generate(
            store or world.store,
            "banner",
            TABLE,
            endpoint,
            endpoint if moderated else None,
            count=2,
            dropped="c",
            max_attempts=3,
            now_ms=lambda: 7,
        )


async def newest(world: World) -> ExperimentRecord:
    await world.store.view.catch_up()
    return world.store.get("banner")


async def test_generated_proposals_are_judged_and_paid_for(broker: Broker, topic_prefix: str) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world, serving() as server:
        await world.store.write(experiment("banner", proposing=Proposing(max_requests=6, auto_approve=True)))
        server.answers = [web.Response(status=500), variants("One", "Two")]
        found = await generated(world, server)
        assert (found.used, found.refused) == (Spending(requests=2, tokens=123), ())
        record = await newest(world)
        assert record.proposals == found.added
        assert [(each.content, each.status, each.dropped) for each in found.added] == [
            ("One", "pending", "c"),
            ("Two", "pending", "c"),
        ], "nobody has judged them, so a person has to"
        assert record.spending == Spending(requests=2, tokens=123)

        server.answers = [variants("Three", "Bad")]
        server.moderations = [moderation(), moderation("hate")]
        found = await generated(world, server, moderated=True)
        assert ([each.status for each in found.added], found.refused) == (["approved"], ("hate",))
        record = await newest(world)
        assert (record.arms[-1].content, record.arms[-1].status) == ("Three", "incubating")

        server.answers = []
        with pytest.raises(EndpointFailed, match="in 3 attempts"):
            await generated(world, server)
        assert (await newest(world)).spending == Spending(requests=6, tokens=246)
        n_asked = len(server.asked)
        with pytest.raises(BudgetExhausted, match="6 of 6 requests"):
            await generated(world, server)
        assert len(server.asked) == n_asked, "nothing is asked that cannot be paid for"


async def test_two_who_generate_at_once_do_not_spend_more_than_there_is(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world, serving() as server:
        await world.store.write(experiment("banner", proposing=Proposing(max_requests=1)))
        server.answers = [variants("One"), variants("Two")]
        async with ExperimentStore(world.settings) as other:
            results = await asyncio.gather(
                generated(world, server), generated(world, server, store=other), return_exceptions=True
            )
        assert sorted(type(each).__name__ for each in results) == ["BudgetExhausted", "Outcome"]
        record = await newest(world)
        assert record.spending.requests == 1
        assert [each.content for each in record.proposals] == ["One"]


def with_factors(**fields: Any) -> ExperimentRecord:
    """Arms a, b, c of a factor that has a level d, too; less is better, so that b is soon hopeless."""
    counting = Counting(
        version=1,
        effective_from_ms=START_HOUR * HOUR_MS,
        reward=Reward(metric="click", kind="click", lower_is_better=True),
        conversion_window_ms=HOUR_MS,
    )
    return experiment(
        "banner",
        arms=tuple(Arm(arm_id=name, levels={"text": name}) for name in "abc"),
        factors=(Factor(name="text", levels=("a", "b", "c", "d")),),
        versions=(counting,),
        policy=Policy(lifecycle=Lifecycle(drop=True, drop_intervals=1, min_trials=1)),
        **fields,
    )


@asynccontextmanager
async def proposing(
    world: World, chosen: GenerateSettings | None = None
) -> AsyncIterator[tuple[AllocatorService, Metrics]]:
    """An allocator with a proposer beside it, as a worker has them."""
    own: Settings = world.settings.model_copy(update={"generate": chosen or GenerateSettings()})
    experiments = ExperimentsView(own)
    await experiments.start()
    metrics = Metrics()
    service = AllocatorService(own, experiments, metrics)
    proposer = Proposer(own, experiments, service, metrics, now_ms=lambda: 7, look_s=0.05)
    try:
        async with service, proposer:
            yield service, metrics
    finally:
        await experiments.stop()


async def close_hours(world: World, first: int, last: int) -> None:
    for hour in range(first, last):
        await world.count("banner", hour, late=False)
        await world.progress((hour + 1) * HOUR_MS)


async def has_proposals(world: World, n: int) -> bool:
    return len((await newest(world)).proposals) >= n


async def table_has(world: World, arm_id: str, status: str) -> bool:
    table: Allocation | None = (await world.edge()).get("banner")
    return table is not None and (arm_id, status) in [(arm.arm_id, arm.status) for arm in table.arms]


def proposed(metrics: Metrics, source: str, outcome: str) -> float | None:
    labels = {"source": source, "outcome": outcome}
    return metrics.registry.get_sample_value("bandit_proposals_total", labels)


async def test_a_drop_proposes_the_untested_combination_once_and_an_approved_one_incubates(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world:
        await world.store.write(with_factors(proposing=Proposing(on_drop=True, generate=True)))
        async with proposing(world) as (_, metrics):
            await close_hours(world, START_HOUR, START_HOUR + 20)
            await until(partial(table_has, world, "b", "dropped"), "a drop of the hopeless arm")
            await until(partial(has_proposals, world, 1), "a proposal in its place")
            (proposal,) = (await newest(world)).proposals
            assert (proposal.source, proposal.arm_id, proposal.dropped) == ("factors", "d", "b")
            assert (proposal.status, proposal.on_drop) == ("pending", True)
            assert proposal.probability_better is not None
            assert 0.2 < proposal.probability_better < 1
            await until_async(lambda: proposed(metrics, "factors", "proposed") == 1, "the count of it")
            assert not await table_has(world, "d", "incubating"), "nobody has approved it"
            await by_hand(world)
            await until(partial(table_has, world, "d", "incubating"), "the arm")
            weights = {arm.arm_id: arm.weight for arm in (await world.edge())["banner"].arms}
            assert weights["d"] == pytest.approx(1 / 3)
        async with proposing(world) as (service, metrics):
            await until_async(lambda: service.newest("banner") is not None, "another owner")
            await close_hours(world, START_HOUR + 20, START_HOUR + 22)
            at_end = partial(at_boundary, world, START_HOUR + 22)
            await until(at_end, "its tables")
            assert len((await newest(world)).proposals) == 1, "no matter who looks, it is dealt with"
            assert proposed(metrics, "generated", "failed") == 0, "without an endpoint nothing is tried"


async def at_boundary(world: World, hour: int) -> bool:
    table = (await world.edge()).get("banner")
    return table is not None and table.boundary_ms == hour * HOUR_MS


async def until_async(condition: Any, what: str) -> None:
    async def check() -> bool:
        return bool(condition())

    await until(check, what)


async def by_hand(world: World) -> None:
    """What a person does about the proposal, on the command line."""
    listed = await command(world.settings, "proposals", "list", "banner")
    header, line, budget = listed.splitlines()
    assert header.split()[:4] == ["id", "status", "source", "arm"]
    assert line.split()[:4] == ["p1", "pending", "factors", "d"]
    assert "0 of 20 requests" in budget
    shown = json.loads(await command(world.settings, "proposals", "show", "banner", "p1"))
    assert shown["levels"] == {"text": "d"}
    assert await command(world.settings, "proposals", "approve", "banner", "p1") == (
        "p1: approved, arm d incubates\n"
    )
    assert "already" in await command(world.settings, "proposals", "reject", "banner", "p1", status=65)
    assert (await command(world.settings, "proposals", "list", "banner")).startswith("0 proposals;")
    everything = await command(world.settings, "proposals", "list", "banner", "--all", "--json")
    assert json.loads(everything)["status"] == "approved"


async def test_allocations_do_not_wait_for_an_endpoint_that_hangs(broker: Broker, topic_prefix: str) -> None:
    answered = asyncio.Event()

    async def hang() -> web.Response:
        await answered.wait()
        return variants("A new text")

    async with world_of(broker, topic_prefix, counts_partitions=1) as world, serving() as server:
        server.answers = [hang]
        server.moderations = [moderation()]
        wanted = Proposing(on_drop=True, generate=True, auto_approve=True)
        await world.store.write(with_factors(proposing=wanted))
        async with proposing(world, settings(server, moderation="endpoint")) as (_, metrics):
            await close_hours(world, START_HOUR, START_HOUR + 20)
            await until_async(lambda: server.asked, "a question to the endpoint")
            await until(partial(table_has, world, "d", "incubating"), "the combination, approved by itself")
            await close_hours(world, START_HOUR + 20, START_HOUR + 25)
            await until(partial(at_boundary, world, START_HOUR + 25), "allocations all the while")
            assert [each.source for each in (await newest(world)).proposals] == ["factors"]
            answered.set()
            await until(partial(has_proposals, world, 2), "the generated one")
            await until(partial(table_has, world, "generated-2", "incubating"), "its arm")
            await until_async(lambda: proposed(metrics, "generated", "proposed") == 1, "the count of it")
        record = await newest(world)
        assert record.spending == Spending(requests=1, tokens=123)
        assert (record.arms[-1].content, record.arms[-1].proposal) == ("A new text", "p2")
        prompt = json.loads(server.asked[0]["messages"][1]["content"])
        assert {arm["arm"]: arm.get("status") for arm in prompt["arms"]}["b"] == "dropped"


async def test_what_fails_after_a_drop_is_counted_and_tried_with_the_next_allocation(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world, serving() as server:
        wanted = Proposing(on_drop=True, generate=True, max_requests=3)
        await world.store.write(msgspec.structs.replace(with_factors(proposing=wanted), factors=()))
        server.answers = [variants("x" * 5000), variants("Refused")]
        server.moderations = [moderation("hate")]
        chosen = settings(server, moderation="endpoint", max_attempts=1)
        async with proposing(world, chosen) as (_, metrics):
            await close_hours(world, START_HOUR, START_HOUR + 20)
            for outcome in ("failed", "refused", "no_budget"):
                # Each attempt ends with a change of the record, and that with an allocation.
                await until_async(
                    partial(lambda name: proposed(metrics, "generated", name), outcome),
                    f"one that is {outcome}",
                )
        record = await newest(world)
        assert record.proposals == ()
        assert record.spending.requests == 3


async def test_a_person_generates(broker: Broker, topic_prefix: str) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world, serving() as server:
        await world.store.write(with_factors())
        alone = await command(world.settings, "proposals", "generate", "banner", status=65)
        assert "has no allocation yet" in alone
        async with allocator(world.settings):
            await until(partial(table_has, world, "a", "active"), "a first table")
        line = await command(world.settings, "proposals", "generate", "banner", "--for", "b")
        assert line.split()[:4] == ["p1", "pending", "factors", "d"]
        assert line.split()[6] == "b"
        again = await command(world.settings, "proposals", "generate", "banner")
        assert "nothing new was proposed" in again
        again = await command(
            world.settings, "proposals", "generate", "banner", "--source", "factors", status=65
        )
        assert "every combination of its factors was tested or proposed" in again
        wrong = await command(
            world.settings, "proposals", "generate", "banner", "--source", "endpoint", status=78
        )
        assert "BANDIT_GENERATE__URL" in wrong
        server.answers = [variants("One", "Two")]
        environment = {"BANDIT_GENERATE__URL": server.url, "BANDIT_GENERATE__MODEL": "small"}
        environment["BANDIT_GENERATE__API_KEY"] = "sk-secret"
        made = await command(
            world.settings, "proposals", "generate", "banner", "--count", "2", "--json", extra=environment
        )
        assert [json.loads(each)["content"] for each in made.splitlines()] == ["One", "Two"]
        assert server.headers[0]["Authorization"] == "Bearer sk-secret"
        config = await command(world.settings, "config", "show", extra=environment)
        assert 'api_key = "**********"' in config
        assert "sk-secret" not in config
        assert await command(world.settings, "proposals", "reject", "banner", "p2", "p3") == (
            "p2: rejected\np3: rejected\n"
        )


async def command(
    chosen: Settings, *arguments: str, status: int = 0, extra: dict[str, str] | None = None
) -> str:
    """Run a command of the product; return what it prints, on both outputs."""
    program = "import sys, streams.cli; sys.exit(streams.cli.main())"
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, *arguments],
        env=os.environ | environment_of(chosen) | (extra or {}),
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == status, ended.stdout
    return ended.stdout


async def test_of_two_who_decide_at_once_one_is_told_that_it_is_decided(
    broker: Broker, topic_prefix: str
) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world:
        await world.store.write(with_factors())
        pending = Proposal(source="factors", levels={"text": "d"})
        await add_proposals(world.store, "banner", [pending], now_ms=lambda: 7)
        async with ExperimentStore(world.settings) as other:

            def approve(record: ExperimentRecord) -> ExperimentRecord:
                return proposals.approve(record, "p1", now_ms=8)

            def reject(record: ExperimentRecord) -> ExperimentRecord:
                return proposals.reject(record, "p1", now_ms=8)

            results = await asyncio.gather(
                change(world.store, "banner", approve),
                change(other, "banner", reject),
                return_exceptions=True,
            )
        (error,) = [each for each in results if isinstance(each, BaseException)]
        assert isinstance(error, LifecycleError)
        record = await newest(world)
        (decided,) = record.proposals
        assert f"p1 is {decided.status} already" in str(error)
        assert len(record.arms) == 3 + (decided.status == "approved")


async def test_a_worker_proposes_after_a_drop(broker: Broker, topic_prefix: str, tmp_path: Path) -> None:
    async with world_of(broker, topic_prefix, counts_partitions=1) as world:
        await world.store.write(with_factors(proposing=Proposing(on_drop=True)))
        await close_hours(world, START_HOUR, START_HOUR + 20)
        program = "import sys, streams.cli; sys.exit(streams.cli.main())"
        own = {"BANDIT_WEB_PORT": "0", "BANDIT_DATA_DIR": str(tmp_path / "data")}
        with (tmp_path / "worker.log").open("wb") as output:
            worker = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", program, "worker", "--roles", "allocator"),
                env=os.environ | environment_of(world.settings) | own,
                stdout=output,
                stderr=output,
            )
        try:
            await until(partial(has_proposals, world, 1), "a proposal of the worker")
        finally:
            worker.terminate()
            await worker.wait()
            print((tmp_path / "worker.log").read_text()[-4000:])
        assert worker.returncode == 0
        (proposal,) = (await newest(world)).proposals
        assert (proposal.arm_id, proposal.dropped, proposal.status) == ("d", "b", "pending")
