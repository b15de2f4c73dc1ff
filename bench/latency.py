"""How long things take to show: an exposure in the counts, a boundary at an edge, a decision.

- ``counts``: from the moment an exposure is due to be produced to its trial being in the topic counts, for
  every trial, while a worker with the product's defaults takes 10%, 50% and 80% of its maximum load (10% of
  the exposures convert). The maximum is what it counts from a backlog of ``--exposures``, or ``--max-rate``.
  The producer sends every 20 ms, which is part of the figure, as is the worker's ``counts_flush_ms`` (500).
  Trials of a partition appear in the order in which they were produced, so the n-th of an (experiment, arm,
  hour) is there when the counts say n.
- ``edge``: from an hour's end to each experiment's new allocation being what an edge decides by. Event time
  (``clock = stream``), so that the hour can end at will: a watermark in every source partition ends it.
- ``decide``: nanoseconds of CPU per decision, one at a time and for a page of ten experiments.

What was counted is compared with the oracle. Exits with 1 if it is wrong, never because of time.

Run: ``python -m bench.latency [--parts a,b] [--seconds N] [--max-rate N] [--edge-experiments a,b] [--json]``
"""

import argparse
import asyncio
import heapq
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bench import edge_decide
from bench.contestant import BROKER_CORE, Failed, on_core
from bench.product import SOURCES, BanditStreams, define, experiment, prepare, read_counts, steering
from bench.report import machine, say, table
from bench.worker import Worker, settings_of, until_drained, within
from bench.workload import HOUR_MS, Batcher, Converted, Exposed, Workload, counted, difference
from streams.config import Settings
from streams.counts import decode_counts, decode_key
from streams.edge import EdgeClient
from streams.embedded import EmbeddedKafka

PARTS = ("counts", "edge", "decide")
TICK_S = 0.02
POLL_S = 0.01
WARM_UP = 0.2  # of the time: not measured
CONVERTS_WITHIN_MS = 2_000


class Arrivals:
    """When each trial was due, and how long after that it was seen."""

    def __init__(self) -> None:
        self.waits_s: list[tuple[float, float]] = []  # due, waited
        self.n_trials = 0
        self._due_s: dict[tuple[str, int, int, str], list[float]] = defaultdict(list)
        self._seen: dict[tuple[str, int, int, str], int] = defaultdict(int)
        self._known: set[tuple[int, int, int]] = set()

    def produced(self, event: Exposed, partition: int, due_s: float) -> None:
        """Note an exposure, if it is a trial."""
        hour = event.at_ms // HOUR_MS
        trial = (event.experiment, event.unit, hour)
        if trial not in self._known:
            self._known.add(trial)
            self.n_trials += 1
            place = (f"experiment-{event.experiment}", partition, hour, f"arm-{event.arm}")
            self._due_s[place].append(due_s)

    async def follow(self, settings: Settings) -> None:
        """Follow the topic counts until cancelled."""
        consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, enable_auto_commit=False)
        await consumer.start()
        try:
            topic = settings.topic("counts")
            consumer.assign([TopicPartition(topic, number) for number in range(settings.counts_partitions)])
            await consumer.seek_to_beginning()
            while True:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    now_s = time.monotonic()
                    for record in records:
                        self._take(record.key, record.value, now_s)
        finally:
            await consumer.stop()

    def _take(self, raw_key: bytes, value: bytes | None, now_s: float) -> None:
        key = decode_key(raw_key)
        if not key.experiment_id or value is None:
            return
        for arm, (trials, _) in steering(decode_counts(key, value)).items():
            place = (key.experiment_id, key.source_partition, key.bucket, arm)
            new = self._due_s[place][self._seen[place] : trials]
            self.waits_s += [(due_s, now_s - due_s) for due_s in new]
            self._seen[place] = max(self._seen[place], trials)


async def send_paced(
    batcher: Batcher, arrivals: Arrivals, work: Workload, rate_per_s: float, seconds: float
) -> tuple[list[Exposed | Converted], float]:
    """Send so many events a second; returns them, and how late the producer was at worst."""
    rng = random.Random(work.seed)
    sent: list[Exposed | Converted] = []
    waiting: list[Converted] = []
    began_s, began_ms = time.monotonic(), time.time_ns() // 1_000_000
    exposures_per_s = rate_per_s / (1 + work.converting)
    n_exposures, number, behind_s = round(exposures_per_s * seconds), 0, 0.0
    while number < n_exposures:
        now_s = time.monotonic() - began_s
        while number < n_exposures and number / exposures_per_s <= now_s:
            due_s = number / exposures_per_s
            at_ms = began_ms + round(1000 * due_s)
            while waiting and waiting[0].at_ms <= at_ms:
                sent.append(heapq.heappop(waiting))
                await batcher.add(sent[-1])
            unit, chosen = rng.randrange(work.units), rng.randrange(work.experiments)
            event = Exposed(at_ms, number, unit, chosen, rng.randrange(work.arms))
            sent.append(event)
            arrivals.produced(event, await batcher.add(event), began_s + due_s)
            if rng.random() < work.converting:
                later_ms = at_ms + rng.randrange(1, CONVERTS_WITHIN_MS)
                heapq.heappush(waiting, Converted(later_ms, number, unit))
            number += 1
        await batcher.flush(wait=False)
        behind_s = max(behind_s, time.monotonic() - began_s - number / exposures_per_s)
        await asyncio.sleep(TICK_S)
    await batcher.flush()
    return sent, behind_s


