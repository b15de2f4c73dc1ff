"""Two owners under a group that changes its mind, every append stopped and released at will.

Hypothesis drives real owners on real databases. An append reaches the journal only when a rule writes it, its
acknowledgement reaches the owner only when a rule says so, and in between anything may happen: a rebalance, a
crash, an error, a second copy, a write long after its owner has been fenced. The model is the source itself:
whatever the order of events, the state is that of the records below the positions, each counted once.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams.state.errors import JournalAppendError
from streams.state.owner import Fenced, Owner, OwnerLimits
from streams.state.partition import Partition
from streams.state.recovery import recover
from streams.state.store import StoreOptions
from tests.state.doubles import TOPICS, MemoryLog, Source, check, commit_next, content

WORKERS = ("a", "b")
ROLES = ("member", "member", "member", "other")  # of the group; the other one is paused, late or mistaken
N = 60
MEMORY = Path("/dev/shm")  # databases are opened by the hundred; a disk's fsync would be most of the time


@dataclass
class InFlight:
    """An append that its owner waits for; ``offset`` once it is in the journal."""

    data: bytes
    answer: asyncio.Future[int]
    offset: int | None = None


class GatedLog(MemoryLog):
    """A journal whose appends wait for the machine."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight: list[InFlight] = []
        self.zombies: list[bytes] = []
        self.gated = True

    async def append(self, data: bytes, *, timeout_s: float) -> int:
        if not self.gated:
            return await super().append(data, timeout_s=timeout_s)
        waiting = InFlight(data, asyncio.get_running_loop().create_future())
        self.in_flight.append(waiting)
        try:
            return await waiting.answer
        finally:
            self.in_flight.remove(waiting)
            if waiting.offset is None:
                self.zombies.append(data)  # the producer may still have it


@dataclass
class Group:
    """The consumer group: one member owns the partition in each generation."""

    generation: int = 0
    member: str = ""


@dataclass
class Worker:
    name: str
    partition: Partition
    owner: Owner
    generation: int = 0
    task: asyncio.Task[Any] | None = None
    done: list[object] = field(default_factory=list)


