"""The one-decision-at-a-time benchmark of bandit libraries, for comparison with published figures.

Recipe: 20 environments from one seed, 4 arms with rates U(0.03, 0.40), a winner (drawn from 0 to 3) at the
largest + U(0.15, 0.30), rounded to 3 decimals; 2,000 rounds, an update after each; converged at the first
round t >= 100 from which at least 80 of the trailing 100 took the best arm. The textbook epsilon-greedy
explores *all* arms. Published, from one seed: median convergence 110, 110, 331 and mean regret 20.89, 62.93,
93.68 for Thompson sampling, epsilon-greedy and UCB1.

Two kinds of contestants: the textbook's choices, one arm a round from counts alone (``textbook thompson``:
one Beta draw an arm), and the product's policies, whose weights are drawn from once a round.

Cost: O(n_rounds) steps over all environments of all seeds at once; P(best) by quadrature makes ``thompson``
and ``top_two`` some hundred times dearer than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandit_core.league import Estimate, mean_of
from bandit_core.policies import Policy, gather
from bandit_core.posteriors.beta import BetaPosterior

__all__ = [
    "N_ROUNDS",
    "TEXTBOOK",
    "TRAILING",
    "BenchmarkResult",
    "benchmark_environments",
    "convergence_rounds",
    "reward_benchmark",
    "textbook_benchmark",
]

Array = NDArray[np.float64]

TEXTBOOK = ("thompson", "epsilon_greedy", "ucb1")
_Choice = Callable[[Array, Array, int, np.random.Generator], NDArray[np.intp]]

N_ROUNDS = 2000
TRAILING = 100
_BEST_SHARE = 80
_EXPLORATION = 0.1


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Means over seeds with standard errors, and how much one seed varies.

    Attributes
    ----------
    regret : Estimate
        Mean over environments of the expected regret.
    convergence : Estimate
        Median over environments of the round of convergence.
    regret_sd, convergence_sd : float
        Standard deviation from seed to seed: what to expect of a figure from one seed.
    """

    regret: Estimate
    convergence: Estimate
    regret_sd: float
    convergence_sd: float

    @classmethod
    def of(cls, regret: Array, when: NDArray[np.intp]) -> BenchmarkResult:
        """Summarise (n_seeds, n_environments) regrets and rounds of convergence."""
        means, medians = regret.mean(axis=1), np.median(when, axis=1)
        spread = [float(x.std(ddof=1)) if len(x) > 1 else float("nan") for x in (means, medians)]
        return cls(mean_of(means), mean_of(medians), *spread)


def benchmark_environments(seed: int) -> Array:
    """Make the rates of the 20 environments of a seed, (20, 4)."""
    rng = np.random.default_rng(seed)
    environments = np.empty((20, 4))
    for row in environments:
        rates = rng.uniform(0.03, 0.40, 4)
        winner = int(rng.integers(0, 4))
        rates[winner] = rates.max() + rng.uniform(0.15, 0.30)
        row[:] = np.round(rates, 3)
    return environments


def convergence_rounds(hits: NDArray[np.bool_]) -> NDArray[np.intp]:
    """First round, counted from 1, at which 80 of the trailing 100 took the best arm; (n_rounds, n) -> (n,).

    The number of rounds where that never happens.
    """
    cumulative = np.add.accumulate(hits, axis=0, dtype=np.int64)
    trailing = cumulative[TRAILING:] - cumulative[:-TRAILING]
    good = np.concatenate([cumulative[TRAILING - 1 : TRAILING], trailing]) >= _BEST_SHARE
    return np.where(good.any(axis=0), good.argmax(axis=0) + TRAILING, len(hits))


def textbook_benchmark(policy: str, *, seeds: Sequence[int], streams: int = 1) -> BenchmarkResult:
    """Run the textbook form of a policy.

    Parameters
    ----------
    policy : {"thompson", "epsilon_greedy", "ucb1"}
        One Beta draw an arm; 10% exploration over all arms; untried arms first.
    seeds : sequence of int
        Each makes its own 20 environments.
    streams : int
        So many times every seed's environments, with chances of their own.
    """
    if policy not in TEXTBOOK:
        raise ValueError(f"policy: {policy!r} is not one of {', '.join(TEXTBOOK)}")

    def choose(trials: Array, successes: Array, t: int, rng: np.random.Generator) -> NDArray[np.intp]:
        return _textbook_choice(policy, trials, successes, t, rng)

    return _run(choose, seeds, streams, policy)


def reward_benchmark(policy: Policy, *, seeds: Sequence[int]) -> BenchmarkResult:
    """Run one of the product's policies: each round's unit is given an arm drawn by the weights."""

    def choose(trials: Array, successes: Array, t: int, rng: np.random.Generator) -> NDArray[np.intp]:  # noqa: ARG001 - as the textbook's
        everyone = np.ones(trials.shape, dtype=bool)
        evidence = gather(policy.needs, BetaPosterior.from_counts(trials, successes), everyone)
        upper = np.add.accumulate(policy.choose(evidence, rng).weights, axis=1)
        drawn = (upper <= rng.random((len(upper), 1)) * upper[:, -1:]).sum(axis=1)
        return np.asarray(np.minimum(drawn, trials.shape[1] - 1))

    return _run(choose, seeds, 1, policy.name)


def _run(choose: _Choice, seeds: Sequence[int], streams: int, name: str) -> BenchmarkResult:
    rates = np.concatenate([benchmark_environments(seed) for seed in seeds for _ in range(streams)])
    rng = np.random.default_rng([streams, *name.encode(), 0, *seeds])
    n_envs, n_arms = rates.shape
    row, best = np.arange(n_envs), rates.argmax(axis=1)
    trials, successes = np.zeros((2, n_envs, n_arms))
    regret = np.zeros(n_envs)
    hits = np.zeros((N_ROUNDS, n_envs), dtype=bool)
    for t in range(N_ROUNDS):
        arm = choose(trials, successes, t, rng)
        reward = rng.random(n_envs) < rates[row, arm]
        trials[row, arm] += 1.0
        successes[row, arm] += reward
        hits[t] = arm == best
        regret += rates[row, best] - rates[row, arm]
    shape = (len(seeds) * streams, -1)
    return BenchmarkResult.of(regret.reshape(shape), convergence_rounds(hits).reshape(shape))


def _textbook_choice(
    policy: str, trials: Array, successes: Array, t: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    n_envs, n_arms = trials.shape
    if policy == "thompson":
        return np.asarray(rng.beta(1.0 + successes, 1.0 + trials - successes).argmax(axis=1))
    mean = successes / np.maximum(trials, 1.0)
    if policy == "epsilon_greedy":
        # Ties are broken at random, by a number too small to reorder anything else.
        greedy = (mean + 1e-9 * rng.random((n_envs, n_arms))).argmax(axis=1)
        explored = rng.integers(0, n_arms, n_envs)
        return np.where(rng.random(n_envs) < _EXPLORATION, explored, greedy)
    if t < n_arms:
        return np.full(n_envs, t)
    return np.asarray((mean + np.sqrt(2.0 * np.log(t) / trials)).argmax(axis=1))
