"""What runs of the campaign have found, each as a test that needs no luck; the seed of the run is named."""

import asyncio
import time
from pathlib import Path

import pytest

from streams.config import Settings
from streams.demo.verification import add_cells, read_counts
from streams.embedded import Broker, EmbeddedKafka
from streams.join.cells import Cell, CellKey, decode_cell, decode_key
from streams.log_reader import LogReader
from streams.state.kafka_journal import KafkaJournal
from streams.state.partition import Partition
from streams.state.recovery import recover
from tests.chaos.checks import read_all_letters
from tests.harness.check import JournalWatch, verify
from tests.harness.installation import Installation, quick_settings
from tests.harness.traffic import HOUR_MS, Traffic, experiments
from tests.harness.workers import WorkerHandle, until

pytestmark = pytest.mark.integration

EXIT_MARGIN_S = 8.0


def start_ms(hours: int = 48) -> int:
    return (time.time_ns() // 1_000_000 // HOUR_MS - hours) * HOUR_MS


async def test_a_batch_that_counted_while_its_fate_was_in_doubt_is_published(
    broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    """Seed 4: a foreign record before a batch made the owner claim again; the replay counted the batch, but
    its dead letters were never written, and its counts waited for the next sweep."""
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path)
    start = start_ms()
    records = experiments(start)
    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        await installation.define(records)
        traffic = Traffic(seed=4, start_ms=start, n_partitions=settings.partitions, bad_share=0.3)
        worker = WorkerHandle(settings, "w1", tmp_path, roles="join")
        worker.start()
        try:
            await worker.wait_ready()
            for round_ in range(3):
                await installation.produce(traffic.records(500, hours=1))
                await verify(settings, watch, records)
                for number in range(settings.partitions):
                    await installation.producer.send_and_wait(
                        settings.topic("journal"), b"somebody else's", partition=number
                    )
                assert worker.running, round_
            await installation.produce(traffic.records(500, hours=1))
            await verify(settings, watch, records)
            assert "claiming again" in worker.log_path.read_text()

            async def complete() -> bool:
                letters, problems = await read_all_letters(settings)
                assert not problems
                return watch.verdicts.keys() == letters.keys()

            await until(complete, deadline_s=20, what="every verdict has its dead letter", poll_s=0.5)
            assert await worker.stop() == 0
        finally:
            worker.kill()


async def test_sigterm_ends_a_worker_whose_broker_is_silent(topic_prefix: str, tmp_path: Path) -> None:
    """Seed 2: a client of Kafka waited for an answer for ever, and the process with it."""
    with EmbeddedKafka(tmp_path / "kafka") as kafka:
        settings = quick_settings(kafka.bootstrap_servers, topic_prefix, tmp_path, shutdown_deadline_ms=3_000)
        start = start_ms()
        async with Installation(settings) as installation:
            await installation.define(experiments(start))
            worker = WorkerHandle(settings, "w1", tmp_path)
            worker.start()
            try:
                await worker.wait_ready()
                kafka.pause()
                began_s = time.monotonic()
                assert await worker.stop(60) == 0
                assert time.monotonic() - began_s < 3.0 + EXIT_MARGIN_S + 2.0
            finally:
                worker.kill()
                kafka.resume()


@pytest.mark.slow
async def test_a_worker_outlives_a_broker_that_is_away_longer_than_the_stall_deadline(
    topic_prefix: str, tmp_path: Path
) -> None:
    """Seed 2: work waited, nothing moved, and the watchdog took the broker's absence for a stall; and a
    broker that was just back, and did not know every topic yet, stopped a partition for good."""
    with EmbeddedKafka(tmp_path / "kafka") as kafka:
        settings = quick_settings(kafka.bootstrap_servers, topic_prefix, tmp_path, stall_deadline_ms=20_000)
        start = start_ms()
        records = experiments(start)
        async with Installation(settings) as installation, JournalWatch(settings) as watch:
            await installation.define(records)
            traffic = Traffic(seed=2, start_ms=start, n_partitions=settings.partitions)
            worker = WorkerHandle(settings, "w1", tmp_path, roles="join")
            worker.start()
            try:
                await worker.wait_ready()
                pid = worker.process.pid if worker.process is not None else 0
                await installation.produce(traffic.records(2_000, hours=2))
                await asyncio.to_thread(kafka.kill)
                await asyncio.sleep(35)  # the fault itself: a broker that is away
                assert not await worker.ready()
                await asyncio.to_thread(kafka.start)
                await verify(settings, watch, records)
                await worker.wait_ready()
                assert worker.process is not None
                assert worker.process.pid == pid
                assert await worker.stop() == 0
            finally:
                worker.kill()


async def test_a_second_process_on_a_data_folder_is_refused(
    broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    """Two workers on one folder took each other's partitions over at every rebalance, until one failed."""
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path)
    async with Installation(settings) as installation:
        await installation.define(experiments(start_ms()))
        first = WorkerHandle(settings, "w1", tmp_path, roles="join")
        second = WorkerHandle(settings, "w2", tmp_path, roles="join")
        second.settings = second.settings.model_copy(update={"data_dir": first.settings.data_dir})
        first.start()
        try:
            await first.wait_ready()
            second.start()

            async def ended() -> bool:
                return not second.running

            await until(ended, deadline_s=30, what="the second process has ended")
            assert second.process is not None
            assert second.process.returncode == 1
            assert "another worker uses this data folder" in second.tail(3)
            assert await first.ready()
            assert await first.stop() == 0
        finally:
            first.kill()
            second.kill()


async def test_sigterm_in_the_middle_of_a_backlog_finishes_the_batch_in_hand(
    broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    """What the journal has at the end the topic counts has, too; the next worker goes on from there."""
    settings = quick_settings(
        broker.bootstrap_servers, topic_prefix, tmp_path, batch_max_records=100, counts_flush_ms=5_000
    )
    start = start_ms()
    records = experiments(start)
    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        await installation.define(records)
        traffic = Traffic(seed=8, start_ms=start, n_partitions=settings.partitions)
        produced = await installation.produce(traffic.records(8_000, hours=6))
        worker = WorkerHandle(settings, "w1", tmp_path, roles="join")
        worker.start()
        try:

            async def counting() -> bool:
                return sum(sum(head.positions.values()) for head in watch.heads.values()) > 1_000

            await until(counting, deadline_s=60, what="it counts")
            began_s = time.monotonic()
            assert await worker.stop(60) == 0
            assert time.monotonic() - began_s < settings.shutdown_deadline_ms / 1000 + EXIT_MARGIN_S
            assert sum(sum(head.positions.values()) for head in watch.heads.values()) < produced
            assert await published(settings) == await journalled(settings, tmp_path / "replayed")
            worker.start()
            await verify(settings, watch, records)
        finally:
            worker.kill()


async def published(settings: Settings) -> dict[CellKey, Cell]:
    """Cells as the topic counts has them."""
    async with LogReader(settings) as reader:
        return (await read_counts(settings, reader)).cells


async def journalled(settings: Settings, folder: Path) -> dict[CellKey, Cell]:
    """Cells as fresh replays of the journals have them."""
    journal = KafkaJournal(topic=settings.topic("journal"), kafka_options=settings.kafka_options())
    cells = []
    try:
        for number in range(settings.partitions):
            partition = Partition.open(folder / str(number), name=f"journal[{number}]")
            await recover(partition, journal.log(number), deadline_s=60)
            cells.append({decode_key(key): decode_cell(value) for key, value in partition.cells()})
            partition.close()
    finally:
        await journal.stop()
    return add_cells(cells)
