"""Results: what may be reported of an experiment, as the topic ``results`` and the command have it.

What: the record of the compacted topic ``results``, JSON, keyed by experiment id; a tombstone for an
archived experiment. `bandit-streams results` computes the same record from the same counts.
docs/experiments.md says what each figure means.

Compatibility: fields are only ever added, with a default; readers ignore those that they do not know.
Figures that cannot be given are null, never NaN.

Cost: some microseconds a record of ten arms.
"""

import msgspec
from msgspec import Struct

from streams.allocations import AllocationState
from streams.errors import RecordError

__all__ = [
    "ArmClaims",
    "ArmResult",
    "Batched",
    "Contrast",
    "Effect",
    "Estimate",
    "InSample",
    "Inference",
    "OffPolicy",
    "OffPolicyContrast",
    "OffPolicyValue",
    "Results",
    "decode_results",
    "encode_results",
]


class Estimate(Struct, frozen=True, kw_only=True):
    """A figure with its interval."""

    estimate: float
    low: float
    high: float


class Effect(Struct, frozen=True, kw_only=True):
    """An estimate with its interval; ``claim`` is 1 (above 0), -1 (below 0) or 0 (cannot be said)."""

    estimate: float
    low: float
    high: float
    claim: int


class Contrast(Struct, frozen=True, kw_only=True):
    """Mean of ``arm`` less mean of ``other``, in the metric's unit; simultaneous over all pairs and looks."""

    arm: str
    other: str
    effect: Effect


class ArmClaims(Struct, frozen=True, kw_only=True):
    """Figures of one arm; rates in the metric's unit, lifts relative."""

    rate: float | None
    share: float
    last_day: float | None
    last_hour: float | None
    lift_control: Effect | None = None
    lift_best: Effect | None = None
    lift_worst: Effect | None = None


class OffPolicyValue(Struct, frozen=True, kw_only=True):
    """What a policy would have earned a unit; ``arm``: this arm alone. ``refused`` says why there is none."""

    policy: str
    arm: str | None = None
    snips: Estimate | None = None
    doubly_robust: Estimate | None = None
    units: int = 0
    effective_units: float = 0.0
    largest_weight: float = 0.0
    left_out_share: float = 0.0  # of the units: shown when an arm of the policy had no chance
    refused: str | None = None


class OffPolicyContrast(Struct, frozen=True, kw_only=True):
    """One arm alone less another, where both had a chance; good for one look, so it claims nothing."""

    arm: str
    other: str
    difference: Estimate | None = None
    refused: str | None = None


class OffPolicy(Struct, frozen=True, kw_only=True):
    """Estimates for policies that did not run."""

    values: tuple[OffPolicyValue, ...]
    contrasts: tuple[OffPolicyContrast, ...]


class Batched(Struct, frozen=True, kw_only=True):
    """Batched least squares, from what was known at the end that the definition fixed, not before it."""

    ends_at_ms: int
    contrasts: tuple[Contrast, ...] = ()
    refused: str | None = None


class InSample(Struct, frozen=True, kw_only=True):
    """Description of all units under the present weights, with credible intervals; no claim."""

    expected_reward: Estimate
    lift_control: Estimate | None
    lift_worst: Estimate


class Inference(Struct, frozen=True, kw_only=True):
    """All claims; rates and effects in the metric's unit, lifts relative. Null: cannot be said."""

    arms: dict[str, ArmClaims]
    contrasts: tuple[Contrast, ...]
    best: str | None
    worst: str | None
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
    off_policy: OffPolicy | None
    batched: Batched | None
    warnings: tuple[str, ...]
    assumptions: dict[str, str]


class ArmResult(Struct, frozen=True, kw_only=True):
    """One arm. Means are in the metric's unit; ``probability_best`` is null for arms without traffic."""

    arm_id: str
    status: str
    trials: int
    successes: int
    mean: float
    interval: tuple[float, float]
    probability_best: float | None
    weight: float | None


class Results(Struct, frozen=True, kw_only=True):
    """Figures of an experiment; ``comparison`` has the units that saw no arm, if there is such a group."""

    experiment_id: str
    status: str
    version: int  # of the definition's counting
    definition_revision: int
    metric: str
    kind: str
    lower_is_better: bool
    allocation_version: int | None
    model_state: AllocationState | None
    boundary_ms: int  # only what is dated before it was used
    computed_at_ms: int
    arms: tuple[ArmResult, ...]
    comparison: ArmResult | None
    in_sample: InSample | None
    inference: Inference | None
    statements: tuple[str, ...]
    notes: tuple[str, ...]


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(Results)


def encode_results(results: Results) -> bytes:
    """Bytes of results; equal results give equal bytes."""
    return _encoder.encode(results)


def decode_results(raw: bytes, *, where: str = "results") -> Results:
    """Results from a record's value.

    Raises
    ------
    RecordError
        If it does not decode; the message names the field.
    """
    try:
        return _decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise RecordError(
            f"results do not decode: {error}",
            where=where,
            action="check that writer and reader are of versions that go together",
        ) from error
