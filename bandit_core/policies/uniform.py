"""Equal weights: an ordinary A/B test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from bandit_core.policies.base import Evidence, Need, Parameters, PolicyWeights, uniform_over

__all__ = ["Uniform"]


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every eligible arm gets the same weight."""

    name: ClassVar[str] = "uniform"
    needs: ClassVar[frozenset[Need]] = frozenset()
    default_floor: ClassVar[float] = 0.0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """No parameters."""
        parameters.finish()
        return cls()

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:  # noqa: ARG002 - protocol
        """Equal weights; draws nothing."""
        weights = uniform_over(evidence.eligible)
        return PolicyWeights(weights, weights)
