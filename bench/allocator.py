"""Recompute of many experiments: absorbing their counts, a boundary, and the maths, each beside a reference.

References, measured in the same run: the maths against Monte Carlo with as many draws as give P(best) to
about 0.003; the sums as of a boundary against adding up all records again. Times are CPU seconds of one core,
so that a busy machine changes them little::

    python -m bench.allocator [--experiments N] [--arms N] [--hours N] [--json]

``memory_mib`` is what the counts take, ``peak_mib`` the whole process through the recompute.
``bench/recompute.py`` has the same recompute in a worker that counts meanwhile.
"""

import argparse
import json
import resource
import time

import numpy as np

from streams.allocator.compute import Job, Stamp, compute, inputs_of
from streams.allocator.counts_state import CountsState
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.join.cells import Cell, CellKey, LagCounts

FIRST_HOUR = 480_000
HOUR_MS = 3_600_000
SAMPLE = 50  # experiments of the slow references
DRAWS = 30_000


def values(
    n_arms: int, n_hours: int, rng: np.random.Generator, *, first_hour: int = FIRST_HOUR
) -> list[bytes]:
    """One value per hour; the experiment's name is in the key only, so all experiments can share them."""
    found = []
    for hour in range(first_hour, first_hour + n_hours):
        cells = {}
        for arm in range(n_arms):
            trials = int(rng.integers(50, 500))
            successes = int(rng.binomial(trials, 0.03 + 0.002 * arm))
            now = successes // 2
            lags = {
                lag: LagCounts(n, n * 10**6, n * 10**12) for lag, n in ((0, now), (1, successes - now)) if n
            }
            for view in ("steering", "reporting"):
                key = CellKey("x", 1, view, "order", f"arm-{arm}", "", "bandit", 0, hour)
                cells[key] = Cell(trials, 0, lags)
        record = CountsRecord(Order(1, 1, hour), cells)
        found.append(encode_counts(CountsKey("x", 0, hour), record))
    return found


def experiment(name: str, n_arms: int) -> ExperimentRecord:
    return ExperimentRecord(
        experiment_id=name,
        revision=1,
        status="live",
        arms=tuple(Arm(arm_id=f"arm-{arm}") for arm in range(n_arms)),
        control="arm-0",
        versions=(Counting(version=1, effective_from_ms=0, reward=Reward(metric="order")),),
    )


def rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def monte_carlo_s(jobs: list[Job], rng: np.random.Generator) -> float:
    """Seconds per experiment of P(best) by drawing."""
    start_s = time.process_time()
    for job in jobs:
        alpha = np.array([1 + arm.successes for arm in job.inputs.arms])
        beta = np.array([1 + arm.trials - arm.successes for arm in job.inputs.arms])
        draws = rng.beta(alpha, beta, size=(DRAWS, len(alpha)))
        np.bincount(draws.argmax(axis=1), minlength=len(alpha))
    return (time.process_time() - start_s) / len(jobs)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=10_000)
    parser.add_argument("--arms", type=int, default=10)
    parser.add_argument("--hours", type=int, default=168)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    rng = np.random.default_rng(1)
    hours = values(arguments.arms, arguments.hours, rng)
    names = [f"experiment-{n}" for n in range(arguments.experiments)]
    state = CountsState()
    before_mib = rss_mib()
    n_records = len(names) * len(hours)

    start_s = time.process_time()
    for name in names:
        for hour, value in enumerate(hours, FIRST_HOUR):
            state.absorb(encode_key(CountsKey(name, 0, hour)), value)
    absorb_s = time.process_time() - start_s
    memory_mib = rss_mib() - before_mib

    last = FIRST_HOUR + arguments.hours
    start_s = time.process_time()
    for name in names:
        state.as_of(name, 1, "order", last - 1)
    first_s = time.process_time() - start_s
    start_s = time.process_time()
    counts = {name: state.as_of(name, 1, "order", last) for name in names}
    boundary_s = time.process_time() - start_s
    start_s = time.process_time()
    for name in names[:SAMPLE]:
        state.as_of(name, 1, "order", last - 1)  # earlier than the sums: adds up all records again
    naive_s = (time.process_time() - start_s) / len(names[:SAMPLE])

    stamp = Stamp(0, "interval", 0)
    start_s = time.process_time()
    jobs = [
        Job(inputs_of(experiment(name, arguments.arms), last * HOUR_MS, counts[name], None), stamp)
        for name in names
    ]
    gather_s = time.process_time() - start_s
    start_s = time.process_time()
    compute(jobs)
    compute_s = time.process_time() - start_s
    peak_mib = rss_mib()
    drawn_s = monte_carlo_s(jobs[:SAMPLE], rng)

    n = len(names)
    figures = {
        "experiments": n,
        "arms": arguments.arms,
        "hours": arguments.hours,
        "absorb_records_per_s": round(n_records / absorb_s),
        "bytes_per_record": round(memory_mib * 2**20 / n_records),
        "memory_mib": round(memory_mib),
        "peak_mib": round(peak_mib),
        "first_boundary_s": round(first_s, 2),
        "next_boundary_s": round(boundary_s, 2),
        "next_boundary_ratio_to_adding_up": round(naive_s * n / boundary_s, 1),
        "gather_s": round(gather_s, 2),
        "compute_s": round(compute_s, 2),
        "compute_ms_per_experiment": round(compute_s / n * 1000, 3),
        "compute_ratio_to_monte_carlo": round(drawn_s * n / compute_s, 1),
        "recompute_s": round(boundary_s + gather_s + compute_s, 2),
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, figure in figures.items():
        print(f"{name:36}{figure:>12,}")


if __name__ == "__main__":
    main()
