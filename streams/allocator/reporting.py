"""What an experiment's counts say to people: figures per arm, and what may be concluded from them. Pure.

What: from the reporting view (one trial per unit: its first exposure ever; a success is any conversion
within the window from then), posterior mean, credible interval and P(best) of each arm, beside the share it
gets now.

Why notes belong to the figures: P(best) looks like a test and is none, pooled rates under changing shares
look like a lift and are none, and intervals that overlap decide nothing. Each note is given only where it
applies.

Cost: one P(best) by quadrature, some milliseconds.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bandit_core.posteriors import BetaPosterior, BetaPrior
from bandit_core.shares import ArmStatus
from streams.allocations import Allocation, AllocationState
from streams.allocator.compute import LEVEL
from streams.allocator.counts_state import ArmCounts
from streams.allocator.history import MICRO
from streams.allocator.inference import Inference
from streams.experiments.definition import Counting, ExperimentRecord

__all__ = ["ArmReport", "Report", "present_statuses", "report"]

FEW_SUCCESSES = 100
_NOTHING = ArmCounts(0, 0, 0, 0)


class ArmReport(NamedTuple):
    """One arm. Means are in the metric's unit; ``probability_best`` is None for arms without traffic."""

    arm_id: str
    status: str
    trials: int
    successes: int
    mean: float
    interval: tuple[float, float]
    probability_best: float | None
    weight: float | None


class Report(NamedTuple):
    """Figures of an experiment; ``comparison`` has the units that saw no arm, if there is such a group."""

    experiment_id: str
    status: str
    version: int
    metric: str
    kind: str
    allocation_version: int | None
    arms: tuple[ArmReport, ...]
    comparison: ArmReport | None
    notes: tuple[str, ...]
    lower_is_better: bool = False
    inference: Inference | None = None
    model_state: AllocationState | None = None


def report(
    record: ExperimentRecord,
    counting: Counting,
    counts: Mapping[str, ArmCounts],
    *,
    comparison: ArmCounts = _NOTHING,
    allocation: Allocation | None = None,
    n_allocations: int = 0,
    inference: Inference | None = None,
) -> Report:
    """Put figures and notes together.

    Parameters
    ----------
    record, counting
        The definition, and the version of it whose counts these are.
    counts
        Per arm, reporting view, bandit group.
    comparison
        The same of the comparison group.
    allocation
        The allocation now in force.
    n_allocations
        Number of different allocations under which these units were assigned.
    inference
        What may be claimed of them.
    """
    cap = counting.reward.cap
    prior = BetaPrior(record.policy.prior.alpha, record.policy.prior.beta)
    rows = [counts.get(arm.arm_id, _NOTHING) for arm in record.arms]
    posterior = _posterior(rows, cap, prior)
    statuses = present_statuses(record, allocation)
    eligible = np.array([[ArmStatus(status).eligible for status in statuses]])
    best = (
        posterior.best(eligible=eligible, lower_is_better=counting.reward.lower_is_better).probability[0]
        if eligible.any()
        else None
    )
    weights = {arm.arm_id: arm.weight for arm in allocation.arms} if allocation else {}
    mean, (low, high) = posterior.mean()[0] * cap, posterior.credible_interval(LEVEL)
    arms = tuple(
        ArmReport(
            arm_id=arm.arm_id,
            status=statuses[i],
            trials=rows[i].trials,
            successes=rows[i].successes,
            mean=float(mean[i]),
            interval=(float(low[0, i]) * cap, float(high[0, i]) * cap),
            probability_best=float(best[i]) if best is not None and eligible[0, i] else None,
            weight=weights.get(arm.arm_id),
        )
        for i, arm in enumerate(record.arms)
    )
    return Report(
        experiment_id=record.experiment_id,
        status=record.status,
        version=counting.version,
        metric=counting.reward.metric,
        kind=counting.reward.kind,
        allocation_version=allocation.version if allocation else None,
        arms=arms,
        comparison=_comparison(comparison, cap, prior) if comparison.trials else None,
        notes=_notes(record, counting, arms, n_allocations),
        lower_is_better=counting.reward.lower_is_better,
        inference=inference,
        model_state=allocation.state if allocation else None,
    )


def present_statuses(record: ExperimentRecord, allocation: Allocation | None) -> list[str]:
    """Status of each arm: the allocation's, where it is newer than the definition or the arm's own end."""
    shown = {arm.arm_id: arm.status for arm in allocation.arms} if allocation is not None else {}
    current = allocation is not None and allocation.definition_revision >= record.revision
    return [
        shown[arm.arm_id]
        if arm.arm_id in shown and (current or shown[arm.arm_id] == ArmStatus.DROPPED)
        else arm.status
        for arm in record.arms
    ]


def _posterior(rows: list[ArmCounts], cap: float, prior: BetaPrior) -> BetaPosterior:
    rewards = [row.value_micros / MICRO / cap for row in rows]
    return BetaPosterior.from_counts([row.trials for row in rows], rewards, prior)


def _comparison(counts: ArmCounts, cap: float, prior: BetaPrior) -> ArmReport:
    posterior = _posterior([counts], cap, prior)
    low, high = posterior.credible_interval(LEVEL)
    return ArmReport(
        arm_id="",
        status="comparison",
        trials=counts.trials,
        successes=counts.successes,
        mean=float(posterior.mean()[0, 0]) * cap,
        interval=(float(low[0, 0]) * cap, float(high[0, 0]) * cap),
        probability_best=None,
        weight=None,
    )


def _notes(
    record: ExperimentRecord, counting: Counting, arms: tuple[ArmReport, ...], n_allocations: int
) -> tuple[str, ...]:
    notes = [
        "A trial is a unit, counted once: the first arm that it was shown. Late conversions still arrive.",
    ]
    total = sum(arm.successes for arm in arms)
    if total < FEW_SUCCESSES:
        notes.append(
            f"{total} successes in all is few: the prior Beta({record.policy.prior.alpha:g},"
            f" {record.policy.prior.beta:g}) and chance weigh heavily. Conclude nothing from the arms' order."
        )
    rivals = [arm for arm in arms if arm.probability_best is not None]
    if len(rivals) > 1:
        rivals.sort(key=lambda arm: arm.mean, reverse=not counting.reward.lower_is_better)
        first, *others = rivals
        overlapping = [arm.arm_id for arm in others if _overlap(first, arm)]
        if overlapping:
            notes.append(
                f"The 95% interval of {first.arm_id} overlaps those of {_listed(overlapping)}:"
                " these counts do not tell them apart."
            )
        notes.append(
            "P(best) is a degree of belief given prior and counts, not a test: whoever looks every hour and"
            " stops when it passes 0.95 names a winner in about half of all experiments whose arms are equal."
        )
    if n_allocations > 1:
        notes.append(
            f"Shares changed {n_allocations - 1} times while these units were assigned. Rates pooled over"
            " time mix good and bad hours differently for each arm: their difference is not a measured lift."
        )
    return tuple(notes)


def _overlap(one: ArmReport, other: ArmReport) -> bool:
    return one.interval[0] <= other.interval[1] and other.interval[0] <= one.interval[1]


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
