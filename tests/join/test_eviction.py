"""Eviction: nothing that an event can still meet is lost, and what none can meet goes."""

import pytest

from streams.join.unit import decode_unit
from tests.join.partition import HOUR, LIMITS, Partition
from tests.join.test_attribution import REVENUE, WINDOW, T, counting, done, experiment, only, shown, view
from tests.join.test_step import advance, behind, marker


@pytest.mark.parametrize(("ahead", "outcome"), [(24 * HOUR, "duplicate"), (24 * HOUR + 1, "accepted")])
@pytest.mark.parametrize("is_swept", [True, False])
def test_an_id_is_remembered_for_the_grace(ahead: int, outcome: str, is_swept: bool) -> None:
    for topic, make in (("exposures", shown), ("conversions", done)):
        record = experiment(counting(conversion_window_ms=100 * HOUR))
        partition = Partition([record])
        partition.events(shown(-HOUR, "first"), make(0, "again"))
        advance(partition, T + ahead)
        if is_swept:
            partition.sweep()
        before = partition.total(f"{topic}/{outcome}")
        partition.events(make(ahead, "again"))
        assert partition.total(f"{topic}/{outcome}") == before + 1


def test_conversions_wait_and_expire() -> None:
    partition = Partition([experiment(counting(conversion_window_ms=HOUR))])
    partition.events(done(0, "c1"), done(1, "c2"), done(9 * HOUR, "c3"))
    assert partition.head.pending == 3
    partition.events(shown(0))
    assert (partition.head.pending, partition.total("conversions/attributed")) == (1, 2)
    advance(partition, T + (9 + 24) * HOUR)
    partition.sweep()
    assert partition.head.pending == 1
    advance(partition, T + (9 + 24) * HOUR + 1)
    partition.sweep()
    assert (partition.head.pending, partition.total("conversions/expired")) == (0, 1)
    assert partition.total("conversions/attributed") == 2


def test_a_unit_of_nothing_but_expired_conversions_is_gone() -> None:
    partition = Partition([experiment()])
    partition.events(done(0))
    marker(partition, "conversions", b"end")
    partition.sweep()
    assert list(partition.units) == [b"u"]
    marker(partition, "exposures", b"end")
    partition.sweep()
    assert partition.units == {}


def test_the_sweep_leaves_units_alone_whose_definitions_are_not_known() -> None:
    partition, old = behind(0)
    advance(partition, T + 90 * HOUR)
    before = dict(partition.units)
    partition.definitions = old
    partition.sweep(final=False)
    assert partition.units == before
    partition.sweep(final=True)
    assert partition.units == {}


def test_the_sweep_hands_back_the_same_bytes_if_nothing_is_due() -> None:
    partition = Partition([experiment()])
    partition.events(shown(0))
    (before,) = partition.units.values()
    partition.sweep()
    (after,) = partition.units.values()
    assert after is before


def test_frozen_trials_go_on_earning_up_to_their_cap() -> None:
    record = experiment(
        counting(reward=REVENUE, trial_window="experiment", conversion_window_ms=60 * HOUR, touch="last")
    )
    kept = Partition([record])
    evicted = Partition([record])
    for partition in (kept, evicted):
        partition.events(shown(0), done(1, "c1", "revenue", value=6.0))
        advance(partition, T + 40 * HOUR)
        if partition is evicted:
            partition.sweep()
            assert len(partition.units[b"u"]) < len(kept.units[b"u"])
        partition.events(done(40 * HOUR, "c2", "revenue", value=6.0))
        partition.events(shown(41 * HOUR, "x2", "b"), shown(41 * HOUR, "x3", "a"))
    assert kept.cells() == evicted.cells()
    _, cell = only(view(evicted.cells()))
    assert {lag: c.value_micros for lag, c in cell.lags.items()} == {0: 6_000_000, 40: 4_000_000}
    assert (cell.trials, cell.crossovers) == (1, 1)


@pytest.mark.parametrize("trial_window", ["hour", "experiment", "exposure"])
@pytest.mark.parametrize("window_ms", [10, WINDOW])
@pytest.mark.parametrize(
    "horizon", [0, 1, 5, 6, 9, 10, 11, 14, 15, 16, HOUR - 1, HOUR, WINDOW - 1, WINDOW, WINDOW + 4, WINDOW + 5]
)
def test_eviction_keeps_what_an_event_at_the_horizon_can_meet(
    trial_window: str, window_ms: int, horizon: int
) -> None:
    record = experiment(counting(trial_window=trial_window, conversion_window_ms=window_ms))
    kept = Partition([record])
    evicted = Partition([record])
    for partition in (kept, evicted):
        partition.events(shown(0, "x1"), shown(3, "x2", "b"), shown(5, "x3"), done(6, "c1"))
        advance(partition, T + horizon + LIMITS.grace_ms)
        if partition is evicted:
            partition.sweep()
        partition.events(done(horizon, "c2"), shown(horizon, "x4", "c"), done(horizon + 1, "c3"))
        partition.events(done(horizon, "c4", exposure_id="x1"))
    assert evicted.cells() == kept.cells()
    for state in evicted.units.values():
        assert decode_unit(state).settled_ms <= T + horizon


@pytest.mark.parametrize(
    ("horizon", "n_events"), [(3, 4), (5, 3), (6, 2), (WINDOW, 2), (WINDOW + 4, 2), (WINDOW + 5, 0)]
)
def test_eviction_drops_what_no_event_can_meet(horizon: int, n_events: int) -> None:
    partition = Partition([experiment()])
    partition.events(shown(0, "x1"), shown(3, "x2", "b"), shown(5, "x3"), done(5, "c1"))
    advance(partition, T + horizon + LIMITS.grace_ms)
    partition.sweep()
    assert decode_unit(partition.units[b"u"]).n_events == n_events
