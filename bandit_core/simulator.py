"""Simulated experiments, many seeds at once: what policies earn, with the truth known.

What: a :class:`Scenario` holds true rates by period and arm, traffic, delays and when arms start;
:func:`simulate` runs it under a policy with hourly batches as the product does (counts -> posterior ->
policy -> floors -> weights), vectorised over runs. Where the scenario has segments, contextual policies
weigh each by itself and the others see all together. Everything comes from one generator, so a seed gives
the same run on every call.

Cost: O(n_periods * n_runs * n_arms), with delay times the lags; 168 periods, 200 runs, 4 arms and Thompson
take some seconds. A contextual policy fits a model for each run and period: some 20 ms each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bandit_core.contextual import Design, Feature, fit
from bandit_core.delay import DelayGrid, DelaySettings, estimate_delay
from bandit_core.policies.base import Policy, gather
from bandit_core.policies.contextual import Contextual
from bandit_core.posteriors.beta import BetaPosterior, BetaPrior

__all__ = ["PENDING_AS", "Scenario", "Segments", "Simulation", "simulate", "units_of_best", "units_of_loss"]

Array = NDArray[np.float64]

PENDING_AS = ("known", "failure", "estimated", "gate")

N_DRAWS = 1000  # of a contextual fit, as many as the allocator takes


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Kinds of units whose rates differ.

    Parameters
    ----------
    features : tuple of Feature
        Of the context; the segments are their product, in order.
    factors : tuple of Feature
        Of the arms, if these are a product; may be empty.
    shares : ndarray, shape (n_segments,)
        Of the traffic; sum to 1.
    rates : ndarray, shape (n_segments, n_arms)
    """

    features: tuple[Feature, ...]
    factors: tuple[Feature, ...]
    shares: Array
    rates: Array

    def design(self) -> Design:
        """Every feature interacts with every factor, or with the arms themselves where there are none."""
        n_arms = self.rates.shape[1]
        factors = self.factors or (Feature("the arm", tuple(str(arm) for arm in range(n_arms))),)
        pairs = tuple((feature.name, factor.name) for feature in self.features for factor in factors)
        return Design(self.features, factors, interactions=pairs)


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """The truth.

    Parameters
    ----------
    name : str
    rates : ndarray, shape (n_periods, n_arms)
        Chance of (eventual) success of a trial by period of its exposure; over all segments.
    units_per_period : int
    mean_delay_periods : tuple of float, optional
        Mean of each arm's exponential delay; None: successes are known at once.
    window_periods : int
        Conversion window, where there are delays.
    starts : tuple of int, optional
        First period of each arm; default all 0.
    incubation_periods : int
        For so long a new arm gets exactly 1/n.
    segments : Segments, optional
        Not together with delays or starts.
    mean_values : tuple of float, optional
        Mean of the value of each arm's conversions, which spreads exponentially; for rewards by value.
    """

    name: str
    rates: Array
    units_per_period: int
    mean_delay_periods: tuple[float, ...] | None = None
    window_periods: int = 72
    starts: tuple[int, ...] | None = None
    incubation_periods: int = 0
    segments: Segments | None = None
    mean_values: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.rates.ndim != 2 or (self.rates < 0.0).any() or (self.rates > 1.0).any():
            raise ValueError(f"rates: want (n_periods, n_arms) in [0, 1], not shape {self.rates.shape}")
        for name in ("mean_delay_periods", "starts", "mean_values"):
            values = getattr(self, name)
            if values is not None and len(values) != self.rates.shape[1]:
                raise ValueError(f"{name}: {len(values)} values for {self.rates.shape[1]} arms")
        if self.units_per_period < 1:
            raise ValueError(f"units_per_period: {self.units_per_period!r} must be at least 1")
        if self.segments is not None and (self.mean_delay_periods or self.starts):
            raise ValueError("segments: not together with delays or starts of arms")

    @property
    def n_periods(self) -> int:
        """Number of periods."""
        return len(self.rates)

    @property
    def n_arms(self) -> int:
        """Number of arms."""
        return int(self.rates.shape[1])

    def started(self) -> NDArray[np.bool_]:
        """Which arms exist in which period, (n_periods, n_arms)."""
        starts = np.zeros(self.n_arms) if self.starts is None else np.array(self.starts)
        there: NDArray[np.bool_] = starts <= np.arange(self.n_periods)[:, None]
        return there

    def best_arm(self, *, lower_is_better: bool = False) -> int:
        """Arm with the best rate on average over the periods."""
        mean = self.rates.mean(axis=0)
        return int(mean.argmin() if lower_is_better else mean.argmax())

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
    """What happened; arrays (n_periods, n_runs, n_arms), or (n_periods, n_runs) where it says so.

    Attributes
    ----------
    scenario : Scenario
    weights : ndarray
        Realised shares.
    trials, successes : ndarray
        By period of exposure; successes are the eventual ones.
    probability_best : ndarray or None
        What the policy saw, when it asked.
    lost : ndarray, shape (n_periods, n_runs)
        Expected successes lost against the best arm of the moment.
    best_units : ndarray, shape (n_periods, n_runs)
        Units that got the best arm.
    by_segment : bool
        Whether weights differed by segment; then arms saw different kinds of units.
    lower_is_better : bool
    wait_periods : int
        Reports compare periods older than that.
    live : ndarray of bool or None
        Arms that are neither stopped nor dropped; None: all are.
    squares : ndarray or None
        Sums of squares of rewards by value; ``successes`` are then sums of values as shares of the cap.
    """

    scenario: Scenario
    weights: Array
    trials: Array
    successes: Array
    probability_best: Array | None
    lost: Array
    best_units: Array
    by_segment: bool = False
    lower_is_better: bool = False
    wait_periods: int = 0
    live: NDArray[np.bool_] | None = None
    squares: Array | None = None

    def regret(self) -> Array:
        """Return expected successes lost against the best started arm of each period: (n_runs,)."""
        lost: Array = self.lost.sum(axis=0)
        return lost

    def best_arm_share(self, through: int | None = None) -> Array:
        """Return the share of all traffic up to a period that went to the best arm: (n_runs,).

        The best arm is that with the best average rate, in its segment where there are segments.
        """
        share: Array = self.best_units[:through].sum(axis=0) / self.trials[:through].sum(axis=(0, 2))
        return share

    def starved(self, share: float = 0.005) -> Array:
        """Count the arms with less than ``share`` of all traffic: (n_runs,)."""
        totals = self.trials.sum(axis=0)
        few: Array = (totals < share * totals.sum(axis=1, keepdims=True)).sum(axis=1).astype(np.float64)
        return few


