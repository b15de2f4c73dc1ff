"""Chunks in hand of one partition, and which of its two topics is read next.

The order in which the topics are read changes no count, but it changes what counting costs: a conversion that
is read long before its exposures makes each of them a recount of its unit. In a backlog the two topics would
drift apart by hours, since a fetch of the thinner one covers more time. So conversions are read up to the
event time that the exposures have reached, and exposures at most a batch ahead of them. A conversion that
waits for exposures of its time and was appended long before those in hand, is read at last: one dated in the
future holds nothing up. Nor do exposures that are in their topic and do not come, after a few seconds.

Cost: a dozen conversions decoded a batch, to find where it ends.
"""

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate

from streams.agents.context import SOURCES
from streams.errors import EventError
from streams.events import decode_conversion, timestamp_ms
from streams.join.step import SourceRecord
from streams.transport import Chunk

__all__ = ["Backlog", "Opened"]

QUEUED_CHUNKS = 2  # of a topic, beside the one in work, before it is left out of fetches
ALONE_AFTER_S = 5.0
"""Conversions wait this long for exposures that are in the topic and do not come, once until some come."""
APPENDED_BEFORE_MS = 60_000
EARLY_RECORDS = 250  # conversions read at a time before exposures of their time


class Opened:
    """Records of a chunk in work: what is left of it, and the position after it."""

    __slots__ = ("first", "following", "records")

    def __init__(self, records: Sequence[SourceRecord], following: int) -> None:
        self.records = records
        self.following = following
        self.first = 0

    @property
    def head(self) -> SourceRecord:
        """The next record."""
        return self.records[self.first]


class Backlog:
    """Chunks of both topics, in order."""

    def __init__(self) -> None:
        self._queued: dict[str, deque[Chunk]] = {topic: deque() for topic in SOURCES}
        self._opened: dict[str, Opened] = {}
        self._arrived = asyncio.Event()
        self._lacking_since_s: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in hand."""
        return not self._opened and not any(self._queued.values())

    def waits_for_exposures(self, reached_ms: int) -> bool:
        """Whether only conversions are in hand, of a time that exposures have not reached but may soon."""
        if len(self._opened) != 1 or "conversions" not in self._opened:
            return False
        if _event_ms(self._opened["conversions"].head) <= reached_ms:
            return False
        now_s = time.monotonic()
        if self._lacking_since_s is None:
            self._lacking_since_s = now_s
        return now_s - self._lacking_since_s < ALONE_AFTER_S

    def is_full(self, topic: str) -> bool:
        """Whether a topic need not be fetched now."""
        return len(self._queued[topic]) >= QUEUED_CHUNKS

    def put(self, topic: str, chunk: Chunk) -> None:
        """Add a chunk."""
        self._queued[topic].append(chunk)
        self._arrived.set()
        if topic == "exposures":
            self._lacking_since_s = None

    def clear(self) -> None:
        """Forget everything: the consumer seeks."""
        self._opened.clear()
        for queue in self._queued.values():
            queue.clear()

    async def wait(self, seconds: float) -> bool:
        """Wait until a chunk arrives; False if none did."""
        self._arrived.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def next_chunk(self, topic: str) -> Chunk | None:
        """Take the next chunk of a topic out, if none of it is in work."""
        if topic in self._opened or not self._queued[topic]:
            return None
        return self._queued[topic].popleft()

    def open(self, topic: str, opened: Opened | None) -> None:
        """Have what is in a chunk worked on; None if there is nothing in it."""
        if opened is not None:
            self._opened[topic] = opened

    def next_topic(self, reached_ms: int) -> str | None:
        """Topic to go on with; ``reached_ms`` is the greatest event time of the exposures so far."""
        if len(self._opened) < len(SOURCES):
            return next(iter(self._opened), None)
        conversion, exposure = (self._opened[topic].head for topic in ("conversions", "exposures"))
        is_due = (
            _event_ms(conversion) <= reached_ms
            or conversion.timestamp_ms < exposure.timestamp_ms - APPENDED_BEFORE_MS
        )
        return "conversions" if is_due else "exposures"

    def take(
        self, topic: str, max_records: int, max_bytes: int, until_ms: int | None
    ) -> tuple[Sequence[SourceRecord], int]:
        """Take the records of a batch out, and the position after them; conversions up to ``until_ms``."""
        each = self._opened[topic]
        records, first = each.records, each.first
        last = min(first + max_records, len(records))
        if topic == "conversions" and until_ms is not None:
            due = bisect_right(records, until_ms, first, last, key=_event_ms)
            last = due if due > first else min(first + EARLY_RECORDS, last)
        last = max(first + 1, _within_bytes(records, first, last, max_bytes))
        if last == len(records):
            del self._opened[topic]
            return records[first:] if first else records, each.following
        each.first = last
        return records[first:last], records[last].offset


def _event_ms(record: SourceRecord) -> int:
    """Event time of a conversion; -1 for a record that has none, which need not wait."""
    if not record.value:
        return -1
    try:
        return timestamp_ms(decode_conversion(record.value))
    except EventError:
        return -1


def _within_bytes(records: Sequence[SourceRecord], first: int, last: int, max_bytes: int) -> int:
    """Index after the last record that fits with all before it."""
    sizes = [len(key or b"") + len(value or b"") for _, key, value, _, _ in records[first:last]]
    return first + bisect_right(list(accumulate(sizes)), max_bytes)
