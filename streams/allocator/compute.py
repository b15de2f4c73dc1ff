"""Definition and counts in, allocation out. Pure: no I/O, no clock; the same inputs give the same bytes.

What: `inputs_of` gathers all that an allocation depends on; `compute` turns inputs into allocations; the
inputs travel inside the published record, so that `audit` can call `compute` on them again.

By status of the experiment:

- ``live``: posterior, policy, shares as :mod:`bandit_core` has them. Without data all arms start equal; while
  a contextual policy has no model yet, one table serves all segments. When every arm is stopped or dropped,
  the default arm gets everything: the last table would go on serving them.
- ``paused``: figures go on, weights are frozen as last published (edges give everybody the default arm).
- ``completed``: the winner gets everything, or each segment's winner its segment; no holdout and no
  comparison group any more.
- ``archived``: no arms at all; in the topic ``allocations`` this becomes a tombstone.
- ``draft``: nothing is published.

Order of a recalculation: lives of the arms as the last allocation left them -> delays, in batches ->
posterior by :mod:`bandit_core.steering` (discount, strata, prior; a hurdle model for values) -> P(best), in
batches -> lives advance (incubation, drops, guardrails) -> policy -> shares. Policies and P(best) work on
rewards as shares of the cap, in [0, 1]; means and intervals are given in the metric's own unit (times cap).

Why batches: P(best) by quadrature costs 3 ms for one experiment alone and 0.1 to 0.2 ms in a batch, delays
2 ms and 0.2 ms, and an experiment's figures do not depend on its batch. Cost: O(arms) per experiment besides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandit_core.allocation import Allocation as Recalculated
from bandit_core.allocation import allocate
from bandit_core.assignment import derive_seed
from bandit_core.counts import PeriodCounts
from bandit_core.delay import DelayEstimate
from bandit_core.lifecycle import ArmLife
from bandit_core.policies import Policy as CorePolicy
from bandit_core.policies import policy_from_definition
from bandit_core.policies.contextual import Contextual
from bandit_core.posteriors import BetaPosterior, BetaPrior, GaussianPosterior
from bandit_core.posteriors.hurdle import HurdlePosterior
from bandit_core.probability_best import BestArm
from bandit_core.shares import ArmStatus, ShareSettings
from bandit_core.steering import Learning, Steering, SteeringSettings, estimate_delays, steering_with
from streams.allocations import Allocation, AllocationState, ArmAllocation, encode_allocation
from streams.allocator.contextual import Averaged, Segmented, allocate_by_segment
from streams.allocator.history import MICRO, read_history
from streams.allocator.inputs import (
    ENGINE,
    ArmInputs,
    Frozen,
    Inputs,
    Job,
    Stamp,
    counting_at,
    inputs_in,
    inputs_of,
)
from streams.allocator.lives import advance_lives, floor_of, holdout_of, lives_before

__all__ = [
    "ENGINE",
    "ArmInputs",
    "Computed",
    "Failure",
    "Frozen",
    "Inputs",
    "Job",
    "Stamp",
    "compute",
    "compute_encoded",
    "counting_at",
    "inputs_in",
    "inputs_of",
]

LEVEL = 0.95  # of the credible intervals
BATCH_MAX_EXPERIMENTS = 256  # bounds the quadrature's memory


class Failure(NamedTuple):
    """An allocation that could not be computed; the last one stays in force."""

    experiment_id: str
    message: str


class Computed(NamedTuple):
    """An allocation as it stands in the log, with version 0."""

    experiment_id: str
    boundary_ms: int
    raw: bytes


@dataclass(frozen=True, slots=True, eq=False)
class _SolvedPosterior(BetaPosterior):
    """Posterior of one experiment whose P(best) was computed in a batch."""

    solved: BestArm

    def best(self, *, eligible: Any = None, lower_is_better: bool = False) -> BestArm:  # noqa: ARG002 - as solved
        """Return what the batch has found, for the eligible arms it was given."""
        return self.solved

    @classmethod
    def of(cls, posterior: BetaPosterior, solved: BestArm) -> Self:
        """Put what a batch has found beside the posterior."""
        values: dict[str, Any] = {each.name: getattr(posterior, each.name) for each in fields(posterior)}
        return cls(**values, solved=solved)


class _Learned(NamedTuple):
    position: int
    job: Job
    policy: CorePolicy
    lives: tuple[ArmLife, ...]
    learning: Learning


class _Prepared(NamedTuple):
    position: int
    job: Job
    policy: CorePolicy
    lives: tuple[ArmLife, ...]
    statuses: tuple[ArmStatus, ...]  # those that figures are computed for
    posterior: BetaPosterior
    warnings: tuple[str, ...]

    @property
    def batch(self) -> tuple[int, bool]:
        """What must agree within a batch."""
        return len(self.statuses), self.job.inputs.lower_is_better


def compute(jobs: Sequence[Job]) -> list[Allocation | Failure]:
    """Compute allocations, in the order of the jobs; one that fails does not keep the others from theirs."""
    results: list[Allocation | Failure | None] = [None] * len(jobs)
    learned: list[_Learned] = []
    for index, job in enumerate(jobs):
        if job.inputs.status == "archived":
            results[index] = _allocation(job, (), 0.0, 0.0)
            continue
        try:
            learned.append(_learned(index, job))
        except ValueError as error:
            results[index] = Failure(job.inputs.experiment_id, str(error))
    prepared: list[_Prepared] = []
    delays = estimate_delays([each.learning for each in learned])
    for each, delay in zip(learned, delays, strict=True):
        try:
            prepared.append(_prepared(each, delay))
        except ValueError as error:
            results[each.position] = Failure(each.job.inputs.experiment_id, str(error))
    prepared.sort(key=lambda each: each.batch)
    for _, group in groupby(prepared, key=lambda each: each.batch):
        rows = list(group)
        for start in range(0, len(rows), BATCH_MAX_EXPERIMENTS):
            _compute_batch(rows[start : start + BATCH_MAX_EXPERIMENTS], results)
    return [result for result in results if result is not None]


def compute_encoded(jobs: Sequence[Job]) -> list[Computed | Failure]:
    """Do as :func:`compute`, and encode: bytes travel between processes at a tenth of the cost."""
    return [each if isinstance(each, Failure) else _encoded(each) for each in compute(jobs)]


def _encoded(allocation: Allocation) -> Computed | Failure:
    try:
        return Computed(allocation.experiment_id, allocation.boundary_ms, encode_allocation(allocation))
    except ValueError as error:
        return Failure(allocation.experiment_id, str(error))


def _learned(position: int, job: Job) -> _Learned:
    inputs = job.inputs
    policy = policy_from_definition(inputs.algorithm, inputs.parameters, path="policy")
    if not inputs.arms:
        raise ValueError("arms: there is none; an experiment needs at least one")
    return _Learned(position, job, policy, lives_before(inputs), _learning(inputs))


def _prepared(learned: _Learned, delay: DelayEstimate | None) -> _Prepared:
    position, job, policy, lives, learning = learned
    statuses = _shown(lives)
    steering = steering_with(learning, delay, eligible=[status.eligible for status in statuses])
    posterior = _relative(job.inputs, steering)
    return _Prepared(position, job, policy, lives, statuses, posterior, tuple(steering.warnings))


def _shown(lives: Sequence[ArmLife]) -> tuple[ArmStatus, ...]:
    statuses = tuple(life.status for life in lives)
    if any(status.eligible for status in statuses):
        return statuses
    return (ArmStatus.ACTIVE,) * len(statuses)  # figures only: no weight follows from them


def _learning(inputs: Inputs) -> Learning:
    """Let counts of one experiment count as its definition says of learning."""
    learning, by_value = inputs.learning, inputs.kind == "value"
    settings = SteeringSettings(
        reward=inputs.kind,
        model=learning.model,
        cap=inputs.cap_micros / MICRO,
        prior=BetaPrior(*inputs.prior),
        pooled_prior=learning.pooled,
        delay=learning.delay if inputs.history is not None else "none",
        window_periods=learning.window_hours,
        half_life_periods=learning.half_life_hours,
        sliding_window_periods=learning.sliding_hours,
        stratify=learning.stratify,
        overdispersion=learning.overdispersion,
    )
    if inputs.history is not None:
        counts = read_history(
            inputs.history,
            len(inputs.arms),
            cap_micros=inputs.cap_micros,
            values=by_value,
            lag_max_hours=learning.window_hours,
        )
    else:
        counts = _one_period(inputs)
    return Learning.of(counts, settings)


def _one_period(inputs: Inputs) -> PeriodCounts:
    """All hours together."""
    by_value = inputs.kind == "value"
    unit = MICRO if by_value else inputs.cap_micros
    rewards = [arm.value_micros / unit for arm in inputs.arms]
    return PeriodCounts.of(
        [[arm.trials for arm in inputs.arms]],
        [[arm.successes for arm in inputs.arms] if by_value else rewards],
        [rewards],
        [[arm.value_sq_micros2 / unit**2 for arm in inputs.arms]],
    )


def _relative(inputs: Inputs, steering: Steering) -> BetaPosterior:
    """Give the posterior of the reward as a share of the cap: policies and batches work on that."""
    if isinstance(steering.posterior, HurdlePosterior):
        return steering.posterior.relative
    if isinstance(steering.posterior, GaussianPosterior):
        return steering.posterior.relative(inputs.cap_micros / MICRO)
    if not isinstance(steering.posterior, BetaPosterior):
        raise TypeError(f"steering gave {type(steering.posterior).__name__}, which has no batches")
    # Of rewards in parts the squares are smaller than the sums; bounds by variance need to know.
    sums = np.array([[arm.value_micros / inputs.cap_micros for arm in inputs.arms]])
    squares = np.array([[arm.value_sq_micros2 / inputs.cap_micros**2 for arm in inputs.arms]])
    ratio = np.divide(squares, sums, out=np.ones_like(sums), where=sums > 0.0)
    return replace(steering.posterior, data_squares=steering.posterior.data_successes * ratio)


def _together(rows: Sequence[_Prepared]) -> BetaPosterior:
    """Posteriors of experiments with as many arms each; one row an experiment."""
    names = [each.name for each in fields(BetaPosterior)]
    return BetaPosterior(
        **{name: np.concatenate([getattr(row.posterior, name) for row in rows]) for name in names}
    )


def _compute_batch(rows: Sequence[_Prepared], results: list[Allocation | Failure | None]) -> None:
    eligible = np.array([[status.eligible for status in row.statuses] for row in rows])
    lower = rows[0].job.inputs.lower_is_better
    best = _together(rows).best(eligible=eligible, lower_is_better=lower)
    for i, row in enumerate(rows):
        here = slice(i, i + 1)
        solved = BestArm(best.probability[here], best.expected_loss[here], best.expected_best[here])
        try:
            results[row.position] = _published(*_advanced(row, solved))
        except ValueError as error:
            results[row.position] = Failure(row.job.inputs.experiment_id, str(error))


def _advanced(row: _Prepared, solved: BestArm) -> tuple[_Prepared, BetaPosterior]:
    """Carry the arms over the boundary; whoever is left competes without those that went."""
    inputs = row.job.inputs
    lives = advance_lives(inputs, row.lives, np.nan_to_num(solved.probability[0]))
    statuses = _shown(lives)
    eligible: NDArray[np.bool_] = np.array([[status.eligible for status in statuses]])
    if eligible.tolist() != [[status.eligible for status in row.statuses]]:
        solved = row.posterior.best(eligible=eligible, lower_is_better=inputs.lower_is_better)
    return row._replace(lives=lives, statuses=statuses), _SolvedPosterior.of(row.posterior, solved)


def _published(row: _Prepared, posterior: BetaPosterior) -> Allocation:
    inputs = row.job.inputs
    arm_ids = [arm.arm_id for arm in inputs.arms]
    n_eligible = sum(status.eligible for status in row.statuses)
    settings = ShareSettings(
        comparison=inputs.comparison,
        holdout=holdout_of(inputs, row.lives),
        floor=floor_of(inputs, row.policy.default_floor, n_eligible),
    )
    policy: CorePolicy = row.policy
    segmented: Segmented | None = None
    if isinstance(row.policy, Contextual) and inputs.context is not None:
        segmented = allocate_by_segment(
            inputs,
            row.policy,
            row.posterior,
            row.statuses,
            settings,
            rng=np.random.default_rng(_seed(inputs)),
            level=LEVEL,
        )
        policy = Averaged(segmented.average)
    core = allocate(
        policy,
        posterior,
        trials=[arm.trials for arm in inputs.arms],
        successes=[arm.value_micros / inputs.cap_micros for arm in inputs.arms],
        statuses=row.statuses,
        control=arm_ids.index(inputs.control) if inputs.control in arm_ids else None,
        settings=settings,
        rng=np.random.default_rng(_seed(inputs)),
        lower_is_better=inputs.lower_is_better,
        level=LEVEL,
        max_step=inputs.lifecycle.max_step,
        previous=_previous(inputs),
    )
    default_arm = _default_arm(inputs, row.lives)
    if inputs.status == "completed":
        shares = _everything_to(inputs.winner or default_arm, inputs, comparison=0.0)
        shares = msgspec.structs.replace(
            shares, segments=_locked(inputs, arm_ids), segment_best=inputs.segment_winners
        )
    elif inputs.frozen is not None:
        shares = inputs.frozen
    elif any(life.status.eligible for life in row.lives):
        shares = _shares(arm_ids, core, segmented)
    else:
        shares = _everything_to(default_arm, inputs, comparison=core.shares.comparison)
    arms = tuple(
        _arm(inputs, core, i, shares.arms[arm_id], row.lives[i], float(posterior.effective_trials()[0, i]))
        for i, arm_id in enumerate(arm_ids)
    )
    made = _allocation(row.job, arms, shares.comparison, shares.holdout)
    return msgspec.structs.replace(
        made,
        default_arm=default_arm,
        warnings=row.warnings + (segmented.warnings() if segmented is not None else ()),
        segments=shares.segments,
        segment_best=shares.segment_best,
        model_fit=segmented.fit if segmented is not None else {},
    )


def _previous(inputs: Inputs) -> list[float] | None:
    """Weights of the last interval, for steps of limited size; arms that are new had none."""
    if inputs.lifecycle.max_step is None or inputs.before is None:
        return None
    before = inputs.before.arms
    weights = [before[arm.arm_id].assignment_weight if arm.arm_id in before else 0.0 for arm in inputs.arms]
    return weights if sum(weights) > 0.0 else None


def _default_arm(inputs: Inputs, lives: Sequence[ArmLife]) -> str:
    """Give the definition's default arm, or control if the allocator itself has taken its traffic."""
    for arm, life in zip(inputs.arms, lives, strict=True):
        if arm.arm_id == inputs.default_arm and ArmStatus(arm.status).eligible and not life.status.eligible:
            return inputs.control
    return inputs.default_arm


