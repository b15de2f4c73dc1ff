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

__all__ = ["INTERVAL_DAYS_MAX", "Contextual"]

INTERVAL_DAYS_MAX = 28


@dataclass(frozen=True, slots=True)
class Contextual:
    """Weights by segment.

    Parameters
    ----------
    mode : {"gibbs", "laplace"}
        How the model is fitted.
    interactions : tuple of (str, str), optional
        Pairs of features and factors whose combinations have effects of their own; None for every feature
        with every factor.
    interval_days : int
        Effects of so many past days, and of all time before them; 0 for none.
    """

    mode: str = "laplace"
    interactions: tuple[tuple[str, str], ...] | None = None
    interval_days: int = 0

    name: ClassVar[str] = "contextual"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROBABILITY_BEST})
    default_floor: ClassVar[float] = 0.01

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """``mode``, ``interactions``, ``interval_days``."""
        mode = parameters.choice("mode", "laplace", ("gibbs", "laplace"))
        interactions = parameters.pairs("interactions")
        interval_days = parameters.whole("interval_days", 0, low=0, high=INTERVAL_DAYS_MAX)
        parameters.finish()
        return cls(mode, interactions, interval_days)

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:  # noqa: ARG002 - protocol
        """P(best) of each arm in each segment; draws nothing."""
        weights = np.where(evidence.eligible, evidence.required(Need.PROBABILITY_BEST), 0.0)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        return PolicyWeights(weights, weights)
