"""Lives of arms over the boundaries: what definition and last allocation say together, and what comes next.

An arm's published status is the definition's, except where the allocator itself has decided: incubating ->
active when it has been seen enough, active -> dropped when it has been hopeless for long, -> stopped when
a guardrail's bound is passed. A dropped arm never returns under its id. An arm that a guardrail stopped
returns when the definition has had it ``stopped`` and then ``active``.

Whether an arm is worse than the others is judged by hours whose conversion window is over, reporting view.
What earlier hours said is handed on from allocation to allocation; late corrections of them change nothing.

A boundary advances lives once: a change of the definition in between recalculates and counts nothing
twice.

Cost: O(arms), and O(hours * arms) for each guardrail.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bandit_core.inference.sequences import harmful_arms, rest_increments, trailing_arms
from bandit_core.lifecycle import (
    ArmLife,
    DropRule,
    FloorRule,
    HoldoutRule,
    IncubationRule,
    advance_arms,
    next_holdout,
)
from bandit_core.shares import ArmStatus
from streams.allocator.counts_state import DAY_HOURS, LAG_MAX_HOURS
from streams.allocator.history import read_history
from streams.allocator.inputs import ArmBefore, Inputs

__all__ = ["advance_lives", "floor_of", "holdout_of", "lives_before"]

GUARDRAIL_ALPHA = 0.05  # chance that a harmless arm of an experiment is ever stopped
DROP_ALPHA = 0.05  # chance that an arm as good as the best is ever dropped
HOLDOUT_MIN = 0.05


def lives_before(inputs: Inputs) -> tuple[ArmLife, ...]:
    """Life of each arm as the boundary finds it."""
    lives = []
    for arm in inputs.arms:
        defined = ArmStatus(arm.status)
        before = inputs.before.arms.get(arm.arm_id) if inputs.before is not None else None
        if before is None or not defined.eligible:
            dropped = before is not None and before.status == ArmStatus.DROPPED
            lives.append(ArmLife(ArmStatus.DROPPED if dropped else defined))
            continue
        status = ArmStatus(before.status)
        if status is ArmStatus.DROPPED or (
            status is ArmStatus.STOPPED and ArmStatus(before.defined).eligible
        ):
            lives.append(ArmLife(status))
        elif defined is ArmStatus.INCUBATING and before.defined == defined:
            lives.append(_life(status, before))
        elif defined is ArmStatus.ACTIVE:
            lives.append(_life(defined, before))
        else:
            lives.append(ArmLife(defined))
    return tuple(lives)


def _life(status: ArmStatus, before: ArmBefore) -> ArmLife:
    return ArmLife(status, before.intervals_incubated, before.intervals_below, *before.against_rest)


def advance_lives(
    inputs: Inputs, lives: Sequence[ArmLife], probability_best: NDArray[np.float64]
) -> tuple[ArmLife, ...]:
    """Carry arms over the boundary; nothing moves unless it is a later one than the last allocation's."""
    before = inputs.before
    if inputs.status != "live" or before is None or inputs.boundary_ms <= before.boundary_ms:
        return tuple(lives)
    rule = inputs.lifecycle
    trials = [arm.trials for arm in inputs.arms]
    arm_ids = [arm.arm_id for arm in inputs.arms]
    control = arm_ids.index(inputs.control) if inputs.control in arm_ids else None
    drop = DropRule(intervals=rule.drop_intervals, min_trials=float(rule.min_trials)) if rule.drop else None
    trailing = None
    if drop is not None:
        lives = _with_evidence(inputs, lives)
        sign = -1.0 if inputs.lower_is_better else 1.0
        sums, information = (
            [sign * life.rest_sum for life in lives],
            [life.rest_information for life in lives],
        )
        trailing = trailing_arms(sums, information, alpha=DROP_ALPHA)
    return advance_arms(
        lives,
        trials=trials,
        probability_best=probability_best,
        pooled_rate=_pooled_rate(inputs),
        control=control,
        drop=drop,
        incubation=IncubationRule(min_trials=rule.min_trials, max_trials=rule.max_trials),
        harmful=_harmful(inputs, lives, control),
        trailing=trailing,
    )


