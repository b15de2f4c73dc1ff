"""Results of an experiment: figures per arm, what may be concluded, and what the figures do not say. Pure.

What: `make_results` turns a `ResultsJob` (definition, counts, logged allocations) into a
:class:`~streams.results.Results`. The allocator publishes it for every boundary, `bandit-streams results`
shows it: the same function of the same inputs. Figures are of the reporting view: one trial per unit, its
first exposure ever; a success is any conversion within the window from then.

Why notes belong to the figures: P(best) looks like a test and is none, pooled rates under changing shares
look like a lift and are none, and intervals that overlap decide nothing. Each note is given only where it
applies.

Why together: what might still be won costs half of an experiment's results alone, and a tenth of that with
others'; the figures are the same, bit for bit.

Cost: docs/experiments.md has it measured; some tens of milliseconds for two weeks of ten arms.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bandit_core.assignment import derive_seed
from bandit_core.inference import STOP_QUANTILE, finished_posterior, in_sample
from bandit_core.inference import Estimate as CoreEstimate
from bandit_core.posteriors import BetaPosterior, BetaPrior
from bandit_core.probability_best import value_remaining_beta
from bandit_core.shares import ArmStatus
from streams.allocations import Allocation
from streams.allocator.batched import batched_at_end, batched_refusal
from streams.allocator.counts_state import ArmCounts
from streams.allocator.history import MICRO
from streams.allocator.inference import LEVEL, Asked, infer, wording
from streams.allocator.logged import Logged
from streams.allocator.observed import Observed, Records, observe, window_hours
from streams.experiments.definition import Counting, ExperimentRecord
from streams.join.cells import HOUR_MS
from streams.results import ArmResult, Batched, Estimate, InSample, Results

__all__ = ["ResultsFailed", "ResultsJob", "make_results", "present_statuses", "try_results"]

FEW_SUCCESSES = 100
_NOTHING = ArmCounts(0, 0, 0, 0)


class ResultsJob(NamedTuple):
    """All that results are made of; it travels to another process.

    ``counting``: the version of the definition whose counts are told; ``records``: the experiment's, see
    :class:`~streams.allocator.observed.Observation`; ``log``: allocations by version; ``allocation``: the one
    in force; ``boundary_ms``: only what is dated before it counts.
    """

    record: ExperimentRecord
    counting: Counting
    records: Records
    log: Mapping[int, Logged]
    allocation: Allocation | None
    boundary_ms: int
    computed_at_ms: int


class ResultsFailed(NamedTuple):
    """Results that could not be made; the last ones stay."""

    experiment_id: str
    message: str


class _Seen(NamedTuple):
    """A job, what was counted, the posterior of what is finished, and the statuses of its arms."""

    job: ResultsJob
    observed: Observed | None
    finished: BetaPosterior | None
    statuses: list[str]

    @property
    def eligible(self) -> list[bool]:
        """Which arms get traffic."""
        return [ArmStatus(status).eligible for status in self.statuses]


def try_results(jobs: Sequence[ResultsJob]) -> list[Results | ResultsFailed]:
    """Make results, in the order of the jobs; what is wrong with one experiment is told and not raised."""
    found: list[Results | ResultsFailed | None] = [None] * len(jobs)
    seen: dict[int, _Seen] = {}
    for index, job in enumerate(jobs):
        try:
            seen[index] = _see(job)
        except ValueError as error:
            found[index] = ResultsFailed(job.record.experiment_id, str(error))
    remaining = _values_remaining(seen)
    for index, each in seen.items():
        try:
            found[index] = _make(each, remaining.get(index))
        except ValueError as error:
            found[index] = ResultsFailed(each.job.record.experiment_id, str(error))
    return [result for result in found if result is not None]


def make_results(job: ResultsJob) -> Results:
    """Put figures, claims and notes together.

    Raises
    ------
    ValueError
        If counts and definition contradict each other.
    """
    return _make(_see(job), None)


def _see(job: ResultsJob) -> _Seen:
    arm_ids = [arm.arm_id for arm in job.record.arms]
    observed = observe(job.records, job.counting, arm_ids, -(-job.boundary_ms // HOUR_MS))
    finished = None
    if observed is not None:
        finished = finished_posterior(observed.counts, window_hours(job.counting))
    return _Seen(job, observed, finished, present_statuses(job.record, job.allocation))


def _values_remaining(seen: Mapping[int, _Seen]) -> dict[int, float]:
    """Value remaining of the experiments for which there is one, alike ones together; by index."""
    alike: dict[tuple[int, bool], list[tuple[int, BetaPosterior, list[bool]]]] = {}
    for index, each in seen.items():
        if each.finished is not None and any(each.eligible):
            kind = (len(each.statuses), each.job.counting.reward.lower_is_better)
            alike.setdefault(kind, []).append((index, each.finished, each.eligible))
    found: dict[int, float] = {}
    for (_, lower), members in alike.items():
        values = value_remaining_beta(
            np.concatenate([posterior.alpha for _, posterior, _ in members]),
            np.concatenate([posterior.beta for _, posterior, _ in members]),
            quantile=STOP_QUANTILE,
            eligible=np.array([eligible for _, _, eligible in members]),
            lower_is_better=lower,
        )
        found.update(zip([index for index, _, _ in members], values.tolist(), strict=True))
    return found


def _make(seen: _Seen, value_remaining: float | None) -> Results:
    job, observed, _, statuses = seen
    record, counting = job.record, job.counting
    totals = observed.totals if observed is not None else {}
    rows = [totals.get(arm.arm_id, _NOTHING) for arm in record.arms]
    prior = BetaPrior(record.policy.prior.alpha, record.policy.prior.beta)
    posterior = _posterior(rows, counting.reward.cap, prior)
    arms = _arms(job, rows, posterior, statuses)
    inference = None
    named: set[int] = set()
    if observed is not None:
        named = {int(version) for version in observed.cells.version if version >= 0}
        asked = _asked(job, named, seen.eligible)
        inference = infer(observed, asked, batched=_batched(job, asked), value_remaining=value_remaining)
    lower = counting.reward.lower_is_better
    return Results(
        experiment_id=record.experiment_id,
        status=record.status,
        version=counting.version,
        definition_revision=record.revision,
        metric=counting.reward.metric,
        kind=counting.reward.kind,
        lower_is_better=lower,
        allocation_version=job.allocation.version if job.allocation else None,
        model_state=job.allocation.state if job.allocation else None,
        boundary_ms=job.boundary_ms,
        computed_at_ms=job.computed_at_ms,
        arms=arms,
        comparison=_comparison(totals[""], counting.reward.cap, prior) if "" in totals else None,
        in_sample=_in_sample(job, posterior) if observed is not None else None,
        inference=inference,
        statements=wording(inference, lower_is_better=lower) if inference is not None else (),
        notes=_notes(record, counting, arms, len(named)),
    )


def _arms(
    job: ResultsJob, rows: list[ArmCounts], posterior: BetaPosterior, statuses: list[str]
) -> tuple[ArmResult, ...]:
    cap = job.counting.reward.cap
    eligible = np.array([[ArmStatus(status).eligible for status in statuses]])
    best = None
    if eligible.any():
        lower = job.counting.reward.lower_is_better
        best = posterior.best(eligible=eligible, lower_is_better=lower).probability[0]
    weights = _weights(job.allocation)
    mean, (low, high) = posterior.mean()[0] * cap, posterior.credible_interval(LEVEL)
    return tuple(
        ArmResult(
            arm_id=arm.arm_id,
            status=statuses[i],
            trials=rows[i].trials,
            successes=rows[i].successes,
            mean=float(mean[i]),
            interval=(float(low[0, i]) * cap, float(high[0, i]) * cap),
            probability_best=float(best[i]) if best is not None and eligible[0, i] else None,
            weight=weights.get(arm.arm_id),
        )
        for i, arm in enumerate(job.record.arms)
    )


def _weights(allocation: Allocation | None) -> dict[str, float]:
    return {arm.arm_id: arm.weight for arm in allocation.arms} if allocation is not None else {}


def _asked(job: ResultsJob, named: set[int], eligible: list[bool]) -> Asked:
    record, reward = job.record, job.counting.reward
    weights = _weights(job.allocation)
    return Asked(
        arm_ids=[arm.arm_id for arm in record.arms],
        eligible=eligible,
        control=record.control,
        cap=reward.cap,
        window_hours=window_hours(job.counting),
        interval_ms=record.policy.interval_ms,
        lower_is_better=reward.lower_is_better,
        values=reward.kind == "value",
        log=job.log,
        present=[weights.get(arm.arm_id, 0.0) for arm in record.arms] if job.allocation else None,
        by_segment=any(version in job.log and bool(job.log[version].segments) for version in named),
    )


def _batched(job: ResultsJob, asked: Asked) -> Batched | None:
    ends_at_ms = job.record.ends_at_ms
    if ends_at_ms is None:
        return None
    refused = batched_refusal(
        ends_at_ms=ends_at_ms,
        boundary_ms=job.boundary_ms,
        trial_window=job.counting.trial_window,
        sticky=job.record.sticky,
        by_segment=asked.by_segment,
    )
    at_end: Observed | None = None
    if refused is None:
        at_end = observe(job.records, job.counting, asked.arm_ids, ends_at_ms // HOUR_MS)
    if at_end is None:
        return Batched(ends_at_ms=ends_at_ms, refused=refused or "nothing was counted before the end")
    return batched_at_end(
        at_end,
        asked.arm_ids,
        control=asked.control,
        ends_at_ms=ends_at_ms,
        interval_ms=asked.interval_ms,
        window_hours=asked.window_hours,
        values=asked.values,
        cap=asked.cap,
    )


def _in_sample(job: ResultsJob, posterior: BetaPosterior) -> InSample | None:
    """Describe the posterior under the present weights."""
    weights = _weights(job.allocation)
    present = [weights.get(arm.arm_id, 0.0) for arm in job.record.arms]
    if not sum(present) > 0.0:
        return None
    arm_ids = [arm.arm_id for arm in job.record.arms]
    found = in_sample(
        posterior,
        present,
        rng=np.random.default_rng(derive_seed(job.record.experiment_id, str(job.boundary_ms))),
        control=arm_ids.index(job.record.control) if job.record.control in arm_ids else None,
        lower_is_better=job.counting.reward.lower_is_better,
    )

    def scaled(estimate: CoreEstimate, scale: float) -> Estimate:
        return Estimate(estimate=estimate.mean * scale, low=estimate.low * scale, high=estimate.high * scale)

    return InSample(
        expected_reward=scaled(found.expected_reward, job.counting.reward.cap),
        lift_control=None if found.lift_control is None else scaled(found.lift_control, 1.0),
        lift_worst=scaled(found.lift_worst, 1.0),
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


def _comparison(counts: ArmCounts, cap: float, prior: BetaPrior) -> ArmResult:
    posterior = _posterior([counts], cap, prior)
    low, high = posterior.credible_interval(LEVEL)
    return ArmResult(
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
    record: ExperimentRecord, counting: Counting, arms: tuple[ArmResult, ...], n_allocations: int
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


def _overlap(one: ArmResult, other: ArmResult) -> bool:
    return one.interval[0] <= other.interval[1] and other.interval[0] <= one.interval[1]


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
