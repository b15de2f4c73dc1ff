"""The topic counts after faults: what stands there is what the partitions' owners have, whoever wrote last.

Seed 203: a journal made anew after a worker whose clock was a day ahead had written counts, and after source
records were deleted: 797 cells differed. Readers kept the greater journal id, and nobody took back the cells
whose events were gone.
"""

import json
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from streams.config import Settings, TopicName
from streams.counts import CountsKey, Order, ProgressRecord, decode_key, encode_key, encode_progress
from streams.embedded import Broker
from streams.experiments.definition import ExperimentRecord
from streams.log_reader import LogReader
from streams.partitioning import partition_of
from streams.topics import admin_client, create_topics
from tests.chaos import checks
from tests.chaos.crew import CLOCK_AHEAD
from tests.chaos.test_regressions import start_ms
from tests.chaos.watch import JournalWatch, SourceWatch
from tests.harness.check import JournalWatch as WholeJournal
from tests.harness.check import verify
from tests.harness.installation import Installation, quick_settings
from tests.harness.traffic import HOUR_MS, Traffic, experiments
from tests.harness.workers import WorkerHandle, until

pytestmark = pytest.mark.integration


async def delete_sources(settings: Settings, shares: dict[int, float]) -> None:
    """Delete so much of each source partition, from its start."""
    async with LogReader(settings) as reader, admin_client(settings) as admin:
        for role in ("exposures", "conversions"):
            name = settings.topic("exposures" if role == "exposures" else "conversions")
            spans = await reader.spans(name)
            await admin.delete_records(
                {
                    TopicPartition(name, number): RecordsToDelete(
                        before_offset=int(spans[number].end * share)
                    )
                    for number, share in shares.items()
                }
            )


async def make_anew(settings: Settings, role: TopicName) -> None:
    """Delete a topic and create it again."""
    name = settings.topic(role)
    async with admin_client(settings) as admin:
        await admin.delete_topics([name])

        async def gone() -> bool:
            return name not in await admin.list_topics()

        await until(gone, deadline_s=30, what=f"{name} is gone")
    await create_topics(settings)


async def test_a_journal_made_anew_after_a_clock_ahead_and_deleted_sources(
    broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path)
    start = start_ms()
    records = experiments(start)
    async with Installation(settings) as installation:
        await installation.define(records)
        traffic = Traffic(seed=203, start_ms=start, n_partitions=settings.partitions)
        worker = WorkerHandle(settings, "w1", tmp_path, roles="join")
        worker.start(CLOCK_AHEAD)
        try:
            async with WholeJournal(settings) as whole:
                await worker.wait_ready()
                await installation.produce(traffic.records(3_000, hours=9))
                await verify(settings, whole, records)
            assert await worker.stop() == 0
            await delete_sources(settings, {0: 1.0, 1: 0.5})
            await make_anew(settings, "journal")
            shutil.rmtree(worker.settings.data_dir)
            worker.start()
            async with SourceWatch(settings) as sources, JournalWatch(settings) as journal:
                await worker.wait_ready()
                await installation.produce(traffic.records(500, hours=1))

                async def drained() -> bool:
                    return all(
                        journal.heads[tp.partition].positions.get(sources.topics[tp.topic], 0) >= end
                        for tp, end in (await sources.ends()).items()
                    )

                await until(drained, deadline_s=60, what="everything is counted")
                rows = checks.rows_of(sources, journal.skipped())
                expected = await checks.oracle(rows, records, journal, settings)
                assert await checks.check_counts(settings, expected, records) == []
            assert await worker.stop() == 0
        finally:
            worker.kill()


@asynccontextmanager
async def counted(
    settings: Settings, folder: Path, seed: int
) -> AsyncIterator[tuple[Installation, WholeJournal, list[ExperimentRecord]]]:
    """A worker that has counted some hours; it must end in order."""
    start = start_ms()
    records = experiments(start)
    async with Installation(settings) as installation, WholeJournal(settings) as whole:
        await installation.define(records)
        traffic = Traffic(seed=seed, start_ms=start, n_partitions=settings.partitions)
        worker = WorkerHandle(settings, "w1", folder, roles="join")
        worker.start()
        try:
            await worker.wait_ready()
            await installation.produce(traffic.records(1_000, hours=4))
            await verify(settings, whole, records)
            yield installation, whole, records
            assert await worker.stop() == 0
        finally:
            worker.kill()


async def last_records(settings: Settings) -> dict[tuple[int, bytes], bytes | None]:
    """Return what compaction leaves: the last value of every key, by log order alone."""
    async with LogReader(settings) as reader:
        return {
            (record.partition, record.key or b""): record.value
            async for record in reader.read(settings.topic("counts"))
        }


def without_orders(values: Iterable[tuple[Any, bytes | None]]) -> dict[Any, Any]:
    """Cells and watermarks by key, tombstones left out."""
    return {
        key: {name: field for name, field in json.loads(value).items() if name != "order"}
        for key, value in values
        if value is not None
    }


async def test_what_an_earlier_owner_writes_late_is_written_over(
    broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    """Compaction keeps the last record of a key, and that was the zombie's."""
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path, sweep_interval_ms=HOUR_MS)
    async with counted(settings, tmp_path, seed=5) as (installation, whole, _):
        right = await last_records(settings)

        async def progress_is_out() -> bool:
            right.update(await last_records(settings))
            said = {raw: without_orders([(raw, value)])[raw] for (_, raw), value in right.items() if value}
            return all(
                said[encode_key(CountsKey("", number, 0))] == {"watermark_ms": head.watermark_ms()}
                for number, head in whole.heads.items()
            )

        await until(progress_is_out, deadline_s=20, what="the watermarks are out", poll_s=0.5)
        await write_late(installation, right)
        wanted = without_orders(right.items())

        async def mended() -> bool:
            return without_orders((await last_records(settings)).items()) == wanted

        await until(mended, deadline_s=30, what="the last record of every key is the owner's", poll_s=0.5)


async def write_late(installation: Installation, right: dict[tuple[int, bytes], bytes | None]) -> None:
    """Write over every key what an earlier claim might have: nothing counted, tombstones, old watermarks."""
    settings, send = installation.settings, installation.producer.send_and_wait
    topic = settings.topic("counts")
    first = min(Order(*json.loads(value)["order"]) for value in right.values() if value is not None)
    old = Order(first.journal_id, first.claim - 1, 10**6)
    stale = json.dumps({"order": old, "cells": []}, separators=(",", ":")).encode()
    keys = [(partition, raw) for partition, raw in right if decode_key(raw).experiment_id]
    for partition, raw in keys[::2]:
        await send(topic, stale, raw, partition=partition)
    for partition, raw in keys[1::2]:
        await send(topic, None, raw, partition=partition)
    late = encode_progress(ProgressRecord(old, 5))
    home = partition_of(b"display", settings.counts_partitions)
    for number in range(settings.partitions):
        await send(topic, stale, encode_key(CountsKey("display", number, 12)), partition=home)
        for partition in range(settings.counts_partitions):
            await send(topic, late, encode_key(CountsKey("", number, 0)), partition=partition)


async def test_counts_made_anew_are_published_again_at_once(
    broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    settings = quick_settings(broker.bootstrap_servers, topic_prefix, tmp_path, sweep_interval_ms=HOUR_MS)
    async with counted(settings, tmp_path, seed=6) as (_, whole, records):
        await make_anew(settings, "counts")
        await verify(settings, whole, records)
