"""What a posterior offers to policies and reports; they never reach further into it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bandit_core.probability_best import BestArm

__all__ = ["Posterior"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Posterior(Protocol):
    """Independent posteriors of the arms' means; every array is (n_experiments, n_arms)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_experiments, n_arms)."""
        ...

    def mean(self) -> Array:
        """Posterior mean."""
        ...

    def sd(self) -> Array:
        """Posterior standard deviation."""
        ...

    def credible_interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Equal-tailed interval: (low, high)."""
        ...

    def effective_trials(self) -> Array:
        """Trials that the data are worth, the prior not counted."""
        ...

    def reward_moments(self) -> tuple[Array, Array]:
        """Mean and variance of single rewards, scaled and capped to [0, 1], from the data alone."""
        ...

    def draw(self, rng: np.random.Generator, n_draws: int) -> Array:
        """Independent draws: (n_draws, n_experiments, n_arms)."""
        ...

    def best(self, *, eligible: Mask | None = None, lower_is_better: bool = False) -> BestArm:
        """P(best) and expected loss."""
        ...

    def value_remaining(
        self, quantile: float = 0.95, *, eligible: Mask | None = None, lower_is_better: bool = False
    ) -> Array:
        """Quantile of the relative improvement still possible: (n_experiments,)."""
        ...
