"""Codecs of the counts topic: golden bytes, round trips, and what does not decode."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.counts import (
    CountsKey,
    CountsRecord,
    Order,
    ProgressRecord,
    decode_counts,
    decode_key,
    decode_progress,
    encode_counts,
    encode_key,
    encode_progress,
    encode_rows,
)
from streams.errors import RecordError
from streams.join.cells import Cell, CellKey, LagCounts

KEY = CountsKey("banner", 3, 482_000)
RECORD = CountsRecord(
    Order(1_700_000_000_000, 7, 41),
    {
        CellKey("banner", 1, "steering", "click", "b", "", "bandit", 12, 482_000): Cell(9, 0, {}),
        CellKey("banner", 1, "steering", "click", "a", "", "bandit", 12, 482_000): Cell(
            10, 1, {2: LagCounts(1, 500_000, 250_000_000_000), 0: LagCounts(3, 2_500_000, 2_250_000_000_000)}
        ),
        CellKey("banner", 1, "reporting", "sale", "", "mobile", "comparison", 0, 482_000): Cell(
            1, 0, {0: LagCounts(1, 10**15, 10**30)}
        ),
    },
)
GOLDEN_KEY = b'["banner",3,482000]'
GOLDEN_VALUE = (
    b'{"order":[1700000000000,7,41],"cells":['
    b'[1,"reporting","sale","","mobile","comparison",0,1,0,'
    b"[[0,1,1000000000000000,1000000000000000000000000000000]]],"
    b'[1,"steering","click","a","","bandit",12,10,1,[[0,3,2500000,2250000000000],[2,1,500000,250000000000]]],'
    b'[1,"steering","click","b","","bandit",12,9,0,[]]]}'
)


def test_golden_bytes() -> None:
    assert encode_key(KEY) == GOLDEN_KEY
    assert decode_key(GOLDEN_KEY) == KEY
    assert encode_counts(KEY, RECORD) == GOLDEN_VALUE
    assert decode_counts(KEY, GOLDEN_VALUE) == RECORD


def test_cells_in_any_order_are_the_same_bytes() -> None:
    rows = [
        (1, "steering", "click", "b", "", "bandit", 12, 9, 0, []),
        (1, "reporting", "sale", "", "mobile", "comparison", 0, 1, 0, [(0, 1, 10**15, 10**30)]),
        (
            *(1, "steering", "click", "a", "", "bandit", 12, 10, 1),
            [(0, 3, 2_500_000, 2_250_000_000_000), (2, 1, 500_000, 250_000_000_000)],
        ),
    ]
    assert encode_rows(RECORD.order, rows) == GOLDEN_VALUE


def test_golden_bytes_of_progress() -> None:
    key, record = CountsKey("", 5, 0), ProgressRecord(Order(1, 2, 3), 2**53)
    assert encode_key(key) == b'["",5]'
    assert decode_key(b'["",5]') == key
    assert encode_progress(record) == b'{"order":[1,2,3],"watermark_ms":9007199254740992}'
    assert decode_progress(encode_progress(record)) == record


def test_unknown_fields_are_ignored() -> None:
    raw = b'{"width":24,"order":[1,2,3],"cells":[],"new":{}}'
    assert decode_counts(KEY, raw) == CountsRecord(Order(1, 2, 3), {})


@pytest.mark.parametrize(
    "raw", [b"", b"null", b'["a",1]', b'["a",1,2,3]', b'["",1,2]', b'{"a":1}', b'["a","b",1]']
)
def test_bad_keys_are_named(raw: bytes) -> None:
    with pytest.raises(RecordError, match=r"counts: .*does not decode.*Operator action"):
        decode_key(raw)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b'{"order":[1,2],"cells":[]}', b'{"order":[1,2,3],"cells":[[1]]}']
)
def test_bad_values_are_named(raw: bytes) -> None:
    with pytest.raises(RecordError, match="counts: value does not decode"):
        decode_counts(KEY, raw)


def test_a_cell_of_another_experiment_is_refused() -> None:
    with pytest.raises(ValueError, match="does not belong"):
        encode_counts(KEY._replace(experiment_id="other"), RECORD)
    with pytest.raises(ValueError, match="does not belong"):
        encode_counts(KEY._replace(bucket=1), RECORD)


COUNTS = st.integers(0, 2**80)
LAGS = st.dictionaries(st.integers(0, 99), st.builds(LagCounts, COUNTS, COUNTS, COUNTS))
CELLS = st.dictionaries(
    st.builds(
        CellKey,
        st.just("é\x1f x"),
        st.integers(1, 3),
        st.sampled_from(["steering", "reporting"]),
        st.text(max_size=3),
        st.text(max_size=3),
        st.text(max_size=3),
        st.sampled_from(["bandit", "comparison", "default"]),
        COUNTS,
        st.just(7),
    ),
    st.builds(
        Cell,
        COUNTS,
        COUNTS,
        st.dictionaries(st.integers(0, 99), st.builds(LagCounts, COUNTS, COUNTS, COUNTS)),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(cells=CELLS, reverse=st.booleans())
def test_round_trip_and_the_same_bytes_in_any_order(cells: dict[CellKey, Cell], reverse: bool) -> None:
    key = CountsKey("é\x1f x", 0, 7)
    record = CountsRecord(Order(2**70, 0, 1), cells)
    raw = encode_counts(key, record)
    assert decode_counts(key, raw) == record
    assert decode_key(encode_key(key)) == key
    shuffled = dict(sorted(cells.items(), reverse=reverse))
    assert encode_counts(key, CountsRecord(record.order, shuffled)) == raw
