"""A boundary of many experiments in a worker that is counting: how soon it is published, what the join loses.

The topic counts holds ``--hours`` hours of ``--arms`` arms of every experiment; the worker counts a backlog
of the usual work, and in the middle of it, in event time, a day ends: every experiment is computed anew.
Printed: the join's rate before the boundary, while tables are outstanding, and after the last one (none
where the backlog was through); when the first and the last table was published after the last source
partition had passed the boundary; CPU of the join's process, an event; the allocator's start, from an empty
process to every first table; the peak memory of both. What the join counted is compared with the oracle.
The history is written as of a source partition that no worker owns.

By default one worker has both roles, on one core with its pool of processes. With ``--apart`` the allocator
is a worker of its own on the next core, which with two cores is the broker's.

``bench/allocator.py`` measures the same recompute alone, step by step.

Run: ``python -m bench.recompute [--experiments N] [--arms N] [--hours N] [--exposures N] [--json]``. Exits
with 1 if anything was counted wrongly or not published, never because of time.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer
from msgspec.structs import replace

from bench.allocator import values
from bench.contestant import BROKER_CORE, Failed, on_core
from bench.latency import mark, until_visible
from bench.product import SOURCES, define, experiment, read_all, read_counts
from bench.report import machine, say, table
from bench.worker import Worker, settings_of, until_drained, within
from bench.workload import HOUR_MS, Counts, Workload, difference, expected, produce
from streams.allocations import decode_allocation
from streams.config import Settings
from streams.counts import CountsKey, decode_key, decode_progress, encode_key
from streams.edge import EdgeClient
from streams.embedded import EmbeddedKafka
from streams.experiments.definition import ExperimentRecord, Policy
from streams.partitioning import partition_of
from streams.state.journal import BatchRecord, decode, unpack

DAY_MS = 24 * HOUR_MS
POLL_S = 0.2
LOOK_S = 1.0  # at the tables: their times are read from the topic, and this process may share their core
IN_FLIGHT = 5_000


def work_of(options: argparse.Namespace, now_ms: int) -> tuple[Workload, int]:
    """Work of a day that has midnight in its middle, and that midnight."""
    work = Workload(
        exposures=options.exposures,
        units=max(10, options.exposures // 10),
        experiments=min(10, options.experiments),
        arms=options.arms,
    )
    boundary_ms = (now_ms - 16 * HOUR_MS) // DAY_MS * DAY_MS
    work = work._replace(end_ms=boundary_ms + 14 * HOUR_MS)
    if not work.start_ms < boundary_ms < work.start_ms + DAY_MS:
        raise RuntimeError(f"the work from {work.start_ms} on does not pass {boundary_ms}")
    return work, boundary_ms


def definitions(options: argparse.Namespace, work: Workload) -> Iterator[ExperimentRecord]:
    """All experiments; the work is of the first few."""
    for number in range(options.experiments):
        record = experiment(f"experiment-{number}", work)
        yield replace(record, policy=Policy(interval_ms=DAY_MS))


async def write_history(settings: Settings, options: argparse.Namespace, work: Workload) -> None:
    """Write the hours before the work into the topic counts."""
    first_hour = work.start_ms // HOUR_MS - options.hours
    hours = values(options.arms, options.hours, np.random.default_rng(1), first_hour=first_hour)
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, max_batch_size=1 << 18)
    await producer.start()
    try:
        sent: list[asyncio.Future[Any]] = []
        for number in range(options.experiments):
            name = f"experiment-{number}"
            partition = partition_of(name.encode(), settings.counts_partitions)
            for hour, value in enumerate(hours, first_hour):
                key = encode_key(CountsKey(name, settings.partitions, hour))
                sent.append(await producer.send(settings.topic("counts"), value, key, partition=partition))
            if len(sent) > IN_FLIGHT:
                await asyncio.gather(*sent)
                sent = []
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def passed_ms(settings: Settings, watermark_ms: int) -> int | None:
    """When the last source partition was published to have reached a watermark; None while one has not."""
    found: dict[int, int] = {}
    async for record in read_all(settings, "counts", settings.counts_partitions):
        key = decode_key(record.key)
        if key.experiment_id or record.value is None:
            continue
        if decode_progress(record.value).watermark_ms >= watermark_ms:
            at_ms = found.get(key.source_partition, record.timestamp)
            found[key.source_partition] = min(at_ms, record.timestamp)
    return max(found.values()) if len(found) == settings.partitions else None


async def published_ms(settings: Settings, boundary_ms: int) -> list[int]:
    """When each table of a boundary was published, ascending."""
    return sorted(
        [
            record.timestamp
            async for record in read_all(settings, "allocations", settings.counts_partitions)
            if record.value is not None
            and decode_allocation(record.value, where="allocations").boundary_ms == boundary_ms
        ]
    )


async def batches(settings: Settings) -> list[tuple[int, int]]:
    """Time and number of events of every batch in the journal, ascending."""
    found = []
    async for record in read_all(settings, "journal", settings.partitions):
        step = decode(unpack(record.value))
        if isinstance(step, BatchRecord) and step.flag == "normal":
            found.append((int(record.timestamp), step.next - step.start))
    return sorted(found)


def rate(found: Sequence[tuple[int, int]], from_ms: int, to_ms: int) -> int | None:
    """Events/s in a time; None where there is none."""
    n_events = sum(n for at_ms, n in found if from_ms < at_ms <= to_ms)
    return round(1000 * n_events / (to_ms - from_ms)) if to_ms > from_ms else None


async def measure(options: argparse.Namespace, bootstrap: str, folder: Path) -> dict[str, Any]:
    """Let the worker pass the boundary; what the topics say of it."""
    work, boundary_ms = work_of(options, time.time_ns() // 1_000_000)
    settings = settings_of(bootstrap, "recompute-", work.partitions, clock="stream", idle_after_ms=0)
    await define(settings, definitions(options, work))
    await write_history(settings, options, work)
    say(f"{options.experiments * options.hours:,} records of history written")
    names = [f"experiment-{number}" for number in range(options.experiments)]
    topics: dict[str, str] = {topic: settings.topic(topic) for topic in SOURCES}
    n_expected, wanted = expected(work)
    roles = ("join", "allocator") if options.apart else ("join,allocator",)
    with ExitStack() as stack:
        started_s = time.monotonic()
        workers = [
            stack.enter_context(Worker(settings, folder, number, roles=each))
            for number, each in enumerate(roles)
        ]
        worker, allocator = workers[0], workers[-1]
        async with within(options.deadline, allocator), EdgeClient(settings) as edge:
            for each in workers:
                await each.until_ready()
            await until_visible(edge, names, 0, 0.0, poll_s=LOOK_S)
            start_s = time.monotonic() - started_s
            n_marks = await mark(settings, work.start_ms)
            while await passed_ms(settings, work.start_ms) is None:  # noqa: ASYNC110 - the deadline ends it
                await asyncio.sleep(POLL_S)
            say("the first tables are there; the work begins")
            began_ms, used_s = time.time_ns() // 1_000_000, worker.cpu_seconds
            await produce(work, bootstrap, topics)
            await until_visible(edge, names, boundary_ms, 0.0, poll_s=LOOK_S)
            await until_drained([worker], n_expected + n_marks)
            used_s = worker.cpu_seconds - used_s
            peaks_mib = [round(each.peak_bytes / 2**20) for each in workers]
        for each in workers:
            await each.stop()
    return await figures(options, settings, (began_ms, boundary_ms), wanted) | {
        "cpu_us_per_event": round(1e6 * used_s / n_expected, 1),
        "apart": options.apart,
        "start_s": round(start_s, 1),
        "peak_mib": peaks_mib[0],
        "allocator_peak_mib": peaks_mib[-1],
    }


async def figures(
    options: argparse.Namespace, settings: Settings, times_ms: tuple[int, int], wanted: Counts
) -> dict[str, Any]:
    """Figures of a run that began and passed a boundary at these times."""
    began_ms, boundary_ms = times_ms
    found = await batches(settings)
    closed_ms = await passed_ms(settings, boundary_ms)
    tables_ms = await published_ms(settings, boundary_ms)
    if closed_ms is None or len(tables_ms) < options.experiments:
        raise Failed(f"{len(tables_ms)} of {options.experiments} tables were published")
    start_ms = max(began_ms, found[0][0] - 1)
    start_hour = (boundary_ms - DAY_MS // 2) // HOUR_MS
    wrong = difference(await read_counts(settings, start_hour), wanted)
    return {
        "experiments": options.experiments,
        "arms": options.arms,
        "hours": options.hours,
        "events": sum(n for _, n in found),
        "rate_before": rate(found, start_ms, closed_ms),
        "rate_during": rate(found, closed_ms, min(tables_ms[-1], found[-1][0])),
        "rate_after": rate(found, tables_ms[-1], found[-1][0]),
        "first_table_s": round((tables_ms[0] - closed_ms) / 1000, 2),
        "last_table_s": round((tables_ms[-1] - closed_ms) / 1000, 2),
        "exact": wrong is None,
        "wrong": wrong,
    }


COLUMNS: Mapping[str, str] = {
    "experiments": "experiments",
    "arms": "arms",
    "hours": "hours",
    "events": "events",
    "rate_before": "events/s before",
    "rate_during": "during",
    "rate_after": "after",
    "first_table_s": "first table s",
    "last_table_s": "last table s",
    "cpu_us_per_event": "CPU us/event",
    "start_s": "allocator's start s",
    "peak_mib": "peak MiB",
    "allocator_peak_mib": "allocator's",
    "exact": "exact",
}


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.recompute",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experiments", type=int, default=10_000)
    parser.add_argument("--arms", type=int, default=10)
    parser.add_argument("--hours", type=int, default=168, help="of history")
    parser.add_argument("--exposures", type=int, default=1_000_000, help="that the join counts meanwhile")
    parser.add_argument("--apart", action="store_true", help="the allocator as a worker of its own")
    parser.add_argument("--deadline", type=float, default=3_600.0, help="seconds that the run may take")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bandit-bench-")))
        stack.enter_context(on_core(BROKER_CORE))
        broker = stack.enter_context(EmbeddedKafka(folder / "kafka", heap_mb=1024, report=say))
        try:
            found = asyncio.run(measure(options, broker.bootstrap_servers, folder))
        except Failed as error:
            say(str(error))
            return 1
    print(json.dumps(found) if options.json else f"{machine()}\n\n{table([found], COLUMNS)}")
    if found["wrong"]:
        say(found["wrong"])
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