async def at_load(work: Workload, bootstrap: str, folder: Path, load: float, options: Any) -> dict[str, Any]:
    """Measure one load: share of the maximum rate."""
    settings = settings_of(bootstrap, f"latency-{round(100 * load)}-", work.partitions)
    await define(settings, (experiment(f"experiment-{each}", work) for each in range(work.experiments)))
    own = folder / settings.topic_prefix
    own.mkdir()
    arrivals = Arrivals()
    topics: dict[str, str] = {topic: settings.topic(topic) for topic in SOURCES}
    rate_per_s = load * options.max_rate
    with Worker(settings, own) as worker:
        async with within(options.deadline, worker):
            await worker.until_ready()
            following = asyncio.create_task(arrivals.follow(settings))
            try:
                began_s = time.monotonic()
                async with Batcher(bootstrap, topics, work.partitions) as batcher:
                    sent, behind_s = await send_paced(batcher, arrivals, work, rate_per_s, options.seconds)
                took_s = time.monotonic() - began_s
                await until_drained([worker], len(sent))
                while len(arrivals.waits_s) < arrivals.n_trials:
                    if following.done():
                        following.result()
                    await asyncio.sleep(POLL_S)
            finally:
                following.cancel()
                await asyncio.wait([following])
        await worker.stop()
    wrong = difference(await read_counts(settings), counted(sent, work.window_ms)[1])
    warm_s = began_s + WARM_UP * options.seconds
    waits_ms = [1000 * waited_s for due_s, waited_s in arrivals.waits_s if due_s >= warm_s]
    return {
        "part": "counts",
        "load": load,
        "wanted_per_s": round(rate_per_s),
        "sent_per_s": round(len(sent) / took_s),
        "trials": len(waits_ms),
        **quantiles(waits_ms),
        "producer_behind_ms": round(1000 * behind_s),
        "exact": wrong is None,
        "wrong": wrong,
    }


def quantiles(waits_ms: Sequence[float]) -> dict[str, int]:
    """Median, 99th percentile and greatest, in ms."""
    p50, p99 = np.quantile(waits_ms, [0.5, 0.99])
    return {"p50_ms": round(p50), "p99_ms": round(p99), "max_ms": round(max(waits_ms))}