def _locked(inputs: Inputs, arm_ids: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Weights of a completed experiment by segment: everything to each segment's winner."""
    return {
        segment: tuple(1.0 if arm_id == winner else 0.0 for arm_id in arm_ids)
        for segment, winner in inputs.segment_winners.items()
    }


def _shares(arm_ids: Sequence[str], core: Recalculated, segmented: Segmented | None) -> Frozen:
    arms = {
        arm_id: (core.shares.weights[i], core.shares.rest[i], core.arms[i].selection_probability)
        for i, arm_id in enumerate(arm_ids)
    }
    return Frozen(
        comparison=core.shares.comparison,
        holdout=core.shares.holdout,
        arms=arms,
        segments=segmented.weights if segmented is not None else {},
        segment_best=segmented.best if segmented is not None else {},
    )


def _everything_to(arm_id: str, inputs: Inputs, *, comparison: float) -> Frozen:
    if arm_id not in [arm.arm_id for arm in inputs.arms]:
        raise ValueError(f"winner: {arm_id!r} is not an arm of this experiment")
    everything, nothing = (1.0 - comparison, 1.0, 1.0 - comparison), (0.0, 0.0, 0.0)
    arms = {arm.arm_id: everything if arm.arm_id == arm_id else nothing for arm in inputs.arms}
    return Frozen(comparison=comparison, holdout=0.0, arms=arms)


def _arm(
    inputs: Inputs,
    core: Recalculated,
    index: int,
    shares: tuple[float, float, float],
    life: ArmLife,
    effective_trials: float,
) -> ArmAllocation:
    arm, figures = inputs.arms[index], core.arms[index]
    cap = inputs.cap_micros / MICRO
    return ArmAllocation(
        arm_id=arm.arm_id,
        status=life.status.value,
        weight=shares[0],
        assignment_weight=shares[1],
        selection_probability=shares[2],
        probability_best=figures.probability_best or 0.0,
        mean=figures.mean * cap,
        interval=(figures.low * cap, figures.high * cap),
        trials=arm.trials,
        successes=arm.successes,
        effective_trials=effective_trials,
        intervals_incubated=life.intervals_incubated,
        intervals_below=life.intervals_below,
        against_rest=(life.rest_sum, life.rest_information),
    )


def _allocation(job: Job, arms: tuple[ArmAllocation, ...], comparison: float, holdout: float) -> Allocation:
    inputs, stamp = job
    fits = inputs.algorithm == Contextual.name and inputs.status == "live"
    trained = any(arm.trials for arm in inputs.arms) and not (fits and inputs.context is None)
    state: AllocationState = "trained" if trained else "created"
    return Allocation(
        experiment_id=inputs.experiment_id,
        version=0,
        claim=stamp.claim,
        trigger=stamp.trigger,
        interval_id=inputs.boundary_ms // inputs.interval_ms,
        boundary_ms=inputs.boundary_ms,
        computed_at_ms=stamp.computed_at_ms,
        algorithm=inputs.algorithm,
        seed=_seed(inputs),
        definition_version=inputs.definition_version,
        definition_revision=inputs.definition_revision,
        status=inputs.status,
        sticky=inputs.sticky,
        control=inputs.control,
        default_arm=inputs.default_arm,
        comparison=comparison,
        holdout=holdout,
        arms=arms,
        state=state,
        inputs=msgspec.to_builtins(inputs),
    )


def _seed(inputs: Inputs) -> int:
    return derive_seed(inputs.experiment_id, str(inputs.boundary_ms))
