"""Part 1: a week of real impressions and clicks, replayed.

What: the rows of the input become exposures and conversions in Kafka, the worker counts them on the clock of
the events, and every hour of that week gets its allocation. The table shown at the end is read from the topic
``allocations``.

Cost: seconds for ten thousand rows, most of them the worker's start; memory for the input.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import numpy as np

from streams.allocations import Allocation
from streams.demo.conclusions import Arm, conclude, sentences
from streams.demo.installation import Installation, MakeInstallation
from streams.demo.openbandit import LoggedEvents, events_of, replay_experiment
from streams.demo.part import PartSummary, last_boundaries, take_stock, until_allocated, until_counted
from streams.demo.policies import Replayed, policies_table, replayed_values
from streams.demo.progress import Narrator
from streams.demo.publisher import Publisher
from streams.demo.report import arms_table, say_accounts
from streams.edge import EdgeClient
from streams.experiments.definition import ExperimentRecord
from streams.join.step import END_MS

__all__ = ["run_replay"]

HOUR_MS: Final = 3_600_000
NEW_UNITS: Final = 20_000
_MARKERS_A_PARTITION: Final = 2


async def run_replay(
    make_installation: MakeInstallation,
    narrator: Narrator,
    events: LoggedEvents,
    *,
    seed: int,
    algorithms: Sequence[str] = ("thompson",),
) -> PartSummary:
    """Replay a file and report.

    Parameters
    ----------
    make_installation
        Topics, definitions and a worker for it.
    narrator
        Where to tell it.
    events
        What was logged.
    seed
        For the permutation test.
    algorithms
        Policies; the log is replayed into an experiment for each.

    Raises
    ------
    WorkerFailed, DeadlineExceeded
        The worker ended; nothing moved for a minute.
    """
    started = time.monotonic()
    narrator.title("Part 1: real impressions and clicks, replayed")
    now_ms = time.time_ns() // 1_000_000
    records = [replay_experiment(events, now_ms, algorithm) for algorithm in algorithms]
    _say_input(narrator, events)
    async with AsyncExitStack() as stack:
        with narrator.step("starting a worker"):
            installation = await stack.enter_async_context(make_installation(records))
        settings = installation.settings
        edge = await stack.enter_async_context(EdgeClient(settings, clock_ms=lambda: events.last_ms))
        await _feed(installation, edge, events, records, narrator)
        stock = await take_stock(settings, records, narrator)
        allocation = edge.allocation(records[0].experiment_id)
        if allocation is None or not stock.outcome("accepted", "exposures/"):
            narrator.say("No row was accepted; there is nothing to allocate by.")
        elif len(records) > 1:
            _say_policies(narrator, replayed_values(events, records, stock.allocations))
        else:
            _say_result(narrator, allocation, edge, np.random.default_rng(seed))
        say_accounts(narrator, stock)
    summary = stock.summary(records, time.monotonic() - started)
    narrator.say(f"  {summary.allocations:,} hourly allocations from {summary.events:,} events")
    return summary


def _say_input(narrator: Narrator, events: LoggedEvents) -> None:
    hours = events.last_ms // HOUR_MS - events.first_ms // HOUR_MS + 1
    narrator.say(
        f"{events.name}: {len(events.exposures):,} impressions of {len(events.arm_ids)} items,"
        f" {events.clicks:,} clicks, {hours:,} hours. Each row is a unit of its own: the data name no user."
    )
    if events.unreadable:
        narrator.say(f"{events.unreadable:,} rows are not impressions; they are sent as they are.")


async def _feed(
    installation: Installation,
    edge: EdgeClient,
    events: LoggedEvents,
    records: Sequence[ExperimentRecord],
    narrator: Narrator,
) -> None:
    """Produce everything and the end marker; return when the last hour's allocation is at the edge."""
    settings = installation.settings
    sides = [events_of(events, record.experiment_id) for record in records]
    exposures, conversions = (
        sorted((event for side in sides for event in side[i]), key=lambda event: event.timestamp_ms)
        for i in range(2)
    )
    total = len(exposures) + len(conversions)
    started = time.monotonic()
    async with Publisher(settings) as publisher:
        with narrator.step("producing events", total) as step:
            await asyncio.gather(
                publisher.publish("exposures", exposures, step.advance),
                publisher.publish("conversions", conversions, step.advance),
            )
            await publisher.mark(END_MS)
    n_records = total + _MARKERS_A_PARTITION * settings.partitions
    with narrator.step("joining and counting", n_records) as step:
        counted = await until_counted(installation, n_records, step.reach)
    narrator.say(f"  {total:,} events in {time.monotonic() - started:.1f} s from the first one produced")
    boundaries = last_boundaries(counted, records)
    first_hour = events.first_ms // HOUR_MS
    last_hour = max(boundaries.values(), default=0) // HOUR_MS
    with narrator.step("recalculating every hour's allocation", max(0, last_hour - first_hour)) as step:
        await until_allocated(
            installation, [edge], boundaries, lambda at_ms: step.reach(at_ms // HOUR_MS - first_hour)
        )


def _say_policies(narrator: Narrator, found: Sequence[Replayed]) -> None:
    narrator.console.print(policies_table(found))
    narrator.say(
        "Each policy learned from the same log, hour by hour; the clicks of the next hour, weighed by the"
        " chance that the log gives each row, say what it would have earned an impression. Intervals that"
        " overlap decide nothing between policies."
    )


def _say_result(
    narrator: Narrator, allocation: Allocation, edge: EdgeClient, rng: np.random.Generator
) -> None:
    narrator.console.print(arms_table(allocation, "clicks"))
    found = conclude(
        [
            Arm(a.arm_id, a.trials, a.successes, a.mean, *a.interval, a.probability_best)
            for a in allocation.arms
        ],
        rng,
    )
    narrator.say("What may be concluded:")
    for line in sentences(found, len(allocation.arms)):
        narrator.say(f"  - {line}")
    narrator.say("  - That week the shop's own policy decided what was shown; these weights steered nobody.")
    shown = Counter(
        edge.decide(allocation.experiment_id, f"new-visitor-{i}").arm_id for i in range(NEW_UNITS)
    )
    top = sorted(allocation.arms, key=lambda arm: -arm.weight)[:3]
    shares = ", ".join(
        f"arm {a.arm_id} to {shown[a.arm_id] / NEW_UNITS:.1%} (weight {a.weight:.1%})" for a in top
    )
    narrator.say(f"An edge that follows the allocations gives {NEW_UNITS:,} new visitors: {shares}, ...")
