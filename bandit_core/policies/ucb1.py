"""UCB1: all traffic to the arm with the highest upper confidence bound.

``mean + sqrt(2 ln t / n)``, with ``n`` the arm's effective trials and ``t`` their sum; rewards in [0, 1].
Untried arms share equally before any other is chosen; so do arms tied for the highest bound. Source: Auer,
Cesa-Bianchi and Fischer 2002, "Finite-time analysis of the multiarmed bandit problem", figure 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from bandit_core.policies.base import Evidence, Need, Parameters, PolicyWeights, uniform_over

__all__ = ["Ucb1", "highest_bound"]


def highest_bound(evidence: Evidence, bonus: NDArray[np.float64]) -> PolicyWeights:
    """All weight to untried arms, or else to those with the highest ``reward mean + bonus``."""
    tried = evidence.required(Need.EFFECTIVE_TRIALS) > 0.0
    untried = evidence.eligible & ~tried
    bound = np.where(evidence.eligible & tried, evidence.required(Need.REWARD_MOMENTS) + bonus, -np.inf)
    best = evidence.eligible & (bound == bound.max(axis=-1, keepdims=True))
    weights = uniform_over(np.where(untried.any(axis=-1, keepdims=True), untried, best))
    return PolicyWeights(weights, weights)


@dataclass(frozen=True, slots=True)
class Ucb1:
    """Upper confidence bound from Hoeffding's inequality."""

    name: ClassVar[str] = "ucb1"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REWARD_MOMENTS, Need.EFFECTIVE_TRIALS})
    default_floor: ClassVar[float] = 0.0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """No parameters."""
        parameters.finish()
        return cls()

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:  # noqa: ARG002 - protocol
        """Deterministic; draws nothing."""
        n = np.where(evidence.eligible, evidence.required(Need.EFFECTIVE_TRIALS), 0.0)
        log_t = np.log(np.maximum(n.sum(axis=-1, keepdims=True), 1.0))
        return highest_bound(evidence, np.sqrt(2.0 * log_t / np.where(n > 0.0, n, 1.0)))
