"""UCB1-tuned: UCB1 with the rewards' variance in the bound.

``mean + sqrt(ln t / n * min(1/4, V))``, ``V = variance + sqrt(2 ln t / n)``. Source: Auer, Cesa-Bianchi and
Fischer 2002, "Finite-time analysis of the multiarmed bandit problem", section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from bandit_core.policies.base import Evidence, Need, Parameters, PolicyWeights
from bandit_core.policies.ucb1 import highest_bound

__all__ = ["Ucb1Tuned"]


@dataclass(frozen=True, slots=True)
class Ucb1Tuned:
    """Upper confidence bound with an estimate of the variance."""

    name: ClassVar[str] = "ucb1_tuned"
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
        per_trial = np.log(np.maximum(n.sum(axis=-1, keepdims=True), 1.0)) / np.where(n > 0.0, n, 1.0)
        variances = evidence.reward_variances
        if variances is None:
            raise ValueError("evidence lacks reward_variances; list reward_means in the policy's `needs`")
        bonus = np.sqrt(per_trial * np.minimum(0.25, variances + np.sqrt(2.0 * per_trial)))
        return highest_bound(evidence, bonus)
