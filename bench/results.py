"""What results cost: CPU time and memory by hours and arms, with the allocator's own functions.

``python bench/results.py`` prints the table of docs/experiments.md. Every hour has an allocation of its
own and four source partitions; conversions come up to three hours later.
"""

import json
import time
import tracemalloc

import numpy as np

from streams.allocator.logged import decode_logged
from streams.allocator.observed import Observation
from streams.allocator.reporting import ResultsJob, make_results
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.join.cells import HOUR_MS, Cell, CellKey, LagCounts
from streams.results import encode_results

SOURCES = 4
FIRST = 480_000


def cell(rng: np.random.Generator) -> Cell:
    """Make an arm's hour in one source partition: some 120 units, four conversions."""
    counts = {lag: int(n) for lag, n in enumerate(rng.poisson(1, 4)) if n}
    lags = {lag: LagCounts(n, n * 10**6, n * 10**12) for lag, n in counts.items()}
    return Cell(int(rng.poisson(100)) + 20, 0, lags)


def job(hours: int, n_arms: int) -> tuple[ResultsJob, int]:
    """Make a job, and measure the memory of what the allocator keeps for it, in bytes."""
    rng = np.random.default_rng(1)
    arms = [f"arm-{i}" for i in range(n_arms)]
    records: list[tuple[bytes, bytes]] = []
    for bucket in range(FIRST, FIRST + hours):
        for source in range(SOURCES):
            keys = [CellKey("e", 1, "reporting", "buy", arm, "", "bandit", bucket, bucket) for arm in arms]
            place = CountsKey("e", source, bucket)
            counts = CountsRecord(Order(1, 1, len(records)), {key: cell(rng) for key in keys})
            records.append((encode_key(place), encode_counts(place, counts)))
    shares = ("weight", "assignment_weight", "selection_probability")
    table = {"boundary_ms": 0, "control": arms[0], "comparison": 0.0, "holdout": 0.0}
    rows = [{"arm_id": arm} | dict.fromkeys(shares, 1 / n_arms) for arm in arms]
    logged = json.dumps(table | {"arms": rows}).encode()
    tracemalloc.start()
    observation = Observation()
    for raw_key, raw in records:
        observation.absorb(raw_key, raw)
    log = {version: decode_logged(logged) for version in range(FIRST, FIRST + hours)}
    kept_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    counting = Counting(version=1, effective_from_ms=0, reward=Reward(metric="buy"))
    record = ExperimentRecord(
        experiment_id="e",
        revision=1,
        status="live",
        arms=tuple(Arm(arm_id=arm) for arm in arms),
        control=arms[0],
        versions=(counting,),
    )
    end_ms = (FIRST + hours) * HOUR_MS
    return ResultsJob(record, counting, observation.records(), log, None, end_ms, 0), kept_bytes


def main() -> None:
    """Print the table."""
    print("| hours | arms | CPU ms | record, kB | kept, MB |\n|---:|---:|---:|---:|---:|")
    for hours, n_arms in ((24, 4), (336, 4), (336, 10), (2160, 10), (336, 100)):
        asked, kept_bytes = job(hours, n_arms)
        make_results(asked)
        start_s = time.process_time()
        made = make_results(asked)
        took_ms = (time.process_time() - start_s) * 1e3
        size_kb = len(encode_results(made)) / 1e3
        print(f"| {hours} | {n_arms} | {took_ms:.0f} | {size_kb:.0f} | {kept_bytes / 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
