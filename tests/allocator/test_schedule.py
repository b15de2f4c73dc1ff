"""Which boundaries are due: each border as a pair, both clocks, changes, and the end of a stream."""

from typing import Literal

import pytest

from streams.allocator.counts_state import CountsState
from streams.allocator.schedule import Due, Handled, Now, due, next_boundary_ms
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, ExperimentStatus, Policy, Reward
from streams.join.cells import Cell, CellKey, LagCounts
from streams.join.step import END_MS

HOUR_MS = 3_600_000
DAY_HOURS = 24


def experiment(
    *,
    interval_hours: int = 1,
    revision: int = 1,
    status: ExperimentStatus = "live",
    effective_from_ms: int = 100 * HOUR_MS,
) -> ExperimentRecord:
    reward = Reward(metric="click")
    return ExperimentRecord(
        experiment_id="e",
        revision=revision,
        status=status,
        arms=(Arm(arm_id="a"), Arm(arm_id="b")),
        control="a",
        versions=(Counting(version=1, effective_from_ms=effective_from_ms, reward=reward),),
        policy=Policy(interval_ms=interval_hours * HOUR_MS),
    )


def counts(*hours: int, lag: int = 0) -> CountsState:
    state = CountsState()
    for hour in hours:
        key = CountsKey("e", 0, hour)
        cell_key = CellKey("e", 1, "reporting", "click", "a", "", "bandit", 0, hour)
        cells = {cell_key: Cell(5, 0, {lag: LagCounts(1, 1, 1)})}
        state.absorb(encode_key(key), encode_counts(key, CountsRecord(Order(1, 1, hour), cells)))
    return state


