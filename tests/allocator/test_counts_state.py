"""Counts as of a boundary: against brute force, in any order of records, with zombies and tombstones."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.allocator.counts_state import ArmCounts, CountsState
from streams.counts import (
    CountsKey,
    CountsRecord,
    Order,
    ProgressRecord,
    encode_counts,
    encode_key,
    encode_progress,
)
from streams.errors import RecordError
from streams.join.cells import Cell, CellKey, Group, LagCounts, View

Written = tuple[CountsKey, CountsRecord]


def cell_key(
    arm_id: str,
    bucket: int,
    *,
    version: int = 1,
    view: View = "steering",
    group: Group = "bandit",
    segment: str = "",
    allocation_version: int = 0,
    metric: str = "click",
) -> CellKey:
    return CellKey("e", version, view, metric, arm_id, segment, group, allocation_version, bucket)


def absorb(state: CountsState, written: Iterable[Written]) -> None:
    for key, record in written:
        state.absorb(encode_key(key), encode_counts(key, record))


def brute_force(
    written: Iterable[Written], hour: int, *, version: int = 1, metric: str = "click"
) -> dict[str, ArmCounts]:
    """The definition of `as_of`: newest record of each key, then a sum over all its cells."""
    newest: dict[CountsKey, CountsRecord] = {}
    for key, record in written:
        if key not in newest or record.order > newest[key].order:
            newest[key] = record
    sums: dict[str, list[int]] = {}
    for record in newest.values():
        for key_of_cell, cell in record.cells.items():
            if (key_of_cell.view, key_of_cell.group) != ("steering", "bandit"):
                continue
            if (key_of_cell.version, key_of_cell.metric) != (version, metric) or key_of_cell.bucket >= hour:
                continue
            total = sums.setdefault(key_of_cell.arm_id, [0, 0, 0, 0])
            total[0] += cell.trials
            for lag, counts in cell.lags.items():
                if key_of_cell.bucket + lag < hour:
                    total[1] += counts.successes
                    total[2] += counts.value_micros
                    total[3] += counts.value_sq_micros2
    return {arm: ArmCounts(*total) for arm, total in sums.items() if any(total)}


LAGS = st.dictionaries(
    st.integers(0, 5),
    st.builds(LagCounts, st.integers(-2, 5), st.integers(-9, 10**7), st.integers(-9, 2**70)),
    max_size=3,
)


@st.composite
def records(draw: st.DrawFn) -> Written:
    bucket = draw(st.integers(0, 6))
    key = CountsKey("e", draw(st.integers(0, 1)), bucket)
    keys = st.builds(
        cell_key,
        st.sampled_from("ab"),
        st.just(bucket),
        version=st.sampled_from([1, 2]),
        view=st.sampled_from(["steering", "reporting"]),
        group=st.sampled_from(["bandit", "comparison", "default"]),
        segment=st.sampled_from(["", "s"]),
        allocation_version=st.integers(0, 1),
        metric=st.sampled_from(["click", "sale"]),
    )
    cells = draw(
        st.dictionaries(keys, st.builds(Cell, st.integers(0, 9), st.integers(0, 2), LAGS), max_size=4)
    )
    order = Order(draw(st.integers(0, 1)), draw(st.integers(0, 1)), draw(st.integers(0, 3)))
    return key, CountsRecord(order, cells)


def one_of_each_order(written: list[Written]) -> list[Written]:
    """Keep the first of those with the same key and order: a place in a journal says one thing."""
    seen: dict[tuple[CountsKey, Order], Written] = {}
    for key, record in written:
        seen.setdefault((key, record.order), (key, record))
    return list(seen.values())


@settings(deadline=None)
@given(
    first=st.lists(records(), max_size=8).map(one_of_each_order),
    second=st.lists(records(), max_size=8),
    hours=st.lists(st.integers(0, 14), min_size=1, max_size=4),
)
def test_as_of_equals_brute_force_whatever_the_order_of_records_and_boundaries(
    first: list[Written], second: list[Written], hours: list[int]
) -> None:
    state = CountsState()
    absorb(state, first)
    for hour in hours:
        assert state.as_of("e", 1, "click", hour) == brute_force(first, hour)
    # Late counts, corrections of hours already summed, zombies: all of them after some boundaries.
    everything = one_of_each_order(first + second)
    absorb(state, everything)
    for hour in hours:
        assert state.as_of("e", 1, "click", hour) == brute_force(everything, hour)
        assert state.as_of("e", 2, "sale", hour) == brute_force(everything, hour, version=2, metric="sale")


def test_trials_count_by_exposure_and_successes_by_conversion_hour() -> None:
    key = CountsKey("e", 0, 10)
    cells = {
        cell_key("a", 10): Cell(
            100, 0, {0: LagCounts(1, 1_000_000, 10**12), 2: LagCounts(4, 4_000_000, 4 * 10**12)}
        )
    }
    state = CountsState()
    absorb(state, [(key, CountsRecord(Order(1, 1, 1), cells))])
    assert state.as_of("e", 1, "click", 10) == {}
    assert state.as_of("e", 1, "click", 11) == {"a": ArmCounts(100, 1, 1_000_000, 10**12)}
    assert state.as_of("e", 1, "click", 12) == {"a": ArmCounts(100, 1, 1_000_000, 10**12)}
    assert state.as_of("e", 1, "click", 13) == {"a": ArmCounts(100, 5, 5_000_000, 5 * 10**12)}
    assert state.as_of("e", 1, "click", 11) == {"a": ArmCounts(100, 1, 1_000_000, 10**12)}, "and back again"
    assert (state.first_hour("e"), state.last_hour("e")) == (10, 12)


def test_segments_are_told_apart_by_the_day_of_the_exposure() -> None:
    state, hour = CountsState(), 100
    for bucket, trials in ((99, 1), (76, 2), (75, 4), (52, 8), (51, 16), (3, 32)):
        cells = {cell_key("a", bucket): Cell(trials, 0, {1: LagCounts(trials, trials, trials)})}
        absorb(state, [(CountsKey("e", 0, bucket), CountsRecord(Order(1, 1, 1), cells))])
    days = state.by_segment_and_day("e", 1, "click", hour, n_days=2)
    # What was shown in the hour before has converted in the hour to come: not yet.
    assert [day[""]["a"] for day in days] == [
        ArmCounts(3, 2, 2, 2),
        ArmCounts(12, 12, 12, 12),
        ArmCounts(48, 48, 48, 48),
    ]
    assert state.by_segment_and_day("none", 1, "click", hour, n_days=1) == [{}, {}]
    (whole,) = state.by_segment_and_day("e", 1, "click", hour, n_days=0)
    assert whole == state.by_segment("e", 1, "click", hour)


@pytest.mark.parametrize("hour", [0, 20])
def test_a_zombies_late_record_changes_nothing(hour: int) -> None:
    key = CountsKey("e", 0, 10)
    state = CountsState()
    absorb(state, [(key, CountsRecord(Order(2, 5, 9), {cell_key("a", 10): Cell(7, 0, {})}))])
    state.as_of("e", 1, "click", hour)  # the hour is still open, or is summed already
    for order in (Order(1, 9, 99), Order(2, 4, 99), Order(2, 5, 8), Order(2, 5, 9)):
        zombie = CountsRecord(order, {cell_key("a", 10): Cell(1000, 0, {})})
        assert state.absorb(encode_key(key), encode_counts(key, zombie)) is None
    assert state.as_of("e", 1, "click", 20)["a"].trials == 7
    assert state.ignored_records == 4


@pytest.mark.parametrize("hour", [0, 20])
def test_a_tombstone_takes_its_cells_away(hour: int) -> None:
    keys = [CountsKey("e", 0, 10), CountsKey("e", 1, 10)]
    state = CountsState()
    record = CountsRecord(Order(1, 1, 1), {cell_key("a", 10): Cell(7, 0, {1: LagCounts(1, 1, 1)})})
    absorb(state, [(key, record) for key in keys])
    state.as_of("e", 1, "click", hour)
    assert state.absorb(encode_key(keys[0]), None) == keys[0]
    assert state.as_of("e", 1, "click", 20) == {"a": ArmCounts(7, 1, 1, 1)}
    assert state.absorb(encode_key(keys[0]), None) is None
    assert state.absorb(encode_key(keys[1]), None) == keys[1]
    assert state.as_of("e", 1, "click", 20) == {}
    assert len(state) == 0


def test_the_least_watermark_counts_and_a_silent_partition_holds_it_up() -> None:
    state = CountsState()

    def progress(partition: int, offset: int, watermark_ms: int) -> CountsKey | None:
        record = ProgressRecord(Order(1, 1, offset), watermark_ms)
        return state.absorb(encode_key(CountsKey("", partition, 0)), encode_progress(record))

    assert state.watermark_ms(2) is None
    assert progress(0, 5, 1000) is not None
    assert state.watermark_ms(2) is None
    assert state.watermark_ms(1) == 1000
    progress(1, 5, 700)
    assert state.watermark_ms(2) == 700
    assert progress(1, 4, 9000) is None, "older than what is known"
    assert state.watermark_ms(2) == 700
    progress(1, 6, 2**53)
    assert state.watermark_ms(2) == 1000


def test_what_does_not_decode_leaves_what_was_known() -> None:
    key = CountsKey("e", 0, 10)
    state = CountsState()
    absorb(state, [(key, CountsRecord(Order(1, 1, 1), {cell_key("a", 10): Cell(7, 0, {})}))])
    for raw_key, raw_value in [(b"x", b"{}"), (encode_key(key), b"x"), (b'["",0]', b"{}")]:
        with pytest.raises(RecordError):
            state.absorb(raw_key, raw_value)
    assert state.as_of("e", 1, "click", 11)["a"].trials == 7
    assert state.last_hour("nobody") is None
    assert state.first_hour("nobody") is None
    assert state.as_of("nobody", 1, "click", 11) == {}
