"""One run: start everything, let the nemesis work, heal, drain, check; keep what is needed if it failed."""

import asyncio
import contextlib
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from streams.config import Settings, TopicName
from tests.chaos import checks, nemesis
from tests.chaos.crew import Crew, Member
from tests.chaos.network import Network
from tests.chaos.schedule import N_WORKERS, Schedule
from tests.chaos.shop import HOUR_S, Edge, Shop
from tests.chaos.watch import JournalWatch, SourceWatch
from tests.chaos.worker_faults import may_mount
from tests.chaos.world import World
from tests.harness.installation import Installation, quick_settings
from tests.harness.traffic import HOUR_MS, experiments
from tests.harness.workers import until

PARTITIONS = 4
READY_BOUND_S = 90.0
LAG_BOUND_S = 90.0
START_S = 60.0


class Report(Struct, kw_only=True):
    """What a run found; ``failures`` maps each check that did not hold to what was wrong."""

    seed: int
    seconds: float
    kinds: list[str]
    standby_replicas: int
    failures: dict[str, list[str]]
    figures: dict[str, Any]
    command: str
    folder: str = ""

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return not self.failures


def settings_of(bootstrap: str, schedule: Schedule, folder: Path) -> Settings:
    """Settings of a run: everything short, so that it happens within minutes."""
    return quick_settings(
        bootstrap,
        f"chaos-{schedule.seed}-",
        folder,
        partitions=PARTITIONS,
        standby_replicas=schedule.standby_replicas,
        definition_lead_ms=6_000,
        sweep_interval_ms=5_000,
        sweep_max_bytes=1 << 20,
        unit_max_events=150,
        stall_deadline_ms=65_000,
        shutdown_deadline_ms=10_000,
        recovery_deadline_ms=60_000,
        allocation_max_age_ms=3 * 86_400_000,
    )


