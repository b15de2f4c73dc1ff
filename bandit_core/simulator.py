"""Simulated experiments, many seeds at once: what policies earn, with the truth known.

What: a :class:`Scenario` holds true rates by period and arm, traffic, delays and when arms start;
:func:`simulate` runs it under a policy with hourly batches as the product does (counts -> posterior ->
policy -> floors -> weights), vectorised over runs. Everything comes from one generator, so a seed gives the
same run on every call.

Cost: O(n_periods * n_runs * n_arms), with delay times the lags; 168 periods, 200 runs, 4 arms and Thompson
take some seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandit_core.delay import DelayGrid, DelaySettings, estimate_delay
from bandit_core.policies.base import Policy, gather
from bandit_core.posteriors.beta import BetaPosterior, BetaPrior

__all__ = ["PENDING_AS", "Scenario", "Simulation", "simulate"]

Array = NDArray[np.float64]

PENDING_AS = ("known", "failure", "estimated", "gate")


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """The truth.

    Parameters
    ----------
    name : str
    rates : ndarray, shape (n_periods, n_arms)
        Chance of (eventual) success of a trial by period of its exposure.
    units_per_period : int
    mean_delay_periods : tuple of float, optional
        Mean of each arm's exponential delay; None: successes are known at once.
    window_periods : int
        Conversion window, where there are delays.
    starts : tuple of int, optional
        First period of each arm; default all 0.
    incubation_periods : int
        For so long a new arm gets exactly 1/n.
    """

    name: str
    rates: Array
    units_per_period: int
    mean_delay_periods: tuple[float, ...] | None = None
    window_periods: int = 72
    starts: tuple[int, ...] | None = None
    incubation_periods: int = 0

    def __post_init__(self) -> None:
        if self.rates.ndim != 2 or (self.rates < 0.0).any() or (self.rates > 1.0).any():
            raise ValueError(f"rates: want (n_periods, n_arms) in [0, 1], not shape {self.rates.shape}")
        for name, values in (("mean_delay_periods", self.mean_delay_periods), ("starts", self.starts)):
            if values is not None and len(values) != self.rates.shape[1]:
                raise ValueError(f"{name}: {len(values)} values for {self.rates.shape[1]} arms")
        if self.units_per_period < 1:
            raise ValueError(f"units_per_period: {self.units_per_period!r} must be at least 1")

    @property
    def n_periods(self) -> int:
        """Number of periods."""
        return len(self.rates)

    @property
    def n_arms(self) -> int:
        """Number of arms."""
        return int(self.rates.shape[1])

    def lag_mass(self) -> Array:
        """Share of conversions at each lag, (n_arms, window_periods + 1)."""
        if self.mean_delay_periods is None:
            return np.ones((self.n_arms, 1))
        nodes, weights = np.polynomial.legendre.leggauss(16)
        reach = np.arange(1, self.window_periods + 2)[:, None] - 0.5 * (nodes + 1.0)
        reach = np.minimum(reach, self.window_periods)
        mass = np.empty((self.n_arms, self.window_periods + 1))
        for arm, mean in enumerate(self.mean_delay_periods):
            cdf = (-np.expm1(-reach / mean) * (0.5 * weights)).sum(axis=1) / -np.expm1(
                -self.window_periods / mean
            )
            mass[arm] = np.diff(cdf, prepend=0.0)
        return mass


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """What happened; arrays (n_periods, n_runs, n_arms).

    Attributes
    ----------
    scenario : Scenario
    weights : ndarray
        Realised shares.
    trials, successes : ndarray
        By period of exposure; successes are the eventual ones.
    probability_best : ndarray or None
        What the policy saw, when it asked.
    """

    scenario: Scenario
    weights: Array
    trials: Array
    successes: Array
    probability_best: Array | None

    def regret(self) -> Array:
        """Return expected successes lost against the best started arm of each period: (n_runs,)."""
        scenario = self.scenario
        starts = np.zeros(scenario.n_arms) if scenario.starts is None else np.array(scenario.starts)
        started = starts <= np.arange(scenario.n_periods)[:, None]
        gap = np.where(started, scenario.rates, -np.inf).max(axis=1, keepdims=True) - scenario.rates
        lost: Array = (self.trials * gap[:, None, :]).sum(axis=(0, 2))
        return lost

    def best_arm_share(self, through: int | None = None) -> Array:
        """Return the share of all traffic up to a period that went to the arm best on average: (n_runs,)."""
        best = int(np.argmax(self.scenario.rates.mean(axis=0)))
        counted = self.trials[:through]
        share: Array = counted[:, :, best].sum(axis=0) / counted.sum(axis=(0, 2))
        return share

    def starved(self, share: float = 0.005) -> Array:
        """Count the arms with less than ``share`` of all traffic: (n_runs,)."""
        totals = self.trials.sum(axis=0)
        few: Array = (totals < share * totals.sum(axis=1, keepdims=True)).sum(axis=1).astype(np.float64)
        return few


def simulate(
    scenario: Scenario,
    policy: Policy,
    *,
    n_runs: int,
    rng: np.random.Generator,
    prior: BetaPrior | None = None,
    floor: float | None = None,
    pending_as: str = "known",
    half_life_periods: float | None = None,
) -> Simulation:
    """Run a scenario under a policy.

    Parameters
    ----------
    scenario : Scenario
    policy : Policy
    n_runs : int
    rng : numpy.random.Generator
    prior : BetaPrior, optional
    floor : float, optional
        Least share of each arm that has started; default the policy's.
    pending_as : {"known", "failure", "estimated", "gate"}
        With delays: the true delay is known, pending trials count as failures, delays are estimated, or only
        periods older than the window count.
    half_life_periods : float, optional
        Discounting; not together with delays.
    """
    if pending_as not in PENDING_AS:
        raise ValueError(f"pending_as: {pending_as!r} is not one of {', '.join(PENDING_AS)}")
    if half_life_periods is not None and scenario.mean_delay_periods is not None:
        raise ValueError("half_life_periods: not together with mean_delay_periods")
    run = _Run(scenario, n_runs, prior, pending_as, half_life_periods)
    shape = (scenario.n_periods, n_runs, scenario.n_arms)
    weights, trials, successes = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    seen = np.zeros(shape) if "probability_best" in {need.value for need in policy.needs} else None
    starts = np.zeros(scenario.n_arms) if scenario.starts is None else np.array(scenario.starts)
    least = policy.default_floor if floor is None else floor
    for period in range(scenario.n_periods):
        started = np.broadcast_to(starts <= period, (n_runs, scenario.n_arms))
        incubating = started & (period < starts + scenario.incubation_periods) & (starts > 0)
        evidence = gather(policy.needs, run.posterior(period), started)
        if seen is not None and evidence.probability_best is not None:
            seen[period] = evidence.probability_best
        n = started.sum(axis=1, keepdims=True)
        share = least + (1.0 - n * least) * policy.choose(evidence, rng).weights
        share = _with_incubation(np.where(started, share, 0.0), started, incubating)
        weights[period] = share
        trials[period] = rng.multinomial(scenario.units_per_period, share)
        successes[period] = run.observe(period, trials[period], rng)
    return Simulation(scenario, weights, trials, successes, seen)


def _with_incubation(share: Array, started: NDArray[np.bool_], incubating: NDArray[np.bool_]) -> Array:
    """Incubating arms get 1 / n, the others the rest by their weights, or equally if they have none."""
    n = started.sum(axis=1, keepdims=True)
    active = started & ~incubating
    others = np.where(active, share, 0.0)
    mass = others.sum(axis=1, keepdims=True)
    equal = active / np.maximum(active.sum(axis=1, keepdims=True), 1)
    relative = np.where(mass > 0.0, others / np.where(mass > 0.0, mass, 1.0), equal)
    reserved = incubating.sum(axis=1, keepdims=True) / n
    shares: Array = np.where(incubating, 1.0 / n, relative * (1.0 - reserved))
    return shares


class _Run:
    """Counts as they become known, for all runs."""

    def __init__(
        self,
        scenario: Scenario,
        n_runs: int,
        prior: BetaPrior | None,
        pending_as: str,
        half_life_periods: float | None,
    ) -> None:
        self._scenario = scenario
        self._prior = prior
        self._pending_as = pending_as
        self._decay = 1.0 if half_life_periods is None else 0.5 ** (1.0 / half_life_periods)
        self._mass = scenario.lag_mass()
        self._delayed = scenario.mean_delay_periods is not None
        n_lags = self._mass.shape[1]
        self._total_trials = np.zeros((n_runs, scenario.n_arms))
        self._total_successes = np.zeros((n_runs, scenario.n_arms))
        # exposed[:, :, l]: trials old enough for lag l at the coming boundary; arrived by lag; waiting by
        # age.
        self._exposed = np.zeros((n_runs, scenario.n_arms, n_lags))
        self._arrived = np.zeros((n_runs, scenario.n_arms, n_lags))
        self._waiting: list[Array] = []
        self._trials: list[Array] = []
        self._grid = (
            DelayGrid.of(DelaySettings(scenario.window_periods)) if pending_as == "estimated" else None
        )

    def posterior(self, period: int) -> BetaPosterior:
        if not self._delayed:
            return BetaPosterior.from_counts(self._total_trials, self._total_successes, self._prior)
        if self._pending_as == "estimated" and self._grid is not None:
            estimate = estimate_delay(self._arrived, self._exposed, self._grid, self._prior)
            successes = estimate.alpha - (1.0 if self._prior is None else self._prior.alpha)
            return BetaPosterior(
                estimate.alpha,
                estimate.beta,
                estimate.effective_trials,
                successes,
                np.maximum(successes, 0.0),
            )
        arrived = self._arrived.sum(axis=2)
        if self._pending_as == "known":
            worth = np.maximum((self._exposed * self._mass).sum(axis=2), arrived)
            return BetaPosterior.from_counts(worth, arrived, self._prior)
        if self._pending_as == "failure":
            return BetaPosterior.from_counts(self._exposed[:, :, 0], arrived, self._prior)
        return BetaPosterior.from_counts(*self._mature(period), self._prior)

    def _mature(self, period: int) -> tuple[Array, Array]:
        old = max(0, period - self._scenario.window_periods)
        trials, successes = np.zeros_like(self._total_trials), np.zeros_like(self._total_trials)
        for k in range(old):
            trials += self._trials[k]
            successes += self._waiting[k].sum(axis=2)
        return trials, successes

    def observe(self, period: int, trials: Array, rng: np.random.Generator) -> Array:
        """Draw outcomes of the period's trials; returns the eventual successes."""
        rates = self._scenario.rates[period]
        successes = rng.binomial(trials.astype(np.int64), rates).astype(np.float64)
        self._total_trials = self._decay * self._total_trials + trials
        self._total_successes = self._decay * self._total_successes + successes
        if self._delayed:
            by_lag = np.empty((*trials.shape, self._mass.shape[1]))
            for arm in range(trials.shape[1]):
                mass = self._mass[arm] / self._mass[arm].sum()
                by_lag[:, arm] = rng.multinomial(successes[:, arm].astype(np.int64), mass)
            self._waiting.append(by_lag)
            self._trials.append(trials)
            for lag in range(min(period + 1, self._mass.shape[1])):
                self._arrived[:, :, lag] += self._waiting[period - lag][:, :, lag]
                self._exposed[:, :, lag] += self._trials[period - lag]
        return successes
