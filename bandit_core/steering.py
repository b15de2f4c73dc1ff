"""From period counts to the posterior that steers: one function for everything a definition can ask.

Order: delay (pending trials are worth what the arm's own delay says, or only mature periods count) ->
discount or window -> period stratification -> overdispersion -> prior (given, or pooled over the arms) ->
posterior. Each step is off or on by itself; what could not be done is said in ``warnings``.

These posteriors steer traffic. They are not for reports: shrinking, discounting and adaptive collection
bias them; :mod:`bandit_core.inference` has what may be reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandit_core.counts import PeriodCounts, dispersion, period_weights
from bandit_core.delay import (
    DelayEstimate,
    DelayGrid,
    DelaySettings,
    estimate_delay,
    lag_sums,
    log_likelihood_ratio_of_arms,
)
from bandit_core.posteriors.base import Posterior
from bandit_core.posteriors.beta import BetaPosterior, BetaPrior
from bandit_core.posteriors.gaussian import GaussianPosterior, GaussianPrior
from bandit_core.posteriors.hurdle import HurdlePosterior
from bandit_core.priors import pooled_beta_prior
from bandit_core.stratification import stratify

__all__ = [
    "Learning",
    "Steering",
    "SteeringSettings",
    "estimate_delays",
    "steering_posterior",
    "steering_with",
]

Array = NDArray[np.float64]

_DELAYS_DIFFER = 3.0  # log Bayes factor


@dataclass(frozen=True, slots=True)
class SteeringSettings:
    """What the definition says about learning.

    Parameters
    ----------
    reward : {"rate", "value"}
    model : {"hurdle", "gaussian"}
        Of values: does a trial convert, and for how much; or the mean alone, by the central limit theorem.
    cap : float
        Largest value of a trial, for ``value``.
    prior : BetaPrior
        Of the rate.
    pooled_prior : bool
        Learn the prior from the arms instead.
    delay : {"none", "gate", "estimate"}
        Pending trials count as they are, only periods older than the window count, or delays are estimated.
    window_periods : int
        Conversion window in periods.
    half_life_periods : float, optional
    sliding_window_periods : int, optional
    stratify : bool
        Compare arms within periods.
    overdispersion : bool
        Divide counts by their measured overdispersion.
    """

    reward: Literal["rate", "value"] = "rate"
    model: Literal["hurdle", "gaussian"] = "hurdle"
    cap: float = 1.0
    prior: BetaPrior = field(default_factory=BetaPrior)
    pooled_prior: bool = False
    delay: Literal["none", "gate", "estimate"] = "none"
    window_periods: int = 24
    half_life_periods: float | None = None
    sliding_window_periods: int | None = None
    stratify: bool = False
    overdispersion: bool = False

    def __post_init__(self) -> None:
        if self.reward not in ("rate", "value"):
            raise ValueError(f"reward: {self.reward!r} is not rate or value")
        if self.model not in ("hurdle", "gaussian"):
            raise ValueError(f"model: {self.model!r} is not hurdle or gaussian")
        if self.delay not in ("none", "gate", "estimate"):
            raise ValueError(f"delay: {self.delay!r} is not none, gate or estimate")
        if not (np.isfinite(self.cap) and self.cap > 0.0):
            raise ValueError(f"cap: {self.cap!r} must be positive")
        if self.window_periods < 0:
            raise ValueError(f"window_periods: {self.window_periods!r} is negative")
        period_weights(
            1, half_life_periods=self.half_life_periods, window_periods=self.sliding_window_periods
        )


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """The posterior and what went into it.

    Attributes
    ----------
    posterior : Posterior
        Shape (1, n_arms).
    effective_trials, successes : ndarray, shape (n_arms,)
        Counts the posterior is worth.
    prior : BetaPrior
    delay : DelayEstimate or None
    dispersion : float
        Factor by which counts were divided.
    warnings : tuple of str
    """

    posterior: Posterior
    effective_trials: Array
    successes: Array
    prior: BetaPrior
    delay: DelayEstimate | None
    dispersion: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Learning:
    """Counts of one experiment as its settings let them count, before delays are estimated.

    Attributes
    ----------
    used : PeriodCounts
    weights : ndarray, shape (n_periods,)
    lags : tuple of ndarray, or None
        Conversions by lag and the trials that could show it, where delays are to be estimated.
    settings : SteeringSettings
    """

    used: PeriodCounts
    weights: Array
    lags: tuple[Array, Array] | None
    settings: SteeringSettings

    @classmethod
    def of(cls, counts: PeriodCounts, settings: SteeringSettings) -> Learning:
        """Take counts up to the boundary.

        Raises
        ------
        ValueError
            If the counts contradict the settings.
        """
        used = counts.mature(settings.window_periods) if settings.delay == "gate" else counts
        weights = period_weights(
            used.n_periods,
            half_life_periods=settings.half_life_periods,
            window_periods=settings.sliding_window_periods,
        )
        estimated = settings.delay == "estimate" and settings.window_periods >= 1 and used.n_periods > 0
        lags = lag_sums(used, settings.window_periods, weights) if estimated else None
        return cls(used, weights, lags, settings)


def estimate_delays(learning: Sequence[Learning]) -> list[DelayEstimate | None]:
    """Estimate the delays of many experiments together; None where a definition asks for none."""
    found: list[DelayEstimate | None] = [None] * len(learning)
    alike: dict[tuple[int, BetaPrior], list[int]] = {}
    for index, each in enumerate(learning):
        if each.lags is not None:
            alike.setdefault((each.settings.window_periods, each.settings.prior), []).append(index)
    for (window_periods, prior), members in alike.items():
        pairs = [lags for index in members if (lags := learning[index].lags) is not None]
        conversions, exposed = (np.concatenate(part) for part in zip(*pairs, strict=True))
        together = estimate_delay(conversions, exposed, DelayGrid.of(DelaySettings(window_periods)), prior)
        start = 0
        for index, (of_arms, _) in zip(members, pairs, strict=True):
            found[index] = together.rows(start, start + len(of_arms))
            start += len(of_arms)
    return found


def steering_posterior(
    counts: PeriodCounts, settings: SteeringSettings, *, eligible: ArrayLike | None = None
) -> Steering:
    """Learn from counts as the settings say.

    Parameters
    ----------
    counts : PeriodCounts
        Up to the boundary.
    settings : SteeringSettings
    eligible : array_like of bool, shape (n_arms,), optional
        Arms that stratification compares and the pooled prior learns from; default all with trials.

    Returns
    -------
    Steering
    """
    learning = Learning.of(counts, settings)
    (delay,) = estimate_delays([learning])
    return steering_with(learning, delay, eligible=eligible)


def steering_with(
    learning: Learning, delay: DelayEstimate | None, *, eligible: ArrayLike | None = None
) -> Steering:
    """Do the rest of :func:`steering_posterior` with a delay from :func:`estimate_delays`."""
    warnings: list[str] = []
    used, settings, weights = learning.used, learning.settings, learning.weights[:, None]
    n_arms = used.trials.shape[1]
    mask = np.ones(n_arms, dtype=bool) if eligible is None else np.asarray(eligible, dtype=bool)
    trials, successes = used.trials * weights, used.totals() * weights
    certainty = np.ones(n_arms)
    if delay is not None:
        certainty, shown = _delayed(learning, delay, warnings)
        trials = np.maximum(trials * shown, successes)
    factor = 1.0
    if settings.overdispersion and used.n_periods > 1:
        factor = dispersion(used.trials, used.totals())
    total_trials, total_successes = trials.sum(axis=0), successes.sum(axis=0)
    if settings.stratify and used.n_periods > 0:
        compared = mask & (total_trials > 0.0)
        stratified = stratify(trials, successes, compared=compared)
        warnings.extend(stratified.warnings)
        total_trials = np.where(compared, stratified.trials, total_trials)
        total_successes = np.where(compared, stratified.successes, total_successes)
    # What the delay leaves unknown makes trials worth less, for the rate of the arm as a whole.
    share = certainty / factor
    total_trials, total_successes = total_trials * share, total_successes * share
    prior = settings.prior
    if settings.pooled_prior:
        prior = pooled_beta_prior(total_trials[mask], total_successes[mask])
    posterior: Posterior
    if settings.reward == "rate":
        posterior = BetaPosterior.from_counts(total_trials, total_successes, prior)
    else:
        raw = successes.sum(axis=0)
        scale = np.divide(total_successes, raw, out=np.zeros(n_arms), where=raw > 0.0)
        sums = (used.totals("sums") * weights).sum(axis=0) * scale
        squares = (used.totals("squares") * weights).sum(axis=0) * scale
        if settings.model == "gaussian":
            posterior = _gaussian(total_trials, sums, squares, settings.cap, prior)
        else:
            posterior = HurdlePosterior.from_sums(
                total_trials, total_successes, sums, squares, cap=settings.cap, prior=prior
            )
    return Steering(posterior, total_trials, total_successes, prior, delay, factor, tuple(warnings))


def _gaussian(trials: Array, sums: Array, squares: Array, cap: float, prior: BetaPrior) -> GaussianPosterior:
    """Gaussian posterior; the prior of a rate says the same of the mean as a share of the cap."""
    share = prior.alpha / (prior.alpha + prior.beta)
    # Trials that are worth less than one by one may be fewer than their own values allow.
    least = np.divide(sums**2, squares, out=np.zeros_like(sums), where=squares > 0.0)
    gaussian = GaussianPrior(
        mean=share * cap, strength=prior.alpha + prior.beta, variance=share * (1.0 - share) * cap * cap
    )
    return GaussianPosterior.from_sums(np.maximum(trials, least), sums, squares, gaussian)


def _delayed(learning: Learning, estimate: DelayEstimate, warnings: list[str]) -> tuple[Array, Array]:
    """Share of each arm's trials left by its delay's uncertainty; share shown by period."""
    counts, settings = learning.used, learning.settings
    conversions, exposed = learning.lags or lag_sums(counts, settings.window_periods, learning.weights)
    lag = np.minimum(counts.ages(), settings.window_periods)
    shown = estimate.cdf[:, lag].T
    weighted = counts.trials * learning.weights[:, None]
    worth = np.maximum((weighted * shown).sum(axis=0), conversions.sum(axis=1))
    certainty = np.divide(
        np.minimum(estimate.effective_trials, worth), worth, out=np.ones_like(worth), where=worth > 0.0
    )
    informed = conversions.sum(axis=1) > 0.0
    if informed.sum() > 1:
        grid = DelayGrid.of(DelaySettings(settings.window_periods))
        ratio = float(log_likelihood_ratio_of_arms(conversions[informed], exposed[informed], grid))
        if ratio > _DELAYS_DIFFER:
            shown_lags = ", ".join(f"{lag:.1f}" for lag in estimate.mean_lag_periods)
            warnings.append(
                f"the arms' delays differ (mean lags {shown_lags} periods): counts of pending trials mislead"
            )
    return certainty, shown
