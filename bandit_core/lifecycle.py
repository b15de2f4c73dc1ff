"""Lives of arms: holdout, incubation, dropping, guardrails, steps; no clock.

Everything is per interval: the caller passes what it knows at a boundary and stores what it gets back.

- Holdout: starts at ``1 / (n + 1)``, times 0.9 each interval while control's rate is known to a relative 95%
  half-width of 10%, never rises, at least 5%.
- Incubation: a new arm gets exactly ``1 / n`` until it has its trials; with a Beta(1, 1) prior against arms
  of 5% it would start with P(best) = 0.95 otherwise.
- Drop: P(best) before floors below ``min(2%, 0.2 / n)`` for 24 consecutive intervals, and the arm shown to be
  worse than the others together by a bound that holds at all times
  (:func:`bandit_core.inference.sequences.trailing_arms`). P(best) alone drops an arm in over half of the runs
  without any difference. Never control, never one of the last two.
- Guardrail: an arm stops when a bound that holds at all times says it harms by more than the margin
  (:func:`bandit_core.inference.sequences.difference_sequence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandit_core.shares import ArmStatus

__all__ = [
    "ArmLife",
    "DropRule",
    "FloorRule",
    "HoldoutRule",
    "IncubationRule",
    "advance_arms",
    "limit_step",
    "next_holdout",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HoldoutRule:
    """How the holdout shrinks; proportions.

    Parameters
    ----------
    minimum : float
    decay : float
        Factor per interval.
    precision : float
        Relative 95% half-width of control's rate from which on it shrinks.
    """

    minimum: float = 0.05
    decay: float = 0.9
    precision: float = 0.10

    def __post_init__(self) -> None:
        if not (0.0 <= self.minimum <= 1.0 and 0.0 < self.decay <= 1.0 and self.precision > 0.0):
            raise ValueError("holdout: minimum in [0, 1], decay in (0, 1] and a positive precision needed")


def next_holdout(
    current: float | None, *, n_arms: int, control_trials: float, control_successes: float, rule: HoldoutRule
) -> float:
    """Holdout of the coming interval.

    Parameters
    ----------
    current : float or None
        Of the last interval; None at the start.
    n_arms : int
        Number of arms besides control (K): it starts at ``1 / (K + 1)``.
    control_trials, control_successes : float
        Of the control arm so far.
    rule : HoldoutRule
    """
    if n_arms < 0:
        raise ValueError(f"n_arms: {n_arms!r} is negative")
    if current is None:
        return max(rule.minimum, 1.0 / (n_arms + 1))
    if control_successes <= 0.0 or control_trials <= 0.0:
        return current
    rate = min(control_successes / control_trials, 1.0)
    half_width = 1.959963984540054 * np.sqrt((1.0 - rate) / control_successes)
    # A holdout that starts under the minimum (by definition change) is kept: it never rises.
    return current if half_width > rule.precision else min(current, max(rule.minimum, current * rule.decay))


@dataclass(frozen=True, slots=True)
class IncubationRule:
    """How much a new arm must see first; adapts to traffic within bounds.

    Parameters
    ----------
    target_successes : float
        Expected successes by which an arm may be judged.
    min_trials, max_trials : int
        Bounds of the trials that follow from it.
    max_intervals : int
        An arm leaves incubation at the latest then.
    """

    target_successes: float = 20.0
    min_trials: int = 100
    max_trials: int = 10_000
    max_intervals: int = 168

    def __post_init__(self) -> None:
        if not (
            self.target_successes > 0 and 0 <= self.min_trials <= self.max_trials and self.max_intervals >= 0
        ):
            raise ValueError("incubation: want a positive target and 0 <= min_trials <= max_trials")

    def trials(self, pooled_rate: float) -> float:
        """Trials needed at the experiment's rate."""
        wanted = self.target_successes / pooled_rate if pooled_rate > 0.0 else float(self.max_trials)
        return float(min(max(wanted, self.min_trials), self.max_trials))


@dataclass(frozen=True, slots=True)
class FloorRule:
    """Minimum allocation that adapts to traffic: enough units for an arm to stay known, and no more.

    Parameters
    ----------
    target_successes : float
        Expected successes per day by which an arm stays known.
    minimum, maximum : float
        Bounds of the floor, proportions; the maximum is also lowered so that all floors together take at
        most half of the traffic.
    """

    target_successes: float = 2.0
    minimum: float = 0.005
    maximum: float = 0.05

    def __post_init__(self) -> None:
        if not (self.target_successes > 0.0 and 0.0 <= self.minimum <= self.maximum <= 1.0):
            raise ValueError("floor: want a positive target and 0 <= minimum <= maximum <= 1")

    def floor(self, *, units_per_day: float, pooled_rate: float, n_arms: int) -> float:
        """Floor of every eligible arm.

        Parameters
        ----------
        units_per_day : float
            Units the experiment sees outside the comparison group.
        pooled_rate : float
            Successes per trial over all arms; 0 while unknown, which gives the maximum.
        n_arms : int
            Eligible ones.
        """
        if n_arms < 1:
            raise ValueError(f"n_arms: {n_arms!r} must be at least 1")
        successes_per_day = units_per_day * pooled_rate
        wanted = self.target_successes / successes_per_day if successes_per_day > 0.0 else self.maximum
        return min(max(wanted, self.minimum), self.maximum, 0.5 / n_arms)


