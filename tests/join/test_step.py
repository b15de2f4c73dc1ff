"""The batch step: verdicts, outcomes, routes, limits, evictions and unknown definitions."""

import msgspec
import pytest

from streams.errors import StateCorrupt
from streams.events import Conversion, Exposure, encode_event, event_key
from streams.experiments.definition import ExperimentRecord
from streams.join.definitions import Definitions
from streams.join.step import END_MS, Batch, Limits, SourceRecord, StepResult, run_step
from streams.join.unit import decode_unit
from streams.partitioning import partition_of
from tests.join.partition import HOUR, LIMITS, TOPICS, Partition, record
from tests.join.test_attribution import (
    BOTH,
    CLICK,
    T,
    counting,
    done,
    experiment,
    only,
    shown,
    successes,
    view,
)

APPEND = T + 10 * HOUR
TWO = msgspec.structs.replace(LIMITS, n_partitions=2)


def verdicts(partition: Partition) -> list[tuple[str, int, str, str]]:
    return [
        (topic, offset, v.reason, v.field) for (topic, _, offset), v in sorted(partition.verdicts.items())
    ]


def feed(
    partition: Partition, topic: str, value: bytes | None, key: bytes | None = b"u", **changes: object
) -> StepResult:
    made = SourceRecord(partition.next[topic], key, value, APPEND)
    return partition.feed(topic, [made._replace(**changes)])  # type: ignore[arg-type]  # fields by name


def marker(partition: Partition, topic: str, text: bytes) -> StepResult:
    return feed(partition, topic, None, None, headers=[("bandit-watermark", text)])


def advance(partition: Partition, to_ms: int) -> None:
    for topic in TOPICS:
        marker(partition, topic, str(to_ms).encode())


@pytest.mark.parametrize(
    ("topic", "value", "key", "reason", "field"),
    [
        ("exposures", b"{", b"u", "undecodable", "$"),
        ("exposures", None, b"u", "undecodable", "$"),
        ("exposures", b"", b"u", "undecodable", "$"),
        ("exposures", b"{}", b"u", "invalid_field", "$.exposure_id"),
        ("exposures", encode_event(shown(0)), b"v", "key_mismatch", "key"),
        ("exposures", encode_event(shown(0)).replace(b'"a"', b'"z"'), b"u", "unknown_arm", "$.arm_id"),
        (
            "exposures",
            encode_event(shown(0)).replace(b'"e"', b'"z"'),
            b"u",
            "unknown_experiment",
            "$.experiment_id",
        ),
        ("exposures", encode_event(shown(0)).replace(b'"a"', b"null"), b"u", "invalid_field", "$.arm_id"),
        ("conversions", b"[]", b"u", "invalid_field", "$"),
        ("conversions", encode_event(done(0, value=-1.0)), b"u", "value_out_of_range", "$.value"),
        ("conversions", encode_event(done(0, metric="z")), b"u", "unknown_metric", "$.metric"),
        (
            "conversions",
            encode_event(done(0, experiment_id="z")),
            b"u",
            "unknown_experiment",
            "$.experiment_id",
        ),
        (
            "conversions",
            encode_event(done(0, metric="click", experiment_id="e")),
            b"u",
            "unknown_metric",
            "$.metric",
        ),
    ],
)
def test_bad_records_are_rejected_with_reason_and_field(
    topic: str, value: bytes | None, key: bytes | None, reason: str, field: str
) -> None:
    partition = Partition([experiment(), experiment(counting(reward=CLICK), name="clicks")])
    feed(partition, topic, value, key)
    assert verdicts(partition) == [(topic, 0, reason, field)]
    assert partition.total(f"{topic}/dead_letter/{reason}") == 1
    assert partition.units == {}
    assert partition.cells() == {}


@pytest.mark.parametrize(("ahead_ms", "is_accepted"), [(300_000, True), (300_001, False)])
@pytest.mark.parametrize("event", [shown(0), done(0)])
def test_future_is_judged_by_the_append_time_and_moves_no_maximum(
    event: Exposure | Conversion, ahead_ms: int, is_accepted: bool
) -> None:
    partition = Partition([experiment()])
    partition.events(event, append_ms=T - ahead_ms)
    assert [reason for *_, reason, _ in verdicts(partition)] == ([] if is_accepted else ["future"])
    assert bool(partition.head.maxima) is is_accepted


