"""What may be claimed of an experiment: `bandit_core.inference.report` on its reporting view. Pure.

What: counts by hour of the reporting view and the propensities that the allocation log says become contrasts
between arms, the effect of the bandit group against the comparison group, the sample-ratio test, and advice
on stopping, each with its assumption in words; `wording` says them, no stronger than they are.

Propensities of an hour in which several allocations were in force are their average, weighted by the units
that name each; that makes the sample-ratio test more careful, never less. Units that name no allocation have
no logged propensity and cannot raise an alarm.

Cost: O(hours * arms^2).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandit_core.counts import PeriodCounts
from bandit_core.inference import ASSUMPTIONS, Interval
from bandit_core.inference import Report as Claims
from bandit_core.inference import report as claims_of

__all__ = ["Contrast", "Effect", "Inference", "Observed", "infer", "wording"]

LEVEL = 0.95


class Observed(NamedTuple):
    """What was counted, hour by hour, the oldest first.

    ``counts``: bandit group, rewards as shares of the cap; ``by_version``: units of each hour, arm and
    allocation version, shape (n_hours, n_arms), -1 where none was named; ``comparison``: trials and sums of
    rewards by hour, None without such a group.
    """

    counts: PeriodCounts
    by_version: Mapping[int, NDArray[np.float64]]
    comparison: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    crossovers: int


class Effect(NamedTuple):
    """An estimate with its interval; ``claim`` is 1 (above 0), -1 (below 0) or 0 (cannot be said)."""

    estimate: float
    low: float
    high: float
    claim: int


class Contrast(NamedTuple):
    """Mean of ``arm`` less mean of ``other``, in the metric's unit; simultaneous over all pairs and looks."""

    arm: str
    other: str
    effect: Effect


class Inference(NamedTuple):
    """All claims; rates and effects in the metric's unit, lifts relative. None: cannot be said."""

    arms: Mapping[str, Mapping[str, float | None]]
    lift_control: Mapping[str, Effect | None]
    contrasts: tuple[Contrast, ...]
    winner: str | None
    bandit_effect: Effect | None
    sample_ratio_p: float | None
    sample_ratio_alarm: bool
    safe_to_stop: bool
    value_remaining: float | None
    weeks: float
    stop_reason: str
    reversals: int
    exploration_share: float | None
    warnings: tuple[str, ...]
    assumptions: Mapping[str, str]


def infer(
    observed: Observed,
    arm_ids: Sequence[str],
    *,
    eligible: Sequence[bool],
    control: str,
    cap: float,
    window_hours: int,
    lower_is_better: bool,
    propensities: Mapping[int, Sequence[float]],
    by_segment: bool = False,
) -> Inference:
    """Make the claims.

    Parameters
    ----------
    observed
        What was counted.
    arm_ids, eligible
        Arms in the order of ``observed``, and which of them get traffic.
    control
        The control arm.
    cap
        Greatest reward of a trial.
    window_hours
        Conversion window.
    lower_is_better
        Whether the least mean is the best.
    propensities
        P(arm | bandit group) under each allocation version.
    by_segment
        Whether weights differed by segment: then arms saw different kinds of units, and nothing is said of
        one arm against another.
    """
    logged, unknown = _logged(observed, propensities, len(arm_ids))
    found = claims_of(
        observed.counts,
        propensities=logged,
        control=arm_ids.index(control) if control in arm_ids else None,
        window_periods=window_hours,
        comparison=observed.comparison,
        crossovers=float(observed.crossovers),
        eligible=list(eligible),
        lower_is_better=lower_is_better,
        alpha=1.0 - LEVEL,
    )
    contrasts = tuple(
        Contrast(arm_ids[c.a], arm_ids[c.b], Effect(c.estimate * cap, c.low * cap, c.high * cap, c.claim))
        for c in found.contrasts
    )
    warnings = [_named(text, arm_ids) for text in found.warnings]
    if unknown:
        warnings.append(
            f"{unknown:.1%} of the units name no allocation of the log that has one propensity for all units:"
            " the sample ratio of these cannot be tested"
        )
    if by_segment:
        warnings.append(
            "weights differ by segment, so the arms saw different kinds of units: no arm is compared with"
            " another; the comparison group tells what the experiment as a whole earns"
        )
        contrasts = ()
        found = replace(found, winner=None, arms=tuple(replace(arm, lift_control=None) for arm in found.arms))
    effect = found.bandit_effect
    return Inference(
        arms={
            arm_id: {
                "rate": _number(arm.rate * cap),
                "share": _number(arm.share),
                "last_day": _number(arm.last_day_rate * cap),
                "last_hour": _number(arm.last_hour_rate * cap),
            }
            for arm_id, arm in zip(arm_ids, found.arms, strict=True)
        },
        lift_control={
            arm_id: _effect(arm.lift_control, 1.0) for arm_id, arm in zip(arm_ids, found.arms, strict=True)
        },
        contrasts=contrasts,
        winner=None if found.winner is None or found.sample_ratio_alarm else arm_ids[found.winner],
        bandit_effect=_effect(effect, cap),
        sample_ratio_p=None if unknown == 1.0 else found.sample_ratio_p,
        sample_ratio_alarm=found.sample_ratio_alarm,
        safe_to_stop=found.stop.safe and not found.sample_ratio_alarm,
        value_remaining=_number(found.stop.value_remaining),
        weeks=found.stop.weeks,
        stop_reason=_reason(found),
        reversals=found.reversals,
        exploration_share=_number(found.exploration_share),
        warnings=tuple(warnings),
        assumptions=ASSUMPTIONS,
    )


