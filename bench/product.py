"""Contestant ``bandit-streams``: this product's worker, as an operator starts it, the join alone.

Time runs from the first claim in the journal to its last batch, by the timestamps of the records; CPU from
the worker being ready to everything being counted. What it counted is read from the topic ``counts``, where
the allocator would.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bench.contestant import Arena, Run, cpu_seconds, disk_bytes, peak_bytes, spawn, topic_disk_bytes
from bench.workload import HOUR_MS, Counts, Workload
from streams.config import Settings, TopicName
from streams.counts import decode_counts, decode_key
from streams.embedded.probe import free_port
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward, encode_record
from streams.partitioning import partition_of
from streams.state.journal import BatchRecord, Claim, decode
from streams.topics import admin_client, create_topics, topic_specs

POLL_S = 0.5
START = "import sys; from streams.cli import main; sys.exit(main())"
OWN_TOPICS: tuple[TopicName, ...] = ("journal", "counts", "allocation-log", "allocations", "dead-letters")


def settings_of(
    bootstrap: str, prefix: str, partitions: int, folder: Path | None = None, group: str = "bench"
) -> Settings:
    """Every default but the address, the topics' prefix and counts, and one replica on the one broker."""
    values: dict[str, Any] = {
        "bootstrap_servers": bootstrap,
        "topic_prefix": prefix,
        "group": group,
        "partitions": partitions,
        "replication_factor": 1,
        "min_insync_replicas": 1,
        "web_host": "127.0.0.1",
        "web_port": free_port(),
    }
    if folder is not None:
        values["data_dir"] = folder
    return Settings.model_validate(values)


async def define(settings: Settings, work: Workload) -> None:
    """Make the topics, and write the experiments of the workload."""
    await create_topics(settings)
    (n_partitions,) = (spec.partitions for spec in topic_specs(settings) if spec.role == "experiments")
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    await producer.start()
    try:
        for number in range(work.experiments):
            name = f"experiment-{number}"
            counting = Counting(
                version=1,
                effective_from_ms=work.start_ms - HOUR_MS,
                reward=Reward(metric="order"),
                conversion_window_ms=work.window_ms,
            )
            record = ExperimentRecord(
                experiment_id=name,
                revision=1,
                status="live",
                arms=tuple(Arm(arm_id=f"arm-{arm}") for arm in range(work.arms)),
                control="arm-0",
                versions=(counting,),
            )
            await producer.send_and_wait(
                settings.topic("experiments"),
                encode_record(record),
                name.encode(),
                partition=partition_of(name.encode(), n_partitions),
            )
    finally:
        await producer.stop()


