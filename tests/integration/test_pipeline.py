"""The pipeline on a real Kafka with real worker processes: counts equal the oracle's, whoever dies."""

import re
import time
from pathlib import Path

import pytest

from streams.embedded import Broker
from streams.events import Exposure, encode_event, event_key
from tests.harness.check import JournalWatch, verify
from tests.harness.installation import Installation, quick_settings
from tests.harness.traffic import HOUR_MS, Sent, Traffic, experiments
from tests.harness.workers import WorkerHandle, until

pytestmark = pytest.mark.integration


def start_ms(hours: int = 48) -> int:
    """A full hour in the past."""
    return (time.time_ns() // 1_000_000 // HOUR_MS - hours) * HOUR_MS


async def test_one_worker_counts_what_the_oracle_counts(
    broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path)
    start = start_ms()
    records = experiments(start)
    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        await installation.define(records)
        traffic = Traffic(seed=1, start_ms=start, n_partitions=settings.partitions)
        await installation.produce(traffic.records(20_000, hours=24))
        worker = WorkerHandle(settings, "w1", tmp_path, roles="join")
        worker.start()
        try:
            await worker.wait_ready()
            totals = await verify(settings, watch, records)
            assert await worker.stop() == 0
        finally:
            worker.kill()
    assert totals["conversions/attributed"] > 500
    assert totals["exposures/rerouted"] > 0
    assert totals["exposures/duplicate"] > 0


async def test_two_workers_a_rebalance_and_a_kill(broker: Broker, topic_prefix: str, tmp_path: Path) -> None:
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path)
    start = start_ms()
    records = experiments(start)
    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        await installation.define(records)
        traffic = Traffic(seed=2, start_ms=start, n_partitions=settings.partitions)
        first = WorkerHandle(settings, "w1", tmp_path, roles="join")
        second = WorkerHandle(settings, "w2", tmp_path, roles="join")
        try:
            first.start()
            await first.wait_ready()
            await installation.produce(traffic.records(5_000, hours=4), per_second=4_000)
            second.start()  # joins while the first has work in hand: a rebalance in the middle
            await installation.produce(traffic.records(10_000, hours=8), per_second=4_000)
            await second.wait_ready()

            async def shared() -> bool:
                return len({head.owner for head in watch.heads.values()}) == 2

            await until(shared, deadline_s=30, what="both workers own partitions")
            await installation.produce(traffic.records(3_000, hours=2), per_second=6_000)
            first.kill()
            await installation.produce(traffic.records(5_000, hours=4), per_second=4_000)
            totals = await verify(settings, watch, records)
            assert {head.owner for head in watch.heads.values()} == {"w2"}
            first.start()  # comes back on its old data folder
            await first.wait_ready()
            await installation.produce(traffic.records(2_000, hours=2))
            await verify(settings, watch, records)
            assert await first.stop() == 0
            assert await second.stop() == 0
        finally:
            first.kill()
            second.kill()
    assert totals["conversions/attributed"] > 500


async def test_a_standby_takes_over_without_a_full_restore(
    broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path, standby_replicas=1)
    start = start_ms()
    records = experiments(start)
    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        await installation.define(records)
        traffic = Traffic(seed=3, start_ms=start, n_partitions=settings.partitions)
        first = WorkerHandle(settings, "w1", tmp_path, roles="join")
        second = WorkerHandle(settings, "w2", tmp_path, roles="join")
        try:
            first.start()
            second.start()
            await first.wait_ready()
            await second.wait_ready()

            async def shared() -> bool:
                return len({head.owner for head in watch.heads.values()}) == 2

            await until(shared, deadline_s=40, what="both workers own partitions")
            await installation.produce(traffic.records(8_000, hours=6), per_second=4_000)
            await verify(settings, watch, records)
            owned = {number: head.owner for number, head in watch.heads.items()}
            taken = [number for number, owner in owned.items() if owner == "w1"]
            assert taken
            first.kill()
            await installation.produce(traffic.records(4_000, hours=3), per_second=4_000)
            await verify(settings, watch, records)
            assert {head.owner for head in watch.heads.values()} == {"w2"}
            # What the second worker had followed as a standby it did not read again.
            text = second.log_path.read_text()
            for number in taken:
                replayed = re.findall(rf"partition-{number}: owned .* (\d+) journal records replayed", text)
                assert 0 <= int(replayed[-1]) <= 5 < watch.heads[number].journal_offset, second.tail()
            assert await second.stop() == 0
        finally:
            first.kill()
            second.kill()


async def test_a_unit_that_outgrows_a_journal_record_stops_nothing(
    broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    """What does not fit with the rest of its unit is dead-lettered, and everybody else is counted."""
    settings = quick_settings(
        broker.bootstrap_servers,
        topic_prefix,
        tmp_path,
        partitions=1,
        journal_max_message_bytes=1 << 20,
        batch_max_bytes=1 << 19,
    )
    start = start_ms()
    records = experiments(start)

    def exposure(unit: str, number: int) -> Sent:
        event = Exposure(
            exposure_id=f"{number:0256}",
            experiment_id="revenue",  # a trial for each exposure
            unit_id=unit,
            timestamp=start + number,
            arm_id="a",
        )
        return Sent("exposures", 0, event_key(event), encode_event(event))

    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        await installation.define(records)
        n_hot = 3_900
        await installation.produce(exposure("hot", number) for number in range(n_hot))
        await installation.produce(exposure(f"u{number}", n_hot + number) for number in range(100))
        worker = WorkerHandle(settings, "w1", tmp_path, roles="join")
        worker.start()
        try:
            await worker.wait_ready()
            totals = await verify(settings, watch, records)
            assert await worker.stop() == 0
        finally:
            worker.kill()
    refused = totals["exposures/dead_letter/oversize"]
    assert 0 < refused < 1_000
    assert totals["exposures/accepted"] == n_hot + 100 - refused
    assert {watch.verdicts["exposures", 0, offset].reason for offset in range(n_hot - refused, n_hot)} == {
        "oversize"
    }
