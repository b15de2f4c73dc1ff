"""How the cost of an event grows: each dimension varied alone, from the workload of ``make bench``.

Workers; partitions; units, so that the state outgrows the caches; experiments; how much of the traffic a
thousandth of the units has; the conversion window. ``--exposures`` scales all sizes: units, experiments and
events. With one exposure for ten units and less, there are as many exposures as units. Every run is counted
by the product with its defaults, from a backlog, and compared with the oracle; the cost is CPU time of all
workers. The broker has core 0, the first worker core 1, each further one the next; on two cores the second
worker shares the broker's.

Run: ``python -m bench.scaling [--exposures N] [--dimensions a,b] [--points N] [--plot FILE] [--json]``.
Exits with 1 if anything was counted wrongly or failed, never because of speed.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from bench.contestant import BROKER_CORE, Run, on_core
from bench.product import BanditStreams, prepare
from bench.report import machine, say, table
from bench.worker import settings_of
from bench.workload import HOUR_MS, Workload, difference
from streams.config import TOPIC_NAMES
from streams.embedded import EmbeddedKafka
from streams.topics import admin_client

FULL_EXPOSURES = 1_000_000


class Case(NamedTuple):
    """One run: the work, and by how many workers."""

    work: Workload
    workers: int = 1


def dimensions(exposures: int, end_ms: int) -> dict[str, dict[float, Case]]:
    """Cases by dimension and value; the first of each is the base."""
    work = Workload(exposures=exposures, units=max(10, exposures // 10), end_ms=end_ms)
    hot = work._replace(hot_units=max(1, work.units // 1_000))
    base = Case(work)

    def experiments(full: int) -> int:
        return max(10, full * exposures // FULL_EXPOSURES)

    return {
        "workers": {1: base, 2: Case(work, 2)},
        "partitions": {8: base, 1: Case(work._replace(partitions=1)), 64: Case(work._replace(partitions=64))},
        "units": {
            work.units: base,
            **{
                work.units * factor: Case(
                    work._replace(units=work.units * factor, exposures=max(exposures, work.units * factor))
                )
                for factor in (10, 100)
            },
        },
        "experiments": {
            work.experiments: base,
            **{n: Case(work._replace(experiments=n)) for n in (experiments(1_000), experiments(10_000))},
        },
        "hot_share": {0.0: base, **{share: Case(hot._replace(hot_share=share)) for share in (0.1, 0.5)}},
        "window_hours": {1: base, 168: Case(work._replace(window_ms=168 * HOUR_MS))},
    }


def figures(case: Case, n_events: int, run: Run, wrong: str | None) -> dict[str, Any]:
    """Return what a run came to."""
    return {
        "workers": case.workers,
        "partitions": case.work.partitions,
        "units": case.work.units,
        "experiments": case.work.experiments,
        "events": n_events,
        "events_per_s": round(n_events / run.seconds),
        "cpu_us_per_event": round(1e6 * run.cpu_seconds / n_events, 2),
        "peak_mib": round(run.peak_bytes / 2**20),
        "state_mib": round(run.state_bytes / 2**20, 1),
        "journal_bytes_per_event": round(run.journal_bytes / n_events, 1),
        "journal_disk_bytes_per_event": round(run.journal_disk_bytes / n_events, 1),
        "exact": wrong is None,
        "wrong": wrong,
    }


async def measure(case: Case, bootstrap: str, folder: Path, number: int, deadline_s: float) -> dict[str, Any]:
    """Produce and count one case in topics of its own, which are deleted afterwards."""
    prefix = f"scaling-{number}-"
    own = folder / prefix
    own.mkdir()
    try:
        arena, wanted = await prepare(case.work, bootstrap, folder, prefix, deadline_s)
        arena = arena._replace(folder=own)
        run = await BanditStreams(workers=case.workers).run(arena, 0)
        wrong = None if run.counts is None else difference(run.counts, wanted)
        return figures(case, arena.n_events, run, wrong)
    except Exception as error:  # noqa: BLE001 - the other cases are measured
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        settings = settings_of(bootstrap, prefix, case.work.partitions)
        async with admin_client(settings) as admin:
            await admin.delete_topics([settings.topic(name) for name in TOPIC_NAMES])


async def run_all(options: argparse.Namespace, bootstrap: str, folder: Path) -> list[dict[str, Any]]:
    """Measure every case once, and list it under each dimension that it belongs to."""
    found: dict[Case, dict[str, Any]] = {}
    rows = []
    for dimension, cases in dimensions(options.exposures, time.time_ns() // 1_000_000).items():
        if dimension not in options.dimensions.split(","):
            continue
        for value, case in list(cases.items())[: options.points]:
            if case not in found:
                found[case] = await measure(case, bootstrap, folder, len(found), options.deadline)
                say(f"{dimension} {value:,}: {found[case]}")
            rows.append({"dimension": dimension, "value": value, **found[case]})
    return sorted(rows, key=lambda row: (row["dimension"], row["value"]))


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw CPU us an event against each dimension."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to load, for this only

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    names = sorted({row["dimension"] for row in rows})
    figure, axes = plt.subplots(1, len(names), figsize=(2.3 * len(names), 2.6), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["dimension"] == name and "error" not in row]
        axis.plot([f"{row['value']:,}" for row in own], [row["cpu_us_per_event"] for row in own], marker="o")
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(axis="y", alpha=0.3)
        axis.set_ylim(bottom=0)
    axes[0][0].set_ylabel("CPU us an event", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


COLUMNS: Mapping[str, str] = {
    "dimension": "dimension",
    "value": "value",
    "events": "events",
    "events_per_s": "events/s",
    "cpu_us_per_event": "CPU us/event",
    "peak_mib": "peak MiB",
    "state_mib": "state MiB",
    "journal_bytes_per_event": "journal B/event",
    "journal_disk_bytes_per_event": "on disk",
    "exact": "exact",
}


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ",".join(dimensions(FULL_EXPOSURES, 0))
    parser.add_argument("--exposures", type=int, default=FULL_EXPOSURES, help="of the base; scales all sizes")
    parser.add_argument("--dimensions", default=names, help="some of %(default)s; by comma")
    parser.add_argument("--points", type=int, default=3, help="values of each dimension, the base first")
    parser.add_argument("--deadline", type=float, default=3_600.0, help="seconds that one run may take")
    parser.add_argument("--plot", type=Path, help="draw CPU us an event into this file")
    parser.add_argument("--json", action="store_true", help="one JSON document a run")
    options = parser.parse_args(arguments)
    if unknown := set(options.dimensions.split(",")) - set(names.split(",")):
        parser.error(f"no such dimension: {', '.join(sorted(unknown))}; there are {names}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bandit-bench-")))
        stack.enter_context(on_core(BROKER_CORE))
        broker = stack.enter_context(EmbeddedKafka(folder / "kafka", heap_mb=1024, report=say))
        rows = asyncio.run(run_all(options, broker.bootstrap_servers, folder))
    if options.plot is not None:
        plot(rows, options.plot)
    if options.json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(f"{machine()}\n\n{table(rows, COLUMNS)}")
    failed = [row for row in rows if not row.get("exact")]
    for row in failed:
        say(f"{row['dimension']} {row['value']}: {row.get('error') or row['wrong']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
