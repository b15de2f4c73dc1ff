"""Faults that need several brokers: a slow leader, a lost broker, an unclean election."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from streams.config import Settings, TopicName
from tests.chaos import checks
from tests.chaos.network import Network
from tests.chaos.proxy import Mode
from tests.chaos.test_regressions import start_ms
from tests.chaos.watch import JournalWatch, SourceWatch
from tests.harness.installation import Installation, quick_settings
from tests.harness.traffic import Traffic, experiments
from tests.harness.workers import WorkerHandle, until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]

SLOW = 1  # the source partition whose leader is slow


class Rig:
    """A worker on a cluster, traffic for it, and what the checks need."""

    def __init__(self, settings: Settings, network: Network, folder: Path) -> None:
        self.settings = settings
        self.installation = Installation(settings)
        self.sources, self.journal = SourceWatch(settings), JournalWatch(settings)
        own = settings.model_copy(update={"bootstrap_servers": network.links[0].address})
        self.worker = WorkerHandle(own, "w1", folder)
        self.records = experiments(start_ms())
        self.traffic = Traffic(seed=11, start_ms=start_ms(), n_partitions=settings.partitions)

    async def produce(self, partitions: set[int]) -> None:
        """Produce an hour of traffic to these partitions.

        Nothing on a wrong partition: that waits, and its batch with it, for the leader of the right one.
        """
        records = [
            record
            for record in self.traffic.records(400, hours=1)
            if record.partition in partitions and record.key is not None
        ]
        await self.installation.produce(records)

    async def lags(self) -> dict[int, int]:
        """Records that are not counted yet, by source partition."""
        lags = dict.fromkeys(range(self.settings.partitions), 0)
        for tp, end in (await self.sources.ends()).items():
            topic = self.sources.topics[tp.topic]
            lags[tp.partition] += end - max(0, self.journal.heads[tp.partition].positions.get(topic, 0))
        return lags

    async def drained(self, partitions: set[int], deadline_s: float) -> None:
        """Wait until these partitions have nothing left to count."""

        async def condition() -> bool:
            if not self.worker.running:  # it found its journal changed: whoever supervises it starts it again
                self.worker.start()
            lags = await self.lags()
            return not any(lags[number] for number in partitions)

        await until(condition, deadline_s=deadline_s, what=f"{partitions} are counted", poll_s=0.3)

    async def check(self) -> None:
        """Everything drains, and counts, verdicts and account are exact."""
        await self.drained(set(range(self.settings.partitions)), 90)
        rows = checks.rows_of(self.sources, self.journal.skipped())
        expected = await checks.oracle(rows, self.records, self.journal, self.settings)
        assert await checks.check_counts(self.settings, expected, self.records) == []
        assert checks.check_rules(rows, self.records, self.journal, self.settings) == []
        assert checks.check_account(rows, self.journal) == []
        assert not self.journal.skipped()


@asynccontextmanager
async def rig(settings: Settings, network: Network, folder: Path) -> AsyncIterator[Rig]:
    """Start the worker and count something."""
    made = Rig(settings, network, folder)
    async with made.installation, made.sources, made.journal:
        await made.installation.define(made.records)
        made.worker.start()
        try:
            await made.worker.wait_ready()
            await made.installation.produce(made.traffic.records(800, hours=2))
            await made.check()
            yield made
            await made.check()
            await made.worker.wait_ready()
            assert await made.worker.stop() == 0
        finally:
            made.worker.kill()


@pytest.mark.parametrize(("mode", "slow_role"), [("blackhole", "journal"), ("delay", "exposures")])
async def test_a_slow_leader_holds_up_its_own_partition_only(
    topic_prefix: str, tmp_path: Path, mode: Mode, slow_role: TopicName
) -> None:
    """One partition of one topic is led by a broker that answers late, or not at all for a while."""
    async with Network(tmp_path / "kafka", 1, n_brokers=2) as network:
        settings = quick_settings(
            network.bootstrap_servers, topic_prefix, tmp_path, stall_deadline_ms=120_000
        )
        await network.create_topics(
            settings, lambda role, number: [2 if (role, number) == (slow_role, SLOW) else 1]
        )
        others = set(range(settings.partitions)) - {SLOW}
        async with rig(settings, network, tmp_path) as made:
            network.slow(2, mode, delay_s=1.0)
            await made.produce({SLOW})
            for _ in range(3):
                await made.produce(others)
                await made.drained(others, 20)
            if mode == "blackhole":
                assert (await made.lags())[SLOW] > 0
            network.slow(2, "pass")


async def test_brokers_killed_one_after_the_other_lose_nothing(topic_prefix: str, tmp_path: Path) -> None:
    """Three replicas, two of which must have a record: as the settings promise it."""
    async with Network(tmp_path / "kafka", 1, n_brokers=3) as network:
        settings = quick_settings(
            network.bootstrap_servers, topic_prefix, tmp_path, replication_factor=3, min_insync_replicas=2
        )
        await network.create_topics(settings, lambda _, number: [2 + number % 2, 3 - number % 2, 1])
        async with rig(settings, network, tmp_path) as made:
            everywhere = set(range(settings.partitions))
            for broker in network.brokers[1:]:
                producing = asyncio.create_task(made.produce(everywhere))
                await asyncio.to_thread(broker.kill)
                await producing
                await made.produce(everywhere)
                await made.drained(everywhere, 60)
                await asyncio.to_thread(broker.start)
                await network.in_sync(settings.topic("journal"), 3)


async def test_an_unclean_election_of_the_journal_is_counted_again(topic_prefix: str, tmp_path: Path) -> None:
    """A replica that lacks the end of every journal partition is made the leader, against the settings."""
    async with Network(tmp_path / "kafka", 1, n_brokers=3) as network:
        settings = quick_settings(network.bootstrap_servers, topic_prefix, tmp_path)
        await network.create_topics(settings, lambda role, _: [2, 3] if role == "journal" else [1])
        _, leader, follower = network.brokers
        journal = settings.topic("journal")
        async with rig(settings, network, tmp_path) as made:
            everywhere = set(range(settings.partitions))
            await network.in_sync(journal, 2)
            await asyncio.to_thread(follower.kill)
            await network.in_sync(journal, 1)
            await made.produce(everywhere)
            await made.drained(everywhere, 60)
            ends = await made.journal.ends()
            await asyncio.to_thread(leader.kill)
            await network.configure(settings, "journal", {"unclean.leader.election.enable": "true"})
            await asyncio.to_thread(follower.start)
            await network.led_by(journal, follower.number)
            cut = await made.journal.ends()
            assert any(cut[tp] < end for tp, end in ends.items()), "nothing was lost: the test would be empty"
            await network.configure(settings, "journal", {})
            for number in everywhere:
                made.journal.read_again(journal, number)
            await asyncio.to_thread(leader.start)
            await made.produce(everywhere)


async def test_a_partition_that_does_not_move_makes_the_worker_not_ready_and_ends_it(
    topic_prefix: str, tmp_path: Path
) -> None:
    """The brokers answer, but one partition's journal does not, for longer than the stall deadline."""
    async with Network(tmp_path / "kafka", 1, n_brokers=2) as network:
        settings = quick_settings(network.bootstrap_servers, topic_prefix, tmp_path, stall_deadline_ms=8_000)
        await network.create_topics(
            settings, lambda role, number: [2 if (role, number) == ("journal", SLOW) else 1]
        )
        async with rig(settings, network, tmp_path) as made:
            network.slow(2, "blackhole")
            await made.produce({SLOW})
            seen: list[int] = []

            async def ended() -> bool:
                seen.append((await made.worker.get("readyz"))[0])
                return not made.worker.running

            await until(ended, deadline_s=60, what="the worker has ended")
            assert 503 in seen
            assert made.worker.process is not None
            assert made.worker.process.returncode == 1
            said = made.worker.tail(200)
            assert f"partition-{SLOW}" in said
            assert "no progress for" in said
            network.slow(2, "pass")
