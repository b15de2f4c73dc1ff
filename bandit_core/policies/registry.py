"""Policies by the name that definitions use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bandit_core.policies.base import DefinitionError, Parameters, Policy
from bandit_core.policies.contextual import Contextual
from bandit_core.policies.epsilon_greedy import EpsilonGreedy
from bandit_core.policies.softmax import Softmax
from bandit_core.policies.thompson import Thompson
from bandit_core.policies.thompson_draw import ThompsonDraw
from bandit_core.policies.top_two import TopTwo
from bandit_core.policies.ucb1 import Ucb1
from bandit_core.policies.ucb1_tuned import Ucb1Tuned
from bandit_core.policies.uniform import Uniform

__all__ = ["POLICIES", "policy_from_definition"]

_CLASSES: tuple[type[Policy], ...] = (
    Uniform,
    Thompson,
    ThompsonDraw,
    TopTwo,
    EpsilonGreedy,
    Softmax,
    Ucb1,
    Ucb1Tuned,
    Contextual,
)

POLICIES: Mapping[str, type[Policy]] = MappingProxyType({policy.name: policy for policy in _CLASSES})


def policy_from_definition(
    name: str, parameters: Mapping[str, object] | None = None, *, path: str = "policy"
) -> Policy:
    """Make the policy a definition names.

    Parameters
    ----------
    name : str
        A key of :data:`POLICIES`.
    parameters : mapping, optional
        Its parameters; missing ones take their defaults.
    path : str
        Where the policy stands in the definition, for messages.

    Raises
    ------
    DefinitionError
        Unknown name, unknown parameter, or a value out of range.
    """
    if name not in POLICIES:
        raise DefinitionError(
            f"{path}.algorithm", f"unknown algorithm {name!r}; one of {', '.join(sorted(POLICIES))}"
        )
    return POLICIES[name].from_parameters(Parameters(parameters or {}, f"{path}.parameters"))