def _with_evidence(inputs: Inputs, lives: Sequence[ArmLife]) -> tuple[ArmLife, ...]:
    """Add what the hours whose window has ended say of each arm against all others together.

    An arm that was stopped for another reason than being worse is no measure for the others: without it the
    evidence begins anew.
    """
    before = inputs.before.arms if inputs.before is not None else {}
    left = any(
        arm.arm_id in before
        and ArmStatus(before[arm.arm_id].status).eligible
        and life.status in (ArmStatus.STOPPED, ArmStatus.PENDING)
        for arm, life in zip(inputs.arms, lives, strict=True)
    )
    sums, information = np.zeros((2, len(lives)))
    if inputs.finished and not left:
        counts = read_history(
            inputs.finished,
            len(lives),
            cap_micros=inputs.cap_micros,
            values=False,
            lag_max_hours=LAG_MAX_HOURS,
        )
        more = rest_increments(counts.trials, np.minimum(counts.totals(), counts.trials))
        sums, information = (array.sum(axis=0) for array in more)
    return tuple(
        replace(
            life,
            rest_sum=float(sums[i]) + (0.0 if left else life.rest_sum),
            rest_information=float(information[i]) + (0.0 if left else life.rest_information),
        )
        for i, life in enumerate(lives)
    )


def _harmful(inputs: Inputs, lives: Sequence[ArmLife], control: int | None) -> NDArray[np.bool_]:
    """Arms that a guardrail stops now, judged by hours whose conversion window is over."""
    n_arms = len(inputs.arms)
    stopped = np.zeros(n_arms, dtype=bool)
    if control is None or not lives[control].status.eligible or n_arms < 2:
        return stopped
    for guardrail in inputs.guardrails:
        counts = read_history(
            guardrail.history,
            n_arms,
            cap_micros=guardrail.cap_micros,
            values=False,
            lag_max_hours=LAG_MAX_HOURS,
        ).mature(inputs.learning.window_hours)
        if counts.n_periods:
            stopped |= harmful_arms(
                counts.trials,
                np.minimum(counts.totals(), counts.trials),
                control=control,
                margin=guardrail.margin,
                alpha=GUARDRAIL_ALPHA / len(inputs.guardrails),
                higher_is_harm=guardrail.lower_is_better,
            )
    return stopped


def _pooled_rate(inputs: Inputs) -> float:
    trials = sum(arm.trials for arm in inputs.arms)
    successes = sum(arm.successes for arm in inputs.arms)
    return successes / trials if trials else 0.0


def holdout_of(inputs: Inputs, lives: Sequence[ArmLife]) -> float:
    """Share of the control arm's holdout for the coming interval."""
    if not inputs.lifecycle.adaptive_holdout:
        return inputs.holdout
    rule = HoldoutRule(minimum=inputs.holdout or HOLDOUT_MIN)
    before = inputs.before
    current = before.holdout if before is not None and before.holdout > 0.0 else None
    if current is not None and before is not None and inputs.boundary_ms <= before.boundary_ms:
        return current
    control = next((arm for arm in inputs.arms if arm.arm_id == inputs.control), None)
    return next_holdout(
        current,
        n_arms=max(sum(life.status.eligible for life in lives) - 1, 0),
        control_trials=control.trials if control else 0,
        control_successes=control.successes if control else 0,
        rule=rule,
    )


def floor_of(inputs: Inputs, default: float, n_eligible: int) -> float:
    """Least share of every eligible arm; a default must not contradict a large number of arms."""
    if inputs.lifecycle.adaptive_floor:
        day = read_history(
            inputs.history or "",
            len(inputs.arms),
            cap_micros=inputs.cap_micros,
            values=False,
            lag_max_hours=0,
        )
        units = float(day.trials[day.ages() < DAY_HOURS].sum())
        maximum = FloorRule().maximum if inputs.floor is None else inputs.floor
        rule = FloorRule(minimum=min(FloorRule().minimum, maximum), maximum=maximum)
        return rule.floor(units_per_day=units, pooled_rate=_pooled_rate(inputs), n_arms=max(n_eligible, 1))
    return min(default, 0.5 / max(n_eligible, 1)) if inputs.floor is None else inputs.floor
