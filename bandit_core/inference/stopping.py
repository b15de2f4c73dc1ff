"""When it is safe to stop, and in-sample figures.

``Safe to stop`` says that little can be won by going on: the 95th percentile of the value remaining is
under 1% (Scott 2015, section 3) after at least two whole weeks. It does not say that the leader is better;
that claim is a confidence sequence's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandit_core.posteriors.base import Posterior

__all__ = ["STOP_QUANTILE", "Estimate", "InSample", "StopAdvice", "in_sample", "safe_to_stop"]

Array = NDArray[np.float64]

STOP_QUANTILE = 0.95  # of the value remaining


@dataclass(frozen=True, slots=True)
class StopAdvice:
    """Whether to stop, and why not.

    Attributes
    ----------
    safe : bool
    value_remaining : float
        95th percentile, relative.
    weeks : float
        Run so far.
    reason : str
    """

    safe: bool
    value_remaining: float
    weeks: float
    reason: str


def safe_to_stop(
    posterior: Posterior,
    *,
    days: float,
    eligible: ArrayLike | None = None,
    lower_is_better: bool = False,
    threshold: float = 0.01,
    min_weeks: int = 2,
    value_remaining: float | None = None,
) -> StopAdvice:
    """Advise on stopping one experiment.

    Parameters
    ----------
    posterior : Posterior
        Shape (1, n_arms); of the reporting view, without discounting.
    days : float
        Since the start.
    eligible : array_like of bool, shape (n_arms,), optional
    lower_is_better : bool
    threshold : float
        Value remaining, relative, below which it is safe.
    min_weeks : int
        Whole weeks it must have run.
    value_remaining : float, optional
        The posterior's, at :data:`STOP_QUANTILE`, where it is known already.
    """
    mask = None if eligible is None else np.asarray(eligible, dtype=bool)[None]
    remaining = value_remaining
    if remaining is None:
        found = posterior.value_remaining(STOP_QUANTILE, eligible=mask, lower_is_better=lower_is_better)
        remaining = float(found[0])
    weeks = int(days // 7)
    if remaining >= threshold:
        reason = f"up to {remaining:.1%} could still be won (95th percentile); below {threshold:.1%} is safe"
    elif weeks < min_weeks:
        reason = f"{weeks} whole weeks of at least {min_weeks}: weekdays may differ"
    else:
        reason = "little is left to win; this is no claim that the leader is better"
    return StopAdvice(remaining < threshold and weeks >= min_weeks, remaining, days / 7.0, reason)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A posterior mean with its 95% credible interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class InSample:
    """Figures on the data themselves, with credible intervals; descriptive, biased towards the leader.

    Attributes
    ----------
    expected_reward : Estimate
        Mean reward under the given weights.
    lift_control, lift_worst : Estimate or None
        Of that reward over control's, and over that of the arm with the worst mean; None without control.
    low, high : ndarray, shape (n_arms,)
    exploration_share : float
        Weight not on the arm with the best mean.
    """

    expected_reward: Estimate
    lift_control: Estimate | None
    lift_worst: Estimate
    low: Array
    high: Array
    exploration_share: float


_DRAWS = 4000


def in_sample(
    posterior: Posterior,
    weights: ArrayLike,
    *,
    rng: np.random.Generator,
    control: int | None = None,
    lower_is_better: bool = False,
) -> InSample:
    """Describe one experiment's posterior under its current weights.

    Parameters
    ----------
    posterior : Posterior
        Shape (1, n_arms).
    weights : array_like, shape (n_arms,)
        Scaled to sum to 1.
    rng : numpy.random.Generator
        For the intervals: 4,000 draws.
    control : int or None
    lower_is_better : bool
    """
    w = np.asarray(weights, dtype=np.float64)
    if posterior.shape != (1, len(w)) or not w.sum() > 0.0:
        raise ValueError(f"weights: {w.tolist()} do not fit a posterior of shape {posterior.shape}")
    w = w / w.sum()
    mean = posterior.mean()[0]
    low, high = posterior.credible_interval()
    live = np.flatnonzero(w > 0.0)
    worst, best = (int(live[pick(mean[live])]) for pick in (np.argmin, np.argmax))
    if lower_is_better:
        worst, best = best, worst
    draws = posterior.draw(rng, _DRAWS)[:, 0]
    reward, drawn = float((w * mean).sum()), (w * draws).sum(axis=-1)

    def lift(base: int) -> Estimate:
        return _summary(reward / mean[base] - 1.0, drawn / draws[:, base] - 1.0)

    return InSample(
        _summary(reward, drawn),
        None if control is None else lift(control),
        lift(worst),
        low[0],
        high[0],
        float(1.0 - w[best]),
    )


def _summary(mean: float, draws: Array) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(mean), float(low), float(high))
