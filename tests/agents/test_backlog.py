"""Which of a partition's two topics is read next, and how far."""

import json

import pytest

from streams.agents.backlog import APPENDED_BEFORE_MS, EARLY_RECORDS, Backlog, Opened
from streams.join.step import SourceRecord


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


def test_conversions_alone_lack_exposures_until_their_time_is_reached() -> None:
    backlog = Backlog()
    backlog.open("conversions", Opened([conversion(0, 10)], 1))
    assert backlog.lacks_exposures(9)
    assert not backlog.lacks_exposures(10)
    backlog.open("exposures", Opened([exposure(0)], 1))
    assert not backlog.lacks_exposures(9)


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


async def test_waiting_in_vain_is_not_repeated_at_once() -> None:
    backlog = Backlog()
    await backlog.wait_for("conversions")
    before = backlog._alone_until_s
    await backlog.wait_for("conversions")
    assert backlog._alone_until_s == before > 0
