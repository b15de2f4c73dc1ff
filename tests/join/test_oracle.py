"""The join against the oracle, on streams that visit every rule; and the oracle's own checks."""

import builtins
import random
from typing import Any

import msgspec
import pytest

from streams.errors import ConfigError
from streams.events import encode_event
from streams.experiments.definition import Feature
from streams.join.step import Limits, SourceRecord
from streams.oracle import EventRow, check_verdicts, compute_cells, read_row
from tests.join.partition import HOUR, TOPICS, Partition
from tests.join.test_attribution import T, counting, done, experiment, shown
from tests.join.traffic import LIMITS, Traffic


def play(traffic: Traffic, seed: int, limits: Limits = LIMITS) -> Partition:
    """Run a stream through the step: batches of any size, the topics racing each other, sweeps in between."""
    rng = random.Random(seed)
    records: dict[str, list[SourceRecord]] = {topic: [] for topic in TOPICS}
    for topic, made in traffic:
        records[topic].append(made)
    partition = Partition(traffic.experiments, limits)
    at = dict.fromkeys(TOPICS, 0)
    n_sweeps = 12
    for round_number in range(1, n_sweeps + 1):
        ends = {topic: len(records[topic]) * round_number // n_sweeps for topic in TOPICS}
        while open_topics := [topic for topic in TOPICS if at[topic] < ends[topic]]:
            topic = rng.choice(open_topics)
            end = min(ends[topic], at[topic] + rng.choice((1, 20, 500, 4000)))
            partition.feed(topic, records[topic][at[topic] : end])
            at[topic] = end
        partition.sweep()
    return partition


def agree(partition: Partition, traffic: Traffic) -> None:
    """Hold cells and verdicts to the oracle."""
    rows = [partition.rows[topic] for topic in TOPICS]
    cells = compute_cells(rows[0], rows[1], traffic.experiments, partition.verdicts.keys(), partition.limits)
    mine = partition.cells()
    assert mine.keys() == cells.keys()
    assert mine == cells
    reasons = {position: verdict.reason for position, verdict in partition.verdicts.items()}
    assert check_verdicts(rows[0], rows[1], traffic.experiments, reasons, partition.limits) == []


def finish(partition: Partition) -> None:
    for topic in TOPICS:
        end = SourceRecord(partition.next[topic], None, None, 0, [("bandit-watermark", b"end")])
        partition.feed(topic, [end])
    partition.sweep()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_events_agree_with_the_oracle() -> None:
    traffic = Traffic(seed=20, n_events=100_000, n_units=2_000)
    partition = play(traffic, seed=21)
    finish(partition)
    assert sum(len(rows) for rows in partition.rows.values()) > 100_000
    assert partition.head.pending == 0
    agree(partition, traffic)
    outcomes = {name for name, n in partition.head.totals.items() if n}
    assert outcomes >= {
        "exposures/duplicate",
        "exposures/test",
        "exposures/marker",
        "conversions/attributed",
        "conversions/expired",
        *(f"exposures/dead_letter/{reason}" for reason in ("late", "future", "unknown_arm", "key_mismatch")),
    }


@pytest.mark.parametrize("seed", range(3))
def test_streams_agree_with_the_oracle(seed: int) -> None:
    traffic = Traffic(seed=seed, n_events=3_000, n_units=60)
    agree(play(traffic, seed), traffic)


def test_limited_units_agree_with_the_oracle() -> None:
    limits = msgspec.structs.replace(LIMITS, unit_max_events=40)
    traffic = Traffic(seed=5, n_events=3_000, n_units=20)
    partition = play(traffic, 5, limits)
    assert partition.total("exposures/dead_letter/unit_limit") > 0
    agree(partition, traffic)


def test_the_oracle_knows_segments_and_leaves_archived_experiments_out() -> None:
    features = (Feature(name="b", levels=("1",)), Feature(name="a=", levels=("x|y%",)))
    live = experiment(counting(features=features))
    partition = Partition([live, experiment(name="old")])
    event = shown(0, context={"a=": "x|y%"})
    partition.events(event, shown(0, "x2", experiment_id="old"), done(1))
    rows = partition.rows
    old = experiment(name="old", status="archived")
    cells = compute_cells(rows["exposures"], rows["conversions"], [live, old], set(), partition.limits)
    assert {key.segment for key in cells} == {"a%3D=x%7Cy%25|b=other"}
    assert cells == {key: cell for key, cell in partition.cells().items() if key.experiment_id == "e"}


def test_misplaced_events_are_not_counted() -> None:
    limits = msgspec.structs.replace(LIMITS, n_partitions=2)
    for number in (0, 1):
        partition = Partition([experiment()], limits, number)
        partition.events(shown(0), done(1))
        rows = partition.rows
        cells = compute_cells(rows["exposures"], rows["conversions"], [experiment()], set(), limits)
        assert cells == partition.cells()
        assert bool(cells) is not bool(partition.rerouted)


def test_rows_are_read_as_they_are_consumed() -> None:
    event = shown(0)
    value = encode_event(event)
    assert read_row("exposures", 1, 2, 3, b"u", value) == EventRow(1, 2, 3, b"u", event)
    assert read_row("conversions", 1, 2, 3, b"u", value).event is None
    assert read_row("exposures", 1, 2, 3, None, None).event is None
    for text, ms in ((b"end", 2**53), (b"7", 7), (b"x", None), (b"9" * 16, None), (b"9" * 17, None)):
        assert read_row("exposures", 1, 2, 3, None, None, [("bandit-watermark", text)]).event == ms


def row(
    event: Any, offset: int, key: bytes | None = b"u", append_ms: int = T, partition: int = 0
) -> EventRow:
    return EventRow(partition, offset, append_ms, key, event)


def problems(
    rows: list[EventRow], verdicts: dict[int, str], topic: str = "exposures", **changes: Any
) -> list[str]:
    limits = msgspec.structs.replace(LIMITS, **changes)
    positions = {(topic, 0, offset): reason for offset, reason in verdicts.items()}
    split = (rows, []) if topic == "exposures" else ([], rows)
    records = [experiment(counting(effective_from_ms=T)), experiment(name="draft", status="draft")]
    return check_verdicts(split[0], split[1], records, positions, limits)


GOOD = shown(0)
ALSO_GOOD = shown(1, "x2")


@pytest.mark.parametrize(
    ("rows", "offset", "reason"),
    [
        ([row(None, 0)], 0, "undecodable"),
        ([row(None, 0)], 0, "value_out_of_range"),
        ([row(GOOD, 0, b"other")], 0, "key_mismatch"),
        ([row(GOOD, 0, append_ms=T - 300_001)], 0, "future"),
        ([row(GOOD, 0), row(shown(-9 * HOUR - 1, "l"), 1)], 1, "late"),
        ([row(2**53, 0), row(GOOD, 1)], 1, "late"),
        ([row(shown(0, experiment_id="none"), 0)], 0, "unknown_experiment"),
        ([row(shown(0, arm="z"), 0)], 0, "unknown_arm"),
        ([row(shown(-1), 0)], 0, "not_live"),
        ([row(shown(0, experiment_id="draft"), 0)], 0, "not_live"),
        ([row(GOOD, 0)], 0, "oversize"),
    ],
)
def test_verdicts_that_hold_raise_no_problem_and_others_do(
    rows: list[EventRow], offset: int, reason: str
) -> None:
    assert problems(rows, {offset: reason}) == []
    for other in {"late", "future", "unknown_arm", "undecodable", "not_live", "unit_limit"} - {reason}:
        if reason != "value_out_of_range":
            (problem,) = problems(rows, {offset: other})
            assert other in problem


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (done(0, metric="z"), "unknown_metric"),
        (done(0, metric="z", experiment_id="e"), "unknown_metric"),
        (done(0, experiment_id="z"), "unknown_experiment"),
        (done(0, experiment_id="draft"), "not_live"),
    ],
)
def test_verdicts_on_conversions(event: Any, reason: str) -> None:
    assert problems([row(event, 0)], {0: reason}, "conversions") == []
    assert len(problems([row(done(0), 0)], {0: reason}, "conversions")) == 1


