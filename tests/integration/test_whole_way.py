"""From an edge's exposure to an edge's next decision, through one real worker process, and back at once."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from streams.allocations import Allocation
from streams.config import Settings
from streams.edge import EdgeClient
from streams.embedded import Broker
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Policy, Reward
from tests.harness.check import JournalWatch, verify
from tests.harness.installation import Installation, quick_settings
from tests.harness.traffic import HOUR_MS
from tests.harness.workers import WorkerHandle, environment, until

pytestmark = pytest.mark.integration

RATES = {"red": 0.02, "green": 0.30, "blue": 0.02}


def definition(start_ms: int) -> ExperimentRecord:
    """Three arms, Thompson, 10% comparison group, conversions after display."""
    return ExperimentRecord(
        experiment_id="button",
        revision=1,
        status="live",
        arms=tuple(Arm(arm_id=arm) for arm in RATES),
        control="red",
        versions=(
            Counting(
                version=1,
                effective_from_ms=start_ms - HOUR_MS,
                reward=Reward(metric="order"),
                conversion_window_ms=HOUR_MS,
            ),
        ),
        policy=Policy(comparison=0.1),
    )


def command(settings: Settings, *arguments: str) -> str:
    """Run the real command line; its output."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from streams.cli import main; sys.exit(main())", *arguments],
        env=os.environ | environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def one_hour(edge: EdgeClient, hour_ms: int, pick: random.Random) -> None:
    """1,500 units are decided for, exposed, and convert by their arm's rate."""
    for n in range(1500):
        unit = f"{hour_ms}-{n}"
        decision = edge.decide("button", unit)
        at_ms = hour_ms + n * HOUR_MS // 1600
        edge.expose(decision, at_ms, exposure_id=f"e{unit}")
        if decision.arm_id is not None and pick.random() < RATES[decision.arm_id]:
            edge.convert(unit, "order", timestamp=at_ms + 1000, conversion_id=f"c{unit}")
    assert await edge.flush()


async def test_decisions_change_counts_and_counts_change_decisions(
    broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path)
    start_ms = (time.time_ns() // 1_000_000 // HOUR_MS - 30) * HOUR_MS
    record = definition(start_ms)
    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        await installation.define([record])
        worker = WorkerHandle(settings, "w1", tmp_path)
        worker.start()
        try:
            await worker.wait_ready()
            async with EdgeClient(settings) as edge:
                await learn(edge, installation, start_ms)
                require_shares(edge)
                await stop_arm_and_pause(settings, edge)
            totals = await verify(settings, watch, [record])
            assert totals["exposures/accepted"] == 4 * 1500
            assert "no difference" in command(settings, "audit")
            assert await worker.stop() == 0
        finally:
            worker.kill()


async def learn(edge: EdgeClient, installation: Installation, start_ms: int) -> None:
    """Four hours of traffic, each decided by the allocation of the hour before."""
    pick = random.Random(7)
    first = await until(allocation(edge, 0), deadline_s=30, what="an allocation without data")
    assert {arm.arm_id: round(arm.weight, 9) for arm in first.arms} == dict.fromkeys(RATES, 0.3)
    for hour in range(4):
        hour_ms = start_ms + hour * HOUR_MS
        await one_hour(edge, hour_ms, pick)
        await installation.mark(str(hour_ms + HOUR_MS))
        await until(allocation(edge, hour_ms + HOUR_MS), deadline_s=30, what=f"allocation of hour {hour}")


def require_shares(edge: EdgeClient) -> None:
    """The better arm has most of the traffic, and new units are decided by the realised weights."""
    newest = edge.allocation("button")
    assert newest is not None
    weights = {arm.arm_id: arm.weight for arm in newest.arms}
    assert weights["green"] > 0.8, weights
    decided = [edge.decide("button", f"new-{n}") for n in range(4000)]
    share = sum(decision.arm_id == "green" for decision in decided) / len(decided)
    assert abs(share - weights["green"]) < 0.03
    comparison = sum(decision.group == "comparison" for decision in decided) / len(decided)
    assert abs(comparison - 0.1) < 0.02


def allocation(edge: EdgeClient, boundary_ms: int) -> Callable[[], Awaitable[Allocation | None]]:
    """Make the condition that the edge has the allocation of this boundary or a later one."""

    async def condition() -> Allocation | None:
        held = edge.allocation("button")
        return held if held is not None and held.boundary_ms >= boundary_ms else None

    return condition


async def stop_arm_and_pause(settings: Settings, edge: EdgeClient) -> None:
    """Both reach the edge within 5 s of the command's end."""
    await asyncio.to_thread(command, settings, "experiments", "stop-arm", "button", "green")

    async def stopped() -> bool:
        return all(edge.decide("button", f"new-{n}").arm_id != "green" for n in range(200))

    began_s = time.monotonic()
    await until(stopped, deadline_s=5, what="no unit sees the stopped arm")
    print(f"stop-arm at the edge after {time.monotonic() - began_s:.2f} s")
    await asyncio.to_thread(command, settings, "experiments", "pause", "button")

    async def paused() -> bool:
        return all(edge.decide("button", f"new-{n}").arm_id == "red" for n in range(200))

    began_s = time.monotonic()
    await until(paused, deadline_s=5, what="every unit sees the default arm")
    print(f"pause at the edge after {time.monotonic() - began_s:.2f} s")