async def measure_counts(options: Any, bootstrap: str, folder: Path) -> list[dict[str, Any]]:
    """Measure the maximum unless it is given, then every load."""
    work = Workload(
        exposures=options.exposures,
        units=max(10, options.exposures // 10),
        end_ms=time.time_ns() // 1_000_000,
    )
    if options.max_rate is None:
        arena, wanted = await prepare(work, bootstrap, folder, "latency-max-", options.deadline)
        run = await BanditStreams().run(arena, 0)
        if wrong := difference(run.counts or {}, wanted):
            raise Failed(f"the run that measures the maximum counted wrongly: {wrong}")
        options.max_rate = arena.n_events / run.seconds
        say(f"maximum: {options.max_rate:,.0f} events/s")
    rows = []
    for load in options.loads:
        rows.append(await at_load(work, bootstrap, folder, load, options))
        say(str(rows[-1]))
    return rows


async def mark(settings: Settings, watermark_ms: int) -> int:
    """Write a watermark into every source partition; returns how many records that are."""
    headers = [("bandit-watermark", str(watermark_ms).encode())]
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    await producer.start()
    try:
        places = [
            (settings.topic(topic), number) for topic in SOURCES for number in range(settings.partitions)
        ]
        sent = [await producer.send(topic, b"", partition=n, headers=headers) for topic, n in places]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return len(places)


async def until_visible(
    edge: EdgeClient, names: Iterable[str], boundary_ms: int, began_s: float, *, poll_s: float = POLL_S
) -> list[float]:
    """Wait until the edge decides by each experiment's allocation of a boundary; ms since ``began_s``.

    A look at 10,000 experiments takes milliseconds of the core that this process is on.
    """
    waits_ms: list[float] = []
    missing = list(names)
    while missing:
        left = []
        for name in missing:
            allocation = edge.allocation(name)
            if allocation is None or allocation.boundary_ms < boundary_ms:
                left.append(name)
        waits_ms += [1000 * (time.monotonic() - began_s)] * (len(missing) - len(left))
        missing = left
        await asyncio.sleep(poll_s)
    return waits_ms


async def at_edge(n_experiments: int, bootstrap: str, folder: Path, options: Any) -> dict[str, Any]:
    """Measure the boundaries of so many experiments."""
    work = Workload(experiments=n_experiments, end_ms=time.time_ns() // 1_000_000)
    settings = settings_of(
        bootstrap, f"edge-{n_experiments}-", work.partitions, clock="stream", idle_after_ms=0
    )
    names = [f"experiment-{each}" for each in range(n_experiments)]
    await define(settings, (experiment(name, work) for name in names))
    own = folder / settings.topic_prefix
    own.mkdir()
    rng = random.Random(1)
    sent: list[Exposed | Converted] = []
    waits_ms: list[float] = []
    n_marks = 0
    topics: dict[str, str] = {topic: settings.topic(topic) for topic in SOURCES}
    with Worker(settings, own, roles="join,allocator") as worker:
        async with within(options.deadline, worker), EdgeClient(settings) as edge:
            await worker.until_ready()
            await until_visible(edge, names, 0, 0.0)
            async with Batcher(bootstrap, topics, work.partitions) as batcher:
                for hour in range(options.boundaries):
                    start_ms = work.start_ms + hour * HOUR_MS
                    for number in range(max(1_000, n_experiments)):
                        at_ms = start_ms + rng.randrange(HOUR_MS // 2)
                        chosen = number % n_experiments
                        event = Exposed(at_ms, len(sent), rng.randrange(work.units), chosen, rng.randrange(4))
                        sent.append(event)
                        await batcher.add(event)
                    await batcher.flush()
                    await until_drained([worker], len(sent) + n_marks)
                    began_s = time.monotonic()
                    n_marks += await mark(settings, start_ms + HOUR_MS)
                    waits_ms += await until_visible(edge, names, start_ms + HOUR_MS, began_s)
            await until_drained([worker], len(sent) + n_marks)
        await worker.stop()
    wrong = difference(await read_counts(settings), counted(sent, work.window_ms)[1])
    return {
        "part": "edge",
        "experiments": n_experiments,
        "boundaries": options.boundaries,
        "first_ms": round(min(waits_ms)),
        **quantiles(waits_ms),
        "exact": wrong is None,
        "wrong": wrong,
    }


async def measure(options: Any, bootstrap: str, folder: Path) -> list[dict[str, Any]]:
    """Measure the parts that need a broker."""
    rows: list[dict[str, Any]] = []
    if "counts" in options.parts:
        rows += await measure_counts(options, bootstrap, folder)
    if "edge" in options.parts:
        for n_experiments in options.edge_experiments:
            rows.append(await at_edge(n_experiments, bootstrap, folder, options))
            say(str(rows[-1]))
    return rows


_LATENCY = {"p50_ms": "p50 ms", "p99_ms": "p99 ms", "max_ms": "max ms"}
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "counts": {
        "load": "load",
        "wanted_per_s": "events/s",
        "sent_per_s": "sent/s",
        "trials": "trials",
        **_LATENCY,
        "producer_behind_ms": "producer late ms",
        "exact": "exact",
    },
    "edge": {
        "experiments": "experiments",
        "boundaries": "boundaries",
        "first_ms": "first ms",
        **_LATENCY,
        "exact": "exact",
    },
    "decide": edge_decide.COLUMNS,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def numbers(text: str) -> list[int]:
        return [int(each) for each in text.split(",")]

    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=PARTS, help="counts,edge,decide"
    )
    parser.add_argument("--exposures", type=int, default=300_000, help="backlog that measures the maximum")
    parser.add_argument("--max-rate", type=float, help="events/s, instead of measuring it")
    parser.add_argument("--loads", type=lambda text: [float(each) for each in text.split(",")])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--edge-experiments", type=numbers, default=[10, 1_000, 10_000])
    parser.add_argument("--boundaries", type=int, default=5, help="hours that end")
    parser.add_argument("--units", type=int, default=100_000, help="decisions to measure")
    parser.add_argument("--deadline", type=float, default=1_800.0, help="seconds that one row may take")
    parser.add_argument("--json", action="store_true", help="one JSON document a row")
    options = parser.parse_args(arguments)
    options.loads = options.loads or [0.1, 0.5, 0.8]
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    options = parse(arguments)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if set(options.parts) - {"decide"}:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bandit-bench-")))
            stack.enter_context(on_core(BROKER_CORE))
            broker = stack.enter_context(EmbeddedKafka(folder / "kafka", heap_mb=1024, report=say))
            try:
                rows = asyncio.run(measure(options, broker.bootstrap_servers, folder))
            except Failed as error:
                say(str(error))
                return 1
    if "decide" in options.parts:
        rows += [{"part": "decide", **row} for row in edge_decide.rows(options.units)]
    if options.json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(machine())
        for part in options.parts:
            print(f"\n{table([row for row in rows if row['part'] == part], COLUMNS[part])}")
    wrong = [row for row in rows if row.get("wrong")]
    for row in wrong:
        say(f"{row['part']}: {row['wrong']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
