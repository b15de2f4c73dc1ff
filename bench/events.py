"""Nanoseconds per event of what the hot path does with one: ``python bench/events.py``."""

import timeit
from collections.abc import Callable

from streams.errors import EventError
from streams.events import (
    Conversion,
    Exposure,
    decode_conversion,
    decode_exposure,
    encode_event,
    timestamp_ms,
    value_micros,
)
from streams.partitioning import partition_of, partitions_of

EXPOSURE = Exposure(
    exposure_id="0f8fad5b-d9cb-469f-a165-70867728950e",
    experiment_id="checkout-button",
    unit_id="user-000123",
    timestamp=1_700_000_000_000,
    arm_id="green",
    propensity=0.45,
    allocation_version=17,
)
CONVERSION = Conversion(
    conversion_id="7c9e6679-7425-40de-944b-e07fc1f90ae7",
    unit_id="user-000123",
    metric="purchase",
    timestamp=1_700_000_000_000,
    value=12.5,
)


def nanoseconds(call: Callable[[], object], per_call: int = 1) -> float:
    """Least time of five rounds, in nanoseconds for each of ``per_call`` items."""
    number = max(1, 50_000 // per_call)
    return min(timeit.repeat(call, number=number, repeat=5)) / number / per_call * 1e9


def refused() -> EventError | None:
    """Decode an event without its fields."""
    try:
        decode_exposure(b'{"exposure_id":"x"}')
    except EventError as error:
        return error
    return None


def main() -> None:
    """Measure and print."""
    exposure, conversion = encode_event(EXPOSURE), encode_event(CONVERSION)
    text_time = exposure.replace(b"1700000000000", b'"2023-11-14T22:13:20.123Z"')
    keys = [f"user-{index:06d}".encode() for index in range(4000)]
    rows: list[tuple[str, float]] = [
        (f"decode_exposure, {len(exposure)} bytes", nanoseconds(lambda: decode_exposure(exposure))),
        ("decode_exposure, RFC 3339 time", nanoseconds(lambda: decode_exposure(text_time))),
        (f"decode_conversion, {len(conversion)} bytes", nanoseconds(lambda: decode_conversion(conversion))),
        ("refuse an exposure", nanoseconds(refused)),
        ("encode_event", nanoseconds(lambda: encode_event(EXPOSURE))),
        ("timestamp_ms", nanoseconds(lambda: timestamp_ms(EXPOSURE))),
        ("value_micros", nanoseconds(lambda: value_micros(CONVERSION))),
        ("partition_of, 11 bytes", nanoseconds(lambda: partition_of(keys[7], 8))),
        ("partitions_of 4000 keys, each", nanoseconds(lambda: partitions_of(keys, 8), per_call=len(keys))),
    ]
    for name, value in rows:
        print(f"{name:<36}{value:>8.0f} ns")


if __name__ == "__main__":
    main()
