"""Epsilon-greedy: most traffic to the best mean, a fixed part to exploration.

With ``explore="others"`` (default) the best arm gets ``1 - exploration`` and the others share
``exploration``; the textbook variant ``explore="all"`` (Sutton and Barto 2018, section 2.2) spreads it over
all arms, the best included. Arms tied for the best mean share its part, so that nothing depends on the
order of arms; at the start all are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from bandit_core.policies.base import Evidence, Need, Parameters, PolicyWeights, uniform_over

__all__ = ["EpsilonGreedy"]


@dataclass(frozen=True, slots=True)
class EpsilonGreedy:
    """The best mean gets ``1 - exploration``.

    Parameters
    ----------
    exploration : float
        In [0, 1].
    explore : {"others", "all"}
        Which arms share the exploration.
    """

    exploration: float = 0.1
    explore: str = "others"

    name: ClassVar[str] = "epsilon_greedy"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MEANS})
    default_floor: ClassVar[float] = 0.0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """``exploration`` and ``explore``."""
        exploration = parameters.number("exploration", 0.1, low=0.0, high=1.0)
        explore = parameters.choice("explore", "others", ("others", "all"))
        parameters.finish()
        return cls(exploration, explore)

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:  # noqa: ARG002 - protocol
        """Weights from the means alone; draws nothing."""
        means = np.where(evidence.eligible, evidence.required(Need.MEANS), -np.inf)
        best = evidence.eligible & (means == means.max(axis=-1, keepdims=True))
        exploring = evidence.eligible if self.explore == "all" else evidence.eligible & ~best
        n_exploring = exploring.sum(axis=-1, keepdims=True)
        spread = exploring / np.maximum(n_exploring, 1)
        exploration = np.where(n_exploring > 0, self.exploration, 0.0)
        weights = (1.0 - exploration) * uniform_over(best) + exploration * spread
        return PolicyWeights(weights, weights)
