"""Codec of allocations: golden bytes, old bytes with new types, and numbers that cannot be published."""

import math

import msgspec
import pytest

from streams.allocations import Allocation, ArmAllocation, decode_allocation, encode_allocation
from streams.errors import RecordError

ARM = ArmAllocation(
    arm_id="a",
    status="active",
    weight=0.81,
    assignment_weight=0.9,
    selection_probability=0.81,
    probability_best=1e-12,
    mean=0.1 + 0.2,
    interval=(0.0, 1.0),
    trials=2**70,
    successes=3,
)
ALLOCATION = Allocation(
    experiment_id="bänner",
    version=0,
    claim=17,
    trigger="interval",
    interval_id=5,
    boundary_ms=18_000_000,
    computed_at_ms=18_000_123,
    algorithm="thompson",
    seed=2**63 - 1,
    definition_version=1,
    definition_revision=2,
    status="live",
    sticky="unit",
    control="a",
    default_arm="a",
    comparison=0.1,
    holdout=0.0,
    arms=(ARM,),
    inputs={"z": 1, "a": {"y": 1.5, "b": None}},
)
GOLDEN = (
    '{"experiment_id":"bänner","version":0,"claim":17,"trigger":"interval","interval_id":5,'
    '"boundary_ms":18000000,"computed_at_ms":18000123,"algorithm":"thompson","seed":9223372036854775807,'
    '"definition_version":1,"definition_revision":2,"status":"live","sticky":"unit","control":"a",'
    '"default_arm":"a","comparison":0.1,"holdout":0.0,"arms":[{"arm_id":"a","status":"active",'
    '"weight":0.81,"assignment_weight":0.9,'
    '"selection_probability":0.81,"probability_best":1e-12,"mean":0.30000000000000004,'
    '"interval":[0.0,1.0],"trials":1180591620717411303424,"successes":3,'
    '"effective_trials":0.0,"intervals_incubated":0,"intervals_below":0,"against_rest":[0.0,0.0]}],'
    '"segments":{},"segment_best":{},"model_fit":{},'
    '"state":"trained","warnings":[],"inputs":{"a":{"b":null,"y":1.5},"z":1}}'
).encode()


def test_golden_bytes() -> None:
    assert encode_allocation(ALLOCATION) == GOLDEN
    assert decode_allocation(GOLDEN) == ALLOCATION


def test_fields_added_later_are_ignored_and_defaults_fill_those_left_out() -> None:
    raw = msgspec.json.decode(GOLDEN)
    raw["added_later"] = {"x": 1}
    for name in ("segments", "segment_best", "model_fit", "state", "inputs"):
        del raw[name]
    expected = msgspec.structs.replace(ALLOCATION, inputs={})
    assert decode_allocation(msgspec.json.encode(raw)) == expected


def test_what_does_not_decode_says_where_and_which_field() -> None:
    raw = GOLDEN.replace(b'"weight":0.81', b'"weight":"x"')
    with pytest.raises(RecordError, match=r"allocations-2@7: .*\$\.arms\[0\]\.weight"):
        decode_allocation(raw, where="allocations-2@7")


@pytest.mark.parametrize("field", ["weight", "mean", "probability_best"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_has_not_are_refused(field: str, value: float) -> None:
    arm = msgspec.structs.replace(ARM, **{field: value})
    with pytest.raises(ValueError, match=f"{field} of arm 'a' of experiment 'bänner'"):
        encode_allocation(msgspec.structs.replace(ALLOCATION, arms=(arm,)))


def test_an_infinite_interval_is_refused() -> None:
    arm = msgspec.structs.replace(ARM, interval=(0.0, math.inf))
    with pytest.raises(ValueError, match="interval of arm 'a'"):
        encode_allocation(msgspec.structs.replace(ALLOCATION, arms=(arm,)))