@pytest.mark.parametrize(("behind_ms", "is_accepted"), [(24 * HOUR, True), (24 * HOUR + 1, False)])
@pytest.mark.parametrize("topic", TOPICS)
def test_late_is_judged_by_the_maximum_of_the_own_topic(
    topic: str, behind_ms: int, is_accepted: bool
) -> None:
    partition = Partition([experiment()])
    make = shown if topic == "exposures" else done
    partition.events(make(0, "1"), make(-behind_ms, "2"))
    assert [reason for *_, reason, _ in verdicts(partition)] == ([] if is_accepted else ["late"])
    assert partition.head.maxima == {topic: T}
    # the other topic's maximum does not matter
    other = Partition([experiment()])
    other.events(done(0) if topic == "exposures" else shown(0), make(-behind_ms, "2"))
    assert verdicts(other) == []


def test_rejected_records_move_the_maximum_too() -> None:
    partition = Partition([experiment()])
    partition.events(shown(25 * HOUR, arm="z"), shown(0))
    assert [reason for *_, reason, _ in verdicts(partition)] == ["unknown_arm", "late"]


def test_a_duplicate_is_the_second_by_offset_even_with_other_content() -> None:
    partition = Partition([experiment()])
    partition.events(shown(5, "x", "a"), shown(4, "x", "b"), done(6, "c"), done(7, "c"))
    assert partition.total("exposures/duplicate") == partition.total("conversions/duplicate") == 1
    key, cell = only(view(partition.cells()))
    assert (key.arm_id, cell.crossovers, successes({key: cell})) == ("a", 0, 1)
    partition.events(shown(5, "x", "a"), done(6, "c"))
    assert partition.total("exposures/duplicate") == partition.total("conversions/duplicate") == 2


def test_exposure_ids_are_unique_within_their_experiment_only() -> None:
    partition = Partition([experiment(), experiment(name="f")])
    partition.events(shown(0), shown(0, experiment_id="f"))
    assert partition.total("exposures/accepted") == 2


@pytest.mark.parametrize("topic", TOPICS)
def test_a_unit_has_a_bounded_number_of_events(topic: str) -> None:
    limits = msgspec.structs.replace(LIMITS, unit_max_events=3)
    make = shown if topic == "exposures" else done
    partition = Partition([experiment()], limits)
    partition.events(shown(0, "x0"), done(0, "c0"))
    partition.events(*(make(i, f"n{i}") for i in range(1, 4)), make(1, "n1"))
    reasons = [(offset, reason) for _, offset, reason, _ in verdicts(partition)]
    assert reasons == [(2, "unit_limit"), (3, "unit_limit")]
    assert partition.total(f"{topic}/duplicate") == 1
    # a batch of one takes another way
    partition.events(make(9, "n9"))
    assert partition.total(f"{topic}/dead_letter/unit_limit") == 3
    # evicted events make room
    advance(partition, T + 100 * HOUR)
    partition.events(make(100 * HOUR, "n10"))
    assert partition.total(f"{topic}/accepted") == 3


@pytest.mark.parametrize("topic", TOPICS)
def test_an_event_that_makes_too_large_a_record_is_refused_alone(topic: str) -> None:
    make = shown if topic == "exposures" else done
    partition = Partition([experiment()])
    partition.events(make(0, "n0"))
    before = dict(partition.units), dict(partition.raw_cells)
    for name in ("n1", "n0"):  # a duplicate needs no room
        offset = partition.next[topic]
        partition.feed(topic, [record(make(1, name), offset)], oversize_bytes=9_000_000)
    assert [(offset, reason, field) for _, offset, reason, field in verdicts(partition)] == [
        (1, "oversize", "$.unit_id")
    ]
    assert "9000000 bytes" in partition.verdicts[topic, 0, 1].message
    assert partition.total(f"{topic}/duplicate") == 1
    assert (partition.units, partition.raw_cells) == before
    assert partition.head.maxima[topic] == T + 1


@pytest.mark.parametrize("topic", TOPICS)
def test_a_first_event_beyond_the_limit_leaves_no_state(topic: str) -> None:
    partition = Partition([experiment()], msgspec.structs.replace(LIMITS, unit_max_events=0))
    partition.events(shown(0) if topic == "exposures" else done(0))
    assert partition.units == {}


def test_a_rejected_event_leaves_no_trace_of_its_experiment() -> None:
    limits = msgspec.structs.replace(LIMITS, unit_max_events=1)
    partition = Partition([experiment(), experiment(name="f")], limits)
    partition.events(shown(0), shown(0, experiment_id="f"))
    assert list(decode_unit(partition.units[b"u"]).blocks) == ["e"]


