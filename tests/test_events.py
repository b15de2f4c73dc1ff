"""Wire events: golden bytes, exact times and values, and what is said about wrong ones."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.errors import EventError
from streams.events import (
    Conversion,
    Exposure,
    decode_conversion,
    decode_exposure,
    encode_event,
    event_key,
    timestamp_ms,
    value_micros,
)

GOLDEN = Path(__file__).parent / "golden" / "events" / "v1"
T = 1_700_000_000_000


def exposure(**changes: object) -> Exposure:
    values: dict[str, object] = {
        "exposure_id": "x-1",
        "experiment_id": "checkout-button",
        "unit_id": "user-17",
        "timestamp": T,
        "arm_id": "green",
    }
    return msgspec.convert(values | changes, Exposure)


def conversion(**changes: object) -> Conversion:
    values: dict[str, object] = {
        "conversion_id": "c-1",
        "unit_id": "user-17",
        "metric": "purchase",
        "timestamp": T,
    }
    return msgspec.convert(values | changes, Conversion)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


GOLDEN_EVENTS: dict[str, Exposure | Conversion] = {
    "exposure_minimal": exposure(),
    "exposure_full": exposure(
        exposure_id="x-2",
        timestamp=T + 1,
        propensity=0.45,
        allocation_version=1289,
        context={"device": "mobile", "country": "DE"},
        reason="default_stale",
        test=True,
    ),
    "exposure_rfc3339": exposure(
        exposure_id="x-3", unit_id="Jürgen", timestamp=at("2023-11-14T23:13:20.123456+01:00")
    ),
    "exposure_comparison": exposure(exposure_id="x-4", arm_id=None, group="comparison"),
    "exposure_nulls": exposure(exposure_id="x-5", timestamp=0),
    "exposure_unknown_fields": exposure(exposure_id="x-6"),
    "conversion_minimal": conversion(),
    "conversion_full": conversion(
        conversion_id="c-2",
        metric="revenue",
        timestamp=T + 1,
        value=12.345678,
        experiment_id="checkout-button",
        exposure_id="x-2",
        test=True,
    ),
    "conversion_rfc3339": conversion(
        conversion_id="c-3", timestamp=at("2023-11-14T22:13:20+00:00"), value=0.0
    ),
    "conversion_unknown_fields": conversion(conversion_id="c-4"),
}


def decode(name: str, value: bytes) -> Exposure | Conversion:
    return decode_exposure(value) if name.startswith("exposure") else decode_conversion(value)


def test_every_golden_file_is_tested() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(GOLDEN_EVENTS)


@pytest.mark.parametrize("name", GOLDEN_EVENTS)
def test_golden_bytes_decode_and_survive_encoding(name: str) -> None:
    value = (GOLDEN / f"{name}.json").read_bytes()
    event = decode(name, value)
    assert event == GOLDEN_EVENTS[name]
    assert decode(name, encode_event(event)) == event
    if name.endswith(("minimal", "full", "comparison")):  # the others hold what encoding leaves out
        assert encode_event(event) == value


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2023-11-14T22:13:20Z", T),
        ("2023-11-14T23:13:20+01:00", T),
        ("2023-11-14t22:13:20.999z", T + 999),
        ("2023-11-14T22:13:20.0019Z", T + 1),
        ("2023-11-14T22:13:20.0009994Z", T),
        ("2023-11-14T22:13:20.0009996Z", T + 1),  # to the nearest microsecond, then cut to the millisecond
        ("2023-11-14 22:13:20Z", T),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ],
)
def test_rfc3339(text: str, expected_ms: int) -> None:
    value = b'{"conversion_id":"c","unit_id":"u","metric":"m","timestamp":"%s"}' % text.encode()
    assert timestamp_ms(decode_conversion(value)) == expected_ms


@settings(deadline=None)
@given(st.integers(0, 253_370_764_800_000), st.integers(-23 * 60, 23 * 60))
def test_both_forms_of_an_instant_agree(instant_ms: int, offset_min: int) -> None:
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=instant_ms)
    text = instant.astimezone(timezone(timedelta(minutes=offset_min))).isoformat()
    value = b'{"conversion_id":"c","unit_id":"u","metric":"m","timestamp":"%s"}' % text.encode()
    assert timestamp_ms(decode_conversion(value)) == instant_ms


@pytest.mark.parametrize(
    ("value", "micros"),
    [
        (0.0, 0),
        (-0.0, 0),
        (1.0, 1_000_000),
        (0.1, 100_000),
        (12.345678, 12_345_678),
        (0.0000005, 0),  # half to even
        (0.0000015, 2),
        (0.0000025, 2),
        (1e9, 10**15),
        (1e9 - 1e-6, 10**15 - 1),
    ],
)
def test_values_in_micros(value: float, micros: int) -> None:
    assert value_micros(conversion(value=value)) == micros


@pytest.mark.parametrize("value", ["-0.000001", "1000000000.0001", "-1"])
def test_values_out_of_range(value: str) -> None:
    data = b'{"conversion_id":"c","unit_id":"u","metric":"m","timestamp":1,"value":%s}' % value.encode()
    with pytest.raises(EventError) as caught:
        decode_conversion(data)
    assert (caught.value.reason, caught.value.field) == ("value_out_of_range", "$.value")


MINIMAL = b'{"exposure_id":"x","experiment_id":"e","unit_id":"u","timestamp":1,"arm_id":"a"%s}'


@pytest.mark.parametrize(
    ("data", "reason", "field", "message"),
    [
        (b"", "undecodable", "$", "not JSON in UTF-8"),
        (b"\xff", "undecodable", "$", "not JSON in UTF-8"),
        (b'{"exposure_id":"\xff"}', "undecodable", "$", "not JSON in UTF-8"),
        (MINIMAL[:-5] % (), "undecodable", "$", "not JSON in UTF-8"),
        (b"[]", "invalid_field", "$", "Expected `object`, got `array`"),
        (b"{}", "invalid_field", "$.exposure_id", "missing; it is required"),
        (MINIMAL % b',"unit_id":""', "invalid_field", "$.unit_id", "length >= 1"),
        (MINIMAL % b',"unit_id":7', "invalid_field", "$.unit_id", "Expected `str`, got `int`"),
        (MINIMAL % (b',"arm_id":"%s"' % (b"a" * 257)), "invalid_field", "$.arm_id", "length <= 256"),
        (MINIMAL % b',"timestamp":-1', "invalid_field", "$.timestamp", ">= 0"),
        (MINIMAL % b',"timestamp":1.5', "invalid_field", "$.timestamp", "got `float`"),
        (MINIMAL % b',"timestamp":9007199254740992', "invalid_field", "$.timestamp", "<= 9007199254740991"),
        (MINIMAL % b',"timestamp":"2024-01-01T00:00:00"', "invalid_field", "$.timestamp", "timezone"),
        (MINIMAL % b',"timestamp":"now"', "invalid_field", "$.timestamp", "Invalid RFC3339"),
        (MINIMAL % b',"timestamp":"1969-12-31T23:59:59Z"', "invalid_field", "$.timestamp", "before 1970"),
        (MINIMAL % b',"propensity":0', "invalid_field", "$.propensity", "> 0"),
        (MINIMAL % b',"propensity":1.1', "invalid_field", "$.propensity", "<= 1"),
        (MINIMAL % b',"context":{"a":1}', "invalid_field", "$.context[...]", "Expected `str`"),
        (MINIMAL % b',"group":"control"', "invalid_field", "$.group", "Invalid enum value"),
        (MINIMAL % b',"test":1', "invalid_field", "$.test", "Expected `bool`"),
        (MINIMAL % b',"arm_id":null', "invalid_field", "$.arm_id", "must name the arm shown"),
        (MINIMAL % b',"group":"comparison"', "invalid_field", "$.arm_id", "must be absent"),
    ],
)
def test_wrong_events_say_why_and_where(data: bytes, reason: str, field: str, message: str) -> None:
    with pytest.raises(EventError) as caught:
        decode_exposure(data)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert message in caught.value.message
    assert str(caught.value).startswith(f"{field}: ")


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_anything_else_is_an_event_error(data: bytes) -> None:
    for decoder in (decode_exposure, decode_conversion):
        with pytest.raises(EventError):
            decoder(data)


def test_the_key_is_the_unit() -> None:
    assert event_key(exposure(unit_id="Jürgen")) == "Jürgen".encode()
