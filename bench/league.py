"""The league: policies over scenarios, the one-decision benchmark, delays, accuracy and speed of P(best).

Prints the tables of docs/statistics.md, and as the last line ``league: {...}`` in JSON. With ``--write`` it
puts them into that page, each between its markers. MABWiser, an outside reference, runs in an interpreter of
its own, which `make league` sets up.

    python -m bench.league [--runs 100] [--seeds 200] [--mabwiser-seeds 3] [--write]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from bandit_core.benchmark import (
    N_ROUNDS,
    TEXTBOOK,
    BenchmarkResult,
    benchmark_environments,
    convergence_rounds,
    reward_benchmark,
    textbook_benchmark,
)
from bandit_core.inference import sample_ratio_test
from bandit_core.league import CHUNK_RUNS, Estimate, LeagueRow, mean_of, summary
from bandit_core.policies import POLICIES, policy_from_definition
from bandit_core.probability_best import probability_best_beta
from bandit_core.simulator import Scenario
from bench.exact_best import largest_error, naive_grid
from streams.experiments.validation import parse_definition
from streams.simulation.definition import record_of
from streams.simulation.files import SHIPPED, described, load_scenario
from streams.simulation.report import COLUMNS, cells, pair, plain
from streams.simulation.runner import (
    Contestant,
    Task,
    chunks,
    in_processes,
    run_figures,
    run_task,
    usable_processes,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "statistics.md"
MABWISER = ROOT / "build" / "mabwiser" / "bin" / "python"
PUBLISHED = {"thompson": (20.89, 110), "epsilon_greedy": (62.93, 110), "ucb1": (93.68, 331)}
PUBLISHED_SEED = 42
OURS = ("thompson", "epsilon_greedy", "softmax", "ucb1", "ucb1_tuned")
SLOW_SHARE = 5  # what takes long per run gets so many times fewer runs
SLOW_DEFINITION = """
id: slow-better
arms: [quick, slow]
reward: {metric: order, kind: conversion_after_display}
conversion_window: 72h
policy: {algorithm: thompson}
"""
PROGRESS = Console(stderr=True)


@dataclass(frozen=True)
class Options:
    runs: int
    seeds: int
    mabwiser_seeds: int
    seed: int
    processes: int
    scenarios: tuple[str, ...]
    mabwiser: Path


class Printer:
    """Prints blocks, and keeps them for the page."""

    def __init__(self) -> None:
        self.blocks: dict[str, str] = {}

    def block(self, name: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        lines = [caption, ""] if caption else []
        lines.append("| " + " | ".join(header) + " |")
        lines.append("|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        self.blocks[name] = "\n".join(lines)
        print(f"### {name}\n\n{self.blocks[name]}\n", flush=True)


def written(page: str, blocks: dict[str, str]) -> str:
    """Return the page with every block between its markers replaced."""
    for name, text in blocks.items():
        pattern = re.compile(rf"(<!-- league: {re.escape(name)} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        if not pattern.search(page):
            raise SystemExit(f"{PAGE.name} has no place for {name!r}: add <!-- league: {name} -->")
        page = pattern.sub(lambda found, text=text: found[1] + text + found[2], page)
    return page


def with_bar(text: str, total: int, work: Callable[[Callable[[], None]], Any]) -> Any:
    with Progress(console=PROGRESS, transient=True, disable=not PROGRESS.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        return work(lambda: bar.advance(task))


# ---- scenarios


def league_entries(scenario: Scenario) -> list[Contestant]:
    names = [name for name in POLICIES if scenario.segments or name != "contextual"]
    return [Contestant(name, policy_from_definition(name)) for name in names]


def runs_of(scenario: Scenario, runs: int) -> int:
    slow = scenario.mean_delay_periods is not None or scenario.segments is not None
    return max(runs // SLOW_SHARE, 2) if slow else runs


def run_league(options: Options, printer: Printer) -> list[LeagueRow]:
    about = dict(described())
    rows: list[LeagueRow] = []
    for name in options.scenarios:
        scenario = load_scenario(name)
        entries = [(scenario, contestant) for contestant in league_entries(scenario)]
        n_runs = runs_of(scenario, options.runs)
        work = partial(run_figures, entries, n_runs=n_runs, seed=options.seed, processes=options.processes)
        figures = with_bar(name, len(entries) * -(-n_runs // CHUNK_RUNS), lambda done, w=work: w(done=done))
        found = [
            summary(each, scenario=name, policy=contestant.label)
            for each, (_, contestant) in zip(figures, entries, strict=True)
        ]
        outside = mabwiser_rows(scenario, n_runs, options) if name == "six-variants" else []
        caption = f"{about[name][0].upper()}{about[name][1:]}. {n_runs} runs."
        printer.block(name, caption, COLUMNS, [cells(row) for row in [*found, *outside]])
        rows += [*found, *outside]
    return rows


def ask_mabwiser(options: Options, request: dict[str, Any]) -> Any:
    if options.mabwiser_seeds < 1 or not options.mabwiser.exists():
        return None
    done = subprocess.run(
        [options.mabwiser, Path(__file__).with_name("mabwiser_reference.py")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"MABWiser failed:\n{done.stderr}")
    return json.loads(done.stdout)


def mabwiser_rows(scenario: Scenario, n_runs: int, options: Options) -> list[LeagueRow]:
    """Give MABWiser's policies in an hourly scenario: every unit is one decision, learned from in batches."""
    request = {
        "rates": scenario.rates[0].tolist(),
        "periods": scenario.n_periods,
        "units": scenario.units_per_period,
        "runs": n_runs,
    }
    nothing = Estimate(float("nan"), float("nan"))
    answer = ask_mabwiser(options, request) or {name: [] for name in TEXTBOOK}
    rows = []
    for name, runs in answer.items():
        figures = [
            mean_of(np.array([run[key] for run in runs])) if runs else nothing
            for key in ("regret", "best_share")
        ]
        label = f"MABWiser {name}"
        rows.append(LeagueRow(scenario.name, label, len(runs), *figures, nothing, nothing, nothing))
    return rows