def stranger_and_resident(partition: int) -> tuple[str, str]:
    """Return a unit id of another partition of two, and one of this."""
    names = [f"u{i}" for i in range(20)]
    other = next(n for n in names if partition_of(n.encode(), 2) != partition)
    own = next(n for n in names if partition_of(n.encode(), 2) == partition)
    return other, own


@pytest.mark.parametrize("make", [shown, done])
@pytest.mark.parametrize("has_key", [True, False])
def test_events_in_the_wrong_partition_are_routed_again_once(make: object, has_key: bool) -> None:
    partition = Partition([experiment()], TWO)
    stranger, own = stranger_and_resident(0)
    topic = "exposures" if make is shown else "conversions"
    for hop in ((), [("bandit-rerouted", b"0/1/7")]):
        for unit in (stranger, own):
            event = make(0, f"{unit}{len(hop)}")  # type: ignore[operator]  # one of two functions
            event = msgspec.structs.replace(event, unit_id=unit)
            key = event_key(event) if has_key else None
            feed(partition, topic, encode_event(event), key, headers=hop)
    assert [made.offset for _, made in partition.rerouted] == [0]
    assert verdicts(partition) == [(topic, 2, "wrong_partition", "key")]
    assert partition.total(f"{topic}/accepted") == 2
    assert list(partition.units) == [own.encode()]


def test_what_would_be_rejected_is_routed_first() -> None:
    partition = Partition([experiment(), experiment(name="old", status="archived")], TWO)
    stranger, _ = stranger_and_resident(0)
    events = (
        shown(0, "x1", unit_id=stranger, arm="z"),
        shown(0, "x2", unit_id=stranger, experiment_id="old"),
        shown(0, "x3", unit_id=stranger, experiment_id="none"),
        shown(0, "x4", unit_id=stranger, test=True),
        shown(10 * HOUR, "x5", unit_id=stranger),
    )
    partition.events(*events, append_ms=T)
    assert partition.total("exposures/rerouted") == len(events)
    assert verdicts(partition) == []
    # a key that is not the unit's is wrong wherever it lies
    feed(partition, "exposures", encode_event(events[0]), b"other")
    assert verdicts(partition) == [("exposures", 5, "key_mismatch", "key")]


def test_a_null_key_in_the_wrong_partition_moves_no_maximum() -> None:
    partition = Partition([experiment()], TWO)
    stranger, _ = stranger_and_resident(0)
    feed(partition, "exposures", encode_event(shown(0, unit_id=stranger)), None)
    assert partition.head.maxima == {}


@pytest.mark.parametrize(
    ("text", "maximum"), [(b"5", 5), (b"end", END_MS), (str(END_MS).encode(), END_MS), (b"0", 0)]
)
def test_markers_raise_the_maximum(text: bytes, maximum: int) -> None:
    partition = Partition([experiment()])
    marker(partition, "exposures", text)
    assert partition.head.maxima == {"exposures": maximum}
    marker(partition, "exposures", b"3")
    assert partition.head.maxima == {"exposures": max(3, maximum)}
    assert partition.total("exposures/marker") == 2


@pytest.mark.parametrize("text", [b"", b"-1", b"x", b"9007199254740993", b"1" * 17, "٣".encode()])
def test_markers_that_say_nothing_are_rejected(text: bytes) -> None:
    partition = Partition([experiment()])
    marker(partition, "exposures", text)
    assert verdicts(partition) == [("exposures", 0, "invalid_field", "headers.bandit-watermark")]
    assert partition.head.maxima == {}


def test_an_event_with_the_header_of_a_marker_is_an_event() -> None:
    partition = Partition([experiment()])
    headers = [("bandit-watermark", b"end"), ("other", b"")]
    feed(partition, "exposures", encode_event(shown(0)), headers=headers)
    feed(partition, "conversions", encode_event(done(0)), headers=headers)
    assert partition.head.maxima == dict.fromkeys(TOPICS, T)
    assert partition.total("exposures/accepted") == 1


