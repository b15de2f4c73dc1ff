"""The league: policies over scenarios, the one-decision benchmark, accuracy and speed of P(best).

Prints the tables of docs/statistics.md, and as the last line ``league: {...}`` in JSON. MABWiser, an outside
reference, runs in the benchmark where it is installed (``pip install mabwiser``).

    python bench/league.py [--runs 100] [--seeds 200] [--mabwiser-seeds 2]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bandit_core.inference import sample_ratio_test
from bandit_core.league import benchmark_environments, league, reward_benchmark
from bandit_core.policies import policy_from_definition
from bandit_core.probability_best import probability_best_beta
from bandit_core.scenarios import STANDARD, scenario_from_definition

POLICIES = (
    "uniform",
    "thompson",
    "thompson_draw",
    "top_two",
    "epsilon_greedy",
    "softmax",
    "ucb1",
    "ucb1_tuned",
)
PUBLISHED = {"thompson": (110, 20.89), "epsilon_greedy": (110, 62.93), "ucb1": (331, 93.68)}
SLOW_SHARE = 5  # scenarios with estimated delays cost more: so many times fewer runs
PROGRESS = Console(stderr=True)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def run_league(runs: int, seed: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for definition in track(STANDARD, "scenarios", console=PROGRESS):
        scenario = scenario_from_definition(definition)
        n_runs = max(runs // SLOW_SHARE, 2) if scenario.mean_delay_periods else runs
        print(f"#### {scenario.name} ({n_runs} runs)\n")
        shown: list[tuple[str, ...]] = []
        for name in POLICIES:
            (row,) = league([scenario], [policy_from_definition(name)], n_runs=n_runs, seed=seed)
            rows.append({**asdict(row), "runs": n_runs})
            shown.append(
                (
                    name,
                    f"{row.regret:.0f} ± {row.regret_error:.0f}",
                    f"{row.best_share:.2f}",
                    f"{row.starved:.2f}",
                    f"{row.false_winners:.3f}",
                    f"{row.coverage:.3f}",
                )
            )
        table(("policy", "regret", "best arm's share", "starved arms", "false winners", "coverage"), shown)
    return rows


def mabwiser_benchmark(name: str, seeds: range) -> tuple[float, float] | None:
    """Mean regret and median convergence of MABWiser's policy under the same recipe."""
    module = importlib.import_module("mabwiser.mab")
    learning = module.LearningPolicy
    policies = {
        "thompson": learning.ThompsonSampling(),
        "epsilon_greedy": learning.EpsilonGreedy(epsilon=0.1),
        "ucb1": learning.UCB1(alpha=1.0),
    }
    regrets, convergences = [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])
        when = []
        for k, rates in enumerate(benchmark_environments(seed)):
            mab = module.MAB([0, 1, 2, 3], policies[name], seed=1000 * seed + k)
            mab.fit([0, 1, 2, 3], (rng.random(4) < rates).astype(int).tolist())
            best, regret, hits = int(rates.argmax()), 0.0, np.zeros(2000, dtype=bool)
            for t in range(2000):
                arm = mab.predict()
                mab.partial_fit([arm], [int(rng.random() < rates[arm])])
                regret += rates[best] - rates[arm]
                hits[t] = arm == best
            trailing = np.convolve(hits, np.ones(100, dtype=int), "valid") >= 80
            when.append(int(trailing.argmax()) + 100 if trailing.any() else 2000)
            regrets.append(regret)
        convergences.append(float(np.median(when)))
    return float(np.mean(regrets)), float(np.mean(convergences))


def run_benchmark(n_seeds: int, mabwiser_seeds: int) -> dict[str, Any]:
    print(f"#### One decision at a time: 20 environments, 4 arms, 2,000 rounds ({n_seeds} seeds)\n")
    outside = mabwiser_seeds > 0 and importlib.util.find_spec("mabwiser") is not None
    result: dict[str, Any] = {}
    shown: list[tuple[str, ...]] = []
    for name, (convergence, regret) in track(PUBLISHED.items(), "benchmark", console=PROGRESS):
        ours = reward_benchmark(name, seeds=range(n_seeds))
        theirs = mabwiser_benchmark(name, range(mabwiser_seeds)) if outside else None
        result[name] = asdict(ours) | {"mabwiser": theirs}
        shown.append(
            (
                name,
                f"{ours.regret:.1f} ± {ours.regret_error:.1f}",
                f"{regret}",
                "–" if theirs is None else f"{theirs[0]:.1f}",
                f"{ours.convergence:.0f} ± {ours.convergence_error:.0f}",
                f"{convergence}",
                "–" if theirs is None else f"{theirs[1]:.0f}",
            )
        )
    table(
        ("policy", "regret", "published (one seed)", "MABWiser", "convergence", "published", "MABWiser"),
        shown,
    )
    return result


def run_ratio(runs: int) -> dict[str, float]:
    rng = np.random.default_rng(5)
    p = np.broadcast_to([0.7, 0.2, 0.1], (336, runs, 3))
    clean = rng.multinomial(1000, p).astype(float)
    alarms = float(sample_ratio_test(clean, p).alarm[-1].mean())
    result = {"false_alarms": alarms}
    for per_hour in (1_000, 10_000, 100_000):
        q = np.broadcast_to([0.5, 0.5], (24 * 60, 50, 2))
        lossy = rng.multinomial(per_hour, q).astype(float)
        lossy[..., 1] = rng.binomial(lossy[..., 1].astype(np.int64), 0.99)
        alarm = sample_ratio_test(lossy, q).alarm
        days = np.where(alarm.any(axis=0), alarm.argmax(axis=0) / 24, np.inf)
        result[f"days_to_find_one_percent_at_{per_hour}_per_hour"] = float(np.median(days))
    print(f"#### Sample ratio ({runs} runs without a fault, hourly looks, 14 days)\n")
    table(("figure", "value"), [(name, f"{value:.4g}") for name, value in result.items()])
    return result


def run_probability_best() -> dict[str, float]:
    rng = np.random.default_rng(1)
    trials = np.floor(rng.integers(100, 100_000, size=(10_000, 1)) * rng.dirichlet(np.ones(10), size=10_000))
    successes = rng.binomial(trials.astype(np.int64), rng.uniform(0.02, 0.08, size=trials.shape))
    a, b = 1.0 + successes, 1.0 + trials - successes
    probability_best_beta(a[:200], b[:200])
    start = time.process_time()
    exact = probability_best_beta(a, b).probability
    quadrature_s = time.process_time() - start
    start = time.process_time()
    n_sampled, worst = 200, 0.0
    for i in range(n_sampled):
        draws = rng.beta(a[i], b[i], size=(10_000, 10)).argmax(axis=1)
        worst = max(worst, float(np.abs(np.bincount(draws, minlength=10) / 10_000 - exact[i]).max()))
    monte_carlo_s = (time.process_time() - start) * len(a) / n_sampled
    result = {
        "quadrature_s": quadrature_s,
        "monte_carlo_s": monte_carlo_s,
        "ratio": monte_carlo_s / quadrature_s,
        "monte_carlo_error": worst,
    }
    print("#### P(best): 10,000 experiments of 10 arms, one core\n")
    table(("figure", "value"), [(name, f"{value:.3g}") for name, value in result.items()])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--mabwiser-seeds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    result = {
        "probability_best": run_probability_best(),
        "benchmark": run_benchmark(options.seeds, options.mabwiser_seeds),
        "sample_ratio": run_ratio(2000),
        "rows": run_league(options.runs, options.seed),
    }
    print("league: " + json.dumps(result, separators=(",", ":")))


if __name__ == "__main__":
    main()
