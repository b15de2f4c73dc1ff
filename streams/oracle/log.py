"""Source records as the oracle reads them, and what the log alone says of each of them."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from streams.errors import EventError
from streams.events import Conversion, Exposure, decode_conversion, decode_exposure, timestamp_ms
from streams.join.ledger import Limits
from streams.partitioning import partition_of

Position = tuple[str, int, int]
"""Topic (without prefix), partition, offset."""

_END_MS = 2**53
_MARKER = "bandit-watermark"


class EventRow(NamedTuple):
    """A record of a source topic.

    Attributes
    ----------
    partition, offset, append_ms, key
        As read.
    event
        What it says; an int for a watermark marker (ms), None if it does not decode.
    """

    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    event: Exposure | Conversion | int | None


def read_row(
    topic: str,
    partition: int,
    offset: int,
    append_ms: int,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes]] = (),
) -> EventRow:
    """Decode a record as consumed; ``topic`` is ``exposures`` or ``conversions``, without prefix."""
    event: Exposure | Conversion | int | None = None
    text = dict(headers).get(_MARKER, b"")
    if value:
        try:
            event = decode_exposure(value) if topic == "exposures" else decode_conversion(value)
        except EventError:
            event = None
    elif text == b"end":
        event = _END_MS
    elif text.isdigit() and len(text) <= 16 and int(text) <= _END_MS:
        event = int(text)
    return EventRow(partition, offset, append_ms, key, event)


class JudgedEvent(NamedTuple):
    """An event with what the log alone says of it."""

    position: Position
    row: EventRow
    event: Exposure | Conversion
    timestamp_ms: int
    floor_ms: int
    is_misplaced: bool
    is_mismatched: bool
    is_future: bool
    is_late: bool


def judge(topic: str, rows: Iterable[EventRow], limits: Limits) -> list[JudgedEvent]:
    """Judge the events of one topic in offset order, with each partition's running maximum."""
    maxima: dict[int, int] = defaultdict(lambda: -1)
    judged = []
    for row in sorted(rows, key=lambda row: row[:2]):
        maximum = maxima[row.partition]
        event = row.event
        if event is None:
            continue
        if isinstance(event, int):
            maxima[row.partition] = max(maximum, event)
            continue
        unit = event.unit_id.encode()
        ms = timestamp_ms(event)
        is_misplaced = partition_of(unit, limits.n_partitions) != row.partition
        is_mismatched = row.key is not None and row.key != unit
        is_future = ms > row.append_ms + limits.max_ahead_ms
        has_right_key = row.key == unit or (row.key is None and not is_misplaced)
        if has_right_key and not is_future:
            maxima[row.partition] = max(maximum, ms)
        floor_ms = maximum - limits.grace_ms
        position = (topic, row.partition, row.offset)
        judged.append(
            JudgedEvent(
                position,
                row,
                event,
                ms,
                floor_ms,
                is_misplaced,
                is_mismatched,
                is_future,
                not is_future and ms < floor_ms,
            )
        )
    return judged
