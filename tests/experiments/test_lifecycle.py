"""Lifecycle steps, as a table of states and steps."""

from collections.abc import Callable

import msgspec
import pytest

from streams.errors import LifecycleError, RecordError
from streams.experiments import lifecycle
from streams.experiments.definition import (
    Arm,
    Counting,
    ExperimentRecord,
    ExperimentStatus,
    Reward,
    bind,
    decode_record,
    encode_record,
)

T = 1_700_000_000_000
VERSION = Counting(version=3, effective_from_ms=5, reward=Reward(metric="buy"))
RECORD = ExperimentRecord(
    experiment_id="e",
    revision=7,
    status="live",
    arms=(Arm(arm_id="a"), Arm(arm_id="b"), Arm(arm_id="c", status="stopped")),
    control="a",
    versions=(VERSION,),
    default_arm="b",
    created_at_ms=1,
    updated_at_ms=2,
)

Step = Callable[[ExperimentRecord], ExperimentRecord]
STEPS: dict[str, Step] = {
    "pause": lambda record: lifecycle.pause(record, now_ms=T),
    "resume": lambda record: lifecycle.resume(record, now_ms=T),
    "complete": lambda record: lifecycle.complete(record, now_ms=T),
    "archive": lambda record: lifecycle.archive(record, now_ms=T),
}


@pytest.mark.parametrize(
    ("status", "outcomes"),
    [
        ("draft", {"archive": "archived"}),
        ("live", {"pause": "paused", "complete": "completed"}),
        ("paused", {"resume": "live", "complete": "completed"}),
        ("completed", {"archive": "archived"}),
        ("archived", {}),
    ],
)
def test_steps(status: ExperimentStatus, outcomes: dict[str, str]) -> None:
    record = msgspec.structs.replace(RECORD, status=status)
    for name, step in STEPS.items():
        if name not in outcomes:
            with pytest.raises(LifecycleError, match=f"cannot {name} experiment e, which is {status}"):
                step(record)
            continue
        after = step(record)
        assert (after.status, after.revision, after.updated_at_ms) == (outcomes[name], 8, T)
        assert (after.arms, after.versions, after.created_at_ms) == (record.arms, record.versions, 1)
    assert record.status == status


def test_stop_arm_takes_traffic_and_the_default() -> None:
    after = lifecycle.stop_arm(RECORD, "b", now_ms=T)
    assert [arm.status for arm in after.arms] == ["active", "stopped", "stopped"]
    assert (after.default_arm, after.revision) == (None, 8)


@pytest.mark.parametrize(
    ("changes", "arm_id", "why"),
    [
        ({}, "a", "it is the control arm"),
        ({}, "c", "it is stopped and gets no traffic already"),
        ({}, "x", "it has no such arm; the arms are a, b, c"),
        ({"control": "c"}, "a", None),
        (
            {"control": "c", "arms": (Arm(arm_id="a"), Arm(arm_id="c", status="stopped"))},
            "a",
            "it is the last arm",
        ),
        ({"status": "completed"}, "b", "it is over"),
        ({"status": "archived"}, "b", "it is over"),
        ({"status": "paused"}, "b", None),
    ],
)
def test_stop_arm_limits(changes: dict[str, object], arm_id: str, why: str | None) -> None:
    record = msgspec.structs.replace(RECORD, **changes)
    if why is None:
        stopped = lifecycle.stop_arm(record, arm_id, now_ms=T).arm(arm_id)
        assert stopped is not None
        assert stopped.status == "stopped"
    else:
        with pytest.raises(LifecycleError, match=why):
            lifecycle.stop_arm(record, arm_id, now_ms=T)


def test_complete_names_a_winner() -> None:
    assert lifecycle.complete(RECORD, now_ms=T).winner == "a"
    assert lifecycle.complete(RECORD, winner="b", now_ms=T).winner == "b"
    for arm_id in ("c", "x"):
        with pytest.raises(LifecycleError, match="the arms with traffic are a, b"):
            lifecycle.complete(RECORD, winner=arm_id, now_ms=T)


def test_clone_starts_as_a_draft_without_history() -> None:
    over = lifecycle.archive(lifecycle.complete(RECORD, winner="b", now_ms=T), now_ms=T)
    copy = lifecycle.clone(over, "f", now_ms=T + 1)
    assert (copy.experiment_id, copy.revision, copy.status, copy.winner) == ("f", 1, "draft", None)
    assert [(arm.arm_id, arm.status) for arm in copy.arms] == [("a", "active"), ("b", "active")]
    assert copy.versions == (msgspec.structs.replace(VERSION, version=1, effective_from_ms=T + 1),)
    assert (copy.created_at_ms, copy.updated_at_ms) == (T + 1, T + 1)
    for name in ("e", "a b", ""):
        with pytest.raises(LifecycleError, match="cannot be the new id"):
            lifecycle.clone(over, name, now_ms=T)


@pytest.mark.parametrize("status", ["live", "paused", "completed", "archived"])
def test_bind_takes_the_last_version_in_effect(status: ExperimentStatus) -> None:
    versions = tuple(
        msgspec.structs.replace(VERSION, version=number, effective_from_ms=at_ms)
        for number, at_ms in [(1, 10), (2, 20), (3, 30)]
    )
    record = msgspec.structs.replace(RECORD, status=status, versions=versions)
    found = {at_ms: bind(record, at_ms) for at_ms in (9, 10, 19, 20, 29, 30, 10**15)}
    assert {at_ms: version.version if version else None for at_ms, version in found.items()} == {
        9: None,
        10: 1,
        19: 1,
        20: 2,
        29: 2,
        30: 3,
        10**15: 3,
    }


def test_records_survive_their_codec() -> None:
    assert decode_record("e", encode_record(RECORD)) == RECORD
    assert encode_record(RECORD) == encode_record(decode_record("e", encode_record(RECORD)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("x", encode_record(RECORD), "the key says 'x', the record 'e'"),
        ("e", b"{}", "missing required field"),
        ("e", b"\xff", "not an experiment record"),
    ],
)
def test_wrong_records(key: str, value: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        decode_record(key, value)
