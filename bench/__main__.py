"""``python -m bench``: the join of this product beside other engines, on the same work in the same run.

Starts a broker on one core, produces the work once, runs each contestant alone on the other core, compares
what it counted with the oracle, and prints a table; ``--json`` prints one document a contestant instead.
With ``--repeat`` the contestants take turns. One that crashes or does not end is reported, and the others
run on; the exit status is 1 if a contestant counted wrongly or failed, never because of speed.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.aiokafka_reader import AiokafkaReader
from bench.contestant import BROKER_CORE, Arena, Contestant, Run, Unavailable, on_core, topic_disk_bytes
from bench.faust_join import FaustJoin
from bench.kafka_streams.contestant import KafkaStreams
from bench.product import BanditStreams, prepare
from bench.quix_join import QuixJoin
from bench.report import machine, say, table
from bench.workload import Counts, Workload, difference
from streams.embedded import EmbeddedKafka

PREFIX = "bench-"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = Workload()
    parser.add_argument("--exposures", type=int, default=sizes.exposures)
    parser.add_argument("--units", type=int, default=sizes.units)
    parser.add_argument("--experiments", type=int, default=sizes.experiments)
    parser.add_argument("--arms", type=int, default=sizes.arms)
    parser.add_argument("--converting", type=float, default=sizes.converting, help="share of exposures")
    parser.add_argument("--window-hours", type=float, default=1.0, help="conversion window")
    parser.add_argument("--span-hours", type=int, default=sizes.span_hours)
    parser.add_argument("--partitions", type=int, default=sizes.partitions)
    parser.add_argument("--seed", type=int, default=sizes.seed)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each contestant; shows the best")
    parser.add_argument(
        "--contestants", default=",".join(contestants()), help="some of: %(default)s; by comma"
    )
    parser.add_argument("--deadline", type=float, default=1800.0, help="seconds that one run may take")
    parser.add_argument("--profile", type=Path, help="py-spy the product's worker into this file (raw)")
    parser.add_argument("--json", action="store_true", help="one JSON document a contestant")
    options = parser.parse_args(arguments)
    unknown = set(options.contestants.split(",")) - set(contestants())
    if unknown:
        parser.error(
            f"no such contestant: {', '.join(sorted(unknown))}; there are {', '.join(contestants())}"
        )
    return options


def contestants(profile: Path | None = None) -> dict[str, Contestant]:
    """All contestants by name, in the order in which they run."""
    found: list[Contestant] = [
        AiokafkaReader(),
        BanditStreams(profile=profile),
        KafkaStreams("at_least_once"),
        KafkaStreams("exactly_once_v2"),
        QuixJoin(),
        FaustJoin(),
    ]
    return {each.name: each for each in found}


def work_of(options: argparse.Namespace) -> Workload:
    """Workload of the options; its last event is at least two hours old."""
    return Workload(
        exposures=options.exposures,
        units=options.units,
        experiments=options.experiments,
        arms=options.arms,
        converting=options.converting,
        window_ms=round(options.window_hours * 3_600_000),
        span_hours=options.span_hours,
        partitions=options.partitions,
        seed=options.seed,
        end_ms=time.time_ns() // 1_000_000,
    )


def document(arena: Arena, runs: list[Run], best_reader_s: float | None) -> dict[str, Any]:
    """Figures of a contestant's best run, and how far its runs lie apart."""
    best = min(runs, key=lambda run: run.seconds)
    n = arena.n_events
    sources = sum(topic_disk_bytes(arena, topic) for topic in arena.topics.values())
    return {
        "events": n,
        "events_per_s": round(n / best.seconds),
        "runs_events_per_s": [round(n / run.seconds) for run in runs],
        "spread": round(1 - best.seconds / max(run.seconds for run in runs), 3),
        "events_per_cpu_s": round(n / best.cpu_seconds) if best.cpu_seconds else None,
        "cpu_s_per_million": round(1e6 * best.cpu_seconds / n, 2),
        "ratio_to_aiokafka": None if best_reader_s is None else round(best_reader_s / best.seconds, 3),
        "peak_mib": round(best.peak_bytes / 2**20),
        "source_disk_bytes_per_event": round(sources / n, 1),
        "state_bytes_per_event": round(best.state_bytes / n, 1),
        "journal_bytes_per_event": round(best.journal_bytes / n, 1),
        "journal_disk_bytes_per_event": round(best.journal_disk_bytes / n, 1),
    }