class Run:
    """Schedules one after the other on one installation, each with its checks; in a folder of its own."""

    def __init__(self, schedules: Sequence[Schedule], folder: Path) -> None:
        self.schedules = schedules
        self.folder = folder
        self.reports: list[Report] = []
        self.failures: dict[str, list[str]] = {}
        self.figures: dict[str, Any] = {}
        self._edge: Edge | None = None
        self._has_second = any(fault.kind == "slow-leader" for each in schedules for fault in each.faults)

    async def run(self) -> list[Report]:
        """Do it, up to the first schedule after which a check does not hold.

        What goes wrong in the run itself is in the reports, not raised.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for n, schedule in enumerate(self.schedules):
            schedule.write(self.folder / f"schedule-{n + 1}.json")
        began_s = time.monotonic()
        try:
            async with Network(self.folder / "kafka", N_WORKERS, 2 if self._has_second else 1) as network:
                await self._with_brokers(network)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into the report
            self.failures["run"] = [f"{type(error).__name__}: {error}"]
            self._report(began_s)
        if all(report.ok for report in self.reports):
            for folder in self.folder.glob("kafka*"):
                shutil.rmtree(folder, ignore_errors=True)
        return self.reports

    def _report(self, began_s: float) -> None:
        schedule = self.schedules[min(len(self.reports), len(self.schedules) - 1)]
        paths = (self.folder / f"schedule-{n + 1}.json" for n in range(len(self.reports) + 1))
        self.figures["wall_s"] = round(time.monotonic() - began_s, 1)
        report = Report(
            seed=schedule.seed,
            seconds=schedule.seconds,
            kinds=sorted({fault.kind for fault in schedule.faults}),
            standby_replicas=self.schedules[0].standby_replicas,
            failures=self.failures,
            figures=self.figures,
            command=f"{Path(sys.executable).name} -m tests.chaos --schedule {' '.join(map(str, paths))}",
            folder=str(self.folder),
        )
        self.reports.append(report)
        self.failures, self.figures = {}, {}
        checks.write_json(
            self.folder / f"report-{len(self.reports)}.json",
            {f: getattr(report, f) for f in report.__struct_fields__},
        )

    async def _with_brokers(self, network: Network) -> None:
        first = self.schedules[0]
        settings = settings_of(network.bootstrap_servers, first, self.folder)
        await network.create_topics(settings, self._place)
        hours = sum(schedule.seconds for schedule in self.schedules) / HOUR_S
        start_ms = (time.time_ns() // 1_000_000 // HOUR_MS - int(hours) - 60) * HOUR_MS
        async with contextlib.AsyncExitStack() as stack:
            installation = await stack.enter_async_context(Installation(settings))
            crew = await stack.enter_async_context(Crew(settings, self.folder, network.links))
            sources = await stack.enter_async_context(SourceWatch(settings))
            journal = await stack.enter_async_context(JournalWatch(settings))
            shop = Shop(installation, seed=first.seed, start_ms=start_ms)
            definitions = {record.experiment_id: record for record in experiments(start_ms)}
            await installation.define(definitions.values())
            world = World(
                self.folder, settings, network, crew, shop, installation, sources, journal, definitions
            )
            kinds = {fault.kind for schedule in self.schedules for fault in schedule.faults}
            if "disk-full" in kinds and may_mount():
                crew.members[random.Random(first.seed).randrange(2)].mount_disk()
            for member in crew.members[:2]:
                member.start()
            for schedule in self.schedules:
                began_s = time.monotonic()
                await self._live(world, schedule)
                await self._check(world, ends=schedule is self.schedules[-1])
                self._report(began_s)
                if not self.reports[-1].ok:
                    return

    def _place(self, role: TopicName, number: int) -> list[int]:
        """Have one partition of the journal led by a broker of its own, if that is to be slow."""
        is_slow = self._has_second and (role, number) == ("journal", nemesis.SLOW_PARTITION)
        return [nemesis.SLOW_BROKER if is_slow else 1]

    async def _live(self, world: World, schedule: Schedule) -> None:
        await asyncio.gather(*(m.handle.wait_ready(START_S) for m in world.crew.members[:2]))
        self._edge = Edge(world.settings, world.shop, schedule.seed)
        edge = asyncio.create_task(self._edge.run(), name="edge")
        shop = asyncio.create_task(world.shop.run(), name="shop")
        try:
            world.begin()
            await nemesis.run(world, schedule)
            nemesis.heal(world)
            world.shop.stop()
            async with asyncio.timeout(60):
                await shop
        finally:
            for task in (edge, shop):
                task.cancel()
            outcomes = await asyncio.gather(edge, shop, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                world.problems.append(f"harness: {type(outcome).__name__}: {outcome}")
        self.figures |= {"faults": len(schedule.faults), "events_log": world.events}

    async def _check(self, world: World, *, ends: bool) -> None:
        settings, healed_s = world.settings, time.monotonic()
        try:
            await self._wait_drained(world)
            self.figures["lag_zero_s"] = round(time.monotonic() - healed_s, 1)
            await self._wait_ready(world)
            self.figures["all_ready_s"] = round(time.monotonic() - healed_s, 1)
        except AssertionError as error:
            self._hold("healing", [str(error)])
        skipped = world.journal.skipped()
        rows = checks.rows_of(world.sources, skipped)
        definitions = list(world.definitions.values())
        expected = await checks.oracle(rows, definitions, world.journal, settings)
        self._hold("counts", await checks.check_counts(settings, expected, definitions))
        self._hold("verdicts", checks.check_rules(rows, definitions, world.journal, settings))
        self._hold("account", checks.check_account(rows, world.journal))
        self._hold("skips", self._skip_problems(world))
        self._hold("dead letters", await checks.check_letters(settings, world.journal, world.sources))
        copies: dict[str, Path] = {}
        if ends:  # the databases are open until then
            self._hold("shutdown", await self._stop_all(world))
            copies = {member.name: member.data_dir for member in world.crew.members}
        self._hold("replay", await checks.check_replays(settings, world.journal, copies, expected))
        self._hold("allocations", await checks.check_allocations(settings))
        if self._edge is not None:
            self._hold("edge", checks.check_edge(self._edge.versions))
        self._hold("logs", checks.check_logs(sorted(self.folder.glob("w*.log"))))
        self._hold("faults", world.problems)
        self._hold("watch", [repr(f) for f in (world.sources.failure, world.journal.failure) if f])
        self._figure(world, rows, skipped)

    def _hold(self, name: str, problems: list[str]) -> None:
        print(
            f"  {'ok  ' if not problems else 'FAIL'} {name}" + "".join(f"\n       {p}" for p in problems[:8])
        )
        if problems:
            self.failures[name] = problems[:200]

    async def _wait_drained(self, world: World) -> None:
        ends = await world.sources.ends()

        async def drained() -> bool:
            for failure in (world.sources.failure, world.journal.failure):
                if failure is not None:
                    raise AssertionError(f"the harness cannot follow: {failure!r}")
            ends.update(await world.sources.ends())
            return all(
                world.journal.heads[tp.partition].positions.get(world.sources.topics[tp.topic], 0) >= end
                and world.sources.read_to[tp] >= min(end, world.sources.read_to[tp] + 1 if end else 0)
                for tp, end in ends.items()
            )

        try:
            await until(drained, deadline_s=LAG_BOUND_S, what="lag is zero", poll_s=0.5)
        except AssertionError as error:
            where = {n: (head.owner, dict(head.positions)) for n, head in world.journal.heads.items()}
            tails = "\n".join(member.handle.tail(6) for member in world.crew.members)
            raise AssertionError(f"{error}; ends {ends}; journals {where}\n{tails}") from None

    async def _wait_ready(self, world: World) -> None:
        for member in world.crew.running():
            await member.handle.wait_ready(READY_BOUND_S)

    async def _stop_all(self, world: World) -> list[str]:
        problems: list[str] = []
        slowest_s = [0.0]

        async def stop(member: Member) -> None:
            async with member.lock:
                member.wanted = False
                if not member.handle.running:
                    return
                began_s = time.monotonic()
                try:
                    status = await member.stop()
                except AssertionError as error:
                    problems.append(str(error))
                    return
                slowest_s.append(time.monotonic() - began_s)
                if status != 0:
                    problems.append(f"{member.name}: status {status}\n{member.handle.tail(5)}")

        await asyncio.gather(*(stop(member) for member in world.crew.members))
        self.figures["slowest_stop_s"] = round(max(slowest_s), 2)
        # What owners wrote while they stopped is wanted too.
        ends = await world.journal.ends()

        async def followed() -> bool:
            return all(world.journal.heads[tp.partition].journal_offset >= end for tp, end in ends.items())

        try:
            await until(followed, deadline_s=20, what="the journals are followed to their ends")
        except AssertionError as error:
            problems.append(str(error))
        return problems

    @staticmethod
    def _skip_problems(world: World) -> list[str]:
        """Nothing was skipped but what was deleted."""
        return [
            f"{topic}[{number}]: skipped up to {skip.next}, deleted below"
            f" {world.deleted_below.get((topic, number), 0)}"
            for (topic, number), skips in world.journal.skips.items()
            for skip in skips
            if skip.next > world.deleted_below.get((topic, number), 0)
        ]

    def _figure(self, world: World, rows: checks.Rows, skipped: set[Any]) -> None:
        edge = self._edge
        self.figures |= {
            "events": sum(len(each) for each in rows.values()),
            "skipped": len([position for position in skipped if position in world.sources.records]),
            "claims": world.journal.n_claims,
            "ignored_journal_records": dict(world.journal.ignored),
            "sweeps": sum(world.journal.n_sweeps.values()),
            "missed_journal_records": world.journal.n_missed,
            "verdicts": len(world.journal.verdicts),
            "edge_decisions": edge.n_decisions if edge else 0,
            "edge_versions": {k: len(v) for k, v in edge.versions.items()} if edge else {},
            "workers_ended_by_themselves": [tuple(each) for each in world.crew.ended],
            "brokers": len(world.network.brokers),
        }
