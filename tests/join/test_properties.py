"""Whatever the order, batches, duplicates and evictions: the counts are those of the pure function."""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.events import Conversion, Exposure, encode_event, event_key
from streams.experiments.definition import (
    Arm,
    Counting,
    ExperimentRecord,
    Feature,
    Guardrail,
    Reward,
)
from streams.join.attribution import BoundExposure, contribution
from streams.join.cells import Cell, CellKey
from streams.join.definitions import Definitions
from streams.join.segments import segment_of
from streams.join.step import Limits, SourceRecord
from streams.join.unit import OpenConversion
from streams.oracle import compute_cells
from tests.join.partition import HOUR, TOPICS, Partition

GRACE = 2 * HOUR
SPAN = 12 * HOUR
LIMITS = Limits(n_partitions=1, grace_ms=GRACE, max_ahead_ms=300_000, unit_max_events=10_000)
REWARDS = (
    Reward(metric="signup"),
    Reward(metric="click", kind="click"),
    Reward(metric="signup", kind="conversion_after_click", click_metric="click"),
    Reward(metric="revenue", kind="value", cap=2.5),
)
FEATURE = Feature(name="device", levels=("mobile", "desktop"))
WINDOWS = (HOUR // 2, HOUR, 2 * HOUR + 1, 5 * HOUR)
# Few different times, near hour borders and window ends, so that events meet.
TIMES = st.builds(
    lambda quarter, nudge: quarter * HOUR // 4 + nudge + HOUR,
    st.integers(0, 4 * SPAN // HOUR),
    st.sampled_from((-1, 0, 0, 0, 1)),
)


class Stream(NamedTuple):
    experiments: list[ExperimentRecord]
    events: list[Exposure | Conversion]


@st.composite
def countings(draw: st.DrawFn, version: int, effective_from_ms: int) -> Counting:
    reward = draw(st.sampled_from(REWARDS))
    others = [other for other in REWARDS if other.metric != reward.metric]
    return Counting(
        version=version,
        effective_from_ms=effective_from_ms,
        reward=reward,
        guardrails=tuple(
            Guardrail(reward=r) for r in draw(st.lists(st.sampled_from(others), max_size=2, unique=True))
        ),
        conversion_window_ms=draw(st.sampled_from(WINDOWS)),
        trial_window=draw(st.sampled_from(("hour", "experiment", "exposure"))),
        touch=draw(st.sampled_from(("last", "first", "all"))),
        features=draw(st.sampled_from(((), (FEATURE,)))),
        count_test=draw(st.booleans()),
    )


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    experiments = [
        ExperimentRecord(
            experiment_id=name,
            revision=1,
            status="live",
            arms=(Arm(arm_id="a"), Arm(arm_id="b")),
            control="a",
            versions=(draw(countings(1, 0)), draw(countings(2, 5 * HOUR))),
        )
        for name in ("e", "f")
    ]
    events: list[Exposure | Conversion] = []
    for i in range(draw(st.integers(1, 14))):
        # ids do not sort as they are produced: ties are decided by id, not by order
        identity = f"{draw(st.sampled_from('zyx'))}{i}"
        unit = draw(st.sampled_from(("u", "u", "u", "v")))
        if draw(st.booleans()):
            is_comparison = draw(st.integers(0, 7)) == 0
            events.append(
                Exposure(
                    exposure_id=identity,
                    experiment_id=draw(st.sampled_from(("e", "e", "f"))),
                    unit_id=unit,
                    timestamp=draw(TIMES),
                    arm_id=None if is_comparison else draw(st.sampled_from(("a", "a", "b"))),
                    group="comparison" if is_comparison else "bandit",
                    reason=draw(st.sampled_from((None, None, "default:stale"))),
                    allocation_version=draw(st.sampled_from((None, 3))),
                    context=draw(st.sampled_from((None, {"device": "mobile"}))),
                )
            )
        else:
            shown = [e.exposure_id for e in events if isinstance(e, Exposure)]
            named = st.sampled_from([None, None, "nothing", *shown])
            events.append(
                Conversion(
                    conversion_id=identity,
                    unit_id=unit,
                    metric=draw(st.sampled_from(("click", "signup", "revenue"))),
                    timestamp=draw(TIMES),
                    value=draw(st.sampled_from((1.0, 0.0, 0.4, 2.0))),
                    experiment_id=None,
                    exposure_id=draw(named),
                    test=draw(st.integers(0, 7)) == 0,
                )
            )
    return Stream(experiments, events)


def expected(stream: Stream) -> dict[CellKey, Cell]:
    """Count with the pure function, unit by unit."""
    definitions = Definitions(stream.experiments)
    total: dict[CellKey, Cell] = {}
    for unit in ("u", "v"):
        exposures = [bound(definitions, e) for e in stream.events if is_of(e, unit, Exposure)]
        conversions = [opened(e) for e in stream.events if is_of(e, unit, Conversion)]
        for key, cell in contribution(exposures, conversions, definitions).items():
            total[key] = add(total[key], cell) if key in total else cell
    return total


def is_of(event: Exposure | Conversion, unit: str, kind: type) -> bool:
    return event.unit_id == unit and isinstance(event, kind)


def bound(definitions: Definitions, event: Any) -> BoundExposure:
    version = definitions.plans[event.experiment_id].version_at(event.timestamp)
    assert version is not None
    is_default = event.reason is not None and event.group == "bandit"
    return BoundExposure(
        event.experiment_id,
        version,
        event.timestamp,
        event.exposure_id,
        event.arm_id or "",
        segment_of(version.counting.features, event.context),
        1 if event.group == "comparison" else 2 if is_default else 0,
        -1 if event.allocation_version is None else event.allocation_version,
    )


def opened(event: Any) -> OpenConversion:
    return OpenConversion(
        event.timestamp,
        event.conversion_id,
        event.metric,
        round(event.value * 1_000_000),
        0,
        event.test,
        event.experiment_id,
        event.exposure_id,
    )


def add(one: Cell, other: Cell) -> Cell:
    lags = {
        lag: type(counts)(*map(sum, zip(counts, one.lags.get(lag, (0, 0, 0)), strict=True)))
        for lag, counts in {**one.lags, **other.lags}.items()
        if lag in other.lags
    }
    merged = {**one.lags, **lags}
    return Cell(one.trials + other.trials, one.crossovers + other.crossovers, merged)


def records(events: Sequence[Exposure | Conversion]) -> list[tuple[str, SourceRecord]]:
    """Records of both topics in this order."""
    offsets = dict.fromkeys(TOPICS, 0)
    made = []
    for event in events:
        topic = TOPICS[isinstance(event, Conversion)]
        record = SourceRecord(offsets[topic], event_key(event), encode_event(event), 10**15)
        made.append((topic, record))
        offsets[topic] += 1
    return made


def run(
    partition: Partition, made: Sequence[tuple[str, SourceRecord]], rng: random.Random, sweeps: float
) -> None:
    """Feed records in their order, in batches of any size, with sweeps in between."""
    batch: list[SourceRecord] = []
    for i, (topic, record) in enumerate(made):
        batch.append(record)
        if i + 1 == len(made) or made[i + 1][0] != topic or rng.random() < 0.4:
            partition.feed(topic, batch)
            batch = []
            if rng.random() < sweeps:
                partition.sweep()


def disordered(stream: Stream, rng: random.Random) -> list[Exposure | Conversion]:
    """Events in order of time, but for disorder of less than the grace: none is late."""
    at = {id(event): event.timestamp + rng.randrange(GRACE) for event in stream.events}  # type: ignore[operator]  # int here
    return sorted(stream.events, key=lambda event: at[id(event)])


SLOWLY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WIDE = msgspec.structs.replace(LIMITS, grace_ms=100 * HOUR)


@SLOWLY
@given(streams(), st.integers(0, 2**32))
def test_any_order_of_arrival_and_any_batches_give_the_same_counts(stream: Stream, seed: int) -> None:
    rng = random.Random(seed)
    partition = Partition(stream.experiments, WIDE)
    run(partition, records(rng.sample(stream.events, len(stream.events))), rng, sweeps=0)
    assert partition.cells() == expected(stream)


@SLOWLY
@given(streams(), st.integers(0, 2**32))
def test_duplicates_change_nothing(stream: Stream, seed: int) -> None:
    rng = random.Random(seed)
    partition = Partition(stream.experiments, WIDE)
    repeated = [*stream.events, *rng.choices(stream.events, k=5)]
    rng.shuffle(repeated)
    run(partition, records(repeated), rng, sweeps=0)
    assert partition.cells() == expected(stream)
    assert sum(partition.total(f"{topic}/accepted") for topic in TOPICS) <= len(stream.events)


@SLOWLY
@given(streams(), st.integers(0, 2**32))
def test_eviction_at_any_point_changes_no_count(stream: Stream, seed: int) -> None:
    rng = random.Random(seed)
    partition = Partition(stream.experiments, LIMITS)
    made = records(disordered(stream, rng))
    run(partition, made, rng, sweeps=0.5)
    assert not any(v.reason == "late" for v in partition.verdicts.values())
    assert partition.cells() == expected(stream)
    for topic in TOPICS:
        end = SourceRecord(partition.next[topic], None, None, 0, [("bandit-watermark", b"end")])
        partition.feed(topic, [end])
    partition.sweep()
    assert partition.cells() == expected(stream)
    assert partition.head.pending == 0


@SLOWLY
@given(streams(), st.integers(0, 2**32))
def test_evicted_units_stay_small_and_are_gone_once_archived(stream: Stream, seed: int) -> None:
    rng = random.Random(seed)
    partition = Partition(stream.experiments, LIMITS)
    run(partition, records(disordered(stream, rng)), rng, sweeps=0.2)
    for topic in TOPICS:
        end = SourceRecord(partition.next[topic], None, None, 0, [("bandit-watermark", b"end")])
        partition.feed(topic, [end])
    partition.sweep()
    for state in partition.units.values():
        assert len(state) < 300
    for record in stream.experiments:
        partition.definitions.put(msgspec.structs.replace(record, status="archived"))
    partition.sweep()
    assert partition.units == {}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams())
def test_the_pure_function_agrees_with_the_oracle(stream: Stream) -> None:
    pytest.importorskip("duckdb")
    partition = Partition(stream.experiments, WIDE)
    run(partition, records(stream.events), random.Random(0), sweeps=0)
    cells = compute_cells(
        partition.rows["exposures"],
        partition.rows["conversions"],
        stream.experiments,
        partition.verdicts.keys(),
        WIDE,
    )
    assert cells == expected(stream)