async def attempt(contestant: Contestant, arena: Arena, number: int) -> Run | str:
    """Run a contestant once: what it came to, or why it did not."""
    try:
        run = await contestant.run(arena, number)
    except Unavailable:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it was, the others are measured
        say(f"{contestant.name}: failed: {error!r}")
        return f"{type(error).__name__}: {error}"
    used_us = 1e6 * run.cpu_seconds / arena.n_events
    rate = arena.n_events / run.seconds
    say(f"{contestant.name}: {rate:,.0f} events/s, {used_us:.1f} CPU us an event")
    return run


async def compete(
    field: Mapping[str, Contestant], arena: Arena, wanted: Counts, repeat: int
) -> list[dict[str, Any]]:
    """Let the contestants run one after the other, in as many rounds as asked for."""
    runs: dict[str, list[Run]] = {name: [] for name in field}
    errors: dict[str, str] = {}
    left_out: set[str] = set()
    for number in range(repeat):
        for name, contestant in field.items():
            if name in errors or name in left_out:
                continue
            try:
                came_to = await attempt(contestant, arena, number)
            except Unavailable as reason:
                say(f"{name}: left out: {reason}")
                left_out.add(name)
                continue
            if isinstance(came_to, str):
                errors[name] = came_to
            else:
                runs[name].append(came_to)
    best_reader_s = min((run.seconds for run in runs.get("aiokafka", [])), default=None)
    documents: list[dict[str, Any]] = []
    for name, contestant in field.items():
        if name in errors:
            documents.append({"name": name, "error": errors[name]})
        elif name not in left_out:
            own = runs[name]
            found = [run.counts for run in own if run.counts is not None]
            wrong = [text for counts in found if (text := difference(counts, wanted))]
            exact = {"exact": not wrong if found else None, "wrong": wrong}
            figures = document(arena, own, best_reader_s)
            documents.append({"name": name, **figures, **exact, "settings": contestant.settings})
    return documents


COLUMNS: Mapping[str, str] = {
    "name": "contestant",
    "events_per_s": "events/s",
    "spread": "spread",
    "ratio_to_aiokafka": "of aiokafka",
    "cpu_s_per_million": "CPU s/million",
    "peak_mib": "peak MiB",
    "state_bytes_per_event": "state B/event",
    "journal_bytes_per_event": "journal B/event",
    "journal_disk_bytes_per_event": "on disk",
    "exact": "exact",
}


async def main_async(options: argparse.Namespace, bootstrap: str, folder: Path) -> list[dict[str, Any]]:
    """Produce the work, and let the contestants run."""
    arena, wanted = await prepare(work_of(options), bootstrap, folder, PREFIX, options.deadline)
    wished = options.contestants.split(",")
    field = {name: each for name, each in contestants(options.profile).items() if name in wished}
    return await compete(field, arena, wanted, options.repeat)


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    options = parse(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bandit-bench-")))
        stack.enter_context(on_core(BROKER_CORE))
        broker = stack.enter_context(EmbeddedKafka(folder / "kafka", heap_mb=1024, report=say))
        documents = asyncio.run(main_async(options, broker.bootstrap_servers, folder))
    if options.json:
        for each in documents:
            print(json.dumps(each))
    else:
        settings = [f"- {each['name']}: {each['settings']}" for each in documents if "settings" in each]
        print("\n".join([machine(), "", table(documents, COLUMNS), "", *settings]))
    failed = [f"{each['name']}: {text}" for each in documents for text in each.get("wrong", [])]
    for line in failed:
        say(line)
    return 1 if failed or any("error" in each for each in documents) else 0


if __name__ == "__main__":
    sys.exit(main())
