"""The audit finds what was changed, and says where."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import pytest

from streams.allocations import Allocation, decode_allocation, encode_allocation
from streams.allocator.compute import Job, Stamp, compute, compute_encoded, inputs_of
from streams.allocator.counts_state import ArmCounts
from streams.allocator.log import Claim, encode_claim, versioned
from streams.audit import AuditReport, PartitionAudit, first_difference
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Policy, Reward

HOUR_MS = 3_600_000
CLAIM = encode_claim(Claim(owner="w", generation=1, claimed_at_ms=0))
LATER_MS = 10**12


class Read(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None
    topic: str = "allocation-log"
    partition: int = 3
    timestamp: int = 0
    headers: Sequence[tuple[str, bytes]] = ()


def table(hour: int, *, claim: int = 0, successes: int = 5, experiment_id: str = "e") -> bytes:
    record = ExperimentRecord(
        experiment_id=experiment_id,
        revision=1,
        status="live",
        arms=(Arm(arm_id="a"), Arm(arm_id="b")),
        control="a",
        versions=(Counting(version=1, effective_from_ms=0, reward=Reward(metric="click")),),
        policy=Policy(comparison=0.1, holdout=0.05),
    )
    counts = {"a": ArmCounts(100, successes, successes * 10**6, successes * 10**12)}
    (allocation,) = compute(
        [Job(inputs_of(record, hour * HOUR_MS, counts, None), Stamp(claim, "interval", 7))]
    )
    assert isinstance(allocation, Allocation)
    return encode_allocation(allocation)


def run(records: Sequence[Read], *, start: int = 0) -> tuple[AuditReport, PartitionAudit]:
    report = AuditReport()
    audited = PartitionAudit("allocation-log", 3, start, report)
    for record in records:
        found = audited.take(record)
        if found is not None:
            audited.recheck(found, compute_encoded([found.job])[0])
    return report, audited


def differences(records: Sequence[Read], *, start: int = 0) -> list[str]:
    return [str(difference) for difference in run(records, start=start)[0].differences]


def test_an_untouched_log_has_no_difference() -> None:
    records = [Read(0, None, CLAIM), Read(1, b"e", table(1)), Read(2, None, CLAIM), Read(3, b"e", table(2))]
    report, _ = run([*records, Read(4, b"e", table(3, claim=2))])
    assert report.ok
    assert (report.claims, report.tables, report.compared, report.foreign) == (2, 2, 2, 1)


def changed(raw: bytes, **fields: Any) -> bytes:
    return encode_allocation(msgspec.structs.replace(decode_allocation(raw), **fields))


def test_a_changed_weight_is_found_twice_by_its_sum_and_by_its_inputs() -> None:
    arms = decode_allocation(table(1)).arms
    raw = changed(table(1), arms=(msgspec.structs.replace(arms[0], weight=arms[0].weight + 1e-12), arms[1]))
    by_sum, by_inputs = differences([Read(0, None, CLAIM), Read(1, b"e", raw)])
    assert by_sum.startswith(
        "allocation-log-3@1: experiment 'e': weights and comparison group add up to 1.0000"
    )
    assert by_inputs.startswith("allocation-log-3@1: experiment 'e': $.arms[0].weight is 0.")


def test_changed_inputs_are_found() -> None:
    inputs = decode_allocation(table(1)).inputs
    inputs["arms"][0]["trials"] += 1
    (found,) = differences([Read(0, None, CLAIM), Read(1, b"e", changed(table(1), inputs=inputs))])
    assert "$.arms[0].weight is" in found
    del inputs["arms"]
    (found,) = differences([Read(0, None, CLAIM), Read(1, b"e", changed(table(1), inputs=inputs))])
    assert "inputs are not of the expected form" in found


def test_inputs_that_cannot_be_computed_are_found() -> None:
    inputs = decode_allocation(table(1)).inputs | {"algorithm": "magic"}
    (found,) = differences([Read(0, None, CLAIM), Read(1, b"e", changed(table(1), inputs=inputs))])
    assert "cannot be computed from its inputs: policy.algorithm: unknown algorithm 'magic'" in found


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([Read(0, None, b"x")], "allocation-log-3@0: claim does not decode"),
        ([Read(0, None, CLAIM), Read(1, b"e", b"x")], "allocation-log-3@1: allocation does not decode"),
        ([Read(0, None, CLAIM), Read(1, b"other", table(1))], "is not the experiment 'e' of the value"),
        ([Read(0, None, CLAIM), Read(5, b"e", table(1, claim=4))], "names claim 4, where there is none"),
        (
            [Read(0, None, CLAIM), Read(1, b"e", changed(table(1), version=1))],
            "version is 1; in the log it is 0",
        ),
        (
            [Read(0, None, CLAIM), Read(1, b"e", table(2)), Read(2, b"e", table(1))],
            "boundary went back from 7200000 to 3600000",
        ),
    ],
)
def test_what_cannot_be_is_named(records: list[Read], message: str) -> None:
    assert any(message in found for found in differences(records))


def test_claims_before_the_start_of_a_trimmed_log_are_taken_on_trust() -> None:
    assert differences([Read(50, b"e", table(1, claim=40))], start=50) == []
    assert differences([Read(50, b"e", table(1, claim=40))], start=40) != []


def test_tables_of_another_engine_are_counted_and_not_compared() -> None:
    inputs = decode_allocation(table(1)).inputs | {"engine": 0}
    report, _ = run([Read(0, None, CLAIM), Read(1, b"e", changed(table(1), inputs=inputs))])
    assert (report.ok, report.other_engine, report.compared) == (True, 1, 0)


def published(
    audited: PartitionAudit, newest: dict[str, Read], report: AuditReport, now_ms: int
) -> list[str]:
    audited.check_published("allocations", dict(newest), now_ms, end=10)
    return [str(difference) for difference in report.differences]


def test_the_compacted_topic_must_have_the_newest_that_holds() -> None:
    records = [Read(0, None, CLAIM), Read(1, b"e", table(1)), Read(2, b"e", table(2))]
    good = {"e": Read(7, b"e", versioned(table(2), 2))}
    for newest, message in (
        (good, ""),
        (
            {"e": Read(7, b"e", versioned(table(1), 1))},
            "allocations-3@7: experiment 'e': the log's newest version is 2",
        ),
        ({"e": Read(7, b"e", versioned(table(2, successes=9), 2))}, "with other content"),
        ({"e": Read(7, b"e", None)}, "a tombstone"),
        ({}, "here is none"),
        ({"e": Read(7, b"e", versioned(table(3), 10))}, ""),  # logged after the audit began
    ):
        report, audited = run(records)
        found = published(audited, newest, report, LATER_MS)
        assert (message in found[0]) if message else found == []
    report, audited = run(records)
    assert published(audited, {}, report, 1000) == [], "logged a second ago: may be on its way"


def test_an_archived_experiment_has_a_tombstone_or_nothing() -> None:
    raw = changed(table(1), status="archived", arms=())
    for newest in ({}, {"e": Read(7, b"e", None)}):
        report = AuditReport()
        audited = PartitionAudit("allocation-log", 3, 0, report)
        audited.take(Read(0, None, CLAIM))
        audited.take(Read(1, b"e", raw))
        assert published(audited, newest, report, LATER_MS) == []


def test_the_first_difference_is_named_by_its_path() -> None:
    assert first_difference(b'{"a":1,"b":[1,2]}', b'{"a":1,"b":[1,3]}') == "$.b[1] is 2, its inputs give 3"
    assert first_difference(b'{"a":1}', b'{"a":1.0}') == "$.a is 1, its inputs give 1.0"
    assert first_difference(b'{"a":1}', b'{"b":1}') == "has $.a where its inputs give $.b"
    assert first_difference(b'{"a":1}', b'{"a": 1}').startswith("bytes differ from position 5")