def _logged(
    observed: Observed, propensities: Mapping[int, Sequence[float]], n_arms: int
) -> tuple[NDArray[np.float64], float]:
    """Average propensities by hour, (n_hours, n_arms), and the share of units without any."""
    trials = observed.counts.trials
    weighted = np.zeros_like(trials)
    known = np.zeros((len(trials), 1))
    for version, units in observed.by_version.items():
        n = units.sum(axis=1, keepdims=True)
        if version in propensities and ((units > 0) <= (np.array(propensities[version]) > 0)).all():
            weighted += n * np.array(propensities[version])
            known += n
        else:  # in the shares in which they came, which is evidence of nothing
            weighted += units
    total = trials.sum(axis=1, keepdims=True)
    even = np.full_like(trials, 1.0 / n_arms)
    logged = np.divide(weighted, weighted.sum(axis=1, keepdims=True), out=even, where=total > 0.0)
    return logged, float(1.0 - known.sum() / total.sum()) if total.sum() > 0 else 0.0


def _reason(found: Claims) -> str:
    if found.stop.safe and found.sample_ratio_alarm:
        return "the sample ratio is wrong: find out why first"
    return found.stop.reason


def _effect(interval: Interval | None, scale: float) -> Effect | None:
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return None
    return Effect(interval.estimate * scale, interval.low * scale, interval.high * scale, interval.claim)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _named(text: str, arm_ids: Sequence[str]) -> str:
    """Name the arm where a warning has its place only."""
    for i, arm_id in enumerate(arm_ids):
        text = text.replace(f"sample ratio: arm {i} ", f"sample ratio: arm {arm_id} ")
    return text


def wording(found: Inference, *, lower_is_better: bool) -> tuple[str, ...]:
    """Say what may be said, the headline first."""
    lines = []
    if found.bandit_effect is not None:
        lines.append(f"Bandit group less comparison group: {_interval(found.bandit_effect)}.")
    decided = [contrast for contrast in found.contrasts if contrast.effect.claim]
    if found.sample_ratio_alarm:
        lines.append("No comparison of arms can be trusted: the sample ratio is wrong.")
    elif found.winner is not None:
        lines.append(f"{found.winner} is better than every other arm with traffic.")
    elif decided:
        pairs = [
            (c.arm, c.other) if (c.effect.claim > 0) != lower_is_better else (c.other, c.arm) for c in decided
        ]
        shown = "; ".join(f"{better} is better than {worse}" for better, worse in pairs[:5])
        more = f", and {len(pairs) - 5} more pairs" if len(pairs) > 5 else ""
        lines.append(f"{shown}{more}. No arm is better than all others.")
    elif found.contrasts:
        lines.append("No arm can be said to be better than another.")
    else:
        lines.append("Arms cannot be compared yet: no hour whose conversion window is over has two of them.")
    stop = "It is safe to stop" if found.safe_to_stop else "It is not yet safe to stop"
    lines.append(f"{stop}: {found.stop_reason}.")
    if found.sample_ratio_p is not None and not found.sample_ratio_alarm:
        lines.append(f"Sample ratio: as logged (p = {found.sample_ratio_p:.2g}; an alarm is below 0.001).")
    if found.exploration_share is not None:
        lines.append(
            f"In the last day {found.exploration_share:.0%} of the units went to other arms than the leader;"
            f" the leader of the day has changed {found.reversals} times."
        )
    return tuple(lines)


def _interval(effect: Effect) -> str:
    said = {1: "more", -1: "less", 0: "a difference cannot be said"}[effect.claim]
    return f"{effect.estimate:+.4g} ({effect.low:+.4g} to {effect.high:+.4g}; {said})"
