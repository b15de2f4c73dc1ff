"""Codec of a unit's state."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.errors import StateCorrupt
from streams.join.unit import (
    Block,
    Mark,
    OpenConversion,
    Trial,
    Unit,
    decode_block,
    decode_conversions,
    decode_unit,
    encode_block,
    encode_unit,
    n_pending,
    new_unit,
    store_conversions,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "unit_state_v1.json").read_text())
TEXT = st.text(max_size=10)
MS = st.integers(0, 2**53)
SMALL = st.integers(0, 5)
BASES = st.dictionaries(TEXT, st.integers(0, 2**63 - 1), max_size=3)
MAYBE_BASES = st.none() | BASES
OTHERS = st.lists(st.tuples(MS, TEXT, TEXT), max_size=3)
TRIALS = st.builds(
    Trial,
    SMALL,
    MS,
    TEXT,
    TEXT,
    TEXT,
    SMALL,
    SMALL,
    st.lists(st.tuples(MS, TEXT, TEXT)),
    MAYBE_BASES,
    MAYBE_BASES,
)
MARKS = st.builds(Mark, MS, SMALL, TEXT, TEXT, SMALL, SMALL, BASES)
BLOCKS = st.builds(Block, st.lists(TRIALS, max_size=3), st.none() | MARKS, st.booleans(), MAYBE_BASES)
CONVERSIONS = st.builds(
    OpenConversion,
    MS,
    TEXT,
    TEXT,
    st.integers(0, 10**15),
    SMALL,
    st.booleans(),
    st.none() | TEXT,
    st.none() | TEXT,
)


@settings(deadline=None)
@given(st.dictionaries(TEXT, BLOCKS, max_size=3), st.lists(CONVERSIONS, max_size=3), MS, MS)
def test_states_come_back(
    blocks: dict[str, Block], conversions: list[OpenConversion], due_ms: int, settled_ms: int
) -> None:
    conversions.sort(key=OpenConversion.order)
    unit = Unit(due_ms, settled_ms, -1, 7, {name: encode_block(block) for name, block in blocks.items()}, b"")
    store_conversions(unit, conversions)
    back = decode_unit(encode_unit(unit))
    assert back == unit
    assert {name: decode_block(raw) for name, raw in back.blocks.items()} == blocks
    assert decode_conversions(back.conversions) == conversions
    assert back.last_conversion_ms == max((c.timestamp_ms for c in conversions), default=-1)
    assert n_pending(conversions) == [c.n_credits for c in conversions].count(0)


def readable(raw: bytes) -> Any:
    unit = decode_unit(raw)
    state = {
        "due_ms": unit.due_ms,
        "settled_ms": unit.settled_ms,
        "last_conversion_ms": unit.last_conversion_ms,
        "n_events": unit.n_events,
        "blocks": {name: decode_block(block) for name, block in unit.blocks.items()},
        "conversions": decode_conversions(unit.conversions),
    }
    return json.loads(msgspec.json.encode(state))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["name"]))
def test_golden_states(case: dict[str, Any]) -> None:
    raw = bytes.fromhex(case["bytes"])
    assert readable(raw) == case["state"]
    assert encode_unit(decode_unit(raw)) == raw
    for block in decode_unit(raw).blocks.values():
        assert encode_block(decode_block(block)) == block


def test_a_newer_program_can_add_fields_at_the_end() -> None:
    raw = encode_unit(new_unit())
    longer = raw[:1] + msgspec.msgpack.encode([*msgspec.msgpack.decode(raw[1:]), "new"])
    assert decode_unit(longer) == new_unit()


@pytest.mark.parametrize("raw", [b"", b"\x02", b"\x01", b"\x01\x90", b"\x01\x93\x00\x00\x00", b"\x01\xc1"])
def test_bytes_that_are_no_state_are_refused(raw: bytes) -> None:
    with pytest.raises(StateCorrupt, match="Operator action"):
        decode_unit(raw)


@pytest.mark.parametrize("decode", [decode_block, decode_conversions])
def test_bytes_that_are_no_part_of_a_state_are_refused(decode: Any) -> None:
    with pytest.raises(StateCorrupt, match="Operator action"):
        decode(b"\xc1")
