"""Definition and counts in, allocation out. Pure: no I/O, no clock; the same inputs give the same bytes.

What: `inputs_of` gathers all that an allocation depends on; `compute` turns inputs into allocations; the
inputs travel inside the published record, so that `audit` can call `compute` on them again.

By status of the experiment:

- ``live``: posterior, policy, shares as :mod:`bandit_core` has them. Without data all arms start equal. When
  every arm is stopped or dropped, the default arm gets everything: the last table would go on serving them.
- ``paused``: figures go on, weights are frozen as last published (edges give everybody the default arm).
- ``completed``: the winner gets everything; no holdout and no comparison group any more.
- ``archived``: no arms at all; in the topic ``allocations`` this becomes a tombstone.
- ``draft``: nothing is published.

The reward of a trial is ``min(cap, sum of values) / cap``, in [0, 1]: an arm's posterior is Beta(alpha +
sum of rewards, beta + trials - sum of rewards). Means and intervals are given in the metric's own unit
(times cap).

Why batches: P(best) by quadrature costs 3 ms for one experiment alone and 0.1 to 0.2 ms in a batch, and an
experiment's figures do not depend on its batch. Cost: O(arms) per experiment besides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
from msgspec import Struct

from bandit_core.allocation import Allocation as Recalculated
from bandit_core.allocation import allocate
from bandit_core.assignment import derive_seed
from bandit_core.policies import Policy as CorePolicy
from bandit_core.policies import policy_from_definition
from bandit_core.posteriors import BetaPosterior
from bandit_core.probability_best import BestArm
from bandit_core.shares import ArmStatus, ShareSettings
from streams.allocations import Allocation, AllocationState, ArmAllocation, Trigger
from streams.allocator.counts_state import ArmCounts
from streams.experiments.definition import Counting, ExperimentRecord, ExperimentStatus

__all__ = [
    "ENGINE",
    "ArmInputs",
    "Failure",
    "Frozen",
    "Inputs",
    "Job",
    "Stamp",
    "compute",
    "counting_at",
    "inputs_in",
    "inputs_of",
]

ENGINE = 1
"""Raised whenever the same inputs give other bytes than before; `audit` does not compare across engines."""

LEVEL = 0.95  # of the credible intervals
MICRO = 1_000_000
BATCH_MAX_EXPERIMENTS = 256  # bounds the quadrature's memory
_NOTHING = ArmCounts(0, 0, 0, 0)


class ArmInputs(Struct, frozen=True, kw_only=True):
    """An arm and its counts as of the boundary: steering view, bandit group, decision metric."""

    arm_id: str
    status: str
    trials: int
    successes: int
    value_micros: int
    value_sq_micros2: int


class Frozen(Struct, frozen=True, kw_only=True):
    """Shares that were in force when the experiment was paused; per arm weight, assignment, selection."""

    comparison: float
    holdout: float
    arms: dict[str, tuple[float, float, float]]


class Inputs(Struct, frozen=True, kw_only=True):
    """All that an allocation is computed from."""

    engine: int
    experiment_id: str
    status: ExperimentStatus
    boundary_ms: int
    interval_ms: int
    definition_version: int
    definition_revision: int
    sticky: str
    control: str
    default_arm: str
    winner: str | None
    algorithm: str
    parameters: dict[str, Any]
    floor: float | None
    holdout: float
    comparison: float
    prior: tuple[float, float]
    metric: str
    cap_micros: int
    lower_is_better: bool
    arms: tuple[ArmInputs, ...]
    frozen: Frozen | None = None


class Stamp(NamedTuple):
    """What a record says of its making; it does not change a number."""

    claim: int
    trigger: Trigger
    computed_at_ms: int


class Job(NamedTuple):
    """One allocation to compute."""

    inputs: Inputs
    stamp: Stamp


class Failure(NamedTuple):
    """An allocation that could not be computed; the last one stays in force."""

    experiment_id: str
    message: str


def counting_at(record: ExperimentRecord, boundary_ms: int) -> Counting:
    """Return the newest version in effect at a boundary; before the first takes effect, the first."""
    effective = [version for version in record.versions if version.effective_from_ms <= boundary_ms]
    return max(effective or record.versions[:1], key=lambda version: version.effective_from_ms)


def inputs_of(
    record: ExperimentRecord, boundary_ms: int, counts: Mapping[str, ArmCounts], last: Allocation | None
) -> Inputs:
    """Gather what an allocation depends on.

    Parameters
    ----------
    record
        The definition.
    boundary_ms
        Only what is dated before it is in ``counts``.
    counts
        Per arm, of the version and metric of :func:`counting_at`; arms left out got nothing.
    last
        The allocation now in force; its weights freeze while the experiment is paused.
    """
    counting = counting_at(record, boundary_ms)
    policy = record.policy
    arms = []
    for arm in record.arms if record.status != "archived" else ():
        got = counts.get(arm.arm_id, _NOTHING)
        arms.append(
            ArmInputs(
                arm_id=arm.arm_id,
                status=arm.status,
                trials=got.trials,
                successes=got.successes,
                value_micros=got.value_micros,
                value_sq_micros2=got.value_sq_micros2,
            )
        )
    return Inputs(
        engine=ENGINE,
        experiment_id=record.experiment_id,
        status=record.status,
        boundary_ms=boundary_ms,
        interval_ms=policy.interval_ms,
        definition_version=counting.version,
        definition_revision=record.revision,
        sticky=record.sticky,
        control=record.control,
        default_arm=record.default_arm or record.control,
        winner=record.winner,
        algorithm=policy.algorithm,
        parameters=policy.parameters,
        floor=policy.floor,
        holdout=policy.holdout,
        comparison=policy.comparison,
        prior=(policy.prior.alpha, policy.prior.beta),
        metric=counting.reward.metric,
        cap_micros=round(counting.reward.cap * MICRO),
        lower_is_better=counting.reward.lower_is_better,
        arms=tuple(arms),
        frozen=_frozen(record, last) if record.status == "paused" else None,
    )


def _frozen(record: ExperimentRecord, last: Allocation | None) -> Frozen | None:
    """Shares to keep, or None if the arms have changed since, or there never were any."""
    if last is None or last.status not in ("live", "paused"):
        return None
    now = [(arm.arm_id, ArmStatus(arm.status).eligible) for arm in record.arms]
    if now != [(arm.arm_id, ArmStatus(arm.status).eligible) for arm in last.arms]:
        return None
    arms = {arm.arm_id: (arm.weight, arm.assignment_weight, arm.selection_probability) for arm in last.arms}
    return Frozen(comparison=last.comparison, holdout=last.holdout, arms=arms)


def inputs_in(allocation: Allocation) -> Inputs:
    """Return the inputs that a published allocation carries.

    Raises
    ------
    msgspec.ValidationError
        If they are not of this form.
    """
    return msgspec.convert(allocation.inputs, Inputs)


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


class _Prepared(NamedTuple):
    position: int
    job: Job
    policy: CorePolicy
    statuses: tuple[ArmStatus, ...]
    posterior: BetaPosterior

    @property
    def batch(self) -> tuple[int, bool]:
        """What must agree within a batch."""
        return len(self.statuses), self.job.inputs.lower_is_better


def compute(jobs: Sequence[Job]) -> list[Allocation | Failure]:
    """Compute allocations, in the order of the jobs; one that fails does not keep the others from theirs."""
    results: list[Allocation | Failure | None] = [None] * len(jobs)
    prepared: list[_Prepared] = []
    for index, job in enumerate(jobs):
        if job.inputs.status == "archived":
            results[index] = _allocation(job, (), 0.0, 0.0)
            continue
        try:
            prepared.append(_prepare(index, job))
        except ValueError as error:
            results[index] = Failure(job.inputs.experiment_id, str(error))
    prepared.sort(key=lambda each: each.batch)
    for _, group in groupby(prepared, key=lambda each: each.batch):
        rows = list(group)
        for start in range(0, len(rows), BATCH_MAX_EXPERIMENTS):
            _compute_batch(rows[start : start + BATCH_MAX_EXPERIMENTS], results)
    return [result for result in results if result is not None]


def _prepare(position: int, job: Job) -> _Prepared:
    inputs = job.inputs
    policy = policy_from_definition(inputs.algorithm, inputs.parameters, path="policy")
    if not inputs.arms:
        raise ValueError("arms: there is none; an experiment needs at least one")
    statuses = tuple(ArmStatus(arm.status) for arm in inputs.arms)
    if not any(status.eligible for status in statuses):
        statuses = (ArmStatus.ACTIVE,) * len(statuses)  # figures only: no weight follows from them
    posterior = _posterior([inputs])
    return _Prepared(position, job, policy, statuses, posterior)


def _posterior(batch: Sequence[Inputs]) -> BetaPosterior:
    """Posterior of experiments with as many arms each; one row an experiment."""
    return BetaPosterior.from_counts(
        [[arm.trials for arm in inputs.arms] for inputs in batch],
        [[arm.value_micros / inputs.cap_micros for arm in inputs.arms] for inputs in batch],
        ([[inputs.prior[0]] for inputs in batch], [[inputs.prior[1]] for inputs in batch]),
        squares=[[arm.value_sq_micros2 / inputs.cap_micros**2 for arm in inputs.arms] for inputs in batch],
    )


def _compute_batch(rows: Sequence[_Prepared], results: list[Allocation | Failure | None]) -> None:
    eligible = np.array([[status.eligible for status in row.statuses] for row in rows])
    together = _posterior([row.job.inputs for row in rows])
    best = together.best(eligible=eligible, lower_is_better=rows[0].job.inputs.lower_is_better)
    for i, row in enumerate(rows):
        here = slice(i, i + 1)
        solved = BestArm(best.probability[here], best.expected_loss[here], best.expected_best[here])
        posterior = _SolvedPosterior.of(row.posterior, solved)
        try:
            results[row.position] = _published(row, posterior)
        except ValueError as error:
            results[row.position] = Failure(row.job.inputs.experiment_id, str(error))


def _published(row: _Prepared, posterior: BetaPosterior) -> Allocation:
    inputs = row.job.inputs
    arm_ids = [arm.arm_id for arm in inputs.arms]
    n_eligible = sum(status.eligible for status in row.statuses)
    floor = inputs.floor
    if floor is None:  # a default must not contradict a large number of arms
        floor = min(row.policy.default_floor, 0.5 / max(n_eligible, 1))
    core = allocate(
        row.policy,
        posterior,
        trials=[arm.trials for arm in inputs.arms],
        successes=[arm.value_micros / inputs.cap_micros for arm in inputs.arms],
        statuses=row.statuses,
        control=arm_ids.index(inputs.control) if inputs.control in arm_ids else None,
        settings=ShareSettings(comparison=inputs.comparison, holdout=inputs.holdout, floor=floor),
        rng=np.random.default_rng(_seed(inputs)),
        lower_is_better=inputs.lower_is_better,
        level=LEVEL,
    )
    if inputs.status == "completed":
        shares = _everything_to(inputs.winner or inputs.default_arm, inputs, comparison=0.0)
    elif inputs.frozen is not None:
        shares = inputs.frozen
    elif any(ArmStatus(arm.status).eligible for arm in inputs.arms):
        shares = _shares(arm_ids, core)
    else:
        shares = _everything_to(inputs.default_arm, inputs, comparison=core.shares.comparison)
    arms = tuple(_arm(inputs, core, i, shares.arms[arm_id]) for i, arm_id in enumerate(arm_ids))
    return _allocation(row.job, arms, shares.comparison, shares.holdout)


def _shares(arm_ids: Sequence[str], core: Recalculated) -> Frozen:
    arms = {
        arm_id: (core.shares.weights[i], core.shares.rest[i], core.arms[i].selection_probability)
        for i, arm_id in enumerate(arm_ids)
    }
    return Frozen(comparison=core.shares.comparison, holdout=core.shares.holdout, arms=arms)


def _everything_to(arm_id: str, inputs: Inputs, *, comparison: float) -> Frozen:
    if arm_id not in [arm.arm_id for arm in inputs.arms]:
        raise ValueError(f"winner: {arm_id!r} is not an arm of this experiment")
    everything, nothing = (1.0 - comparison, 1.0, 1.0 - comparison), (0.0, 0.0, 0.0)
    arms = {arm.arm_id: everything if arm.arm_id == arm_id else nothing for arm in inputs.arms}
    return Frozen(comparison=comparison, holdout=0.0, arms=arms)


def _arm(inputs: Inputs, core: Recalculated, index: int, shares: tuple[float, float, float]) -> ArmAllocation:
    arm, figures = inputs.arms[index], core.arms[index]
    cap = inputs.cap_micros / MICRO
    return ArmAllocation(
        arm_id=arm.arm_id,
        status=arm.status,
        weight=shares[0],
        assignment_weight=shares[1],
        selection_probability=shares[2],
        probability_best=figures.probability_best or 0.0,
        mean=figures.mean * cap,
        interval=(figures.low * cap, figures.high * cap),
        trials=arm.trials,
        successes=arm.successes,
    )


def _allocation(job: Job, arms: tuple[ArmAllocation, ...], comparison: float, holdout: float) -> Allocation:
    inputs, stamp = job
    state: AllocationState = "trained" if any(arm.trials for arm in inputs.arms) else "created"
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