@dataclass(frozen=True, slots=True)
class DropRule:
    """When an arm is hopeless; only one that is also shown to be worse is dropped.

    Parameters
    ----------
    probability, relative : float
        Dropped below ``min(probability, relative / n)``.
    intervals : int
        Consecutive ones.
    min_trials : float
        Not before the arm has had that many.
    """

    probability: float = 0.02
    relative: float = 0.2
    intervals: int = 24
    min_trials: float = 100.0

    def __post_init__(self) -> None:
        if not (0.0 <= self.probability <= 1.0 and self.relative >= 0.0 and self.intervals >= 1):
            raise ValueError("drop: probability in [0, 1], relative >= 0 and at least one interval needed")

    def threshold(self, n_arms: int) -> float:
        """P(best) below which an interval counts against an arm."""
        return min(self.probability, self.relative / n_arms)


@dataclass(frozen=True, slots=True)
class ArmLife:
    """What is remembered of an arm between intervals.

    Attributes
    ----------
    status : ArmStatus
    intervals_incubated : int
    intervals_below : int
        Consecutive intervals under the drop threshold.
    rest_sum, rest_information : float
        Evidence against all other arms together, see
        :func:`bandit_core.inference.sequences.rest_increments`; negative is worse.
    """

    status: ArmStatus
    intervals_incubated: int = 0
    intervals_below: int = 0
    rest_sum: float = 0.0
    rest_information: float = 0.0


def advance_arms(
    lives: Sequence[ArmLife],
    *,
    trials: ArrayLike,
    probability_best: ArrayLike,
    pooled_rate: float,
    control: int | None,
    drop: DropRule | None,
    incubation: IncubationRule,
    harmful: ArrayLike | None = None,
    trailing: ArrayLike | None = None,
) -> tuple[ArmLife, ...]:
    """Carry the arms over one boundary.

    Parameters
    ----------
    lives : sequence of ArmLife, length n_arms
    trials : array_like, shape (n_arms,)
        So far, per arm.
    probability_best : array_like, shape (n_arms,)
        Before floors; ignored for arms that are not eligible.
    pooled_rate : float
        Successes per trial over all arms.
    control : int or None
    drop : DropRule or None
        None: arms are never dropped.
    incubation : IncubationRule
    harmful : array_like of bool, shape (n_arms,), optional
        Arms that a guardrail stops now.
    trailing : array_like of bool, shape (n_arms,), optional
        Arms shown to be worse than the others; only these are dropped. Default: P(best) alone decides.

    Returns
    -------
    tuple of ArmLife
    """
    n = np.asarray(trials, dtype=np.float64)
    p = np.asarray(probability_best, dtype=np.float64)
    stop = np.zeros(len(lives), dtype=bool) if harmful is None else np.asarray(harmful, dtype=bool)
    if not len(n) == len(p) == len(stop) == len(lives):
        raise ValueError(
            f"{len(lives)} arms, but {len(n)} trials, {len(p)} probabilities and {len(stop)} flags"
        )
    result: list[ArmLife] = []
    for i, life in enumerate(lives):
        moved = life
        if life.status.eligible and stop[i] and i != control:
            moved = ArmLife(ArmStatus.STOPPED)
        elif life.status is ArmStatus.INCUBATING:
            age = life.intervals_incubated + 1
            done = n[i] >= incubation.trials(pooled_rate) or age >= incubation.max_intervals
            status = ArmStatus.ACTIVE if done else ArmStatus.INCUBATING
            moved = replace(life, status=status, intervals_incubated=age, intervals_below=0)
        result.append(moved)
    if drop is None:
        return tuple(result)
    eligible = [i for i, life in enumerate(result) if life.status.eligible]
    threshold = drop.threshold(max(len(eligible), 1))
    for i in eligible:
        life = result[i]
        counts = life.status is ArmStatus.ACTIVE and n[i] >= drop.min_trials and p[i] < threshold
        result[i] = replace(life, intervals_below=life.intervals_below + 1 if counts else 0)
    # The weakest first, as long as two eligible arms remain.
    shown = np.ones(len(lives), dtype=bool) if trailing is None else np.asarray(trailing, dtype=bool)
    due = [i for i in eligible if i != control and shown[i] and result[i].intervals_below >= drop.intervals]
    for i in sorted(due, key=lambda arm: (p[arm], arm))[: max(len(eligible) - 2, 0)]:
        result[i] = ArmLife(ArmStatus.DROPPED)
    return tuple(result)


def limit_step(
    previous: ArrayLike, wanted: ArrayLike, max_step: float, *, eligible: ArrayLike | None = None
) -> Array:
    """Move weights towards the wanted ones, none by more than ``max_step``.

    All weights move the same fraction of their way, so that they still sum to 1 and none leaves [0, 1].

    Parameters
    ----------
    previous, wanted : array_like, shape (n_arms,)
        Weights that sum to 1 each.
    max_step : float
        Largest change of any weight, in (0, 1].
    eligible : array_like of bool, shape (n_arms,), optional
        Arms that may have weight; the others lose theirs at once, whatever the step.
    """
    if not 0.0 < max_step <= 1.0:
        raise ValueError(f"max_step: {max_step!r} is not in (0, 1]")
    old, new = np.asarray(previous, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    if eligible is not None:
        kept = np.where(np.asarray(eligible, dtype=bool), old, 0.0)
        if not kept.sum() > 0.0:
            return new
        old = kept / kept.sum()
    largest = float(np.abs(new - old).max())
    fraction = 1.0 if largest <= max_step else max_step / largest
    moved: Array = old + fraction * (new - old)
    return moved
