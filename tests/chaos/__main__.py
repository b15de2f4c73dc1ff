"""``python -m tests.chaos``: one seeded run, a stored schedule, or hours of short runs with random seeds."""

import argparse
import asyncio
import json
import logging
import secrets
import shutil
import sys
import time
from pathlib import Path

from tests.chaos.campaign import Report, Run
from tests.chaos.schedule import KINDS, Schedule, some_kinds

CHAOS_SECONDS = 240.0
SOAK_SECONDS = 25.0
SOAK_KINDS = (3, 6)
SOAK_ROUNDS = 4
"""Schedules on one installation: starting and ending it takes longer than one of them."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"of traffic and faults; {CHAOS_SECONDS:.0f}, in a soak {SOAK_SECONDS:.0f}",
    )
    parser.add_argument("--faults", default="", help=f"of {','.join(KINDS)}; all, in a soak some")
    parser.add_argument(
        "--schedule", type=Path, nargs="+", default=[], help="stored schedules, one after the other"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"), help="where failed runs stay")
    parser.add_argument("--soak", action="store_true", help="random seeds, one after another")
    parser.add_argument("--hours", type=float, default=6.0, help="of a soak")
    return parser.parse_args()


def schedules_of(given: argparse.Namespace) -> list[Schedule]:
    if given.schedule:
        return [Schedule.read(path) for path in given.schedule]
    kinds = [kind for kind in given.faults.split(",") if kind]
    if not given.soak:
        return [Schedule.from_seed(given.seed, seconds=given.seconds or CHAOS_SECONDS, kinds=kinds)]
    seeds = [secrets.randbelow(2**31) for _ in range(SOAK_ROUNDS)]
    return [
        Schedule.from_seed(
            seed, seconds=given.seconds or SOAK_SECONDS, kinds=kinds or some_kinds(seed, *SOAK_KINDS)
        )
        for seed in seeds
    ]


def run(schedules: list[Schedule], root: Path) -> list[Report]:
    folder = root.absolute() / f"seed-{schedules[0].seed}-{int(time.time())}"
    for each in schedules:
        print(f"seed {each.seed}: {each.seconds:.0f} s, {len(each.faults)} faults, {folder}", flush=True)
    reports = asyncio.run(Run(schedules, folder).run())
    for report in reports:
        if report.ok:
            print(f"seed {report.seed}: every check held in {report.figures['wall_s']} s", flush=True)
        else:
            print(
                f"seed {report.seed}: FAILED: {', '.join(report.failures)}; logs and journals in {folder}\n"
                f"repeat with: {report.command}",
                flush=True,
            )
    if all(report.ok for report in reports):
        shutil.rmtree(folder, ignore_errors=True)
    return reports


def summary(report: Report) -> dict[str, object]:
    keep = {k: v for k, v in report.figures.items() if k != "events_log"}
    return {
        "seed": report.seed,
        "ok": report.ok,
        "failures": {name: problems[:3] for name, problems in report.failures.items()},
        "seconds": report.seconds,
        "kinds": report.kinds,
        "standby_replicas": report.standby_replicas,
        **keep,
    }


def main() -> int:
    given = arguments()
    logging.getLogger("aiokafka").setLevel(
        logging.CRITICAL
    )  # the broker is away: that is what runs are about
    given.folder.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + given.hours * 3600 if given.soak else 0.0
    failed = 0
    while True:
        for report in run(schedules_of(given), given.folder):
            failed += not report.ok
            line = json.dumps(summary(report), default=str)
            with (given.folder / "runs.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        if time.monotonic() >= until_s:
            return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
