"""Versions of an arm through the whole product: definition, join, allocator, edge."""

import json

import msgspec

from streams.allocations import Allocation
from streams.allocator.compute import Job, Stamp, compute
from streams.allocator.counts_state import CountsState
from streams.allocator.inputs import gather_inputs
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.edge.table import DecisionTable
from streams.events import Conversion, Exposure
from streams.experiments.changes import apply_definition
from streams.experiments.definition import ExperimentRecord
from streams.experiments.validation import parse_definition
from streams.join.cells import Cell, CellKey
from streams.join.definitions import Definitions
from tests.join.partition import HOUR, Partition
from tests.join.test_attribution import T


def applied(content: str, record: ExperimentRecord | None, now_ms: int) -> ExperimentRecord:
    document = {
        "id": "e",
        "arms": ["plain", {"id": "green", "content": content}],
        "reward": {"metric": "signup", "kind": "click"},
        "conversion_window": "2h",
    }
    return apply_definition(
        parse_definition(json.dumps(document)), record, now_ms=now_ms, lead_ms=60_000
    ).record


def exposures(arm: str, at: int, n: int) -> list[Exposure]:
    return [
        Exposure(exposure_id=unit, experiment_id="e", unit_id=unit, arm_id=arm, timestamp=T + at)
        for unit in (f"{arm}-{at}-{i}" for i in range(n))
    ]


def done(at: int, unit_id: str) -> Conversion:
    return Conversion(conversion_id=unit_id, unit_id=unit_id, metric="signup", timestamp=T + at)


def allocate(record: ExperimentRecord, join: Partition, hour: int, last: Allocation | None) -> Allocation:
    counts = CountsState(views=("steering", "reporting"))
    by_bucket: dict[int, dict[CellKey, Cell]] = {}
    for cell_key, cell in join.cells().items():
        by_bucket.setdefault(cell_key.bucket, {})[cell_key] = cell
    for bucket, cells in by_bucket.items():
        key = CountsKey("e", 0, bucket)
        counts.absorb(encode_key(key), encode_counts(key, CountsRecord(Order(1, 0, hour), cells)))
    (made,) = compute([Job(gather_inputs(record, T + hour * HOUR, counts, last), Stamp(0, "interval", 0))])
    assert isinstance(made, Allocation), made
    return msgspec.structs.replace(made, version=hour)


def test_an_edited_arm_starts_anew_and_late_events_count_for_what_was_shown() -> None:
    record = applied("first text", None, T)
    join = Partition([record])
    join.events(*exposures("plain", 0, 40), *exposures("green", 0, 40), done(5, "green-0-0"))
    table = DecisionTable(max_age_ms=10**12, clock_ms=lambda: 0)
    table.set_experiment("e", record)
    before = allocate(record, join, 1, None)
    table.set_allocation("e", before, 0)
    units = [f"unit-{i}" for i in range(200)]
    assert {table.decide("e", unit).arm_id for unit in units} == {"plain", "green"}

    record = applied("second text", record, T + HOUR)
    # The definition arrives at the edge before the next allocation: what is over is not shown any more.
    table.set_experiment("e", record)
    assert {table.decide("e", unit).arm_id for unit in units} == {"plain"}
    # An edge that does not know yet goes on showing the old version, and a conversion of it is late, too.
    join.definitions = Definitions([record])
    join.events(
        *exposures("green", HOUR, 10),
        *exposures("green@2", HOUR, 20),
        done(HOUR + 1, "green-0-1"),
        done(HOUR + 5, f"green@2-{HOUR}-3"),
    )
    assert not join.verdicts, "nothing is refused"
    after = allocate(record, join, 2, before)
    assert [(arm.arm_id, arm.status, arm.trials, arm.successes) for arm in after.arms] == [
        ("plain", "active", 40, 0),
        ("green", "stopped", 50, 2),
        ("green@2", "incubating", 20, 1),
    ]
    assert [arm.weight for arm in after.arms] == [0.5, 0.0, 0.5]

    table.set_allocation("e", after, 0)
    decisions = [table.decide("e", unit) for unit in units]
    assert {decision.arm_id for decision in decisions} == {"plain", "green@2"}
    assert {decision.arm_name for decision in decisions} == {"plain", "green"}
    assert table.content("e", "green@2") == "second text"
    assert table.content("e", "green") == "first text"
    assert table.content("e", "plain") is None