class BanditStreams:
    """One or more workers of this product, all on the contestant's core."""

    settings = "every default; one replica, since there is one broker; the join alone (--roles join)"

    def __init__(self, *, profile: Path | None = None, changes: dict[str, str] | None = None) -> None:
        self.name = "bandit-streams"
        self._profile = profile
        self._changes = changes or {}

    async def run(self, arena: Arena, number: int) -> Run:
        """Count the whole work once, from an empty journal."""
        folder = arena.folder / f"product-{number}"
        settings = settings_of(
            arena.bootstrap, arena.prefix, arena.work.partitions, folder / "data", f"bench-{number}"
        )
        if number:
            await self._fresh_topics(settings)
        folder.mkdir()
        log = folder / "worker.log"
        command = [sys.executable, "-c", START, "worker", "--roles", "join"]
        with log.open("wb") as output:
            worker = spawn(
                command, env=os.environ | _environment(settings) | self._changes, stdout=output, stderr=output
            )
        try:
            async with asyncio.timeout(arena.deadline_s):
                await _until_ready(settings, worker, log)
                before_s = cpu_seconds(worker.pid)
                profiler = self._start_profiler(worker.pid)
                await _until_drained(settings, worker, log, arena.n_events)
                used_s, peak = cpu_seconds(worker.pid) - before_s, peak_bytes(worker.pid)
                journal_bytes = int(_total(await _page(settings, "metrics"), "bandit_journal_bytes_total"))
                if profiler is not None:
                    profiler.wait()
            worker.send_signal(signal.SIGTERM)
            if await asyncio.to_thread(worker.wait, 60):
                raise SystemExit(f"the worker failed:\n{log.read_text()[-3000:]}")
        except TimeoutError:
            raise SystemExit(
                f"not done within {arena.deadline_s:.0f} s:\n{log.read_text()[-3000:]}"
            ) from None
        finally:
            worker.kill()
            worker.wait()
        return Run(
            await _journal_seconds(settings),
            used_s,
            peak,
            await read_counts(settings),
            disk_bytes(folder / "data"),
            journal_bytes,
            topic_disk_bytes(arena, settings.topic("journal")),
        )

    def _start_profiler(self, pid: int) -> "subprocess.Popen[bytes] | None":
        if self._profile is None:
            return None
        command = ["py-spy", "record", "-p", str(pid), "-d", "20", "-r", "200", "-f", "raw", "-o"]
        return subprocess.Popen(
            [*command, str(self._profile)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    @staticmethod
    async def _fresh_topics(settings: Settings) -> None:
        async with admin_client(settings) as admin:
            names = {settings.topic(name) for name in OWN_TOPICS}
            await admin.delete_topics(list(names))
            while names & set(await admin.list_topics()):  # noqa: ASYNC110 - Kafka tells of it only when asked
                await asyncio.sleep(0.2)
        await create_topics(settings)


def _environment(settings: Settings) -> dict[str, str]:
    values = settings.model_dump(mode="json", exclude_defaults=True)
    return {f"BANDIT_{name.upper()}": str(value) for name, value in values.items()}


async def _page(settings: Settings, path: str) -> str:
    """Body of a page of the worker; empty unless it answers 200."""
    url = f"http://127.0.0.1:{settings.web_port}/{path}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(url) as response,
        ):
            return await response.text() if response.status == 200 else ""
    except (aiohttp.ClientError, OSError, TimeoutError):
        return ""


def _total(page: str, name: str) -> float:
    """Sum of all series of a metric."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
    total: float = sum((float(value) for value in found), 0.0)
    return total


async def _until_ready(settings: Settings, worker: "subprocess.Popen[bytes]", log: Path) -> None:
    while not await _page(settings, "readyz"):
        _require_running(worker, log)
        await asyncio.sleep(0.05)


async def _until_drained(
    settings: Settings, worker: "subprocess.Popen[bytes]", log: Path, n_events: int
) -> None:
    while _total(await _page(settings, "metrics"), "bandit_events_total") < n_events:
        _require_running(worker, log)
        await asyncio.sleep(POLL_S)


def _require_running(worker: "subprocess.Popen[bytes]", log: Path) -> None:
    if worker.poll() is not None:
        raise SystemExit(f"the worker ended:\n{log.read_text(errors='replace')[-3000:]}")


async def _read_all(settings: Settings, topic: str, n_partitions: int) -> list[Any]:
    """All records of a topic, by partition and offset."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        enable_auto_commit=False,
        max_partition_fetch_bytes=settings.journal_max_message_bytes,
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topic, number) for number in range(n_partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(tps)
        found: list[Any] = []
        for tp in tps:
            while await consumer.position(tp) < ends[tp]:
                for records in (await consumer.getmany(tp, timeout_ms=500)).values():
                    found += records
        return found
    finally:
        await consumer.stop()


async def _journal_seconds(settings: Settings) -> float:
    """Seconds from the first claim to the last batch, by the records' timestamps."""
    claims: list[int] = []
    batches: list[int] = []
    for record in await _read_all(settings, settings.topic("journal"), settings.partitions):
        step = decode(record.value)
        if isinstance(step, Claim):
            claims.append(record.timestamp)
        elif isinstance(step, BatchRecord) and step.flag == "normal":
            batches.append(record.timestamp)
    return (max(batches) - min(claims)) / 1000


async def read_counts(settings: Settings) -> Counts:
    """Sum up the steering cells by experiment, arm and hour, as the topic ``counts`` has them."""
    records = await _read_all(settings, settings.topic("counts"), settings.counts_partitions)
    newest: dict[bytes, bytes | None] = {record.key: record.value for record in records}
    counts: Counts = {}
    for raw_key, value in newest.items():
        key = decode_key(raw_key)
        if not key.experiment_id or value is None:
            continue
        for cell_key, cell in decode_counts(key, value).cells.items():
            if cell_key.view == "steering":
                own = counts.setdefault((key.experiment_id, cell_key.arm_id, cell_key.bucket), [0, 0])
                own[0] += cell.trials
                own[1] += sum(lag.successes for lag in cell.lags.values())
    return counts
