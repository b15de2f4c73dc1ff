"""Logged rows as events: the real file, and files with something wrong in them."""

import gzip
from pathlib import Path

import pytest

from streams.demo.openbandit import (
    CLICK_DELAY_MS,
    COLUMNS,
    EXPERIMENT_ID,
    InputUnreadable,
    load_logged_events,
    replay_experiment,
)
from streams.errors import EventError
from streams.events import decode_conversion, decode_exposure
from streams.experiments.definition import encode_record

DATA = Path(__file__).parents[2] / "data"
HEADER = ",".join(COLUMNS)
ROW = "2019-11-24 00:03:13.442536+00:00,14,3,{click},0.0294,f0,f1,f2,f3"


def write(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "clicks"), [("open_bandit_men_random.csv.gz", 46), ("open_bandit_men_bts.csv.gz", 69)]
)
def test_every_row_of_the_real_files_becomes_a_valid_event(name: str, clicks: int) -> None:
    events = load_logged_events(DATA / name)
    assert (len(events.exposures), len(events.conversions), events.clicks) == (10_000, clicks, clicks)
    assert events.arm_ids == tuple(str(i) for i in range(34))
    assert events.unreadable == 0
    units = set()
    for event in events.exposures:
        exposure = decode_exposure(event.value)
        assert exposure.unit_id.encode() == event.key
        assert exposure.timestamp == event.timestamp_ms
        assert exposure.experiment_id == EXPERIMENT_ID
        assert exposure.context is not None
        assert set(exposure.context) == {"position", *COLUMNS[5:]}
        units.add(exposure.unit_id)
    assert len(units) == 10_000
    shown_at = {event.key: event.timestamp_ms for event in events.exposures}
    for event in events.conversions:
        conversion = decode_conversion(event.value)
        assert conversion.metric == "click"
        assert conversion.timestamp == shown_at[event.key] + CLICK_DELAY_MS
    times = [event.timestamp_ms for event in events.exposures]
    assert times == sorted(times)
    assert (events.first_ms, events.last_ms) == (times[0], times[-1])


def test_a_row_becomes_exactly_this_exposure(tmp_path: Path) -> None:
    events = load_logged_events(write(tmp_path, ROW.format(click=1)))
    (shown,) = events.exposures
    exposure = decode_exposure(shown.value)
    assert (exposure.unit_id, exposure.exposure_id) == ("row-00000001", "row-00000001-shown")
    assert (exposure.arm_id, exposure.propensity) == ("14", 0.0294)
    assert exposure.timestamp == 1_574_553_793_442
    assert exposure.context == {
        "position": "3",
        "user_feature_0": "f0",
        "user_feature_1": "f1",
        "user_feature_2": "f2",
        "user_feature_3": "f3",
    }
    (clicked,) = events.conversions
    assert decode_conversion(clicked.value).conversion_id == "row-00000001-click"


def test_equal_rows_are_different_units_and_rows_are_sorted(tmp_path: Path) -> None:
    later = ROW.format(click=0).replace("00:03:13", "07:00:00")
    events = load_logged_events(write(tmp_path, later, ROW.format(click=0), ROW.format(click=0)))
    assert [event.key for event in events.exposures] == [b"row-00000002", b"row-00000003", b"row-00000001"]


@pytest.mark.parametrize(
    "bad",
    [
        ROW.format(click=2),
        ROW.format(click="x"),
        ROW.format(click=0).replace("2019-11-24", "yesterday"),
        ROW.format(click=0).replace(",0.0294,", ",0,"),
        ROW.format(click=0).replace(",0.0294,", ",nan,"),
        ROW.format(click=0).replace(",14,", ",,"),
        "2019-11-24 00:03:13+00:00,14,3",
        ROW.format(click=0).replace("2019", "1919"),
    ],
)
def test_a_row_that_is_no_impression_is_sent_for_the_pipeline_to_reject(tmp_path: Path, bad: str) -> None:
    events = load_logged_events(write(tmp_path, bad, ROW.format(click=1)))
    assert (events.unreadable, events.clicks, len(events.exposures)) == (1, 1, 2)
    assert events.exposures[0].key == b"row-00000001"
    with pytest.raises(EventError):
        decode_exposure(events.exposures[0].value)


def test_gzip_is_told_by_content_and_time_without_zone_is_utc(tmp_path: Path) -> None:
    text = f"{HEADER}\n{ROW.format(click=0).replace('+00:00', '')}\n"
    path = tmp_path / "rows.csv"
    path.write_bytes(gzip.compress(text.encode()))
    assert load_logged_events(path).first_ms == 1_574_553_793_442


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("timestamp,item_id", [], "position, click, propensity_score"),
        (HEADER, [], "no row could be read"),
        (HEADER, ["garbage"], "no row could be read"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, header: str, rows: list[str], message: str
) -> None:
    path = write(tmp_path, *rows, header=header)
    with pytest.raises(InputUnreadable, match=message) as caught:
        load_logged_events(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"\x1f\x8bbroken", b"\xff\xfe\x00"])
def test_unreadable_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(InputUnreadable, match="cannot be read"):
        load_logged_events(path)
    with pytest.raises(InputUnreadable, match="cannot be read"):
        load_logged_events(tmp_path / "none.csv")


def test_the_experiment_has_every_item_as_an_arm_and_starts_with_the_log() -> None:
    events = load_logged_events(DATA / "open_bandit_men_random.csv.gz")
    record = replay_experiment(events, 5)
    assert [arm.arm_id for arm in record.arms] == list(events.arm_ids)
    (counting,) = record.versions
    assert counting.effective_from_ms <= events.first_ms < counting.effective_from_ms + 3_600_000
    assert counting.effective_from_ms % 3_600_000 == 0
    assert counting.conversion_window_ms > CLICK_DELAY_MS
    assert encode_record(record)