def units_of_loss(
    rates: Array, trials: Array, *, started: NDArray[np.bool_] | None = None, lower_is_better: bool = False
) -> Array:
    """Count expected successes lost against the best arm that had started.

    Parameters
    ----------
    rates : ndarray, shape (..., n_arms)
    trials : ndarray, shape (..., n_arms)
    started : ndarray of bool, shape (..., n_arms), optional
    lower_is_better : bool

    Returns
    -------
    ndarray, shape (...)
    """
    value = -rates if lower_is_better else rates
    there = np.ones(rates.shape, dtype=bool) if started is None else started
    gap = np.where(there, value, -np.inf).max(axis=-1, keepdims=True) - value
    lost: Array = (trials * gap).sum(axis=-1)
    return lost


def units_of_best(scenario: Scenario, trials: Array, *, lower_is_better: bool = False) -> Array:
    """Count units that got the arm with the best average rate: (...) of trials (..., n_arms)."""
    best: Array = trials[..., scenario.best_arm(lower_is_better=lower_is_better)]
    return best


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
    if scenario.mean_values is not None:
        raise ValueError("mean_values: a bare policy learns rates; simulate a definition of kind value")
    if scenario.segments is not None:
        return _simulate_segments(scenario, scenario.segments, policy, n_runs, rng, prior, floor)
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
    lost = units_of_loss(scenario.rates[:, None], trials, started=scenario.started()[:, None])
    return Simulation(
        scenario,
        weights,
        trials,
        successes,
        seen,
        lost,
        units_of_best(scenario, trials),
        wait_periods=0 if scenario.mean_delay_periods is None else scenario.window_periods,
    )


def _simulate_segments(
    scenario: Scenario,
    segments: Segments,
    policy: Policy,
    n_runs: int,
    rng: np.random.Generator,
    prior: BetaPrior | None,
    floor: float | None,
) -> Simulation:
    """Units of several kinds: a contextual policy weighs each kind, any other all of them alike."""
    n_segments, n_arms = segments.rates.shape
    shape = (scenario.n_periods, n_runs, n_arms)
    weights, trials, successes = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    lost, best_units = np.zeros(shape[:2]), np.zeros(shape[:2])
    got, won = np.zeros((2, n_runs, n_segments, n_arms))
    best = segments.rates.argmax(axis=1)
    design = segments.design()
    least = policy.default_floor if floor is None else floor
    for period in range(scenario.n_periods):
        share = np.empty((n_runs, n_segments, n_arms))
        if isinstance(policy, Contextual):
            for run in range(n_runs):
                share[run] = _weights_by_segment(policy, design, got[run], won[run], rng)
        else:
            posterior = BetaPosterior.from_counts(got.sum(axis=1), won.sum(axis=1), prior)
            evidence = gather(policy.needs, posterior, np.ones((n_runs, n_arms), dtype=bool))
            share[:] = policy.choose(evidence, rng).weights[:, None]
        share = least + (1.0 - n_arms * least) * share
        units = rng.multinomial(scenario.units_per_period, segments.shares, size=n_runs)
        drawn = rng.multinomial(units, share).astype(np.float64)
        hits = rng.binomial(drawn.astype(np.int64), segments.rates)
        got += drawn
        won += hits
        weights[period] = (segments.shares[:, None] * share).sum(axis=1)
        trials[period], successes[period] = drawn.sum(axis=1), hits.sum(axis=1)
        lost[period] = units_of_loss(segments.rates, drawn).sum(axis=1)
        best_units[period] = drawn[:, np.arange(n_segments), best].sum(axis=1)
    by_segment = isinstance(policy, Contextual)
    return Simulation(scenario, weights, trials, successes, None, lost, best_units, by_segment)


def _weights_by_segment(
    policy: Contextual, design: Design, trials: Array, successes: Array, rng: np.random.Generator
) -> Array:
    """Weights (n_segments, n_arms) of one run."""
    if not trials.any():
        return np.full(trials.shape, 1.0 / trials.shape[1])
    arms = design.arms()
    mode: Literal["gibbs", "laplace"] = "gibbs" if policy.mode == "gibbs" else "laplace"
    model = fit(design, trials, successes, rng=rng, mode=mode, n_draws=N_DRAWS, arms=arms)
    evidence = gather(policy.needs, model, np.ones(trials.shape, dtype=bool))
    return policy.choose(evidence, rng).weights


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
