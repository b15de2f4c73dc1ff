"""The protocol of policies: evidence in, weights out.

A policy declares what it needs (:class:`Need`); :func:`gather` asks the posterior for that and nothing
else. So policies and posteriors combine freely, and a policy that never looks at P(best) never pays for it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from bandit_core.posteriors.base import Posterior

__all__ = [
    "DefinitionError",
    "Evidence",
    "Need",
    "Parameters",
    "Policy",
    "PolicyWeights",
    "gather",
    "uniform_over",
]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class DefinitionError(ValueError):
    """A definition's value is wrong; ``path`` names it, e.g. ``algorithm.parameters.exploration``."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class Need(enum.StrEnum):
    """What a policy asks of a posterior."""

    MEANS = "means"
    PROBABILITY_BEST = "probability_best"
    EFFECTIVE_TRIALS = "effective_trials"
    REWARD_MOMENTS = "reward_means"


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What a policy sees: arrays (n_experiments, n_arms); those not asked for are None.

    Attributes
    ----------
    eligible : ndarray of bool
        Arms that may receive weight.
    means : ndarray or None
        Posterior means; negated where lower is better.
    probability_best, effective_trials : ndarray or None
    reward_means, reward_variances : ndarray or None
        Means and variances of single rewards capped to [0, 1] (``1 - reward`` where lower is better), from
        the data alone; for upper confidence bounds.
    """

    eligible: Mask
    means: Array | None = None
    probability_best: Array | None = None
    effective_trials: Array | None = None
    reward_means: Array | None = None
    reward_variances: Array | None = None

    def required(self, need: Need) -> Array:
        """Return the array for a need.

        Raises
        ------
        ValueError
            It was not gathered: the policy's ``needs`` do not list it.
        """
        array = getattr(self, need.value)
        if array is None:
            raise ValueError(f"evidence lacks {need.value}; list it in the policy's `needs`")
        found: Array = array
        return found


@dataclass(frozen=True, slots=True, eq=False)
class PolicyWeights:
    """Weights per arm, each row summing to 1 over eligible arms; (n_experiments, n_arms).

    ``weights`` is what is realised; ``selection_probability`` what was expected of it before any random draw.
    """

    weights: Array
    selection_probability: Array


class Policy(Protocol):
    """Turns evidence into weights; a frozen dataclass whose fields are its parameters."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    default_floor: ClassVar[float]

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:
        """Read the parameters of a definition."""
        ...

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:
        """Weights for every experiment; draws, if any, come from ``rng`` alone."""
        ...


class Parameters:
    """Reads the parameters of a definition and names the path of whatever is wrong.

    Parameters
    ----------
    values : mapping
        As written in the definition.
    path : str
        Where they stand in it.
    """

    def __init__(self, values: Mapping[str, object], path: str) -> None:
        self._values = values
        self._path = path
        self._read: set[str] = set()

    def number(
        self,
        name: str,
        default: float,
        *,
        low: float,
        high: float,
        low_open: bool = False,
        high_open: bool = False,
    ) -> float:
        """Read a number between ``low`` and ``high``; ends belong to the range unless they are open."""
        self._read.add(name)
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DefinitionError(f"{self._path}.{name}", f"{value!r} is not a number")
        inside = (low < value if low_open else low <= value) and (
            value < high if high_open else value <= high
        )
        if not inside:
            brackets = ("(" if low_open else "[") + f"{low:g}, {high:g}" + (")" if high_open else "]")
            raise DefinitionError(f"{self._path}.{name}", f"{value!r} is not in {brackets}")
        return float(value)

    def choice(self, name: str, default: str, options: tuple[str, ...]) -> str:
        """Read one of ``options``."""
        self._read.add(name)
        value = self._values.get(name, default)
        if not isinstance(value, str) or value not in options:
            raise DefinitionError(f"{self._path}.{name}", f"{value!r} is not one of {', '.join(options)}")
        return value

    def whole(self, name: str, default: int, *, low: int, high: int) -> int:
        """Read a whole number from ``low`` to ``high``."""
        value = self.number(name, default, low=low, high=high)
        if value != int(value):
            raise DefinitionError(f"{self._path}.{name}", f"{value!r} is not a whole number")
        return int(value)

    def pairs(self, name: str) -> tuple[tuple[str, str], ...] | None:
        """Read a list of pairs of different names, no pair twice; None if it is left out."""
        self._read.add(name)
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise DefinitionError(f"{self._path}.{name}", f"{value!r} is not a list of pairs of names")
        found: list[tuple[str, str]] = []
        for at, pair in enumerate(value):
            path = f"{self._path}.{name}[{at}]"
            is_pair = isinstance(pair, list | tuple) and len(pair) == 2
            if not is_pair or not all(isinstance(each, str) for each in pair) or pair[0] == pair[1]:
                raise DefinitionError(path, f"{pair!r} is not a pair of two different names")
            if (pair[0], pair[1]) in found or (pair[1], pair[0]) in found:
                raise DefinitionError(path, f"{pair!r} stands there twice")
            found.append((pair[0], pair[1]))
        return tuple(found)

    def flag(self, name: str, default: bool) -> bool:
        """Read true or false."""
        self._read.add(name)
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise DefinitionError(f"{self._path}.{name}", f"{value!r} is not true or false")
        return value

    def finish(self) -> None:
        """Refuse names that nothing read.

        Raises
        ------
        DefinitionError
            There is an unknown parameter.
        """
        for name in self._values:
            if name not in self._read:
                known = ", ".join(sorted(self._read)) or "none"
                raise DefinitionError(
                    f"{self._path}.{name}", f"unknown parameter; this algorithm has: {known}"
                )


def gather(
    policy_needs: frozenset[Need],
    posterior: Posterior,
    eligible: Mask,
    *,
    lower_is_better: bool = False,
    probability_best: Array | None = None,
) -> Evidence:
    """Ask a posterior for what a policy needs.

    Parameters
    ----------
    policy_needs : frozenset of Need
    posterior : Posterior
    eligible : ndarray of bool, shape (n_experiments, n_arms)
    lower_is_better : bool
    probability_best : ndarray, optional
        Already computed; else it is when needed.
    """
    means = reward_means = reward_variances = trials = None
    if Need.MEANS in policy_needs:
        means = -posterior.mean() if lower_is_better else posterior.mean()
    if Need.REWARD_MOMENTS in policy_needs:
        reward_means, reward_variances = posterior.reward_moments()
        if lower_is_better:
            reward_means = 1.0 - reward_means
    if Need.PROBABILITY_BEST in policy_needs and probability_best is None:
        probability_best = posterior.best(eligible=eligible, lower_is_better=lower_is_better).probability
    if Need.EFFECTIVE_TRIALS in policy_needs:
        trials = posterior.effective_trials()
    return Evidence(eligible, means, probability_best, trials, reward_means, reward_variances)


def uniform_over(mask: Mask) -> Array:
    """Equal weights over the true entries of each row; (n_experiments, n_arms)."""
    weights: Array = mask / mask.sum(axis=-1, keepdims=True)
    return weights
