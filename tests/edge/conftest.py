"""Records as the worker would publish them, with everything but the point of a test filled in."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import pytest

from bandit_core.shares import ArmStatus, ShareSettings, allocate_shares
from streams.allocations import Allocation, ArmAllocation
from streams.experiments.definition import Arm, Counting, ExperimentRecord, ExperimentStatus, Policy, Reward

EXPERIMENT = "checkout"


class MakeAllocation(Protocol):
    def __call__(
        self,
        weights: dict[str, float],
        *,
        version: int = 1,
        comparison: float = 0.0,
        holdout: float = 0.0,
        control: str | None = None,
        stopped: Sequence[str] = (),
        **fields: Any,
    ) -> Allocation: ...


def allocation(
    weights: dict[str, float],
    *,
    version: int = 1,
    comparison: float = 0.0,
    holdout: float = 0.0,
    control: str | None = None,
    stopped: Sequence[str] = (),
    **fields: Any,
) -> Allocation:
    arm_ids = list(weights)
    control = arm_ids[0] if control is None else control
    statuses = [ArmStatus.STOPPED if arm_id in stopped else ArmStatus.ACTIVE for arm_id in arm_ids]
    shares = allocate_shares(
        list(weights.values()),
        statuses=statuses,
        control=arm_ids.index(control),
        settings=ShareSettings(comparison=comparison, holdout=holdout),
    )
    arms = tuple(
        ArmAllocation(
            arm_id=arm_id,
            status=str(statuses[i]),
            weight=shares.weights[i],
            assignment_weight=shares.rest[i],
            selection_probability=shares.weights[i],
            probability_best=shares.rest[i],
            mean=0.5,
            interval=(0.0, 1.0),
            trials=0,
            successes=0,
        )
        for i, arm_id in enumerate(arm_ids)
    )
    given: dict[str, Any] = {
        "experiment_id": EXPERIMENT,
        "claim": 0,
        "trigger": "interval",
        "interval_id": 7,
        "boundary_ms": 0,
        "computed_at_ms": 0,
        "algorithm": "thompson",
        "seed": 0,
        "definition_version": 1,
        "definition_revision": 1,
        "status": "live",
        "sticky": "unit",
        "default_arm": control,
    }
    return Allocation(
        version=version,
        control=control,
        comparison=shares.comparison,
        holdout=shares.holdout,
        arms=arms,
        **(given | fields),
    )


def record(
    arm_ids: Sequence[str],
    *,
    revision: int = 1,
    status: ExperimentStatus = "live",
    stopped: Sequence[str] = (),
    sticky: Literal["unit", "interval"] = "unit",
    **fields: Any,
) -> ExperimentRecord:
    given: dict[str, Any] = {
        "experiment_id": EXPERIMENT,
        "control": arm_ids[0],
        "versions": (Counting(version=1, effective_from_ms=0, reward=Reward(metric="order")),),
        "policy": Policy(),
    }
    return ExperimentRecord(
        revision=revision,
        status=status,
        sticky=sticky,
        arms=tuple(Arm(arm_id=a, status="stopped" if a in stopped else "active") for a in arm_ids),
        **(given | fields),
    )


@pytest.fixture(scope="session")
def make_allocation() -> MakeAllocation:
    return allocation


@pytest.fixture(scope="session")
def make_record() -> Callable[..., ExperimentRecord]:
    return record
