"""Part 2: a shop that lives, with edges that decide and report through Kafka.

What: for every simulated hour, visitors arrive at edge services; real :class:`~streams.edge.EdgeClient`
objects decide from the allocation topic and emit exposures and conversions; a marker closes the hour; the
worker counts, recalculates and publishes; the next hour begins when every edge has the new allocations.
Nothing passes from the worker to the shop but through Kafka.

Why hour by hour: allocations must come from what happened before, as in life. Waiting for them makes a run
the same on a slow machine as on a fast one.

Cost: O(visits), some tens of microseconds each; a few hundred milliseconds of waiting for each hour.
"""

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from streams.demo.installation import Installation, MakeInstallation
from streams.demo.openbandit import Event
from streams.demo.part import (
    PartSummary,
    Stock,
    last_boundaries,
    take_stock,
    until_allocated,
    until_counted,
)
from streams.demo.plot import Course, RegretCourse, draw_shop
from streams.demo.progress import Narrator
from streams.demo.publisher import Publisher
from streams.demo.report import say_accounts, say_courses, shop_table
from streams.demo.shop import Mishaps, Shop, ShopExperiment, Visit, shop_experiments
from streams.edge import EdgeClient
from streams.errors import DeadlineExceeded
from streams.join.step import END_MS

__all__ = ["Regret", "run_shop"]

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
N_EDGES: Final = 2
VISITS_PER_HOUR: Final = 450
CROSSOVER_AFTER_MS: Final = 60_000
FLUSH_DEADLINE_MS: Final = 60_000


class Regret(Struct):
    """Expected conversions lost against always showing the best arm; added up as visits happen.

    Attributes
    ----------
    product
        As the allocations had it.
    equal_split
        As it would have been with every arm equally likely.
    visits
        Visits that saw an arm.
    """

    product: float = 0.0
    equal_split: float = 0.0
    visits: int = 0

    def add(self, rates: dict[str, float], arm_id: str) -> None:
        """Add one visit that was shown ``arm_id``."""
        best = max(rates.values())
        self.product += best - rates[arm_id]
        self.equal_split += best - sum(rates.values()) / len(rates)
        self.visits += 1


class _Life:
    """The shop's state while it runs."""

    def __init__(
        self,
        installation: Installation,
        edges: list[EdgeClient],
        publisher: Publisher,
        shop: Shop,
        experiments: tuple[ShopExperiment, ...],
    ) -> None:
        self.installation = installation
        self.edges = edges
        self.publisher = publisher
        self.shop = shop
        self.experiments = experiments
        self.regret = {experiment.experiment_id: Regret() for experiment in experiments}
        self.regret_course: list[tuple[float, float]] = []
        self.n_sent = 0
        self._n_shown = 0

    async def hour(self, start_ms: int) -> None:
        """Let one hour happen, and close it."""
        end_ms = start_ms + HOUR_MS
        for visit in self.shop.visits(start_ms):
            self._serve(visit)
        malformed = [Event(0, key, value) for _, key, value in self.shop.malformed()]
        await self.publisher.publish("exposures", malformed)
        self.n_sent += len(malformed)
        await self.close(end_ms)
        total = self.regret.values()
        self.regret_course.append((sum(r.product for r in total), sum(r.equal_split for r in total)))

    async def close(self, end_ms: int) -> None:
        """Send the conversions that are due before ``end_ms``, and a marker behind everything."""
        for i, due in enumerate(self.shop.due(end_ms)):
            edge = self.edges[i % len(self.edges)]
            for _ in range(1 + due.is_duplicated):
                edge.convert(
                    due.unit_id, due.metric, timestamp=due.timestamp_ms, conversion_id=due.conversion_id
                )
                self.n_sent += 1
        for edge in self.edges:
            if not await edge.flush(FLUSH_DEADLINE_MS):
                raise DeadlineExceeded(
                    f"an edge could not send its events: {edge.statistics().events}",
                    where=self.installation.settings.bootstrap_servers,
                    action="check that the brokers run",
                )
        await self.publisher.mark(end_ms)
        self.n_sent += 2 * self.installation.settings.partitions

    def _serve(self, visit: Visit) -> None:
        """One page view: decide on every experiment, show, and report what was shown."""
        edge = self.edges[visit.edge]
        ids = tuple(self.regret)
        for name, decision in edge.decide_many(ids, visit.unit_id, {"country": visit.country}).items():
            self._n_shown += 1
            exposure_id = f"shown-{self._n_shown:08d}"
            for _ in range(1 + self.shop.is_duplicated()):
                edge.expose(decision, visit.timestamp_ms, exposure_id=exposure_id)
                self.n_sent += 1
            self.shop.show(name, decision.arm_id, visit)
            if decision.arm_id is None:
                continue
            self.regret[name].add(self._rates(name), decision.arm_id)
            other = self.shop.second_arm(name, decision.arm_id)
            if other is not None:
                later_ms = visit.timestamp_ms + CROSSOVER_AFTER_MS
                edge.expose(replace(decision, arm_id=other), later_ms, exposure_id=f"{exposure_id}-again")
                self.n_sent += 1

    def _rates(self, experiment_id: str) -> dict[str, float]:
        return next(e.rates for e in self.experiments if e.experiment_id == experiment_id)


