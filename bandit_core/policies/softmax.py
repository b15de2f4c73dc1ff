"""Softmax (Boltzmann) weights of the means, relative to the largest.

``w ∝ exp(mean / (temperature * max |mean|))``: dividing by the largest mean makes one temperature serve
rates of 2% and of 40%. Where all means are zero all arms are equal. Source: Sutton and Barto 1998, section
2.3; Kuleshov and Precup 2014, "Algorithms for multi-armed bandit problems", section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from bandit_core.policies.base import Evidence, Need, Parameters, PolicyWeights

__all__ = ["Softmax"]


@dataclass(frozen=True, slots=True)
class Softmax:
    """Exponential weights.

    Parameters
    ----------
    temperature : float
        In (0, 100]; small is greedy.
    """

    temperature: float = 0.1

    name: ClassVar[str] = "softmax"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MEANS})
    default_floor: ClassVar[float] = 0.0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """``temperature``."""
        temperature = parameters.number("temperature", 0.1, low=0.0, high=100.0, low_open=True)
        parameters.finish()
        return cls(temperature)

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:  # noqa: ARG002 - protocol
        """Weights from the means alone; draws nothing."""
        means = np.where(evidence.eligible, evidence.required(Need.MEANS), 0.0)
        scale = np.abs(means).max(axis=-1, keepdims=True)
        # The largest is taken off before exp: small temperatures would overflow.
        relative = np.where(scale > 0.0, means / np.where(scale > 0.0, scale, 1.0), 0.0)
        top = np.where(evidence.eligible, relative, -np.inf).max(axis=-1, keepdims=True)
        weights = np.where(evidence.eligible, np.exp((relative - top) / self.temperature), 0.0)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        return PolicyWeights(weights, weights)
