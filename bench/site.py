"""Arithmetic for a site: workers, partitions, journal, disk and network for so many events a second.

Takes what ``make bench ARGS="--contestants aiokafka,bandit-streams --json"`` printed, and nothing else::

    python -m bench.site figures.json --rate 1000000

It multiplies: no run of that size stands behind it. Every line says what it was made of.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import table
from streams.agents.runner import SWEEP_EVERY_BATCHES, SWEEP_STEP_BYTES

MB = 1e6
GB = 1e9
FIGURES = ("source_disk", "state", "journal_disk")


class Site(NamedTuple):
    """What the arithmetic is for.

    Attributes
    ----------
    rate
        Events/s.
    busy
        Share of its rate from a backlog that a worker takes at most; the rest is for peaks and catching up.
    replicas
        Of every topic.
    standbys
        Warm copies of each partition.
    kept_hours
        Time that a unit's events stay in its state: window and grace.
    retention_hours
        Time that the source topics keep.
    batch_records
        Events in a batch; fewer than ``batch_max_records`` where workers keep up. Sweeps go by batches.
    """

    rate: float = 1e6
    busy: float = 0.7
    replicas: int = 3
    standbys: int = 1
    kept_hours: float = 25.0
    retention_hours: float = 168.0
    batch_records: int = 1_000


class Line(NamedTuple):
    """One figure and how it comes about."""

    what: str
    figure: float
    unit: str
    how: str


def arithmetic(found: Mapping[str, Any], site: Site) -> list[Line]:
    """Make the lines from the figures of one run."""
    workers = math.ceil(site.rate / (site.busy * found["events_per_s"]))
    partitions = 2 ** math.ceil(math.log2(2 * workers))
    state_bytes = site.rate * 3600 * site.kept_hours * found["state_bytes_per_event"]
    source = site.rate * found["source_disk_bytes_per_event"]
    batches = site.rate * found["journal_disk_bytes_per_event"]
    packed = found["journal_disk_bytes_per_event"] / found["journal_bytes_per_event"]
    swept = site.rate / (SWEEP_EVERY_BATCHES * site.batch_records) * SWEEP_STEP_BYTES * packed
    round_s = state_bytes / swept
    written = (source + batches + swept) * site.replicas
    read = source + (batches + swept) * site.standbys
    journal_bytes = 2 * (state_bytes + batches * round_s)
    per_event = {name: f"{found[f'{name}_bytes_per_event']} B" for name in FIGURES}
    step = f"{SWEEP_STEP_BYTES >> 20} MiB before zstd in {SWEEP_EVERY_BATCHES}"
    copies = f"{site.replicas} replicas"
    own = source + (1 + site.standbys) * (batches + swept)
    kept = source * 3600 * site.retention_hours * site.replicas
    rated = f"rate / ({site.busy} x {found['events_per_s']:,} events/s)"
    return [
        Line("workers, a core each", workers, "", rated),
        Line("partitions", partitions, "", "at least two a worker, a power of two"),
        Line("sources", source / MB, "MB/s", f"rate x {per_event['source_disk']} on disk"),
        Line("journal, batches", batches / MB, "MB/s", f"rate x {per_event['journal_disk']} on disk"),
        Line("state", state_bytes / GB, "GB", f"rate x {site.kept_hours} h x {per_event['state']}"),
        Line("state a worker", state_bytes / GB / workers, "GB", "each standby as much"),
        Line("journal, sweeps", swept / MB, "MB/s", f"at most: {step} batches of {site.batch_records:,}"),
        Line("a sweep of all state", round_s / 3600, "h", "at that pace"),
        Line("broker writes", written / MB, "MB/s", f"sources, batches and sweeps, {copies}"),
        Line("broker reads", read / MB, "MB/s", f"sources once, the journal by {site.standbys} standbys"),
        Line("network a worker", own / MB / workers, "MB/s", "sources in, journal out, for standbys in"),
        Line("source disk", kept / GB, "GB", f"{site.retention_hours} h, {copies}"),
        Line(
            "journal disk",
            journal_bytes * site.replicas / GB,
            "GB",
            f"two sweeps and the batches meanwhile, {copies}",
        ),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.site",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figures", type=Path, help="file with the JSON lines of `make bench`")
    for name, default in Site()._asdict().items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON document a line")
    options = parser.parse_args(arguments)
    documents = [json.loads(line) for line in options.figures.read_text().splitlines() if line[:1] == "{"]
    own = [each for each in documents if each["name"] == "bandit-streams" and "error" not in each]
    if not own:
        parser.error(f"{options.figures}: no figures of bandit-streams; `make bench ARGS=--json` prints them")
    lines = arithmetic(own[-1], Site(*(getattr(options, name) for name in Site._fields)))
    rows = [line._asdict() | {"figure": round(line.figure, 1)} for line in lines]
    if options.json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(table(rows, {"what": "what", "figure": "figure", "unit": "unit", "how": "from"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
