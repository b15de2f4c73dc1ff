"""Codecs of cells, and adding to a cell."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.errors import StateCorrupt
from streams.join.cells import (
    GROUPS,
    VIEWS,
    Cell,
    CellKey,
    Group,
    LagCounts,
    View,
    add_to_cell,
    bucket_prefix,
    decode_cell,
    decode_key,
    decode_numbers,
    decode_prefix,
    decode_tail,
    encode_cell,
    encode_key,
    experiment_prefix,
    split_key,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cells_v1.json").read_text())
TEXT = st.text(max_size=20)
KEYS = st.builds(
    CellKey,
    TEXT,
    st.integers(0, 2**32 - 1),
    st.sampled_from(VIEWS),
    TEXT,
    TEXT,
    TEXT,
    st.sampled_from(GROUPS),
    st.integers(-1, 2**63 - 1),
    st.integers(-(2**40), 2**40),
)
BIG = st.integers(-(2**120), 2**120)
COUNTS = st.builds(LagCounts, st.integers(-(2**62), 2**62), BIG, BIG).filter(any)
CELLS = st.builds(
    Cell,
    st.integers(-(2**62), 2**62),
    st.integers(-(2**62), 2**62),
    st.dictionaries(st.integers(0, 200), COUNTS, max_size=5),
)
QUICK = settings(deadline=None)


def test_literals_and_codes_agree() -> None:
    assert get_args(View) == VIEWS
    assert get_args(Group) == GROUPS


@pytest.mark.parametrize("case", GOLDEN["keys"])
def test_golden_keys(case: dict[str, Any]) -> None:
    key = CellKey(*case["key"])
    assert encode_key(key).hex() == case["bytes"]
    assert decode_key(bytes.fromhex(case["bytes"])) == key


@pytest.mark.parametrize("case", GOLDEN["cells"])
def test_golden_cells(case: dict[str, Any]) -> None:
    cell = Cell(case["trials"], case["crossovers"], {lag: LagCounts(*n) for lag, *n in case["lags"]})
    assert encode_cell(cell).hex() == case["bytes"]
    assert decode_cell(bytes.fromhex(case["bytes"])) == cell


@QUICK
@given(KEYS)
def test_keys_come_back(key: CellKey) -> None:
    raw = encode_key(key)
    assert decode_key(raw) == key
    assert raw.startswith(bucket_prefix(key.experiment_id, key.bucket))
    assert raw.startswith(experiment_prefix(key.experiment_id))


@QUICK
@given(KEYS, st.lists(st.integers(-100, 2**40), min_size=2, max_size=5))
def test_keys_sort_by_bucket_within_an_experiment(key: CellKey, buckets: list[int]) -> None:
    raws = [encode_key(key._replace(bucket=bucket)) for bucket in sorted(buckets)]
    assert raws == sorted(raws)


@QUICK
@given(CELLS)
def test_cells_come_back(cell: Cell) -> None:
    assert decode_cell(encode_cell(cell)) == cell


@QUICK
@given(CELLS, CELLS)
def test_adding_adds_every_number(one: Cell, other: Cell) -> None:
    lags = {lag: list(counts) for lag, counts in other.lags.items()}
    got = decode_cell(add_to_cell(encode_cell(one), other.trials, other.crossovers, lags))
    none = LagCounts(0, 0, 0)
    sums = {
        lag: LagCounts(*map(sum, zip(one.lags.get(lag, none), other.lags.get(lag, none), strict=True)))
        for lag in one.lags.keys() | other.lags.keys()
    }
    expected = {lag: counts for lag, counts in sums.items() if any(counts)}
    assert got == Cell(one.trials + other.trials, one.crossovers + other.crossovers, expected)
    assert list(got.lags) == sorted(got.lags)


@QUICK
@given(CELLS)
def test_taking_away_what_was_added_leaves_a_zero_cell(cell: Cell) -> None:
    lags = {lag: [-n for n in counts] for lag, counts in cell.lags.items()}
    raw = add_to_cell(encode_cell(cell), -cell.trials, -cell.crossovers, lags)
    assert raw == encode_cell(Cell(0, 0, {}))


def test_increments_of_nothing_make_no_lag() -> None:
    assert encode_cell(Cell(1, 0, {3: LagCounts(0, 0, 0)})) == encode_cell(Cell(1, 0, {}))
    assert decode_cell(add_to_cell(None, 1, 0, {3: [0, 0, 0]})) == Cell(1, 0, {})


@pytest.mark.parametrize("raw", [b"", b"\x02", b"\x01", b"\x01\x93\x00\x00\x00", b"\x01\xa1a", b"\x01\xff"])
def test_bytes_that_are_no_cell_are_refused(raw: bytes) -> None:
    with pytest.raises(StateCorrupt, match="Operator action"):
        decode_cell(raw)


def test_bytes_that_are_no_key_are_refused() -> None:
    good = encode_key(CellKey("e", 1, "steering", "m", "a", "", "bandit", 0, 5))
    view_at = len(bucket_prefix("e", 5))
    for raw in (
        b"",
        b"\x02" + good[1:],
        good + b"x",
        good[:view_at] + b"\x07" + good[view_at + 1 :],
        good.replace(b"m", b"\xff"),
        *(good[:n] for n in range(1, len(good))),
    ):
        with pytest.raises(StateCorrupt, match="Operator action"):
            decode_key(raw)


@QUICK
@given(KEYS, CELLS)
def test_parts_of_a_key_and_numbers_of_a_cell_are_what_the_whole_says(key: CellKey, cell: Cell) -> None:
    prefix, tail = split_key(encode_key(key))
    assert prefix == bucket_prefix(key.experiment_id, key.bucket)
    assert decode_prefix(prefix) == (key.experiment_id, key.bucket)
    assert decode_tail(tail) == key[1:-1]
    trials, crossovers, lags = decode_numbers(encode_cell(cell))
    assert Cell(trials, crossovers, {lag: LagCounts(*counts) for lag, *counts in lags}) == cell
    assert [lag[0] for lag in lags] == sorted(cell.lags)
