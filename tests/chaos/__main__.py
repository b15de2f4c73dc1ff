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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"of traffic and faults; {CHAOS_SECONDS:.0f}, in a soak {SOAK_SECONDS:.0f}",
    )
    parser.add_argument("--faults", default="", help=f"of {','.join(KINDS)}; all, in a soak some")
    parser.add_argument("--schedule", type=Path, help="a stored schedule, instead of a seed")
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"), help="where failed runs stay")
    parser.add_argument("--soak", action="store_true", help="random seeds, one after another")
    parser.add_argument("--hours", type=float, default=6.0, help="of a soak")
    return parser.parse_args()


def schedule_of(given: argparse.Namespace, seed: int) -> Schedule:
    if given.schedule is not None:
        return Schedule.read(given.schedule)
    kinds = [kind for kind in given.faults.split(",") if kind]
    if given.soak and not kinds:
        kinds = some_kinds(seed, *SOAK_KINDS)
    seconds = given.seconds or (SOAK_SECONDS if given.soak else CHAOS_SECONDS)
    return Schedule.from_seed(seed, seconds=seconds, kinds=kinds)


def run_one(schedule: Schedule, root: Path) -> Report:
    folder = root.absolute() / f"seed-{schedule.seed}-{int(time.time())}"
    print(
        f"seed {schedule.seed}: {schedule.seconds:.0f} s, {len(schedule.faults)} faults, {folder}", flush=True
    )
    report = asyncio.run(Run(schedule, folder).run())
    if report.ok:
        print(f"seed {schedule.seed}: every check held in {report.figures['wall_s']} s", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(
            f"seed {schedule.seed}: FAILED: {', '.join(report.failures)}; logs and journals in {folder}\n"
            f"repeat with: {report.command}",
            flush=True,
        )
    return report


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
        seed = secrets.randbelow(2**31) if given.soak else given.seed
        report = run_one(schedule_of(given, seed), given.folder)
        failed += not report.ok
        line = json.dumps(summary(report), default=str)
        with (given.folder / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if time.monotonic() >= until_s:
            return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
