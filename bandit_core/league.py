"""The league: policies over scenarios, with what they earn and what reports would have claimed.

For each policy and scenario: regret, share of the best arm, starved arms; and from daily looks with
confidence sequences: false winners (a claim that A beats B when it does not) and coverage (the true effect
inside all intervals at all looks). :func:`reward_benchmark` is the one-decision-at-a-time benchmark of
bandit libraries, for comparison with published figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandit_core.inference.sequences import difference_sequence
from bandit_core.policies.base import Policy
from bandit_core.simulator import Scenario, Simulation, simulate

__all__ = [
    "BenchmarkResult",
    "Claims",
    "Detection",
    "LeagueRow",
    "benchmark_environments",
    "claims",
    "days_to_detect",
    "league",
    "reward_benchmark",
]

Array = NDArray[np.float64]

BENCHMARK_POLICIES = ("thompson", "epsilon_greedy", "ucb1")


@dataclass(frozen=True, slots=True, eq=False)
class Claims:
    """What reports with looks every ``look_periods`` would say; (n_runs,).

    Attributes
    ----------
    false_winner : ndarray of bool
        Some pair was called for the worse (or an equal) arm at some look.
    covered : ndarray of bool
        Every pair's interval held its true weighted effect at every look.
    winner_period : ndarray
        First look at which the best arm was rightly called better than every other; inf if never.
    """

    false_winner: NDArray[np.bool_]
    covered: NDArray[np.bool_]
    winner_period: Array


@dataclass(frozen=True, slots=True)
class LeagueRow:
    """One policy in one scenario; means over runs, with the standard error of the regret.

    Attributes
    ----------
    scenario, policy : str
    regret, regret_error : float
        Successes lost against always the best.
    best_share : float
        Of all traffic.
    starved : float
        Arms with under half a percent of the traffic.
    false_winners, coverage : float
        Shares of runs.
    """

    scenario: str
    policy: str
    regret: float
    regret_error: float
    best_share: float
    starved: float
    false_winners: float
    coverage: float


def claims(simulation: Simulation, *, look_periods: int = 24, alpha: float = 0.05) -> Claims:
    """Look at a simulated experiment as a report would: pairwise, simultaneous, at every look.

    With delays a period is reported when its conversion window is over.

    Parameters
    ----------
    simulation : Simulation
    look_periods : int
    alpha : float
    """
    scenario = simulation.scenario
    rates = scenario.rates
    wait = scenario.window_periods if scenario.mean_delay_periods is not None else 0
    looks = np.arange(look_periods - 1, scenario.n_periods, look_periods) - wait
    looks = looks[looks >= 0]
    n_runs, n_arms = simulation.trials.shape[1:]
    pairs = [(a, b) for a in range(n_arms) for b in range(a + 1, n_arms)]
    false = np.zeros(n_runs, dtype=bool)
    covered = np.ones(n_runs, dtype=bool)
    best = int(np.argmax(rates.mean(axis=0)))
    beaten = np.ones((len(looks), n_runs), dtype=bool)
    for a, b in pairs:
        n_a, n_b = simulation.trials[:, :, a], simulation.trials[:, :, b]
        got = difference_sequence(
            n_a, simulation.successes[:, :, a], n_b, simulation.successes[:, :, b], alpha=alpha / len(pairs)
        )
        weight = np.where((n_a > 0) & (n_b > 0), n_a * n_b / np.maximum(n_a + n_b, 1.0), 0.0)
        total = np.add.accumulate(weight, axis=0)
        effect = np.add.accumulate(weight * (rates[:, a] - rates[:, b])[:, None], axis=0)
        truth = np.divide(effect, total, out=np.zeros_like(effect), where=total > 0)[looks]
        low, high = got.low[looks], got.high[looks]
        covered &= ((low <= truth) & (truth <= high)).all(axis=0)
        tiny = 1e-12
        false |= (((low > 0) & (truth <= tiny)) | ((high < 0) & (truth >= -tiny))).any(axis=0)
        if best in (a, b):
            beaten &= (low > 0) if best == a else (high < 0)
    first = np.where(
        beaten.any(axis=0), (looks[np.argmax(beaten, axis=0)] + wait + 1) if len(looks) else 0, np.inf
    )
    return Claims(false, covered, np.asarray(first, dtype=np.float64))


def league(
    scenarios: Sequence[Scenario], policies: Sequence[Policy], *, n_runs: int, seed: int
) -> tuple[LeagueRow, ...]:
    """Run every policy in every scenario.

    Parameters
    ----------
    scenarios, policies : sequence
    n_runs : int
    seed : int
        Each pair gets its own stream, so that adding one changes none of the others.
    """
    rows = []
    for scenario in scenarios:
        for policy in policies:
            key = [seed, *scenario.name.encode(), 0, *policy.name.encode()]
            pending = "estimated" if scenario.mean_delay_periods is not None else "known"
            got = simulate(
                scenario, policy, n_runs=n_runs, rng=np.random.default_rng(key), pending_as=pending
            )
            said = claims(got)
            regret = got.regret()
            rows.append(
                LeagueRow(
                    scenario.name,
                    policy.name,
                    float(regret.mean()),
                    float(regret.std(ddof=1) / np.sqrt(n_runs)) if n_runs > 1 else float("nan"),
                    float(got.best_arm_share().mean()),
                    float(got.starved().mean()),
                    float(said.false_winner.mean()),
                    float(said.covered.mean()),
                )
            )
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class Detection:
    """When an effect would be found, in days; by simulation.

    Attributes
    ----------
    median_days, high_days : float
        Half, and nine in ten, of the runs have named the best arm by then; inf if they have not by the end.
    detected : float
        Share of runs that name it before the end.
    false_winners : float
    """

    median_days: float
    high_days: float
    detected: float
    false_winners: float


def days_to_detect(
    scenario: Scenario,
    policy: Policy,
    *,
    n_runs: int,
    rng: np.random.Generator,
    alpha: float = 0.05,
    periods_per_day: int = 24,
) -> Detection:
    """Plan an experiment: how long until reports name the best arm.

    Parameters
    ----------
    scenario : Scenario
        With the effect that is hoped for, and as many periods as one is ready to wait.
    policy : Policy
    n_runs : int
    rng : numpy.random.Generator
    alpha : float
    periods_per_day : int
        Looks are daily.
    """
    pending = "estimated" if scenario.mean_delay_periods is not None else "known"
    got = simulate(scenario, policy, n_runs=n_runs, rng=rng, pending_as=pending)
    said = claims(got, look_periods=periods_per_day, alpha=alpha)
    days = np.sort(said.winner_period / periods_per_day)
    # Order statistics, not interpolation: some of them may be infinite.
    median, high = (float(days[min(int(np.ceil(q * n_runs)) - 1, n_runs - 1)]) for q in (0.5, 0.9))
    return Detection(median, high, float(np.isfinite(days).mean()), float(said.false_winner.mean()))


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """One-decision-at-a-time benchmark; means over seeds with standard errors.

    Attributes
    ----------
    policy : str
    regret, regret_error : float
        Mean over environments of the expected regret.
    convergence, convergence_error : float
        Median over environments of the first round ``t >= 100`` with at least 80% best in the trailing 100.
    """

    policy: str
    regret: float
    regret_error: float
    convergence: float
    convergence_error: float


def benchmark_environments(seed: int) -> Array:
    """Rates of 20 environments: 4 arms U(0.03, 0.40), a winner at the largest + U(0.15, 0.30), 3 decimals."""
    rng = np.random.default_rng(seed)
    environments = np.empty((20, 4))
    for row in environments:
        rates = rng.uniform(0.03, 0.40, 4)
        winner = int(rng.integers(0, 4))
        rates[winner] = rates.max() + rng.uniform(0.15, 0.30)
        row[:] = np.round(rates, 3)
    return environments


def reward_benchmark(
    policy: str, *, seeds: Sequence[int], n_rounds: int = 2000, exploration: float = 0.1
) -> BenchmarkResult:
    """Run the benchmark of small bandit libraries: one unit a round, an update after each.

    Parameters
    ----------
    policy : {"thompson", "epsilon_greedy", "ucb1"}
        Textbook forms: one Beta draw an arm; exploration over *all* arms; untried arms first.
    seeds : sequence of int
        Each makes its own 20 environments.
    n_rounds : int
    exploration : float
        Of epsilon-greedy.
    """
    if policy not in BENCHMARK_POLICIES:
        raise ValueError(f"policy: {policy!r} is not one of {', '.join(BENCHMARK_POLICIES)}")
    rates = np.concatenate([benchmark_environments(seed) for seed in seeds])
    rng = np.random.default_rng([len(seeds), *seeds])
    n_envs, n_arms = rates.shape
    row = np.arange(n_envs)
    best = rates.argmax(axis=1)
    trials, successes = np.zeros((n_envs, n_arms)), np.zeros((n_envs, n_arms))
    regret = np.zeros(n_envs)
    hits = np.zeros((n_rounds, n_envs), dtype=bool)
    for t in range(n_rounds):
        arm = _textbook_choice(policy, trials, successes, t, exploration, rng)
        reward = rng.random(n_envs) < rates[row, arm]
        trials[row, arm] += 1.0
        successes[row, arm] += reward
        hits[t] = arm == best
        regret += rates[row, best] - rates[row, arm]
    cumulative = np.add.accumulate(hits, axis=0, dtype=np.int64)
    trailing = cumulative[100:] - cumulative[:-100]
    good = np.concatenate([cumulative[99:100], trailing]) >= 80
    # Counting rounds from 1: the first entry is the state after 100 rounds.
    when = np.where(good.any(axis=0), good.argmax(axis=0) + 100, n_rounds).reshape(len(seeds), -1)
    medians, means = np.median(when, axis=1), regret.reshape(len(seeds), -1).mean(axis=1)
    root = np.sqrt(len(seeds))
    spread = [float(x.std(ddof=1) / root) if len(seeds) > 1 else float("nan") for x in (means, medians)]
    return BenchmarkResult(policy, float(means.mean()), spread[0], float(medians.mean()), spread[1])


def _textbook_choice(
    policy: str, trials: Array, successes: Array, t: int, exploration: float, rng: np.random.Generator
) -> NDArray[np.intp]:
    n_envs, n_arms = trials.shape
    if policy == "thompson":
        return np.asarray(rng.beta(1.0 + successes, 1.0 + trials - successes).argmax(axis=1))
    mean = successes / np.maximum(trials, 1.0)
    if policy == "epsilon_greedy":
        # Ties are broken at random, by a number too small to reorder anything else.
        greedy = (mean + 1e-9 * rng.random((n_envs, n_arms))).argmax(axis=1)
        explored = rng.integers(0, n_arms, n_envs)
        return np.where(rng.random(n_envs) < exploration, explored, greedy)
    if t < n_arms:
        return np.full(n_envs, t)
    return np.asarray((mean + np.sqrt(2.0 * np.log(t) / trials)).argmax(axis=1))
