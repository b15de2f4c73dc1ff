"""Which of a partition's two topics is read next, and how far."""

import json

import pytest

from streams.agents.backlog import ALONE_AFTER_S, APPENDED_BEFORE_MS, EARLY_RECORDS, Backlog, Opened
from streams.join.step import SourceRecord
from streams.transport import Chunk

CHUNK = Chunk(topic="exposures", partition=0, start=0, next=1, epoch=1, records=(), highwater=1, number=1)


def conversion(offset: int, event_ms: int, append_ms: int = 0) -> SourceRecord:
    value = {"conversion_id": f"c{offset}", "unit_id": "u", "metric": "order", "timestamp": event_ms}
    return SourceRecord(offset, b"u", json.dumps(value).encode(), append_ms)


def exposure(offset: int, append_ms: int = 0) -> SourceRecord:
    return SourceRecord(offset, b"u", b"x" * 10, append_ms)


def both(conversions: list[SourceRecord], exposures: list[SourceRecord]) -> Backlog:
    backlog = Backlog()
    backlog.open("conversions", Opened(conversions, 100))
    backlog.open("exposures", Opened(exposures, 200))
    return backlog


@pytest.mark.parametrize(("reached_ms", "topic"), [(9, "exposures"), (10, "conversions")])
def test_a_conversion_waits_for_exposures_of_its_time(reached_ms: int, topic: str) -> None:
    assert both([conversion(0, 10)], [exposure(0)]).next_topic(reached_ms) == topic


@pytest.mark.parametrize(
    ("append_ms", "topic"), [(APPENDED_BEFORE_MS, "exposures"), (APPENDED_BEFORE_MS + 1, "conversions")]
)
def test_a_conversion_of_the_future_waits_a_minute(append_ms: int, topic: str) -> None:
    assert both([conversion(0, 2**50)], [exposure(0, append_ms)]).next_topic(5) == topic


@pytest.mark.parametrize("value", [None, b"", b"no json", b"{}"])
def test_what_has_no_time_does_not_wait(value: bytes | None) -> None:
    assert both([SourceRecord(0, None, value, 0)], [exposure(0)]).next_topic(-1) == "conversions"


def test_conversions_end_at_the_time_reached() -> None:
    backlog = both([conversion(i, 10 * i) for i in range(6)], [exposure(0)])
    records, following = backlog.take("conversions", 4000, 1 << 20, 30)
    assert [record.offset for record in records] == [0, 1, 2, 3]
    assert following == 4
    records, following = backlog.take("conversions", 4000, 1 << 20, 40)
    assert ([record.offset for record in records], following) == ([4], 5)
    records, following = backlog.take("conversions", 4000, 1 << 20, 40)  # early: some all the same
    assert ([record.offset for record in records], following) == ([5], 100)


def test_early_conversions_are_taken_in_small_batches() -> None:
    backlog = both([conversion(i, 100) for i in range(2 * EARLY_RECORDS)], [exposure(0)])
    assert backlog.take("conversions", 4000, 1 << 20, 99)[1] == EARLY_RECORDS


def alone(event_ms: int) -> Backlog:
    backlog = Backlog()
    backlog.open("conversions", Opened([conversion(0, event_ms)], 1))
    return backlog


def test_conversions_alone_wait_until_exposures_have_reached_their_time() -> None:
    backlog = alone(10)
    assert backlog.waits_for_exposures(9)
    assert not backlog.waits_for_exposures(10)
    backlog.open("exposures", Opened([exposure(0)], 1))
    assert not backlog.waits_for_exposures(9)


def test_conversions_wait_in_vain_once_until_exposures_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("streams.agents.backlog.time.monotonic", lambda: now_s[0])
    backlog = alone(10)
    assert backlog.waits_for_exposures(9)
    now_s[0] += ALONE_AFTER_S
    assert not backlog.waits_for_exposures(9)
    backlog.take("conversions", 1, 1 << 20, 9)
    backlog.open("conversions", Opened([conversion(1, 11)], 2))
    assert not backlog.waits_for_exposures(9)
    backlog.put("exposures", CHUNK)
    assert backlog.waits_for_exposures(9)


def test_alone_a_topic_is_taken_in_batches() -> None:
    backlog = Backlog()
    backlog.open("exposures", Opened([exposure(i) for i in (3, 5, 9)], 12))
    assert backlog.next_topic(0) == "exposures"
    assert backlog.take("exposures", 2, 1 << 20, 0)[1] == 9
    assert backlog.take("exposures", 2, 1 << 20, 0)[1] == 12
    assert backlog.is_empty
    assert backlog.next_topic(0) is None


def test_bytes_bound_a_batch_but_not_its_first_record() -> None:
    backlog = Backlog()
    backlog.open("exposures", Opened([exposure(i) for i in range(4)], 4))
    assert len(backlog.take("exposures", 10, 22, 0)[0]) == 2  # eleven bytes each, with the key
    assert len(backlog.take("exposures", 10, 5, 0)[0]) == 1