@pytest.mark.parametrize(
    "rows",
    [
        [row(None, 0)],
        [row(GOOD, 0, b"other")],
        [row(GOOD, 0, append_ms=T - 300_001)],
        [row(ALSO_GOOD, 1), row(GOOD, 0), row(shown(-9 * HOUR - 1, "l"), 2)],
    ],
)
def test_a_record_that_needs_a_verdict_and_has_none_is_a_problem(rows: list[EventRow]) -> None:
    assert len(problems(rows, {})) == 1


def test_wrong_partition_and_unit_limit_are_checked() -> None:
    assert len(problems([row(GOOD, 0)], {0: "wrong_partition"})) == 1
    # of two partitions, the unit is in one
    found = [
        check_verdicts(
            [row(GOOD, 0, partition=number)],
            [],
            [],
            {("exposures", number, 0): "wrong_partition"},
            msgspec.structs.replace(LIMITS, n_partitions=2),
        )
        for number in (0, 1)
    ]
    assert sorted(map(len, found)) == [0, 1]
    rows = [row(GOOD, 0), row(ALSO_GOOD, 1)]
    assert problems(rows, {1: "unit_limit"}, unit_max_events=1) == []
    assert len(problems(rows, {1: "unit_limit"}, unit_max_events=2)) == 1


def test_a_verdict_on_a_record_that_is_not_there_is_a_problem() -> None:
    assert len(problems([], {0: "late"})) == 1


def test_definitions_that_changed_since_contradict_no_verdict() -> None:
    changed = experiment(updated_at_ms=T + 1)
    position = {("exposures", 0, 0): "unknown_arm"}
    assert check_verdicts([row(GOOD, 0)], [], [changed], position, LIMITS) == []


def test_without_duckdb_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "duckdb":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"bandit-streams\[demo\]"):
        compute_cells([], [], [], set(), LIMITS)
