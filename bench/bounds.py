"""Memory, disk and journal of a worker under loads that must not make them grow without bound.

Each case starts a worker on topics that already hold the load, waits until it is drained, and prints one JSON
line: greatest resident memory of the process, bytes of its databases, bytes journalled and bytes left in the
journal after sweeps, seconds.

- ``hot-unit``: all events are of one unit (beyond ``unit_max_events`` they are dead letters);
- ``units``: every event is of another unit;
- ``backlog``: usual traffic, all of it produced before the worker starts;
- ``bad``: every record is undecodable;
- ``experiments``: so many definitions, events over all of them.

Whether something grows with the load shows in two runs: the sizes of :data:`SIZES`, and a part of them.

Run: ``python -m bench.bounds [--scale 0.25] [--case NAME]``
"""

import argparse
import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from streams.config import Settings
from streams.embedded import kafka
from streams.log_reader import LogReader
from streams.partitioning import partition_of
from tests.harness.check import JournalWatch, wait_drained
from tests.harness.installation import Installation, quick_settings
from tests.harness.traffic import HOUR_MS, Sent, Traffic, experiments
from tests.harness.workers import WorkerHandle, until


class Size(NamedTuple):
    """Records produced, experiments defined (0: the usual four)."""

    records: int
    experiments: int = 0


SIZES = {
    "hot-unit": Size(100_000),
    "units": Size(1_000_000),
    "backlog": Size(300_000),
    "bad": Size(300_000),
    "experiments": Size(100_000, 2_500),
}
DRAIN_DEADLINE_S = 1800.0
PART = 20_000


def exposure(n: int, unit: str, at_ms: int, experiment_id: str, n_partitions: int) -> Sent:
    """Make one exposure."""
    event = {
        "exposure_id": f"e{n}",
        "experiment_id": experiment_id,
        "unit_id": unit,
        "timestamp": at_ms,
        "arm_id": "abc"[n % 3],
    }
    key = unit.encode()
    return Sent("exposures", partition_of(key, n_partitions), key, json.dumps(event).encode())


def load(case: str, size: Size, start_ms: int, n_partitions: int) -> Iterator[Sent]:
    """Yield the records of a case."""
    n = size.records
    if case == "backlog":
        yield from Traffic(seed=1, start_ms=start_ms, n_partitions=n_partitions).records(n, hours=24)
        return
    for i in range(n):
        at_ms = start_ms + i * 24 * HOUR_MS // n
        if case == "bad":
            yield Sent("exposures", i % n_partitions, b"k", b"{ not json %d" % i)
        elif case == "experiments":
            yield exposure(i, f"u{i % 1000}", at_ms, f"display-{i % size.experiments}", n_partitions)
        else:
            yield exposure(i, "hot" if case == "hot-unit" else f"u{i}", at_ms, "display", n_partitions)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_bytes(pid: int) -> int:
    """Return the greatest resident memory of a process so far."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


async def journal_left_records(settings: Settings) -> int:
    """Count the records that trimming has left."""
    async with LogReader(settings) as reader:
        spans = await reader.spans(settings.topic("journal"))
    return sum(span.end - span.start for span in spans.values())


async def swept(watch: JournalWatch) -> None:
    """Wait until every partition with records has been swept since the drain: its journal is short then."""
    before = {number: head.sweep.completed for number, head in watch.heads.items() if head.seq > 0}

    async def done() -> bool:
        return all(
            watch.heads[number].sweep.completed > completed
            or watch.heads[number].seq <= watch.heads[number].sweep.ended_seq
            for number, completed in before.items()
        )

    await until(done, deadline_s=120, what="all partitions are swept", poll_s=0.5)


async def measure(bootstrap: str, folder: Path, case: str, size: Size) -> dict[str, object]:
    """Measure one case."""
    settings = quick_settings(bootstrap, f"bounds-{case}-{time.time_ns()}-", folder, sweep_interval_ms=5_000)
    start_ms = (time.time_ns() // 1_000_000 // HOUR_MS - 48) * HOUR_MS
    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        records = experiments(start_ms)
        if case == "experiments":
            records = [replace(records[0], experiment_id=f"display-{i}") for i in range(size.experiments)]
        await installation.define(records)
        records_in = load(case, size, start_ms, settings.partitions)
        while part := list(islice(records_in, PART)):
            await installation.produce(part)
        worker = WorkerHandle(settings, "w1", folder, roles="join")
        worker.start()
        try:
            began_s = time.monotonic()
            await worker.wait_ready()
            await wait_drained(settings, watch, DRAIN_DEADLINE_S)
            drained_s = time.monotonic() - began_s
            await swept(watch)
            pid = worker.process.pid if worker.process is not None else 0
            return {
                "case": case,
                "events": installation.produced,
                "experiments": len(records),
                "seconds": round(drained_s, 1),
                "peak_memory_mib": round(peak_bytes(pid) / 2**20, 1),
                "database_mib": round(folder_bytes(worker.settings.data_dir) / 2**20, 2),
                "journalled_mib": round(sum(h.journal_bytes for h in watch.heads.values()) / 2**20, 2),
                "journal_left_mib": round(
                    sum(h.journal_bytes - h.sweep.completed_bytes for h in watch.heads.values()) / 2**20, 2
                ),
                "journal_left_records": await journal_left_records(settings),
                "dead_letters": len(watch.verdicts),
            }
        finally:
            worker.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the sizes")
    parser.add_argument("--case", choices=tuple(SIZES), action="append")
    given = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # topics that have just been made
    with kafka() as broker:
        for case in given.case or SIZES:
            size = Size(*(int(each * given.scale) for each in SIZES[case]))
            with tempfile.TemporaryDirectory() as folder:
                found = asyncio.run(measure(broker.bootstrap_servers, Path(folder), case, size))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