def hours(
    record: ExperimentRecord,
    handled_hour: int | None,
    *,
    watermark_ms: int | None = None,
    wall_ms: int = 0,
    clock: Literal["wall", "stream"] = "stream",
    state: CountsState | None = None,
    limit: int = 1000,
    handled_revision: int = 1,
    handled_status: str = "live",
) -> tuple[list[int], Due]:
    handled = None
    if handled_hour is not None:
        handled = Handled(handled_hour * HOUR_MS, handled_revision, handled_status)
    found = due(
        record,
        handled,
        Now(clock, watermark_ms, wall_ms, 60_000),
        counts(100) if state is None else state,
        limit=limit,
    )
    return [boundary_ms // HOUR_MS for boundary_ms in found.boundaries_ms], found


@pytest.mark.parametrize(
    ("past_ms", "expected"), [(-1, []), (0, [105]), (HOUR_MS - 1, [105]), (HOUR_MS, [105, 106])]
)
def test_an_interval_closes_when_the_watermark_reaches_its_end(past_ms: int, expected: list[int]) -> None:
    found, what = hours(experiment(), 104, watermark_ms=105 * HOUR_MS + past_ms)
    assert found == expected
    assert what.trigger == "interval"


def test_without_a_watermark_nothing_closes_on_the_stream_clock() -> None:
    assert hours(experiment(), 104)[0] == []


def test_boundaries_are_aligned_to_the_clock_not_to_the_last_one() -> None:
    assert next_boundary_ms(0, 10) == 10
    assert next_boundary_ms(9, 10) == 10
    assert next_boundary_ms(10, 10) == 20
    found, _ = hours(experiment(interval_hours=6), 103, watermark_ms=121 * HOUR_MS)
    assert found == [108, 114, 120]


def test_the_stream_starts_at_the_experiments_start_and_goes_on_at_its_first_data() -> None:
    found, what = hours(experiment(effective_from_ms=100 * HOUR_MS + 5), None, watermark_ms=END_MS)
    assert (found, what.trigger) == ([100], "change")
    assert hours(experiment(), 100, watermark_ms=500 * HOUR_MS, state=counts(400))[0] == list(range(401, 501))
    assert hours(experiment(), 100, watermark_ms=500 * HOUR_MS, state=CountsState())[0] == []


def test_the_end_of_a_stream_closes_up_to_the_boundary_after_the_last_data() -> None:
    assert hours(experiment(), 104, watermark_ms=END_MS, state=counts(100, 106))[0] == [105, 106, 107]
    assert hours(experiment(), 104, watermark_ms=END_MS, state=counts(100, lag=7))[0] == [105, 106, 107, 108]
    assert hours(experiment(), 107, watermark_ms=END_MS, state=counts(100, 106))[0] == []
    daily = experiment(interval_hours=24)
    assert hours(daily, 96, watermark_ms=END_MS, state=counts(100, 119))[0] == [120]
    assert hours(daily, 96, watermark_ms=END_MS, state=counts(100, 120))[0] == [120, 144]


def test_a_week_is_168_boundaries_in_portions_of_the_limit() -> None:
    state = counts(*range(240, 408))
    found, _ = hours(experiment(), 240, watermark_ms=END_MS, state=state)
    assert found == list(range(241, 409))
    assert len(found) == 168
    assert hours(experiment(), 240, watermark_ms=END_MS, state=state, limit=50)[0] == list(range(241, 291))


@pytest.mark.parametrize(("past_ms", "expected"), [(59_999, []), (60_000, [105])])
def test_on_the_wall_clock_an_interval_closes_after_the_settle_time(
    past_ms: int, expected: list[int]
) -> None:
    for watermark_ms in (None, 104 * HOUR_MS):
        wall_ms = 105 * HOUR_MS + past_ms
        found, _ = hours(experiment(), 104, clock="wall", wall_ms=wall_ms, watermark_ms=watermark_ms)
        assert found == expected


@pytest.mark.parametrize(("wall_past_ms", "expected"), [(-1, []), (0, [105])])
def test_a_watermark_closes_earlier_but_never_before_the_boundary_has_come(
    wall_past_ms: int, expected: list[int]
) -> None:
    wall_ms = 105 * HOUR_MS + wall_past_ms
    for watermark_ms in (105 * HOUR_MS, END_MS):
        found, _ = hours(experiment(), 104, clock="wall", wall_ms=wall_ms, watermark_ms=watermark_ms)
        assert found == expected


def test_after_downtime_the_newest_boundary_is_due_and_the_rest_are_counted() -> None:
    found, what = hours(experiment(), 104, clock="wall", wall_ms=110 * HOUR_MS + 60_000)
    assert (found, what.skipped) == ([110], 5)


def test_the_first_on_the_wall_clock_is_at_the_last_settled_boundary() -> None:
    found, what = hours(experiment(), None, clock="wall", wall_ms=110 * HOUR_MS + 59_999)
    assert (found, what.trigger) == ([109], "change")


def test_a_change_is_due_at_once_with_the_evidence_already_used() -> None:
    changed = experiment(revision=2)
    found, what = hours(changed, 104, watermark_ms=105 * HOUR_MS - 1)
    assert (found, what.trigger) == ([104], "change")
    found, what = hours(changed, 104, watermark_ms=105 * HOUR_MS)
    assert (found, what.trigger) == ([105], "interval"), "an interval that closes carries the change"
    assert hours(changed, 104, handled_revision=2)[0] == []


def test_a_longer_interval_never_goes_back_and_a_shorter_one_goes_on_from_here() -> None:
    daily = experiment(interval_hours=24, revision=2)
    assert hours(daily, 104, watermark_ms=110 * HOUR_MS)[0] == [104]
    assert hours(daily, 104, handled_revision=2, watermark_ms=120 * HOUR_MS)[0] == [120]
    assert hours(experiment(revision=2), 96, watermark_ms=103 * HOUR_MS, state=counts(90))[0] == [
        97,
        98,
        99,
        100,
        101,
        102,
        103,
    ]


@pytest.mark.parametrize("handled_hour", [None, 104])
def test_a_draft_has_no_allocation(handled_hour: int | None) -> None:
    assert hours(experiment(status="draft"), handled_hour, watermark_ms=END_MS)[0] == []


def test_an_archived_experiment_is_ended_once() -> None:
    archived = experiment(status="archived", revision=2)
    assert hours(archived, None, watermark_ms=END_MS)[0] == []
    assert hours(archived, 104, watermark_ms=END_MS)[0] == [104]
    assert hours(archived, 104, handled_status="archived", watermark_ms=END_MS)[0] == []
