"""Thompson sampling by probability matching: an arm's weight is its probability of being best.

A batch of units that each sampled the posterior once would be split in these proportions in expectation;
giving the proportions themselves removes that sampling noise. Sources: Thompson 1933; Scott 2010, "A modern
Bayesian look at the multi-armed bandit", section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from bandit_core.policies.base import Evidence, Need, Parameters, PolicyWeights

__all__ = ["Thompson"]


@dataclass(frozen=True, slots=True)
class Thompson:
    """Weights proportional to ``P(best) ** power``.

    Parameters
    ----------
    power : float
        1 is Thompson sampling; smaller explores more (Scott 2010, section 3.1), larger less. In (0, 10].
    """

    power: float = 1.0

    name: ClassVar[str] = "thompson"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROBABILITY_BEST})
    default_floor: ClassVar[float] = 0.01

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """``power``."""
        power = parameters.number("power", 1.0, low=0.0, high=10.0, low_open=True)
        parameters.finish()
        return cls(power)

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:  # noqa: ARG002 - protocol
        """P(best) of each arm; draws nothing."""
        weights = np.where(evidence.eligible, evidence.required(Need.PROBABILITY_BEST) ** self.power, 0.0)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        return PolicyWeights(weights, weights)
