"""Priors learned from the arms together (empirical Bayes).

What: the arms' true means scatter around a common mean with variance ``τ²``; estimated from the data, it
says how far to draw each arm to the others: much with little data, hardly at all with much. Sources: James
and Stein 1961; Efron and Morris 1975, "Data analysis using Stein's estimator and its generalizations",
section 2 (shrinkage towards the grand mean, ``k - 3``); DerSimonian and Laird 1986, section 3 (``τ²`` by
moments with unequal variances).

For steering only: shrunk means are better guesses but not unbiased, so reports do not use them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandit_core.posteriors.beta import BetaPrior

__all__ = ["between_arm_variance", "james_stein", "pooled_beta_prior"]

Array = NDArray[np.float64]


def james_stein(means: ArrayLike, variance: float) -> Array:
    """Positive-part James-Stein estimates, shrunk to the grand mean.

    Parameters
    ----------
    means : array_like, shape (n_arms,)
        At least four, with the same sampling ``variance``.
    variance : float
        Positive.

    Returns
    -------
    ndarray, shape (n_arms,)
        ``m + c (mean - m)``, ``c = max(0, 1 - (k - 3) variance / Σ (mean - m)²)``.
    """
    y = np.asarray(means, dtype=np.float64)
    if y.ndim != 1 or len(y) < 4 or not variance > 0.0:
        raise ValueError(f"want at least 4 means and a positive variance, not {y.shape} and {variance!r}")
    centre = y.mean()
    spread = float(((y - centre) ** 2).sum())
    factor = max(0.0, 1.0 - (len(y) - 3) * variance / spread) if spread > 0.0 else 0.0
    shrunk: Array = centre + factor * (y - centre)
    return shrunk


def between_arm_variance(means: ArrayLike, variances: ArrayLike) -> tuple[float, float]:
    """Estimate the common mean and variance ``τ²`` of the arms' true means (DerSimonian and Laird 1986).

    Parameters
    ----------
    means, variances : array_like, shape (n_arms,)
        Estimates and their positive sampling variances.

    Returns
    -------
    tuple of float
        ``(mean, tau_squared)``; 0 for ``τ²`` when the scatter is no more than noise, or there is one arm.
    """
    y, v = np.asarray(means, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    if y.shape != v.shape or y.ndim != 1 or len(y) < 1 or not (v > 0.0).all():
        raise ValueError("want as many positive variances as means, and at least one")
    w = 1.0 / v
    mean = float((w * y).sum() / w.sum())
    if len(y) == 1:
        return mean, 0.0
    excess = float((w * (y - mean) ** 2).sum()) - (len(y) - 1)
    tau_squared = max(0.0, excess / float(w.sum() - (w * w).sum() / w.sum()))
    w = 1.0 / (v + tau_squared)
    return float((w * y).sum() / w.sum()), tau_squared


def pooled_beta_prior(
    trials: ArrayLike, successes: ArrayLike, *, min_strength: float = 2.0, max_strength: float = 1000.0
) -> BetaPrior:
    """Beta prior with the arms' common mean and scatter.

    Parameters
    ----------
    trials, successes : array_like, shape (n_arms,)
        Arms without trials are left out.
    min_strength, max_strength : float
        Bounds, in trials, of what the prior is worth; the upper one holds when the arms do not differ at all.

    Returns
    -------
    BetaPrior
        Beta(1, 1) when no arm has trials.
    """
    if not 0.0 < min_strength <= max_strength:
        raise ValueError(f"strength: bounds {min_strength!r} and {max_strength!r} are not 0 < min <= max")
    n, s = np.asarray(trials, dtype=np.float64), np.asarray(successes, dtype=np.float64)
    seen = n > 0.0
    if not seen.any():
        return BetaPrior()
    n, s = n[seen], s[seen]
    # Half a success and half a failure at the pooled rate keep the mean inside (0, 1).
    pooled = float((s.sum() + 0.5) / (n.sum() + 1.0))
    mean, tau_squared = between_arm_variance(s / n, pooled * (1.0 - pooled) / n)
    mean = min(max(mean, 0.5 / (n.sum() + 1.0)), 1.0 - 0.5 / (n.sum() + 1.0))
    level = mean * (1.0 - mean)
    strength = level / tau_squared - 1.0 if tau_squared > 0.0 else max_strength
    return BetaPrior.from_mean(mean, min(max(strength, min_strength), max_strength))
