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
from bandit_core.policies.contextual import Contextual
from bandit_core.policies.epsilon_greedy import EpsilonGreedy
from bandit_core.policies.registry import POLICIES, policy_from_definition
from bandit_core.policies.softmax import Softmax
from bandit_core.policies.thompson import Thompson
from bandit_core.policies.thompson_draw import ThompsonDraw
from bandit_core.policies.top_two import TopTwo
from bandit_core.policies.ucb1 import Ucb1
from bandit_core.policies.ucb1_tuned import Ucb1Tuned
from bandit_core.policies.uniform import Uniform

__all__ = [
    "POLICIES",
    "Contextual",
    "DefinitionError",
    "EpsilonGreedy",
    "Evidence",
    "Need",
    "Parameters",
    "Policy",
    "PolicyWeights",
    "Softmax",
    "Thompson",
    "ThompsonDraw",
    "TopTwo",
    "Ucb1",
    "Ucb1Tuned",
    "Uniform",
    "gather",
    "policy_from_definition",
]
