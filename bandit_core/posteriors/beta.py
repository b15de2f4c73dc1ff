"""Beta posteriors of rates and of rewards in [0, 1].

What: a Beta(alpha, beta) prior and counts give Beta(alpha + successes, beta + trials - successes); a reward
``r`` in [0, 1] adds ``r`` to the one and ``1 - r`` to the other.

Why: conjugate, so it is sums of counts; exact at zero successes. Sources: Gelman et al. 2013, "Bayesian Data
Analysis" 3rd ed., section 2.4 (Beta-Binomial); Agrawal and Goyal 2012, "Analysis of Thompson Sampling for the
multi-armed bandit problem", section 2 (rewards in [0, 1]; there by a Bernoulli trial, here in expectation).

Cost: O(n_experiments * n_arms); best() as in :mod:`bandit_core.probability_best`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from bandit_core.probability_best import BestArm, probability_best_beta, value_remaining_beta

__all__ = ["BetaPosterior", "BetaPrior"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BetaPrior:
    """Beta prior of every arm's rate, in pseudo-successes and pseudo-failures; both positive."""

    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0.0):
                raise ValueError(f"prior.{name}: {value!r} must be a positive number")

    @classmethod
    def from_mean(cls, mean: float, strength: float) -> Self:
        """Informative prior: ``mean`` in (0, 1), worth ``strength`` trials."""
        if not 0.0 < mean < 1.0 or not strength > 0.0:
            raise ValueError(f"prior: mean {mean!r} must be in (0, 1) and strength {strength!r} positive")
        return cls(mean * strength, (1.0 - mean) * strength)


@dataclass(frozen=True, slots=True, eq=False)
class BetaPosterior:
    """Independent Beta posteriors.

    Parameters
    ----------
    alpha, beta : ndarray, shape (n_experiments, n_arms)
        Positive parameters.
    data_trials : ndarray, same shape
        Effective trials behind them, prior not counted.
    data_successes, data_squares : ndarray, same shape
        Sums of rewards and of their squares behind them (equal where rewards are 0 or 1).
    """

    alpha: Array
    beta: Array
    data_trials: Array
    data_successes: Array
    data_squares: Array

    @classmethod
    def from_counts(
        cls,
        trials: ArrayLike,
        successes: ArrayLike,
        prior: BetaPrior | tuple[ArrayLike, ArrayLike] | None = None,
        *,
        squares: ArrayLike | None = None,
    ) -> Self:
        """Posterior from counts.

        Parameters
        ----------
        trials, successes : array_like, shape (n_experiments, n_arms) or (n_arms,)
            ``0 <= successes <= trials``; fractional for rewards in [0, 1], discounted or effective counts.
        prior : BetaPrior, or (alpha, beta) that broadcast to the counts' shape, optional
            Default Beta(1, 1).
        squares : array_like, same shape, optional
            Sums of squared rewards; default ``successes`` (rewards of 0 or 1).

        Raises
        ------
        ValueError
            Counts are negative, not finite, or have more successes than trials (names the experiment and
            arm).
        """
        n = np.atleast_2d(np.asarray(trials, dtype=np.float64))
        s = np.atleast_2d(np.asarray(successes, dtype=np.float64))
        if n.shape != s.shape:
            raise ValueError(f"trials and successes: shapes {n.shape} and {s.shape} differ")
        # Sums of fractional rewards may pass the trials by rounding alone.
        good = np.isfinite(n) & np.isfinite(s) & (s >= 0.0) & (s <= n * (1.0 + 1e-12))
        if not good.all():
            row, arm = np.argwhere(~good)[0]
            raise ValueError(
                f"experiment {row}, arm {arm}: {s[row, arm]!r} successes of {n[row, arm]!r} trials; want "
                f"0 <= successes <= trials"
            )
        if prior is None:
            prior = BetaPrior()
        a0, b0 = (prior.alpha, prior.beta) if isinstance(prior, BetaPrior) else prior
        alpha = np.asarray(a0, dtype=np.float64) + s
        beta = np.asarray(b0, dtype=np.float64) + np.maximum(n - s, 0.0)
        q = s if squares is None else np.atleast_2d(np.asarray(squares, dtype=np.float64))
        if q.shape != s.shape:
            raise ValueError(f"squares: shape {q.shape} differs from the successes' {s.shape}")
        return cls(alpha, beta, n, s, q)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_experiments, n_arms)."""
        return self.alpha.shape[0], self.alpha.shape[1]

    def mean(self) -> Array:
        """Posterior mean, in (0, 1)."""
        return self.alpha / (self.alpha + self.beta)

    def sd(self) -> Array:
        """Posterior standard deviation."""
        total = self.alpha + self.beta
        return np.sqrt(self.alpha / total * (self.beta / total) / (total + 1.0))

    def credible_interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Equal-tailed credible interval of probability ``level`` in (0, 1)."""
        if not 0.0 < level < 1.0:
            raise ValueError(f"level: {level!r} is not in (0, 1)")
        tail = 0.5 * (1.0 - level)
        low = np.asarray(betaincinv(self.alpha, self.beta, tail), dtype=np.float64)
        # The upper tail from the mirrored distribution keeps its precision near 1.
        high = 1.0 - np.asarray(betaincinv(self.beta, self.alpha, tail), dtype=np.float64)
        return low, high

    def effective_trials(self) -> Array:
        """Trials that the data are worth, the prior not counted."""
        return self.data_trials

    def reward_moments(self) -> tuple[Array, Array]:
        """Mean and variance of single rewards, from the data alone; 0 where there are none."""
        n = np.maximum(self.data_trials, 1e-300)
        mean = np.clip(self.data_successes / n, 0.0, 1.0)
        return mean, np.clip(self.data_squares / n - mean * mean, 0.0, 0.25)

    def draw(self, rng: np.random.Generator, n_draws: int) -> Array:
        """Independent draws, shape (n_draws, n_experiments, n_arms)."""
        return rng.beta(self.alpha, self.beta, size=(n_draws, *self.alpha.shape))

    def best(self, *, eligible: Mask | None = None, lower_is_better: bool = False) -> BestArm:
        """P(best) and expected loss, exact."""
        return probability_best_beta(
            self.alpha, self.beta, eligible=eligible, lower_is_better=lower_is_better
        )

    def value_remaining(
        self, quantile: float = 0.95, *, eligible: Mask | None = None, lower_is_better: bool = False
    ) -> Array:
        """Quantile of the relative improvement still possible: (n_experiments,)."""
        return value_remaining_beta(
            self.alpha, self.beta, quantile=quantile, eligible=eligible, lower_is_better=lower_is_better
        )
