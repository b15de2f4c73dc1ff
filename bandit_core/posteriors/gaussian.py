"""Gaussian posteriors of arms' mean values.

What: values of any kind, averaged; by the central limit theorem the mean of many is Gaussian whatever
single values are. A Gaussian prior on the mean (worth ``strength`` observations) and a prior guess of the
variance (likewise) are updated by sums and sums of squares; the mean's Student-t posterior is represented
by the Gaussian with its variance. Source: Gelman et al. 2013, "Bayesian Data Analysis" 3rd ed., section 3.3
(normal data with a conjugate prior).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from bandit_core.posteriors.beta import BetaPosterior
from bandit_core.probability_best import BestArm, probability_best_gaussian, value_remaining_gaussian

__all__ = ["GaussianPosterior", "GaussianPrior"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class GaussianPrior:
    """Normal-inverse-gamma prior.

    Parameters
    ----------
    mean : float
        Prior mean, in the unit of the value.
    strength : float
        Observations that the prior mean is worth; positive.
    variance : float
        Prior guess of the variance of single values; positive.
    variance_strength : float
        Observations that guess is worth; above 2, so that the posterior has a variance.
    """

    mean: float = 0.0
    strength: float = 1.0
    variance: float = 1.0
    variance_strength: float = 4.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.mean):
            raise ValueError(f"prior.mean: {self.mean!r} is not finite")
        for name, low in (("strength", 0.0), ("variance", 0.0), ("variance_strength", 2.0)):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > low):
                raise ValueError(f"prior.{name}: {value!r} must be above {low:g}")


@dataclass(frozen=True, slots=True, eq=False)
class GaussianPosterior:
    """Independent Gaussian posteriors; arrays (n_experiments, n_arms).

    Parameters
    ----------
    location, scale : ndarray
        Mean and standard deviation of the posterior of each arm's mean.
    data_trials, data_sums, data_squares : ndarray
        What the data said, prior not counted.
    """

    location: Array
    scale: Array
    data_trials: Array
    data_sums: Array
    data_squares: Array

    @classmethod
    def from_sums(cls, trials: ArrayLike, sums: ArrayLike, squares: ArrayLike, prior: GaussianPrior) -> Self:
        """Posterior from numbers of values, their sums and sums of squares.

        Raises
        ------
        ValueError
            Shapes differ, or squares are smaller than the sums allow.
        """
        n, s, q = (np.atleast_2d(np.asarray(array, dtype=np.float64)) for array in (trials, sums, squares))
        if not n.shape == s.shape == q.shape:
            raise ValueError(f"trials, sums and squares: shapes {n.shape}, {s.shape} and {q.shape} differ")
        safe = np.where(n > 0.0, n, 1.0)
        within = q - s * s / safe
        if (n < 0.0).any() or (within < -1e-9 * np.maximum(q, 1.0)).any():
            raise ValueError("squares: smaller than the square of the sum over the trials; check the sums")
        mean = s / safe
        strength = prior.strength + n
        location = (prior.strength * prior.mean + s) / strength
        freedom = prior.variance_strength + n
        total = (
            prior.variance_strength * prior.variance
            + np.maximum(within, 0.0)
            + prior.strength * n / strength * np.where(n > 0.0, mean - prior.mean, 0.0) ** 2
        )
        # Variance of the Student-t with `freedom` degrees and scale total / freedom / strength.
        variance = total / (freedom - 2.0) / strength
        return cls(location, np.sqrt(variance), n, s, q)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_experiments, n_arms)."""
        return self.location.shape[0], self.location.shape[1]

    def mean(self) -> Array:
        """Posterior mean."""
        return self.location

    def sd(self) -> Array:
        """Posterior standard deviation."""
        return self.scale

    def credible_interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Equal-tailed credible interval of probability ``level`` in (0, 1)."""
        if not 0.0 < level < 1.0:
            raise ValueError(f"level: {level!r} is not in (0, 1)")
        reach = float(ndtri(0.5 + 0.5 * level)) * self.scale
        return self.location - reach, self.location + reach

    def relative(self, cap: float) -> BetaPosterior:
        """Give the posterior of the mean as a share of a cap: the Beta distribution with its two moments.

        Policies and batches of P(best) work on shares. A mean outside of [0, cap] is taken at the border.
        """
        mean = np.clip(self.location / cap, 1e-9, 1.0 - 1e-9)
        strength = mean * (1.0 - mean) / np.maximum((self.scale / cap) ** 2, 1e-300) - 1.0
        strength = np.maximum(strength, 1e-3)  # vaguer than any Beta distribution
        sums = np.clip(self.data_sums / cap, 0.0, self.data_trials)
        squares = np.clip(self.data_squares / (cap * cap), 0.0, sums)
        return BetaPosterior(mean * strength, (1.0 - mean) * strength, self.data_trials, sums, squares)

    def effective_trials(self) -> Array:
        """Trials that the data are worth, the prior not counted."""
        return self.data_trials

    def reward_moments(self) -> tuple[Array, Array]:
        """Mean and variance of single values capped to [0, 1]; bounds that need it want values scaled so."""
        n = np.maximum(self.data_trials, 1e-300)
        mean = np.clip(self.data_sums / n, 0.0, 1.0)
        return mean, np.clip(self.data_squares / n - mean * mean, 0.0, 0.25)

    def draw(self, rng: np.random.Generator, n_draws: int) -> Array:
        """Independent draws, shape (n_draws, n_experiments, n_arms)."""
        return rng.normal(self.location, self.scale, size=(n_draws, *self.location.shape))

    def best(self, *, eligible: Mask | None = None, lower_is_better: bool = False) -> BestArm:
        """P(best) and expected loss, by quadrature."""
        return probability_best_gaussian(
            self.location, self.scale, eligible=eligible, lower_is_better=lower_is_better
        )

    def value_remaining(
        self, quantile: float = 0.95, *, eligible: Mask | None = None, lower_is_better: bool = False
    ) -> Array:
        """Quantile of the improvement still possible, relative to the best arm's |mean|: (n_experiments,)."""
        return value_remaining_gaussian(
            self.location, self.scale, quantile=quantile, eligible=eligible, lower_is_better=lower_is_better
        )
