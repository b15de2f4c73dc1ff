"""The league: what policies earn in a scenario, and what reports would have claimed.

For each run: regret, share of the best arm, starved arms; and from daily looks with confidence sequences: a
false winner (a claim that A beats B when it does not), coverage (the true effect inside all intervals at
all looks) and when the best arm was named. :func:`figures_of` has these per run, :func:`joined` puts the
figures of several simulations together, :func:`summary` gives means with standard errors. Planning reads
days to a claim from the same figures, and for comparison from batched least squares at a fixed end.

Runs come in chunks with a generator each (:func:`chunk_key`), so that the figures of a seed do not depend on
how many processes computed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from bandit_core.inference.batched import batched_ols
from bandit_core.inference.sequences import Sequence as ConfidenceSequence
from bandit_core.inference.sequences import difference_sequence
from bandit_core.inference.values import value_difference
from bandit_core.simulator import Simulation

__all__ = [
    "CHUNK_RUNS",
    "Claims",
    "Detection",
    "Estimate",
    "Figures",
    "LeagueRow",
    "chunk_key",
    "claims",
    "detection",
    "figures_of",
    "fixed_end",
    "joined",
    "mean_of",
    "summary",
]

Array = NDArray[np.float64]

CHUNK_RUNS = 20
PERIODS_PER_DAY = 24


def chunk_key(seed: int, scenario: str, policy: str, chunk: int) -> list[int]:
    """Key of the generator of one chunk of runs: adding a scenario, a policy or runs changes no other."""
    return [seed, *scenario.encode(), 0, *policy.encode(), 0, chunk]


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
        First look at which the best arm was rightly called better than every other live one; inf if never.
    """

    false_winner: NDArray[np.bool_]
    covered: NDArray[np.bool_]
    winner_period: Array


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over runs and its standard error; NaN where there is nothing to average."""

    mean: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """Figures of each run, (n_runs,), and the course of all of them, (n_periods, n_runs).

    Attributes
    ----------
    regret, best_share, starved : ndarray
    false_winner, covered : ndarray
        0 or 1; NaN where nothing was claimed.
    winner_period : ndarray
    best_by_period, lost_by_period : ndarray, shape (n_periods, n_runs)
        Share of the best arm and successes lost.
    """

    regret: Array
    best_share: Array
    starved: Array
    false_winner: Array
    covered: Array
    winner_period: Array
    best_by_period: Array
    lost_by_period: Array


@dataclass(frozen=True, slots=True)
class LeagueRow:
    """One policy in one scenario.

    Attributes
    ----------
    scenario, policy : str
    runs : int
    regret : Estimate
        Successes lost against always the best.
    best_share : Estimate
        Of all traffic.
    starved : Estimate
        Arms with under half a percent of the traffic.
    false_winners, coverage : Estimate
        Shares of runs.
    """

    scenario: str
    policy: str
    runs: int
    regret: Estimate
    best_share: Estimate
    starved: Estimate
    false_winners: Estimate
    coverage: Estimate


def claims(simulation: Simulation, *, look_periods: int = 24, alpha: float = 0.05) -> Claims:
    """Look at a simulated experiment as a report would: pairwise, simultaneous, at every look.

    With delays a period is reported when its conversion window is over. Nothing is claimed where weights
    differed by segment.

    Parameters
    ----------
    simulation : Simulation
    look_periods : int
    alpha : float
    """
    scenario = simulation.scenario
    n_runs, n_arms = simulation.trials.shape[1:]
    if simulation.by_segment:
        nothing = np.zeros(n_runs, dtype=bool)
        return Claims(nothing, ~nothing, np.full(n_runs, np.inf))
    # Where lower is better, the sign of every effect turns.
    sign = -1.0 if simulation.lower_is_better else 1.0
    rates = sign * scenario.rates
    wait, live = simulation.wait_periods, simulation.live
    looks = np.arange(look_periods - 1, scenario.n_periods, look_periods) - wait
    looks = looks[looks >= 0]
    pairs = [(a, b) for a in range(n_arms) for b in range(a + 1, n_arms)]
    false = np.zeros(n_runs, dtype=bool)
    covered = np.ones(n_runs, dtype=bool)
    best = scenario.best_arm(lower_is_better=simulation.lower_is_better)
    beaten = np.ones((len(looks), n_runs), dtype=bool)
    for a, b in pairs:
        n_a, n_b = simulation.trials[:, :, a], simulation.trials[:, :, b]
        got = _difference(simulation, a, b, alpha / len(pairs))
        weight = np.where((n_a > 0) & (n_b > 0), n_a * n_b / np.maximum(n_a + n_b, 1.0), 0.0)
        total = np.add.accumulate(weight, axis=0)
        effect = np.add.accumulate(weight * (rates[:, a] - rates[:, b])[:, None], axis=0)
        truth = np.divide(effect, total, out=np.zeros_like(effect), where=total > 0)[looks]
        low, high = got.low[looks], got.high[looks]
        if simulation.lower_is_better:
            low, high = -high, -low
        covered &= ((low <= truth) & (truth <= high)).all(axis=0)
        tiny = 1e-12
        false |= (((low > 0) & (truth <= tiny)) | ((high < 0) & (truth >= -tiny))).any(axis=0)
        if best in (a, b):
            gone = False if live is None else ~live[looks + wait][:, :, b if best == a else a]
            beaten &= ((low > 0) if best == a else (high < 0)) | gone
    if live is not None:
        beaten &= live[looks + wait][:, :, best]
    first = np.where(
        beaten.any(axis=0), (looks[np.argmax(beaten, axis=0)] + wait + 1) if len(looks) else 0, np.inf
    )
    return Claims(false, covered, np.asarray(first, dtype=np.float64))


def _difference(simulation: Simulation, a: int, b: int, alpha: float) -> ConfidenceSequence:
    """Confidence sequence of the difference of two arms, of rates or of values, as reports have it."""
    n_a, n_b = simulation.trials[:, :, a], simulation.trials[:, :, b]
    s_a, s_b = simulation.successes[:, :, a], simulation.successes[:, :, b]
    if simulation.squares is None:
        return difference_sequence(n_a, s_a, n_b, s_b, alpha=alpha)
    q_a, q_b = simulation.squares[:, :, a], simulation.squares[:, :, b]
    return value_difference(n_a, s_a, q_a, n_b, s_b, q_b, alpha=alpha)


def figures_of(simulation: Simulation, *, look_periods: int = PERIODS_PER_DAY) -> Figures:
    """Figures of every run of a simulation, with reports looked at every ``look_periods``."""
    said = claims(simulation, look_periods=look_periods)
    unknown = np.full(len(said.covered), np.nan)
    return Figures(
        regret=simulation.regret(),
        best_share=simulation.best_arm_share(),
        starved=simulation.starved(),
        false_winner=unknown if simulation.by_segment else said.false_winner.astype(np.float64),
        covered=unknown if simulation.by_segment else said.covered.astype(np.float64),
        winner_period=said.winner_period,
        best_by_period=simulation.best_units / simulation.trials.sum(axis=2),
        lost_by_period=simulation.lost,
    )


def joined(parts: Sequence[Figures]) -> Figures:
    """Put the figures of chunks together, in their order."""
    return Figures(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts], axis=-1) for f in fields(Figures)}
    )


def mean_of(values: Array) -> Estimate:
    """Mean and standard error of (n_runs,) values; of one value the error is not known (NaN)."""
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Estimate(float(values.mean()), error)


def summary(figures: Figures, *, scenario: str, policy: str) -> LeagueRow:
    """Means over runs."""
    return LeagueRow(
        scenario,
        policy,
        len(figures.regret),
        mean_of(figures.regret),
        mean_of(figures.best_share),
        mean_of(figures.starved),
        mean_of(figures.false_winner),
        mean_of(figures.covered),
    )


@dataclass(frozen=True, slots=True)
class Detection:
    """When an effect would be found, in days; by simulation. inf: not within the simulated time.

    Attributes
    ----------
    days : float
        So many days name the best arm in at least the wanted share of runs.
    low, high : float
        95% interval of ``days``, from the number of runs.
    median : float
        Half of the runs have named it by then.
    detected : float
        Share of runs that name it before the end.
    """

    days: float
    low: float
    high: float
    median: float
    detected: float


def detection(days: Array, power: float) -> Detection:
    """Summarise the day on which each run named the best arm, (n_runs,); inf if it never did.

    Quantiles are order statistics, because some of them may be infinite; the interval is that of a
    binomial's normal approximation around their rank.
    """
    n = len(days)
    ordered = np.append(np.sort(days), np.inf)

    def at(rank: float) -> float:
        return float(ordered[int(min(max(np.ceil(rank), 1), n + 1)) - 1])

    half = 1.96 * np.sqrt(n * power * (1.0 - power))
    found = np.isfinite(days).mean()
    return Detection(at(n * power), at(n * power - half), at(n * power + half + 1), at(n * 0.5), float(found))


def fixed_end(simulation: Simulation, *, alpha: float = 0.05) -> NDArray[np.bool_]:
    """Tell for each possible end, in whole days, whether batched least squares names the best arm there.

    One look at an end fixed beforehand, batches of a day, Bonferroni over all pairs of arms, because the
    best one is chosen after looking. With delays a day counts when its conversion window is over.

    Parameters
    ----------
    simulation : Simulation
    alpha : float

    Returns
    -------
    ndarray of bool, shape (n_days, n_runs)
    """
    scenario = simulation.scenario
    n_days = scenario.n_periods // PERIODS_PER_DAY
    n_runs, n_arms = simulation.trials.shape[1:]
    days = (n_days, PERIODS_PER_DAY, n_runs, n_arms)
    end = n_days * PERIODS_PER_DAY
    trials = simulation.trials[:end].reshape(days).sum(axis=1)
    successes = simulation.successes[:end].reshape(days).sum(axis=1)
    wait = simulation.wait_periods
    skipped = -(-wait // PERIODS_PER_DAY)
    best = scenario.best_arm(lower_is_better=simulation.lower_is_better)
    named = np.zeros((n_days, n_runs), dtype=bool)
    for day in range(skipped, n_days):
        seen = slice(0, day - skipped + 1)
        beaten = np.ones(n_runs, dtype=bool)
        for arm in range(n_arms):
            if arm == best:
                continue
            got = batched_ols(
                trials[seen, :, best],
                successes[seen, :, best],
                trials[seen, :, arm],
                successes[seen, :, arm],
                period=day,
                end_period=day,
                alpha=alpha / (n_arms * (n_arms - 1) / 2),
            )
            beaten &= got.high < 0.0 if simulation.lower_is_better else got.low > 0.0
        named[day] = beaten
    return named
