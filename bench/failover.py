"""From kill -9 of a worker to its partitions serving again: real Kafka, two real workers.

Produces units into two workers, kills one, and takes the time until every partition that it owned has a
claim of the other (``claimed_s``) and has counted a record produced after the kill (``serving_s``); with a
standby and without. The session time-out, which is what the group waits for before it gives the partitions
away, is in both figures.

Run: ``python -m bench.failover [--units N] [--session-ms N] [--json]``
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from streams.embedded import kafka
from tests.harness.check import JournalWatch, wait_drained
from tests.harness.installation import Installation, quick_settings
from tests.harness.traffic import HOUR_MS, Traffic, experiments
from tests.harness.workers import WorkerHandle, until


async def measure(bootstrap: str, folder: Path, units: int, session_ms: int, standbys: int) -> dict[str, Any]:
    """Measure one kill."""
    settings = quick_settings(
        bootstrap,
        f"failover-{standbys}-{time.time_ns()}-",
        folder,
        standby_replicas=standbys,
        session_timeout_ms=session_ms,
    )
    start_ms = (time.time_ns() // 1_000_000 // HOUR_MS - 48) * HOUR_MS
    async with Installation(settings) as installation, JournalWatch(settings) as watch:
        await installation.define(experiments(start_ms))
        traffic = Traffic(seed=1, start_ms=start_ms, n_partitions=settings.partitions, n_units=units)
        workers = [WorkerHandle(settings, name, folder, roles="join") for name in ("w1", "w2")]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                await worker.wait_ready()

            async def shared() -> bool:
                return len({head.owner for head in watch.heads.values()}) == 2

            await until(shared, deadline_s=60, what="both own partitions")
            await installation.produce(traffic.records(2 * units, hours=6))
            await wait_drained(settings, watch, 300)
            taken = [number for number, head in watch.heads.items() if head.owner == "w1"]
            claims = {number: watch.heads[number].claim for number in taken}
            positions = {number: sum(watch.heads[number].positions.values()) for number in taken}
            killed_s = time.monotonic()
            workers[0].kill()
            await installation.produce(traffic.records(2_000, hours=1))

            async def claimed() -> bool:
                return all(watch.heads[n].claim > claims[n] for n in taken)

            async def serving() -> bool:
                return all(sum(watch.heads[n].positions.values()) > positions[n] for n in taken)

            await until(claimed, deadline_s=120, what="claims of the other worker")
            claimed_s = time.monotonic() - killed_s
            await until(serving, deadline_s=120, what="partitions serve")
            return {
                "standby_replicas": standbys,
                "session_timeout_s": session_ms / 1000,
                "partitions": len(taken),
                "events_before": 2 * units,
                "claimed_s": round(claimed_s, 2),
                "serving_s": round(time.monotonic() - killed_s, 2),
            }
        finally:
            for worker in workers:
                worker.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--session-ms", type=int, default=6_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with kafka() as broker:
        for standbys in (0, 1):
            with tempfile.TemporaryDirectory() as folder:
                found = asyncio.run(
                    measure(broker.bootstrap_servers, Path(folder), given.units, given.session_ms, standbys)
                )
            print(json.dumps(found) if given.json else "  ".join(f"{k}={v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
