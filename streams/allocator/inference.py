"""What may be claimed of an experiment: `bandit_core.inference` on its reporting view. Pure.

What: counts by hour of the reporting view and the chances that the allocation log says become contrasts
between arms, the effect of the bandit group against the comparison group, the sample-ratio test,
off-policy estimates, batched least squares at its fixed end, and advice on stopping, each with its
assumption in words; `wording` says them, no stronger than they are.

Propensities of an hour in which several allocations were in force are their average, weighted by the units
that name each; that makes the sample-ratio test more careful, never less. Units that name no allocation
have no logged propensity and cannot raise an alarm.

Cost: O(hours * arms^2) up to twelve arms, O(hours * arms) beyond.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandit_core import inference as core
from streams.allocator.logged import Logged, propensities
from streams.allocator.observed import Observed
from streams.allocator.off_policy import Policies, off_policy_values
from streams.results import ArmClaims, Batched, Contrast, Effect, Inference, OffPolicy

__all__ = ["Asked", "infer", "wording"]

LEVEL = 0.95

ASSUMPTIONS = core.ASSUMPTIONS | {
    "off_policy": "good for one look, no claim; chances as logged before any draw; intervals as clusters",
    "batched": "one look at the end fixed before the start; batches without returning units",
    "in_sample": "descriptive: the units seen, under the present weights; the leader looks better than it is",
}


class Asked(NamedTuple):
    """What the definition says, and what is in force now.

    ``eligible``: which arms get traffic; ``present``: their weights; ``cap``: greatest reward of a trial;
    ``values``: whether rewards are values and not rates; ``by_segment``: whether weights
    differed by segment, so that arms saw different kinds of units.
    """

    arm_ids: Sequence[str]
    eligible: Sequence[bool]
    control: str
    cap: float
    window_hours: int
    interval_ms: int
    lower_is_better: bool
    values: bool
    log: Mapping[int, Logged]
    present: Sequence[float] | None = None
    by_segment: bool = False

    @property
    def control_place(self) -> int | None:
        """Place of the control arm."""
        return self.arm_ids.index(self.control) if self.control in self.arm_ids else None


def infer(
    observed: Observed,
    asked: Asked,
    *,
    batched: Batched | None = None,
    value_remaining: float | None = None,
) -> Inference:
    """Make the claims.

    Parameters
    ----------
    observed
        What was counted.
    asked
        What the definition says.
    batched
        Contrasts of batched least squares, or why there are none.
    value_remaining
        As for :func:`bandit_core.inference.report`.
    """
    logged, unknown = _logged(observed, asked)
    found = core.report(
        observed.counts,
        propensities=logged,
        control=asked.control_place,
        window_periods=asked.window_hours,
        comparison=observed.comparison,
        crossovers=float(observed.crossovers),
        eligible=list(asked.eligible),
        settings=core.ReportSettings(
            lower_is_better=asked.lower_is_better, values=asked.values, alpha=1.0 - LEVEL
        ),
        value_remaining=value_remaining,
    )
    warnings = [_named(text, asked.arm_ids) for text in found.warnings]
    if unknown:
        warnings.append(
            f"{unknown:.1%} of the units name no allocation of the log: the sample ratio of these cannot be"
            " tested, and they are in no off-policy estimate"
        )
    if asked.by_segment:
        warnings.append(
            "weights differ by segment, so the arms saw different kinds of units: no arm is compared with"
            " another; the comparison group tells what the experiment as a whole earns"
        )
        arms = tuple(replace(arm, lift_control=None, lift_best=None, lift_worst=None) for arm in found.arms)
        found = replace(found, winner=None, arms=arms, contrasts=())
    policies = Policies(
        asked.eligible, asked.control_place, asked.present, asked.interval_ms, asked.window_hours
    )
    off_policy = off_policy_values(observed, asked.log, asked.arm_ids, policies, cap=asked.cap)
    return _inference(found, asked, off_policy, batched, warnings, testable=unknown < 1.0)


def _inference(
    found: core.Report,
    asked: Asked,
    off_policy: OffPolicy | None,
    batched: Batched | None,
    warnings: Sequence[str],
    *,
    testable: bool,
) -> Inference:
    arm_ids, cap = asked.arm_ids, asked.cap
    alarm = found.sample_ratio_alarm
    return Inference(
        arms={
            arm_id: ArmClaims(
                rate=_number(arm.rate * cap),
                share=arm.share,
                last_day=_number(arm.last_day_rate * cap),
                last_hour=_number(arm.last_hour_rate * cap),
                lift_control=_effect(arm.lift_control, 1.0),
                lift_best=_effect(arm.lift_best, 1.0),
                lift_worst=_effect(arm.lift_worst, 1.0),
            )
            for arm_id, arm in zip(arm_ids, found.arms, strict=True)
        },
        contrasts=tuple(_contrast(each, asked) for each in found.contrasts),
        best=None if found.best is None else arm_ids[found.best],
        worst=None if found.worst is None else arm_ids[found.worst],
        winner=None if found.winner is None or alarm else arm_ids[found.winner],
        bandit_effect=_effect(found.bandit_effect, cap),
        sample_ratio_p=found.sample_ratio_p if testable else None,
        sample_ratio_alarm=alarm,
        safe_to_stop=found.stop.safe and not alarm,
        value_remaining=_number(found.stop.value_remaining),
        weeks=found.stop.weeks,
        stop_reason=_reason(found),
        reversals=found.reversals,
        exploration_share=_number(found.exploration_share),
        off_policy=off_policy,
        batched=batched,
        warnings=tuple(warnings),
        assumptions=dict(ASSUMPTIONS),
    )


def _contrast(contrast: core.Contrast, asked: Asked) -> Contrast:
    effect = Effect(
        estimate=contrast.estimate * asked.cap,
        low=contrast.low * asked.cap,
        high=contrast.high * asked.cap,
        claim=contrast.claim,
    )
    return Contrast(arm=asked.arm_ids[contrast.a], other=asked.arm_ids[contrast.b], effect=effect)


def _logged(observed: Observed, asked: Asked) -> tuple[NDArray[np.float64], float]:
    """Average propensities by hour, (n_hours, n_arms), and the share of units without any."""
    cells, shape = observed.cells, observed.counts.trials.shape
    weighted, units = np.zeros(shape), observed.counts.trials
    n_unknown = 0.0
    if len(cells.hour):
        found = propensities(cells.version, cells.segment, asked.log, asked.arm_ids)
        known = np.nan_to_num(found.realised)  # chances of 0 where the log does not say
        told = (known[found.row, cells.arm] > 0.0) | (
            (cells.trials == 0.0) & (known.max(axis=1) > 0.0)[found.row]
        )
        by_row = np.zeros((shape[0], len(known)))
        np.add.at(by_row, (cells.hour[told], found.row[told]), cells.trials[told])
        weighted += by_row @ known
        # The others in the shares in which they came, which is evidence of nothing.
        np.add.at(weighted, (cells.hour[~told], cells.arm[~told]), cells.trials[~told])
        n_unknown = float(cells.trials[~told].sum())
    total = units.sum(axis=1, keepdims=True)
    even = np.full(shape, 1.0 / shape[1])
    logged = np.divide(weighted, weighted.sum(axis=1, keepdims=True), out=even, where=total > 0.0)
    return logged, n_unknown / float(total.sum()) if total.sum() > 0.0 else 0.0


def _reason(found: core.Report) -> str:
    if found.stop.safe and found.sample_ratio_alarm:
        return "the sample ratio is wrong: find out why first"
    return found.stop.reason


def _effect(interval: core.Interval | None, scale: float) -> Effect | None:
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return None
    return Effect(
        estimate=interval.estimate * scale,
        low=interval.low * scale,
        high=interval.high * scale,
        claim=interval.claim,
    )


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
    lines.append(_say_arms(found, lower_is_better=lower_is_better))
    if found.batched is not None and found.batched.refused is None:
        shown = "; ".join(
            f"{c.arm} less {c.other} {_interval(c.effect)}" for c in found.batched.contrasts[:5]
        )
        lines.append(f"At the end fixed beforehand (batched least squares): {shown}.")
    elif found.batched is not None:
        lines.append(f"No batched least squares: {found.batched.refused}.")
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


def _say_arms(found: Inference, *, lower_is_better: bool) -> str:
    decided = [contrast for contrast in found.contrasts if contrast.effect.claim]
    if found.sample_ratio_alarm:
        return "No comparison of arms can be trusted: the sample ratio is wrong."
    if found.winner is not None:
        return f"{found.winner} is better than every other arm with traffic."
    if decided:
        pairs = [
            (c.arm, c.other) if (c.effect.claim > 0) != lower_is_better else (c.other, c.arm) for c in decided
        ]
        shown = "; ".join(f"{better} is better than {worse}" for better, worse in pairs[:5])
        more = f", and {len(pairs) - 5} more pairs" if len(pairs) > 5 else ""
        return f"{shown}{more}. No arm is better than all others."
    if found.contrasts:
        return "No arm can be said to be better than another."
    return "Arms cannot be compared yet: no hour whose conversion window is over has two of them."


def _interval(effect: Effect) -> str:
    said = {1: "more", -1: "less", 0: "a difference cannot be said"}[effect.claim]
    return f"{effect.estimate:+.4g} ({effect.low:+.4g} to {effect.high:+.4g}; {said})"