async def run_shop(
    make_installation: MakeInstallation,
    narrator: Narrator,
    *,
    days: int,
    seed: int,
    picture: Path,
    visits_per_hour: int = VISITS_PER_HOUR,
) -> PartSummary:
    """Simulate the shop and report.

    Parameters
    ----------
    make_installation
        Topics, definitions and a worker for it.
    narrator
        Where to tell it.
    days
        Simulated days, at least 1.
    seed
        Of everything that is random in the shop.
    picture
        File to draw into.
    visits_per_hour
        Mean over the day; every visit sees every experiment.

    Raises
    ------
    WorkerFailed, DeadlineExceeded
        The worker ended; nothing moved for a minute.
    """
    started = time.monotonic()
    narrator.title("Part 2: a living shop")
    experiments = shop_experiments()
    today_ms = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS
    start_ms = today_ms - (days + 3) * DAY_MS  # what is delivered last is in the past as well
    records = [experiment.record(start_ms, today_ms) for experiment in experiments]
    narrator.say(
        f"{len(experiments)} experiments with known rates, {N_EDGES} edges, {days * 24} simulated hours,"
        f" about {visits_per_hour} visits an hour that each see every experiment."
    )
    shop = Shop(
        np.random.default_rng(seed),
        experiments,
        visits_per_hour=visits_per_hour,
        n_edges=N_EDGES,
        mishaps=Mishaps(),
    )
    async with AsyncExitStack() as stack:
        with narrator.step("starting a worker and the edges"):
            installation = await stack.enter_async_context(make_installation(records))
            settings = installation.settings
            publisher = await stack.enter_async_context(Publisher(settings))
            clock = _Clock(start_ms)
            edges = [
                await stack.enter_async_context(
                    EdgeClient(settings, clock_ms=clock, client_id=f"shop-edge-{i}")
                )
                for i in range(N_EDGES)
            ]
            life = _Life(installation, edges, publisher, shop, experiments)
            await until_allocated(installation, edges, dict.fromkeys(life.regret, start_ms))
        await _live(life, clock, start_ms, days, narrator)
        stock = await take_stock(settings, records, narrator)
    summary = stock.summary(records, time.monotonic() - started)
    end_ms = start_ms + days * DAY_MS
    courses = {e.experiment_id: _course(e, stock, start_ms, end_ms) for e in experiments}
    _say_result(narrator, life, stock, courses)
    say_accounts(narrator, stock)
    narrator.say(f"  crossovers (a unit was shown a second arm in the same trial): {_crossovers(stock):,}")
    hours = tuple(float(i + 1) for i in range(len(life.regret_course)))
    product, equal_split = zip(*life.regret_course, strict=True)
    draw_shop(list(courses.values()), RegretCourse(hours, product, equal_split), picture)
    narrator.say(f"  picture: {picture}")
    return summary