# ---- one decision at a time


def mabwiser_benchmark(options: Options) -> dict[str, BenchmarkResult]:
    environments = [benchmark_environments(seed).tolist() for seed in range(options.mabwiser_seeds)]
    answer = ask_mabwiser(options, {"environments": environments, "rounds": N_ROUNDS})
    found = {}
    for name, seeds in (answer or {}).items():
        regret = np.array([[run["regret"] for run in runs] for runs in seeds])
        hits = np.array([[[digit == "1" for digit in run["hits"]] for run in runs] for runs in seeds])
        when = convergence_rounds(hits.reshape(-1, N_ROUNDS).T).reshape(regret.shape)
        found[name] = BenchmarkResult.of(regret, when)
    return found


def _contest(job: tuple[str, str, int]) -> BenchmarkResult:
    kind, name, seeds = job
    if kind == "published":
        return textbook_benchmark(name, seeds=[PUBLISHED_SEED], streams=seeds)
    if kind == "textbook":
        return textbook_benchmark(name, seeds=range(seeds))
    return reward_benchmark(policy_from_definition(name), seeds=range(seeds))


def run_benchmark(options: Options, printer: Printer) -> dict[str, Any]:
    few = max(options.seeds // 20, 2)
    jobs = [(kind, name, options.seeds) for kind in ("published", "textbook") for name in TEXTBOOK]
    jobs += [("ours", name, few if name == "thompson" else options.seeds) for name in OURS]
    found = with_bar(
        "benchmark",
        len(jobs),
        lambda done: in_processes(_contest, jobs, processes=options.processes, done=done),
    )
    results = {f"{kind} {name}": each for (kind, name, _), each in zip(jobs, found, strict=True)}
    published = []
    for name, (regret, convergence) in PUBLISHED.items():
        each = results[f"published {name}"]
        published.append(
            (
                name,
                pair(each.regret, 2),
                f"{each.regret_sd:.1f}",
                f"{regret}",
                pair(each.convergence, 1),
                f"{each.convergence_sd:.0f}",
                f"{convergence}",
            )
        )
    header = ("policy", "regret", "one run ±", "published", "convergence", "one run ±", "published")
    caption = f"The published environments (seed {PUBLISHED_SEED}), {options.seeds} streams of chance."
    printer.block("published benchmark", caption, header, published)
    rows = [(f"textbook {name}", results[f"textbook {name}"], options.seeds) for name in TEXTBOOK]
    outside = mabwiser_benchmark(options)
    rows += [(f"MABWiser {name}", outside.get(name), options.mabwiser_seeds) for name in TEXTBOOK]
    rows += [
        (f"ours: {name}", results[f"ours {name}"], seeds) for kind, name, seeds in jobs if kind == "ours"
    ]
    shown = [
        (label, "–", "–", "–")
        if each is None
        else (label, str(seeds), pair(each.regret, 1), pair(each.convergence, 0))
        for label, each, seeds in rows
    ]
    caption = "New environments for every seed."
    printer.block("benchmark", caption, ("policy", "seeds", "regret", "convergence"), shown)
    return {
        label: None if each is None else asdict(each)
        for label, each in {**results, **{f"MABWiser {name}": outside.get(name) for name in TEXTBOOK}}.items()
    }


# ---- delay


def _share_by_hour(task: Task) -> tuple[np.ndarray, np.ndarray]:
    simulation = run_task(task)
    return simulation.best_arm_share(72), simulation.best_arm_share(168)


def run_delay(options: Options, printer: Printer) -> dict[str, Any]:
    scenario = load_scenario("slow-better")
    thompson = policy_from_definition("thompson")
    some = max(2 * options.runs // SLOW_SHARE, 2)
    ways = [
        ("counted as failures", Contestant("failure", thompson, pending_as="failure"), 2 * options.runs),
        (
            "worth what the true delay says",
            Contestant("known", thompson, pending_as="known"),
            2 * options.runs,
        ),
        ("worth what the estimated delay says", Contestant("estimated", thompson), some),
        (
            "the same, by the allocator's own computation",
            Contestant("definition", thompson, record_of(parse_definition(SLOW_DEFINITION))),
            some,
        ),
    ]
    groups = [chunks(scenario, each, n_runs=runs, seed=options.seed) for _, each, runs in ways]
    flat = [task for group in groups for task in group]
    results = iter(
        with_bar(
            "delay",
            len(flat),
            lambda done: in_processes(_share_by_hour, flat, processes=options.processes, done=done),
        )
    )
    rows, found = [], {}
    for (name, _, runs), group in zip(ways, groups, strict=True):
        parts = [next(results) for _ in group]
        figures = [mean_of(np.concatenate([part[k] for part in parts])) for k in (0, 1)]
        rows.append((name, str(runs), *(pair(each, 2) for each in figures)))
        found[name] = [asdict(each) for each in figures]
    printer.block("delay", "", ("pending trials", "runs", "72 hours", "168 hours"), rows)
    return found


# ---- sample ratio


def run_ratio(options: Options, printer: Printer) -> dict[str, float]:
    runs = 20 * options.runs
    rng = np.random.default_rng(5)
    p = np.broadcast_to([0.7, 0.2, 0.1], (336, runs, 3))
    clean = rng.multinomial(1000, p).astype(float)
    alarms = float(sample_ratio_test(clean, p).alarm[-1].mean())
    rows = [(f"false alarms in 14 days of hourly looks, {runs} runs", f"{alarms:.4f}")]
    result = {"false_alarms": alarms}
    for per_hour in (1_000, 10_000, 100_000):
        q = np.broadcast_to([0.5, 0.5], (24 * 60, 50, 2))
        lossy = rng.multinomial(per_hour, q).astype(float)
        lossy[..., 1] = rng.binomial(lossy[..., 1].astype(np.int64), 0.99)
        alarm = sample_ratio_test(lossy, q).alarm
        days = float(np.median(np.where(alarm.any(axis=0), alarm.argmax(axis=0) / 24, np.inf)))
        result[f"days_to_find_one_percent_at_{per_hour}_per_hour"] = days
        rows.append((f"days to find a loss of 1% of one arm at {per_hour:,} units an hour", f"{days:.2f}"))
    printer.block("sample ratio", "", ("figure", "value"), rows)
    return result


# ---- chance of being best


def run_probability_best(printer: Printer) -> dict[str, float]:
    rng = np.random.default_rng(1)
    trials = np.floor(rng.integers(100, 100_000, size=(10_000, 1)) * rng.dirichlet(np.ones(10), size=10_000))
    successes = rng.binomial(trials.astype(np.int64), rng.uniform(0.02, 0.08, size=trials.shape))
    a, b = 1.0 + successes, 1.0 + trials - successes
    probability_best_beta(a[:200], b[:200])
    start = time.process_time()
    exact = probability_best_beta(a, b).probability
    quadrature_s = time.process_time() - start
    start = time.process_time()
    naive_error = float(np.abs(naive_grid(a, b) - exact).max())
    naive_s = time.process_time() - start
    start = time.process_time()
    n_sampled, worst = 200, 0.0
    for i in range(n_sampled):
        draws = rng.beta(a[i], b[i], size=(10_000, 10)).argmax(axis=1)
        worst = max(worst, float(np.abs(np.bincount(draws, minlength=10) / 10_000 - exact[i]).max()))
    monte_carlo_s = (time.process_time() - start) * len(a) / n_sampled
    error, n_cases = largest_error()
    result = {
        "quadrature_s": quadrature_s,
        "quadrature_error": error,
        "naive_grid_s": naive_s,
        "naive_grid_error": naive_error,
        "monte_carlo_s": monte_carlo_s,
        "monte_carlo_error": worst,
        "ratio": monte_carlo_s / quadrature_s,
    }
    rows = [
        ("quadrature", f"{quadrature_s:.1f} s", f"{error:.0e}", "1"),
        (
            "128 equally spaced points",
            f"{naive_s:.1f} s",
            f"{naive_error:.2f}",
            f"{naive_s / quadrature_s:.1f}",
        ),
        ("10,000 draws", f"{monte_carlo_s:.0f} s", f"{worst:.3f}", f"{result['ratio']:.0f}"),
    ]
    caption = (
        f"10,000 experiments of 10 arms, CPU time on one core. The error of the quadrature is against"
        f" {n_cases} closed forms, extreme counts included; that of the others against the quadrature."
    )
    printer.block("p-best", caption, ("way", "time", "largest error", "times the quadrature's time"), rows)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100, help="runs of each policy in each scenario")
    parser.add_argument("--seeds", type=int, default=200, help="seeds of the one-decision benchmark")
    parser.add_argument(
        "--mabwiser-seeds", type=int, default=3, help="seeds of MABWiser, which takes a minute each; 0: none"
    )
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--processes", type=int, default=usable_processes(), help="no figure depends on it")
    parser.add_argument("--scenarios", default=",".join(SHIPPED), help="names with commas between them")
    parser.add_argument("--mabwiser", type=Path, default=MABWISER, help="interpreter that has MABWiser")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    given = vars(parser.parse_args())
    write = given.pop("write")
    options = replace(Options(**given), scenarios=tuple(given["scenarios"].split(",")))
    if not options.mabwiser.exists():
        PROGRESS.print(f"no MABWiser: there is no {options.mabwiser}; `make league` makes it")
    printer = Printer()
    result = {
        "probability_best": run_probability_best(printer),
        "delay": run_delay(options, printer),
        "sample_ratio": run_ratio(options, printer),
        "rows": [asdict(row) for row in run_league(options, printer)],
        "benchmark": run_benchmark(options, printer),
    }
    if write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), printer.blocks), encoding="utf-8")
    print("league: " + json.dumps(plain(result), separators=(",", ":"), ensure_ascii=False))


if __name__ == "__main__":
    main()
