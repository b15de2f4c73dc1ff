"""Contestant ``bandit-streams``: this product's worker, as an operator starts it, the join alone.

Time runs from the first claim in the journal to its last batch, by the timestamps of the records; CPU from
the worker being ready to everything being counted. What it counted is read from the topic ``counts``, where
the allocator would.
"""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bench.contestant import Arena, Run, disk_bytes, topic_disk_bytes
from bench.report import say
from bench.worker import Worker, fresh_topics, settings_of, until_drained, within
from bench.workload import HOUR_MS, Counts, Workload, expected, produce
from streams.config import Settings, TopicName
from streams.counts import CountsRecord, decode_counts, decode_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward, encode_record
from streams.partitioning import partition_of
from streams.state.journal import BatchRecord, Claim, decode, unpack
from streams.topics import create_topics, topic_specs


def experiment(name: str, work: Workload) -> ExperimentRecord:
    """Definition of an experiment of the workload."""
    counting = Counting(
        version=1,
        effective_from_ms=work.start_ms - HOUR_MS,
        reward=Reward(metric="order"),
        conversion_window_ms=work.window_ms,
    )
    return ExperimentRecord(
        experiment_id=name,
        revision=1,
        status="live",
        arms=tuple(Arm(arm_id=f"arm-{arm}") for arm in range(work.arms)),
        control="arm-0",
        versions=(counting,),
    )


SOURCES: tuple[TopicName, ...] = ("exposures", "conversions")


