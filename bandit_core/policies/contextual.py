"""Contextual Thompson sampling: probability matching within each segment.

The evidence's rows are segments, and P(best) comes from a model over all of them
(:class:`bandit_core.contextual.ContextualPosterior`). Source: Agrawal and Goyal 2013, "Thompson sampling
for contextual bandits with linear payoffs", section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from bandit_core.policies.base import Evidence, Need, Parameters, PolicyWeights

__all__ = ["Contextual"]


@dataclass(frozen=True, slots=True)
class Contextual:
    """Weights by segment.

    Parameters
    ----------
    mode : {"gibbs", "laplace"}
        How the model is fitted.
    """

    mode: str = "laplace"

    name: ClassVar[str] = "contextual"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROBABILITY_BEST})
    default_floor: ClassVar[float] = 0.01

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """``mode``."""
        mode = parameters.choice("mode", "laplace", ("gibbs", "laplace"))
        parameters.finish()
        return cls(mode)

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:  # noqa: ARG002 - protocol
        """P(best) of each arm in each segment; draws nothing."""
        weights = np.where(evidence.eligible, evidence.required(Need.PROBABILITY_BEST), 0.0)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        return PolicyWeights(weights, weights)
