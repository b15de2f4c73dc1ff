"""Allocations: what the allocator publishes and edges read.

What: the record of the topics ``allocation-log`` (every version ever published, ``version`` 0 because the
record's offset there *is* the version) and ``allocations`` (compacted, ``version`` filled in; a tombstone
for an archived experiment). JSON, keyed by experiment id. docs/allocations.md tells subscribers about every
field.

Why bytes matter: `audit` computes every logged table again from its ``inputs`` and compares bytes, so equal
tables must be equal bytes: fields in the order of the type, dictionaries sorted by key, floats as the
shortest decimals that give the same double back, no NaN (it would read back as null).

Compatibility: fields are only ever added, with a default; readers ignore those that they do not know.

Cost: some microseconds a record.
"""

import math
from typing import Any, Literal

import msgspec
from msgspec import Struct

from streams.errors import RecordError

__all__ = [
    "Allocation",
    "AllocationState",
    "ArmAllocation",
    "Trigger",
    "decode_allocation",
    "encode_allocation",
]

Trigger = Literal["interval", "change", "owner"]
AllocationState = Literal["created", "training", "trained"]


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
    effective_trials: float = 0.0  # what the trials are worth, after delay, discount and strata
    intervals_incubated: int = 0
    intervals_below: int = 0  # consecutive intervals below the drop threshold
    against_rest: tuple[float, float] = (
        0.0,
        0.0,
    )  # evidence against all others: sum, information


class Allocation(Struct, frozen=True, kw_only=True):
    """One allocation table. ``version`` is the record's offset in allocation-log (0 in the log itself)."""

    experiment_id: str
    version: int
    claim: int
    trigger: Trigger
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
    segment_best: dict[str, str] = {}  # arm most probably best in each segment, among those with traffic
    model_fit: dict[str, float] = {}  # of a contextual model: r_hat and ess, the worst of all coefficients
    state: AllocationState = "trained"
    warnings: tuple[str, ...] = ()
    inputs: dict[str, Any] = {}  # all that is needed to compute the table again, byte for byte


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(Allocation)


def encode_allocation(allocation: Allocation) -> bytes:
    """Bytes of an allocation; equal allocations give equal bytes.

    Raises
    ------
    ValueError
        If a figure of an arm is not finite; the message names experiment, arm and field.
    """
    for arm in allocation.arms:
        for name in ("weight", "assignment_weight", "selection_probability", "probability_best", "mean"):
            if not math.isfinite(getattr(arm, name)):
                raise ValueError(
                    f"{name} of arm {arm.arm_id!r} of experiment {allocation.experiment_id!r} is"
                    f" {getattr(arm, name)}; only finite numbers can be published"
                )
        for name in ("interval", "against_rest"):
            if not all(map(math.isfinite, getattr(arm, name))):
                raise ValueError(
                    f"{name} of arm {arm.arm_id!r} of experiment {allocation.experiment_id!r} is"
                    f" {getattr(arm, name)}; only finite numbers can be published"
                )
    return _encoder.encode(allocation)


def decode_allocation(raw: bytes, *, where: str = "allocations") -> Allocation:
    """Allocation from a record's value.

    Parameters
    ----------
    raw
        The value; tombstones (no value) are the caller's to tell apart.
    where
        Topic, partition and offset, for the error's message.

    Raises
    ------
    RecordError
        If it does not decode; the message names the field.
    """
    try:
        return _decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise RecordError(
            f"allocation does not decode: {error}",
            where=where,
            action="the last good allocation stays in force; check that writer and reader are of versions"
            " that go together",
        ) from error
