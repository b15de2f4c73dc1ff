"""Thompson sampling by one draw: for the whole interval one arm takes all, drawn with P(best).

The classic algorithm at one decision an interval. The draw uses P(best) itself rather than a draw of the
posterior: the same distribution, exactly. ``selection_probability`` keeps P(best), for estimates that need
the chance an arm had before the draw. Source: Chapelle and Li 2011, "An empirical evaluation of Thompson
sampling", section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from bandit_core.policies.base import Evidence, Need, Parameters, PolicyWeights

__all__ = ["ThompsonDraw"]


@dataclass(frozen=True, slots=True)
class ThompsonDraw:
    """All weight to one arm, drawn with its probability of being best."""

    name: ClassVar[str] = "thompson_draw"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROBABILITY_BEST})
    default_floor: ClassVar[float] = 0.0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """No parameters."""
        parameters.finish()
        return cls()

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:
        """One uniform number an experiment decides."""
        probability = np.where(evidence.eligible, evidence.required(Need.PROBABILITY_BEST), 0.0)
        probability = probability / probability.sum(axis=-1, keepdims=True)
        upper = np.add.accumulate(probability, axis=-1)
        position = rng.random((len(probability), 1)) * upper[:, -1:]
        drawn = (upper <= position).sum(axis=-1)
        # Rounding could leave the position at the end: the last arm with any chance takes it.
        last = probability.shape[1] - 1 - np.argmax(probability[:, ::-1] > 0.0, axis=-1)
        weights = np.zeros_like(probability)
        weights[np.arange(len(weights)), np.minimum(drawn, last)] = 1.0
        return PolicyWeights(weights, probability)