class TwoOwners(RuleBasedStateMachine):
    """See the module."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="two-owners-", dir=MEMORY if MEMORY.is_dir() else None))
        self.options = StoreOptions(block_cache_bytes=2**20, write_buffer_bytes=2**20)
        self.source = Source(n=N)
        self.log = GatedLog()
        self.group = Group(0, "a")
        self.workers = {name: self._open(name) for name in WORKERS}
        self.standby = Partition.open(self.folder / "standby", name="standby", options=self.options)
        self.clock_ms = 1_700_000_000_000

    def _open(self, name: str) -> Worker:
        partition = Partition.open(self.folder / name, name=name, options=self.options)

        async def heartbeat_fresh() -> bool:
            worker = self.workers[name]
            return self.group.member == name and self.group.generation == worker.generation

        def clock_ms() -> int:
            self.clock_ms += 1
            return self.clock_ms

        limits = OwnerLimits(claim_backoff_s=0.0, claim_deadline_s=600)
        owner = Owner(
            partition, self.log, name=name, heartbeat_fresh=heartbeat_fresh, clock_ms=clock_ms, limits=limits
        )
        return Worker(name, partition, owner)

    def _settle(self) -> None:
        """Run every task until all of them wait for the machine."""

        async def turns() -> None:
            for _ in range(60):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        for worker in self.workers.values():
            if worker.task is not None and worker.task.done():
                worker.done.append(worker.task.result())
                worker.task = None

    def _begin(self, worker: Worker, work: Callable[[], Any]) -> None:
        if worker.task is None:
            worker.task = self.loop.create_task(work())
            self._settle()

    # What workers do

    def _worker(self, role: str) -> Worker:
        return self.workers[self.group.member if role == "member" else WORKERS[self.group.member == "a"]]

    @rule(name=st.sampled_from(WORKERS), smooth=st.sampled_from((True, True, False)))
    def rebalance(self, name: str, smooth: bool) -> None:
        self.group = Group(self.group.generation + 1, name)
        worker = self.workers[name]
        if worker.task is None:
            worker.generation = self.group.generation
            self._begin(worker, lambda: self._take(worker))
            if smooth:
                self._flow(6)

    def _flow(self, rounds: int) -> None:
        for _ in range(rounds):
            for waiting in list(self.log.in_flight):
                if waiting.offset is None:
                    waiting.offset = len(self.log.records)
                    self.log.records.append(waiting.data)
                if not waiting.answer.done():
                    waiting.answer.set_result(waiting.offset)
            self._settle()

    async def _take(self, worker: Worker) -> object:
        claimed = await worker.owner.claim(worker.generation)
        return claimed if isinstance(claimed, Fenced) else await self._positions(worker)

    async def _positions(self, worker: Worker) -> object:
        for topic in TOPICS:
            outcome = await worker.owner.check_source(topic, 0, N)
            if isinstance(outcome, Fenced):
                return outcome
        return None

    @rule(
        role=st.sampled_from(ROLES),
        topic=st.sampled_from(TOPICS),
        size=st.integers(1, 9),
        smooth=st.booleans(),
    )
    def commit(self, role: str, topic: str, size: int, smooth: bool) -> None:
        worker = self._worker(role)
        position = worker.partition.head.positions.get(topic)
        if position is None or position == N:
            return
        self._begin(worker, lambda: commit_next(worker.owner, self.source, topic, size))
        if smooth:
            self._flow(3)

    @rule(role=st.sampled_from(ROLES), max_bytes=st.sampled_from((1, 80, 10**6)), smooth=st.booleans())
    def sweep(self, role: str, max_bytes: int, smooth: bool) -> None:
        worker = self._worker(role)
        self._begin(worker, lambda: worker.owner.sweep_step(max_bytes=max_bytes))
        if smooth:
            self._flow(3)

    @rule(role=st.sampled_from(ROLES), topic=st.sampled_from(TOPICS))
    def idle(self, role: str, topic: str) -> None:
        worker = self._worker(role)
        if topic in worker.partition.head.positions:
            maximum_ms = worker.partition.head.maxima.get(topic, 0) + 1
            self._begin(worker, lambda: worker.owner.raise_watermark(topic, maximum_ms))

    @rule(n=st.integers(1, 5), size=st.integers(1, 5))
    def commits_in_a_row(self, n: int, size: int) -> None:
        for i in range(n):
            self.commit("member", TOPICS[i % 2], size, smooth=True)

    @rule(name=st.sampled_from((*WORKERS, None, None, None)))
    def die_and_come_back(self, name: str | None) -> None:
        if name is None:
            return
        worker = self.workers[name]
        if worker.task is not None:
            worker.task.cancel()
            self.loop.run_until_complete(asyncio.wait([worker.task]))
        worker.partition.close()
        self.workers[name] = self._open(name)

    @rule()
    def standby_follows(self) -> None:
        self.loop.run_until_complete(recover(self.standby, self.log, upto=len(self.log.records)))

    # What the journal does

    @precondition(lambda self: bool(self.log.in_flight))
    @rule(rounds=st.integers(1, 6))
    def all_goes_well_for_a_while(self, rounds: int) -> None:
        self._flow(rounds)

    @precondition(lambda self: any(f.offset is None for f in self.log.in_flight))
    @rule(data=st.data(), copies=st.sampled_from((1, 1, 1, 2)))
    def write(self, data: st.DataObject, copies: int) -> None:
        waiting = data.draw(st.sampled_from([f for f in self.log.in_flight if f.offset is None]))
        waiting.offset = len(self.log.records)
        self.log.records += [waiting.data] * copies

    @precondition(lambda self: any(f.offset is not None for f in self.log.in_flight))
    @rule(data=st.data(), with_offset=st.sampled_from((True, True, True, False)))
    def acknowledge(self, data: st.DataObject, with_offset: bool) -> None:
        waiting = data.draw(st.sampled_from([f for f in self.log.in_flight if f.offset is not None]))
        assert waiting.offset is not None
        waiting.answer.set_result(waiting.offset if with_offset else -1)
        self._settle()

    @precondition(lambda self: bool(self.log.in_flight))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        waiting = data.draw(st.sampled_from(self.log.in_flight))
        waiting.answer.set_exception(JournalAppendError("timed out"))
        self._settle()

    @precondition(lambda self: bool(self.log.zombies))
    @rule(data=st.data())
    def zombie_writes(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.log.zombies) - 1))
        self.log.records.append(self.log.zombies.pop(index))

    @rule(at_all=st.sampled_from((True, False, False)))
    def foreign(self, at_all: bool) -> None:
        if at_all:
            self.log.records.append(b"somebody else's")

    # What must hold

    @invariant()
    def every_state_is_that_of_its_positions(self) -> None:
        for partition in (*(w.partition for w in self.workers.values()), self.standby):
            if partition.complete:
                check(partition, self.source)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self._finish()
        finally:
            for worker in self.workers.values():
                worker.partition.close()
            self.standby.close()
            self.loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _finish(self) -> None:
        """All that is still on its way arrives, one owner reads to the end, all replays agree."""
        for worker in self.workers.values():
            if worker.task is not None:
                worker.task.cancel()
                self.loop.run_until_complete(asyncio.wait([worker.task]))
        self.log.records += self.log.zombies
        self.log.gated = False
        self.group = Group(self.group.generation + 1, "a")
        worker = self.workers["a"]
        worker.generation = self.group.generation
        self.loop.run_until_complete(self._read_to_the_end(worker))
        assert worker.partition.head.positions == dict.fromkeys(TOPICS, N)
        check(worker.partition, self.source)
        replays = [content(worker.partition)]
        fresh = [
            Partition.open(self.folder / f"replay{i}", name="replay", options=self.options) for i in (1, 2)
        ]
        for partition in (self.workers["b"].partition, self.standby, *fresh):
            self.loop.run_until_complete(recover(partition, self.log))
            replays.append(content(partition))
        whole = Partition.open(self.folder / "whole", name="whole", options=self.options)
        for offset, data in enumerate(self.log.records):
            whole.apply(offset, data)
        replays.append(content(whole))
        for partition in (*fresh, whole):
            partition.close()
        assert all(replay == replays[0] for replay in replays)

    async def _read_to_the_end(self, worker: Worker) -> None:
        assert not isinstance(await worker.owner.claim(worker.generation), Fenced)
        for topic in TOPICS:
            while worker.partition.head.positions.get(topic, -1) < N:
                assert await self._positions(worker) is None
                assert not isinstance(await commit_next(worker.owner, self.source, topic, 20), Fenced)


def test_no_batch_is_applied_twice_or_lost() -> None:
    stateful.run_state_machine_as_test(
        TwoOwners,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
