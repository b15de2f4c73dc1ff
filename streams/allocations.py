"""Allocations: what the allocator publishes and edges read."""

from typing import Any, Literal

from msgspec import Struct


class ArmAllocation(Struct, frozen=True, kw_only=True):
    """One arm's share and the evidence behind it. Weights of all arms plus ``comparison`` sum to 1."""

    arm_id: str
    status: str
    weight: float  # realised overall share: (1 - g)(h [control] + (1 - h)(f + (1 - n f) w))
    assignment_weight: float  # weight within the bandit group outside the holdout: f + (1 - n f) w
    selection_probability: float  # before a draw, where the policy draws
    probability_best: float
    mean: float
    interval: tuple[float, float]
    trials: int
    successes: int


class Allocation(Struct, frozen=True, kw_only=True):
    """One allocation table. ``version`` is the record's offset in allocation-log (0 inside the log itself)."""

    experiment_id: str
    version: int
    claim: int
    trigger: Literal["interval", "change", "owner"]
    interval_id: int  # boundary / interval length
    boundary_ms: int  # only what is dated before it was used
    computed_at_ms: int
    algorithm: str
    seed: int
    definition_version: int
    definition_revision: int
    status: str
    sticky: str
    control: str
    default_arm: str
    comparison: float
    holdout: float
    arms: tuple[ArmAllocation, ...]
    segments: dict[str, tuple[float, ...]] = {}
    state: Literal["created", "training", "trained"] = "trained"
    inputs: dict[str, Any] = {}  # all that is needed to compute the table again, byte for byte
