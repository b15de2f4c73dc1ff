"""Hurdle posteriors of value per trial: does it convert, and if so, for how much.

What: value per trial = rate * amount, the rate with a Beta posterior from conversions, the mean amount of
converters (capped per trial) with a Gaussian prior pooled over the arms. The product's mean and variance
are exact; its shape is taken as a Beta on [0, cap], which is bounded and skewed as the product is, reduces
to the plain Beta posterior when all amounts equal the cap, and keeps P(best) exact by quadrature.

Why not a Gaussian of all values: most are zero, and with tens of conversions a symmetric interval reaches
below zero. Source: Duan et al. 1983, "A comparison of alternative models for the demand
for medical care", section 3 (two-part model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandit_core.posteriors.beta import BetaPosterior, BetaPrior
from bandit_core.probability_best import BestArm

__all__ = ["HurdlePosterior"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class HurdlePosterior:
    """Independent posteriors of value per trial; arrays (n_experiments, n_arms).

    Parameters
    ----------
    relative : BetaPosterior
        Posterior of value per trial as a share of ``cap``.
    cap : float
        Largest value of a trial.
    rate, amount : ndarray
        Posterior means of the two parts.
    """

    relative: BetaPosterior
    cap: float
    rate: Array
    amount: Array

    @classmethod
    def from_sums(
        cls,
        trials: ArrayLike,
        successes: ArrayLike,
        sums: ArrayLike,
        squares: ArrayLike,
        *,
        cap: float,
        prior: BetaPrior | None = None,
        amount_strength: float = 1.0,
    ) -> Self:
        """Posterior from trials, converting trials, and sums and sums of squares of their capped values.

        Parameters
        ----------
        trials, successes, sums, squares : array_like, shape (n_experiments, n_arms) or (n_arms,)
        cap : float
            Positive; every value lies in [0, cap].
        prior : BetaPrior, optional
            Of the conversion rate.
        amount_strength : float
            Converters that the pooled mean amount is worth for each arm; positive.
        """
        if not (np.isfinite(cap) and cap > 0.0) or not amount_strength > 0.0:
            raise ValueError(f"cap {cap!r} and amount_strength {amount_strength!r} must be positive")
        n, k, s, q = (
            np.atleast_2d(np.asarray(array, dtype=np.float64)) for array in (trials, successes, sums, squares)
        )
        if (s < 0.0).any() or (s > cap * k * (1.0 + 1e-9)).any():
            raise ValueError(f"sums: must be between 0 and cap * successes, with cap {cap!r}")
        rate = BetaPosterior.from_counts(n, k, prior)
        share, share_squares = s / cap, q / (cap * cap)
        pooled_k = k.sum(axis=1, keepdims=True)
        # Nothing converted yet: half the cap, as vague as a uniform amount.
        centre = np.where(
            pooled_k > 0.0, share.sum(axis=1, keepdims=True) / np.where(pooled_k > 0, pooled_k, 1), 0.5
        )
        safe_k = np.where(k > 0.0, k, 1.0)
        within = np.maximum(share_squares - share * share / safe_k, 0.0)
        spread = (within.sum(axis=1, keepdims=True) + 1.0 / 12.0) / (pooled_k + 1.0)
        spread = np.where(pooled_k > 1.0, np.minimum(spread, centre * (1.0 - centre)), 1.0 / 12.0)
        weight = k + amount_strength
        amount = (amount_strength * centre + share) / weight
        # Arms' own variance counts as far as they have data, the pooled one for the rest.
        variance = (within + (amount_strength + 1.0) * spread) / (k + amount_strength + 1.0) / weight
        mean = rate.mean() * amount
        second = (rate.sd() ** 2 + rate.mean() ** 2) * (variance + amount**2)
        total = mean * (1.0 - mean) / np.maximum(second - mean**2, 1e-300) - 1.0
        squares_relative = np.minimum(share_squares, share)
        relative = BetaPosterior(mean * total, (1.0 - mean) * total, n, share, squares_relative)
        return cls(relative, cap, rate.mean(), amount * cap)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_experiments, n_arms)."""
        return self.relative.shape

    def mean(self) -> Array:
        """Posterior mean of value per trial."""
        return self.cap * self.relative.mean()

    def sd(self) -> Array:
        """Posterior standard deviation."""
        return self.cap * self.relative.sd()

    def credible_interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Equal-tailed credible interval of probability ``level`` in (0, 1)."""
        low, high = self.relative.credible_interval(level)
        return self.cap * low, self.cap * high

    def effective_trials(self) -> Array:
        """Trials that the data are worth, the prior not counted."""
        return self.relative.data_trials

    def reward_moments(self) -> tuple[Array, Array]:
        """Mean and variance of single values as shares of the cap, from the data alone."""
        return self.relative.reward_moments()

    def draw(self, rng: np.random.Generator, n_draws: int) -> Array:
        """Independent draws of value per trial, shape (n_draws, n_experiments, n_arms)."""
        return self.cap * self.relative.draw(rng, n_draws)

    def best(self, *, eligible: Mask | None = None, lower_is_better: bool = False) -> BestArm:
        """P(best) and expected loss, the loss in the unit of the value."""
        best = self.relative.best(eligible=eligible, lower_is_better=lower_is_better)
        return BestArm(best.probability, self.cap * best.expected_loss, self.cap * best.expected_best)

    def value_remaining(
        self, quantile: float = 0.95, *, eligible: Mask | None = None, lower_is_better: bool = False
    ) -> Array:
        """Quantile of the relative improvement still possible: (n_experiments,)."""
        return self.relative.value_remaining(quantile, eligible=eligible, lower_is_better=lower_is_better)
