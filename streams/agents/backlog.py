"""Chunks in hand of one partition, and which of its two topics is read next.

The order in which the topics are read changes no count, but it changes what counting costs: a conversion that
is read long before its exposures makes each of them a recount of its unit. In a backlog the two topics would
drift apart by hours, since a fetch of the thinner one covers more time. So conversions are read up to the
append time of the next exposure, and exposures at most a batch ahead of them.

Cost: O(log n) a batch.
"""

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from streams.agents.context import SOURCES
from streams.join.step import SourceRecord
from streams.transport import Chunk

__all__ = ["Backlog", "Opened"]

QUEUED_CHUNKS = 2  # of a topic, beside the one in work, before it is left out of fetches
OTHER_WAIT_S = 0.2
ALONE_S = 1.0


class Opened:
    """Records of a chunk in work: what is left of it, and the position after it."""

    __slots__ = ("first", "following", "records")

    def __init__(self, records: Sequence[SourceRecord], following: int) -> None:
        self.records = records
        self.following = following
        self.first = 0


class Backlog:
    """Chunks of both topics, in order."""

    def __init__(self) -> None:
        self._queued: dict[str, deque[Chunk]] = {topic: deque() for topic in SOURCES}
        self._opened: dict[str, Opened] = {}
        self._arrived = asyncio.Event()
        self._alone_until_s = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in hand."""
        return not self._opened and not any(self._queued.values())

    @property
    def alone(self) -> str | None:
        """Topic in work while nothing is in hand of the other."""
        if len(self._opened) != 1:
            return None
        return next(iter(self._opened))

    def is_full(self, topic: str) -> bool:
        """Whether a topic need not be fetched now."""
        return len(self._queued[topic]) >= QUEUED_CHUNKS

    def put(self, topic: str, chunk: Chunk) -> None:
        """Add a chunk."""
        self._queued[topic].append(chunk)
        self._arrived.set()

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

    async def wait_for(self, topic: str) -> None:
        """Wait a moment for a topic that has lag; after waiting in vain, not again for a while."""
        end_s = time.monotonic() + OTHER_WAIT_S
        if self._alone_until_s > end_s - OTHER_WAIT_S:
            return
        while not self._queued[topic]:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                self._alone_until_s = end_s + ALONE_S
                return
            await self.wait(left_s)

    def next_chunk(self, topic: str) -> Chunk | None:
        """Take the next chunk of a topic out, if none of it is in work."""
        if topic in self._opened or not self._queued[topic]:
            return None
        return self._queued[topic].popleft()

    def open(self, topic: str, opened: Opened | None) -> None:
        """Have what is in a chunk worked on; None if there is nothing in it."""
        if opened is not None:
            self._opened[topic] = opened

    def next_topic(self) -> str | None:
        """Topic whose next record was appended first; exposures if both were at once."""
        heads = {topic: each.records[each.first].timestamp_ms for topic, each in self._opened.items()}
        return min(heads, key=lambda topic: (heads[topic], topic != "exposures"), default=None)

    def take(self, topic: str, max_records: int, max_bytes: int) -> tuple[Sequence[SourceRecord], int]:
        """Take the records of a batch out, at least one; and the position after them."""
        each = self._opened[topic]
        records, first = each.records, each.first
        last = min(first + max_records, len(records))
        other = self._opened.get("exposures")
        if topic == "conversions" and other is not None:
            until_ms = other.records[other.first].timestamp_ms
            last = bisect_right(records, until_ms, first, last, key=lambda record: record.timestamp_ms)
        last = max(first + 1, _within_bytes(records, first, last, max_bytes))
        if last == len(records):
            del self._opened[topic]
            return records[first:] if first else records, each.following
        each.first = last
        return records[first:last], records[last].offset


def _within_bytes(records: Sequence[SourceRecord], first: int, last: int, max_bytes: int) -> int:
    n_bytes = 0
    for at in range(first, last):
        _, key, value, _, _ = records[at]
        n_bytes += len(value or b"") + len(key or b"")
        if n_bytes > max_bytes:
            return at
    return last
