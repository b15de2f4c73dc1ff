"""docs/allocations.md: every field is there, and the example's numbers come out again."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from streams.allocations import Allocation, ArmAllocation, decode_allocation, encode_allocation
from streams.allocator.compute import compute
from streams.allocator.inputs import (
    ArmBefore,
    ArmInputs,
    Before,
    Frozen,
    GuardrailInputs,
    Inputs,
    Job,
    LearningInputs,
    LifecycleInputs,
    Stamp,
    inputs_in,
)
from streams.allocator.segment_counts import ContextInputs

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "allocations.md").read_text(encoding="utf-8")


def tables() -> list[list[str]]:
    """First column of each table whose header is "field"."""
    found: list[list[str]] = []
    for line in TEXT.splitlines():
        if line.startswith("| field |"):
            found.append([])
        elif (match := re.match(r"\| `(\w+)` \|", line)) and found:
            found[-1].append(match[1])
    return found


@pytest.mark.parametrize(("index", "type_"), [(0, Allocation), (1, ArmAllocation), (2, Inputs)])
def test_every_field_is_documented_in_its_order(index: int, type_: type[msgspec.Struct]) -> None:
    assert tables()[index] == list(type_.__struct_fields__)


def test_fields_within_inputs_are_named() -> None:
    for type_ in (
        ArmInputs,
        Frozen,
        LearningInputs,
        LifecycleInputs,
        GuardrailInputs,
        Before,
        ArmBefore,
        ContextInputs,
    ):
        for name in type_.__struct_fields__:
            assert f"`{name}`" in TEXT


def example() -> bytes:
    (block,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    return json.dumps(json.loads(block)).encode()


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in (key, *leaves(inner))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [value]


def test_the_examples_numbers_come_out_again() -> None:
    published = decode_allocation(example())
    stamp = Stamp(published.claim, published.trigger, published.computed_at_ms)
    (computed,) = compute([Job(inputs_in(published), stamp)])
    assert isinstance(computed, Allocation)
    again = json.loads(encode_allocation(msgspec.structs.replace(computed, version=published.version)))
    for shown, found in zip(leaves(json.loads(example())), leaves(again), strict=True):
        assert shown == (pytest.approx(found, rel=1e-9) if isinstance(found, float) else found)
    assert [arm.weight for arm in published.arms] == [0.045, 0.81, 0.045]


def test_the_example_is_valid_by_the_published_schema() -> None:
    schema = json.loads((DOCS / "schemas" / "Allocation.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(example()), schema)