async def define(settings: Settings, records: Iterable[ExperimentRecord]) -> None:
    """Make the topics, and write definitions."""
    await create_topics(settings)
    (n_partitions,) = (spec.partitions for spec in topic_specs(settings) if spec.role == "experiments")
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, linger_ms=5)
    await producer.start()
    try:
        sent = [
            await producer.send(
                settings.topic("experiments"),
                encode_record(record),
                key := record.experiment_id.encode(),
                partition=partition_of(key, n_partitions),
            )
            for record in records
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def prepare(
    work: Workload, bootstrap: str, folder: Path, prefix: str, deadline_s: float
) -> tuple[Arena, Counts]:
    """Define the experiments and produce the work: where contestants run, and what they must count."""
    settings = settings_of(bootstrap, prefix, work.partitions)
    await define(settings, (experiment(f"experiment-{each}", work) for each in range(work.experiments)))
    topics: dict[str, str] = {topic: settings.topic(topic) for topic in SOURCES}
    began_s = time.monotonic()
    n_events = await produce(work, bootstrap, topics)
    say(f"{n_events:,} events produced in {time.monotonic() - began_s:.0f} s")
    n_expected, wanted = expected(work)
    if n_expected != n_events:
        raise SystemExit(f"produced {n_events} events, the oracle has {n_expected}")
    return Arena(bootstrap, topics, work, n_events, folder, folder / "kafka", prefix, deadline_s), wanted


class BanditStreams:
    """Workers of this product; the first on the contestants' core, each further one on the next.

    Parameters
    ----------
    profile
        Where py-spy writes 20 s of the first worker.
    changes
        Further environment variables of the workers.
    workers
        How many.
    """

    name = "bandit-streams"
    settings = "every default; one replica, since there is one broker; the join alone (--roles join)"

    def __init__(
        self, *, profile: Path | None = None, changes: dict[str, str] | None = None, workers: int = 1
    ) -> None:
        self._profile = profile
        self._changes = changes
        self._workers = workers

    async def run(self, arena: Arena, number: int) -> Run:
        """Count the whole work once, from an empty journal."""
        folder = arena.folder / f"product-{number}"
        group = f"{arena.prefix}{number}"
        settings = settings_of(arena.bootstrap, arena.prefix, arena.work.partitions, group=group)
        if number:
            await fresh_topics(settings)
        folder.mkdir()
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Worker(settings, folder, each, changes=self._changes))
                for each in range(self._workers)
            ]
            async with within(arena.deadline_s, workers[0]):
                for worker in workers:
                    await worker.until_ready()
                began_ms = await _first_claim_ms(settings)
                before_s = sum(worker.cpu_seconds for worker in workers)
                profiler = self._start_profiler(workers[0].pid)
                await until_drained(workers, arena.n_events)
                used_s = sum(worker.cpu_seconds for worker in workers) - before_s
                peak = max(worker.peak_bytes for worker in workers)
                journal_bytes = sum([await each.metric("bandit_journal_bytes_total") for each in workers])
                if profiler is not None:
                    await asyncio.to_thread(profiler.wait)
            for worker in workers:
                await worker.stop()
        return Run(
            (await _last_batch_ms(settings) - began_ms) / 1000,
            used_s,
            peak,
            await read_counts(settings),
            sum(disk_bytes(worker.data) for worker in workers),
            int(journal_bytes),
            topic_disk_bytes(arena, settings.topic("journal")),
        )

    def _start_profiler(self, pid: int) -> "subprocess.Popen[bytes] | None":
        if self._profile is None:
            return None
        command = ["py-spy", "record", "-p", str(pid), "-d", "20", "-r", "200", "-f", "raw", "-o"]
        return subprocess.Popen(
            [*command, str(self._profile)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


async def read_all(settings: Settings, topic: TopicName, n_partitions: int) -> AsyncIterator[Any]:
    """Yield what is in a topic now, partition by partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        enable_auto_commit=False,
        max_partition_fetch_bytes=settings.journal_max_message_bytes,
    )
    await consumer.start()
    try:
        tps = [TopicPartition(settings.topic(topic), number) for number in range(n_partitions)]
        ends = await consumer.end_offsets(tps)
        for tp in tps:
            consumer.assign([tp])
            await consumer.seek_to_beginning()
            while await consumer.position(tp) < ends[tp]:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    for record in records:
                        yield record
    finally:
        await consumer.stop()


async def _first_claim_ms(settings: Settings) -> int:
    """Time of the earliest claim, to be read before a sweep lets it go; waits for one."""
    found: list[int] = []
    while not found:
        steps = read_all(settings, "journal", settings.partitions)
        found = [int(each.timestamp) async for each in steps if isinstance(decode(unpack(each.value)), Claim)]
    return min(found)


async def _last_batch_ms(settings: Settings) -> int:
    """Time of the last batch with events."""
    found = 0
    async for record in read_all(settings, "journal", settings.partitions):
        step = decode(unpack(record.value))
        if isinstance(step, BatchRecord) and step.flag == "normal":
            found = max(found, int(record.timestamp))
    return found


async def read_counts(settings: Settings, from_hour: int = 0) -> Counts:
    """Sum up the steering cells by experiment, arm and hour, as the topic ``counts`` has them."""
    newest: dict[bytes, bytes | None] = {}
    async for record in read_all(settings, "counts", settings.counts_partitions):
        if decode_key(record.key).bucket >= from_hour:
            newest[record.key] = record.value
    counts: Counts = {}
    for raw_key, value in newest.items():
        key = decode_key(raw_key)
        if not key.experiment_id or value is None:
            continue
        for arm, (trials, successes) in steering(decode_counts(key, value)).items():
            own = counts.setdefault((key.experiment_id, arm, key.bucket), [0, 0])
            own[0] += trials
            own[1] += successes
    return counts


def steering(record: CountsRecord) -> dict[str, tuple[int, int]]:
    """Trials and successes by arm that a record steers by."""
    found: dict[str, tuple[int, int]] = {}
    for key, cell in record.cells.items():
        if key.view == "steering":
            trials, successes = found.get(key.arm_id, (0, 0))
            found[key.arm_id] = (
                trials + cell.trials,
                successes + sum(lag.successes for lag in cell.lags.values()),
            )
    return found