class _Clock:
    """Simulated time, for the age of allocations."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


async def _live(life: _Life, clock: _Clock, start_ms: int, days: int, narrator: Narrator) -> None:
    """Run all hours; afterwards deliver what is still under way and end the stream."""
    installation = life.installation
    hour_ms = start_ms
    with narrator.step("simulating hours", days * 24) as step:
        for hour in range(days * 24):
            hour_ms = start_ms + hour * HOUR_MS
            clock.now_ms = hour_ms
            await life.hour(hour_ms)
            await until_allocated(installation, life.edges, dict.fromkeys(life.regret, hour_ms + HOUR_MS))
            step.advance(1)
    with narrator.step("delivering conversions that are still under way"):
        while life.shop.is_waiting:
            hour_ms += HOUR_MS
            await life.close(hour_ms + HOUR_MS)
        # Before the end marker, or it would depend on speed how many of these hours get an allocation.
        await until_allocated(installation, life.edges, dict.fromkeys(life.regret, hour_ms + HOUR_MS))
    await life.close(END_MS)
    with narrator.step("counting what came last", life.n_sent) as step:
        counted = await until_counted(installation, life.n_sent, step.reach)
    records = [experiment.record(start_ms, 0) for experiment in life.experiments]
    with narrator.step("recalculating up to the last hour"):
        await until_allocated(installation, life.edges, last_boundaries(counted, records))
    for edge in life.edges:
        figures = edge.statistics()
        defaults = {reason: n for reason, n in figures.decisions.items() if reason.startswith("default")}
        if figures.events.dropped or figures.events.failed or defaults:
            narrator.say(f"  an edge had trouble: {figures.events}, default decisions {defaults}")


def _say_result(narrator: Narrator, life: _Life, stock: Stock, courses: Mapping[str, Course]) -> None:
    total = Regret()
    for experiment in life.experiments:
        name = experiment.experiment_id
        history = stock.allocations[name]
        narrator.say("")
        narrator.say(experiment.title)
        comparison = _comparison(experiment, stock) if experiment.policy.comparison else None
        narrator.console.print(shop_table(history[-1], experiment.rates, comparison))
        say_courses(narrator, courses[name].weights)
        regret = life.regret[name]
        narrator.say(f"  {_say_regret(regret)}")
        total.product += regret.product
        total.equal_split += regret.equal_split
        total.visits += regret.visits
    narrator.say("")
    narrator.say(f"All together: {_say_regret(total)}")


def _say_regret(regret: Regret) -> str:
    if not regret.equal_split:
        return "no visit saw an arm"
    saved = 1.0 - regret.product / regret.equal_split
    return (
        f"conversions lost against always showing the best arm, over {regret.visits:,} visits:"
        f" {regret.product:,.0f}; an equal split would have lost {regret.equal_split:,.0f} ({saved:.0%} less)"
    )


def _comparison(experiment: ShopExperiment, stock: Stock) -> tuple[int, int]:
    """Trials and successes of the units that saw no arm."""
    cells = [
        cell
        for key, cell in stock.counted.cells.items()
        if key.experiment_id == experiment.experiment_id
        and key.view == "steering"
        and key.group == "comparison"
        and key.metric == experiment.metric
    ]
    successes = sum(lag.successes for cell in cells for lag in cell.lags.values())
    return sum(cell.trials for cell in cells), successes


def _course(experiment: ShopExperiment, stock: Stock, start_ms: int, end_ms: int) -> Course:
    """Weights over time while the shop was open, from the allocation log."""
    history = [a for a in stock.allocations[experiment.experiment_id] if a.boundary_ms <= end_ms]
    weights = {
        arm_id: tuple(arm.weight for table in history for arm in table.arms if arm.arm_id == arm_id)
        for arm_id in experiment.rates
    }
    hours = tuple((table.boundary_ms - start_ms) / HOUR_MS for table in history)
    return Course(experiment.title, hours, weights, experiment.best_arm, experiment.policy.comparison)


def _crossovers(stock: Stock) -> int:
    """Exposures that showed a unit a second arm in the same trial."""
    return sum(cell.crossovers for key, cell in stock.counted.cells.items() if key.view == "steering")