@pytest.mark.parametrize("name", BOTH)
def test_timestamps_may_be_texts(name: str) -> None:
    partition = Partition([experiment()])
    for topic, event in (("exposures", shown(0)), ("conversions", done(1))):
        value = encode_event(event).replace(str(event.timestamp).encode(), b'"1970-02-11T16:00:00.001Z"')
        feed(partition, topic, value)
    key, cell = only(view(partition.cells(), name))
    assert (key.bucket, successes({key: cell})) == (T // HOUR, 1)


@pytest.mark.parametrize("count_test", [True, False])
def test_test_events_are_set_aside_unless_the_version_counts_them(count_test: bool) -> None:
    partition = Partition([experiment(counting(count_test=count_test))])
    partition.events(shown(0, test=True), done(1, test=True), done(2, "named", test=True, experiment_id="e"))
    outcomes = {name: n for name, n in partition.head.totals.items() if "attributed" not in name}
    outcome = "accepted" if count_test else "test"
    assert outcomes == {f"exposures/{outcome}": 1, f"conversions/{outcome}": 2}


@pytest.mark.parametrize(("status", "reason"), [("draft", "not_live"), ("archived", None)])
def test_drafts_and_archived_experiments_take_no_events(status: str, reason: str | None) -> None:
    partition = Partition([experiment(status=status)])
    partition.events(shown(0), done(0), done(0, "named", experiment_id="e"))
    if reason is None:
        assert partition.head.totals == {"exposures/archived": 1, "conversions/archived": 2}
        assert verdicts(partition) == []
    else:
        assert {found for *_, found, _ in verdicts(partition)} == {reason}


@pytest.mark.parametrize("status", ["paused", "completed"])
def test_paused_and_completed_experiments_go_on_counting(status: str) -> None:
    partition = Partition([experiment(status=status)])
    partition.events(shown(0), done(0))
    assert successes(view(partition.cells())) == 1


@pytest.mark.parametrize(("at", "is_accepted"), [(0, True), (-1, False)])
def test_exposures_before_the_first_version_are_not_live(at: int, is_accepted: bool) -> None:
    partition = Partition([experiment(counting(effective_from_ms=T))])
    partition.events(shown(at))
    assert verdicts(partition) == ([] if is_accepted else [("exposures", 0, "not_live", "$.timestamp")])


def test_unknown_levels_are_counted() -> None:
    from tests.join.test_properties import FEATURE

    partition = Partition([experiment(counting(features=(FEATURE,)))])
    partition.events(
        shown(0, "x1", context={"device": "fridge"}),
        shown(0, "x2"),
        shown(0, "x3", context={"device": "mobile"}),
        shown(0, "x4", context={"device": "other"}),
    )
    assert partition.other_levels == {"e": 3}


def test_an_attribution_can_be_taken_back_and_its_cell_stays_as_zero() -> None:
    partition = Partition([experiment()])
    partition.events(shown(HOUR - 2, "x1", "a"), done(HOUR + 5))
    assert partition.total("conversions/attributed") == 1
    # an earlier exposure makes the first a crossover, and its own window is over
    record = experiment(counting(conversion_window_ms=HOUR))
    partition = Partition([record])
    partition.events(shown(HOUR - 2, "x1", "a"), done(HOUR + 5))
    assert (partition.head.pending, partition.total("conversions/attributed")) == (0, 1)
    result = partition.events(shown(1, "x0", "b"))[0]
    assert (partition.head.pending, partition.total("conversions/attributed")) == (1, 0)
    assert len(result.cells) == 4
    key, cell = only(view(partition.cells()))
    assert (key.arm_id, cell.trials, cell.crossovers, cell.lags) == ("b", 1, 1, {})


def test_a_step_in_small_pieces_equals_a_step_at_once() -> None:
    events = (shown(0, "x1"), shown(1, "x2", "b"), shown(HOUR, "x3"), done(2), done(HOUR + 1, "c2"))
    whole = Partition([experiment()])
    whole.events(*events)
    pieces = Partition([experiment()])
    for event in events:
        pieces.events(event)
    assert pieces.raw_cells == whole.raw_cells
    assert pieces.head.totals == whole.head.totals
    assert pieces.units == whole.units


def test_a_hot_unit_counts_as_any_other() -> None:
    events = [shown(i * 1000, f"x{i}", "ab"[i % 7 == 0]) for i in range(200)]
    once = Partition([experiment()])
    once.events(*events[:150])
    once.events(*events[100:])
    once.events(shown(-1, "x-1", "c"), events[7], shown(250_000, "late-id"))
    assert once.total("exposures/duplicate") == 51
    other = Partition([experiment()])
    for event in (*events, shown(-1, "x-1", "c"), shown(250_000, "late-id")):
        other.events(event)
    assert once.cells() == other.cells()


class Untouched:
    """A head that no step has changed."""

    maxima: dict[str, int] = {}  # noqa: RUF012 - never written
    totals: dict[str, int] = {}  # noqa: RUF012
    pending = 0


def one_step(
    partition: Partition, event: Exposure | Conversion, definitions: Definitions, *, final: bool = False
) -> StepResult:
    topic = TOPICS[isinstance(event, Conversion)]
    made = record(event, partition.next[topic])
    batch = Batch(topic=topic, partition=0, start=made.offset, next=made.offset + 1, records=[made])
    before, partition.definitions = partition.definitions, definitions
    try:
        return partition.step(batch, final=final)
    finally:
        partition.definitions = before


@pytest.mark.parametrize(
    ("event", "unknown"),
    [
        (shown(0, experiment_id="new"), {"new"}),
        (shown(0, arm="new"), {"e"}),
        (done(0, metric="new"), {"new"}),
        (done(0, experiment_id="new"), {"new"}),
        (done(0, metric="new", experiment_id="e"), {"e"}),
    ],
)
def test_nothing_is_decided_while_a_definition_may_be_missing(
    event: Exposure | Conversion, unknown: set[str]
) -> None:
    partition = Partition([experiment()])
    result = one_step(partition, event, partition.definitions)
    assert result.unknown_experiments == unknown
    assert (result.units, result.cells, result.verdicts, result.totals, result.maxima) == ({}, {}, [], {}, {})
    final = one_step(partition, event, partition.definitions, final=True)
    assert final.unknown_experiments == set()
    assert len(final.verdicts) == 1


def behind(version: int) -> tuple[Partition, Definitions]:
    """Return a partition with a unit bound to version 2, and definitions that end before it."""
    record = experiment(counting(1), counting(2, effective_from_ms=T))
    partition = Partition([record, experiment(name="f")])
    partition.events(shown(0), done(1))
    known: list[ExperimentRecord] = [experiment(counting(1))] if version else []
    return partition, Definitions([*known, experiment(name="f")])


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("event", [done(2, "c2"), shown(100 * HOUR, "x2", experiment_id="f")])
def test_state_bound_to_definitions_not_yet_read_waits_for_them(
    version: int, event: Exposure | Conversion
) -> None:
    partition, old = behind(version)
    advance(partition, T + 90 * HOUR)
    moved = msgspec.structs.replace(event, timestamp=T + 100 * HOUR)
    result = one_step(partition, moved, old)
    assert result.unknown_experiments == {"e"}
    if version:
        with pytest.raises(StateCorrupt, match="version 2"):
            one_step(partition, moved, old, final=True)
    else:
        final = one_step(partition, moved, old, final=True)
        assert final.verdicts == []
        assert final.units[b"u"] is not None


def test_conversions_pass_over_removed_and_archived_experiments() -> None:
    partition = Partition([experiment(), experiment(name="f")])
    partition.events(shown(0), shown(0, experiment_id="f"))
    partition.definitions.remove("e")
    partition.definitions.put(experiment(name="f", status="archived"))
    partition.definitions.put(experiment(name="g"))
    partition.events(done(1))
    assert partition.head.pending == 1
    assert successes(partition.cells()) == 0


def test_a_batch_of_nothing_changes_nothing() -> None:
    partition = Partition([experiment()])
    result = partition.feed("exposures", [])
    assert (result.units, result.cells, result.maxima) == ({}, {}, {})


def test_state_is_loaded_once_for_all_units_and_cells() -> None:
    calls: list[list[bytes]] = []

    def load(keys: object) -> list[bytes | None]:
        calls.append(list(keys))  # type: ignore[call-overload]  # a sequence of bytes
        return [None] * len(calls[-1])

    events = [shown(0, f"x{i}", unit_id=f"u{i % 3}") for i in range(9)]
    batch = Batch(
        topic="exposures",
        partition=0,
        start=0,
        next=9,
        records=[record(event, i) for i, event in enumerate(events)],
    )
    run_step(batch, Untouched(), Definitions([experiment()]), LIMITS, load, load)
    units, cells = calls
    assert units == [b"u0", b"u1", b"u2"]
    assert len(cells) == len(set(cells)) == 2


def test_limits_are_named() -> None:
    assert Limits.__struct_fields__ == ("n_partitions", "grace_ms", "max_ahead_ms", "unit_max_events")
