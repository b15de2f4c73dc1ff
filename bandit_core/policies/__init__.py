"""Policies: one file each; :func:`policy_from_definition` finds them by name."""

from bandit_core.policies.base import (
    DefinitionError,
    Evidence,
    Need,
    Parameters,
    Policy,
    PolicyWeights,
    gather,
)
from bandit_core.policies.epsilon_greedy import EpsilonGreedy
from bandit_core.policies.registry import POLICIES, policy_from_definition
from bandit_core.policies.thompson import Thompson
from bandit_core.policies.uniform import Uniform

__all__ = [
    "POLICIES",
    "DefinitionError",
    "EpsilonGreedy",
    "Evidence",
    "Need",
    "Parameters",
    "Policy",
    "PolicyWeights",
    "Thompson",
    "Uniform",
    "gather",
    "policy_from_definition",
]
