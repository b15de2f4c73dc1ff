"""Measure how long one decision of the edge client takes, next to the hashing it cannot do without.

Run ``python -m bench.edge_decide [--units N] [--json]``. A row for each allocation: nanoseconds per decision,
one at a time and as a page of ten experiments (``decide_many``), and the ratio to bare SHA-256 of as many
keys in the same run. The ratio is what to compare between machines.
"""

import argparse
import json
import time
from collections.abc import Mapping
from hashlib import sha256

from bandit_core.shares import ArmStatus, ShareSettings, allocate_shares
from bench.report import table
from streams.allocations import Allocation, ArmAllocation
from streams.edge.table import DecisionTable

PAGE = 10


def allocation(experiment_id: str, n_arms: int, *, comparison: float, holdout: float) -> Allocation:
    shares = allocate_shares(
        [1.0 + i for i in range(n_arms)],
        statuses=[ArmStatus.ACTIVE] * n_arms,
        control=0,
        settings=ShareSettings(comparison=comparison, holdout=holdout),
    )
    arms = tuple(
        ArmAllocation(
            arm_id=f"arm-{i}",
            status="active",
            weight=shares.weights[i],
            assignment_weight=shares.rest[i],
            selection_probability=shares.weights[i],
            probability_best=0.5,
            mean=0.5,
            interval=(0.0, 1.0),
            trials=0,
            successes=0,
        )
        for i in range(n_arms)
    )
    return Allocation(
        experiment_id=experiment_id,
        version=1,
        claim=0,
        trigger="interval",
        interval_id=1,
        boundary_ms=0,
        computed_at_ms=time.time_ns() // 1_000_000,
        algorithm="thompson",
        seed=0,
        definition_version=1,
        definition_revision=1,
        status="live",
        sticky="unit",
        control="arm-0",
        default_arm="arm-0",
        comparison=shares.comparison,
        holdout=shares.holdout,
        arms=arms,
    )


def measure(n_arms: int, n_units: int, *, comparison: float, holdout: float) -> dict[str, float | int]:
    decisions = DecisionTable(max_age_ms=3_600_000, clock_ms=lambda: time.time_ns() // 1_000_000)
    experiments = [f"experiment-{i}" for i in range(PAGE)]
    for name in experiments:
        made = allocation(name, n_arms, comparison=comparison, holdout=holdout)
        decisions.set_allocation(name, made, made.computed_at_ms)
    units = [f"visitor-{i}" for i in range(n_units)]
    decide = decisions.decide
    first = experiments[0]

    start = time.process_time_ns()
    for unit in units:
        decide(first, unit)
    single_ns = (time.process_time_ns() - start) / n_units

    pages = units[: max(1, n_units // PAGE)]
    decide_many = decisions.decide_many
    start = time.process_time_ns()
    for unit in pages:
        decide_many(experiments, unit)
    page_ns = (time.process_time_ns() - start) / (len(pages) * PAGE)

    n_hashes = n_arms + (comparison > 0) + (holdout > 0)
    keys = [f"{first}\x1farm\x1f{unit}\x1farm-0".encode() for unit in units]
    start = time.process_time_ns()
    for key in keys:
        for _ in range(n_hashes):
            sha256(key).digest()
    hash_ns = (time.process_time_ns() - start) / n_units
    return {
        "arms": n_arms,
        "comparison": comparison,
        "holdout": holdout,
        "decide_ns": round(single_ns),
        "decide_in_page_ns": round(page_ns),
        "sha256_ns": round(hash_ns),
        "ratio": round(single_ns / hash_ns, 2),
    }


COLUMNS: Mapping[str, str] = {
    "arms": "arms",
    "comparison": "comparison",
    "holdout": "holdout",
    "decide_ns": "decide ns",
    "decide_in_page_ns": "in a page ns",
    "sha256_ns": "bare SHA-256 ns",
    "ratio": "ratio",
}


def rows(n_units: int) -> list[dict[str, float | int]]:
    """Measure allocations of several sizes."""
    sizes = ((2, 0.0, 0.0), (3, 0.1, 0.05), (10, 0.1, 0.05), (34, 0.0, 0.0))
    return [measure(n, n_units, comparison=comparison, holdout=holdout) for n, comparison, holdout in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=100_000, help="decisions to measure (default: 100000)")
    parser.add_argument("--json", action="store_true", help="one JSON document a row")
    options = parser.parse_args()
    found = rows(options.units)
    print("\n".join(map(json.dumps, found)) if options.json else table(found, COLUMNS))


if __name__ == "__main__":
    main()
