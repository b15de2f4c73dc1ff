"""Top-two Thompson sampling: traffic for finding the best arm rather than for earning while at it.

With probability ``leader`` the sampled best arm, else the best of a resample conditioned on being another
arm. In expectation, with ``p`` = P(best): ``w_i = p_i (leader + (1 - leader) Σ_{j≠i} p_j / (1 - p_j))``.
Source: Russo 2016, "Simple Bayesian algorithms for best arm identification", section 3.2 (top-two Thompson
sampling); ``leader = 1/2`` is within a factor 2 of the best choice for any instance (section 5 there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from bandit_core.policies.base import Evidence, Need, Parameters, PolicyWeights

__all__ = ["TopTwo"]


@dataclass(frozen=True, slots=True)
class TopTwo:
    """Half to the probable best, half to its challengers.

    Parameters
    ----------
    leader : float
        Share of the leader, in (0, 1].
    """

    leader: float = 0.5

    name: ClassVar[str] = "top_two"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROBABILITY_BEST})
    default_floor: ClassVar[float] = 0.01

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """``leader``."""
        leader = parameters.number("leader", 0.5, low=0.0, high=1.0, low_open=True)
        parameters.finish()
        return cls(leader)

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:  # noqa: ARG002 - protocol
        """Weights in expectation; draws nothing."""
        eligible = evidence.eligible
        p = np.where(eligible, evidence.required(Need.PROBABILITY_BEST), 0.0)
        p = p / p.sum(axis=-1, keepdims=True)
        n_arms = p.shape[-1]
        weights = self.leader * p
        for j in range(n_arms):
            others = eligible.copy()
            others[:, j] = False
            # The others' own sum, not 1 - p_j: exact where p_j is within rounding of 1. Where they have no
            # chance at all, they are equal challengers; a single arm is its own.
            chance = np.where(others, p, 0.0)
            mass = chance.sum(axis=-1, keepdims=True)
            count = np.maximum(others.sum(axis=-1, keepdims=True), 1)
            challengers = np.where(mass > 0.0, chance / np.where(mass > 0.0, mass, 1.0), others / count)
            alone = ~others.any(axis=-1)
            challengers[alone, j] = 1.0
            weights = weights + (1.0 - self.leader) * p[:, j : j + 1] * challengers
        return PolicyWeights(weights, weights)
