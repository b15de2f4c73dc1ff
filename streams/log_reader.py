"""Reading a topic from somewhere to where it ends now, for commands that look and go.

What: `LogReader` is a Kafka consumer without a group: it commits nothing, joins nothing and disturbs
nobody. `read` yields the records of a topic from its start, from a time, or only its last ones, up to the
end offsets as of the call. A topic that does not exist is an error and is not created by asking for it.

Cost: what is read goes over the network once; memory is one fetch.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.config import Settings
from streams.connection import explain
from streams.errors import BrokerUnavailable, DeadlineExceeded, TopicsMismatch
from streams.read_progress import ReadProgress, last_answer
from streams.topics import admin_client

__all__ = ["LogReader", "Record", "Span"]

IDLE_DEADLINE_S = 30.0
POLL_MS = 500
FETCH_WAIT_MS = 20  # a new read waits for the fetches of the one before it


class Record(Protocol):
    """What is used of a consumed record; ``timestamp`` is epoch ms."""

    @property
    def topic(self) -> str: ...  # noqa: D102 - as in the client
    @property
    def partition(self) -> int: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...  # noqa: D102


class Span(NamedTuple):
    """Offsets ``[start, end)`` that a partition has."""

    start: int
    end: int


class LogReader:
    """Reads topics to their ends; an async context manager.

    Parameters
    ----------
    settings
        Where Kafka is, and how to authenticate.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: Any = None
        self._counts: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        consumer = AIOKafkaConsumer(
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            **self._settings.kafka_options(),
        )
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            await consumer.stop()
            raise explain(error) or BrokerUnavailable(str(error)) from error
        self._consumer = consumer
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._consumer.stop()

    async def topics(self) -> dict[str, int]:
        """Return the number of partitions of every topic; one request, which creates nothing."""
        async with admin_client(self._settings) as admin:
            return {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}

    async def spans(self, topic: str) -> dict[int, Span]:
        """First and next offset of every partition.

        Raises
        ------
        TopicsMismatch
            If there is no such topic.
        """
        partitions = await self._partitions(topic)
        starts = await self._consumer.beginning_offsets(partitions)
        ends = await self._consumer.end_offsets(partitions)
        return {tp.partition: Span(starts[tp], ends[tp]) for tp in partitions}

    async def read(
        self,
        topic: str,
        *,
        since_ms: int | None = None,
        last: int | None = None,
        start: Mapping[int, int] | None = None,
    ) -> AsyncIterator[Record]:
        """Yield the records there are now, in offset order within each partition.

        Parameters
        ----------
        topic
            Full name.
        since_ms
            Only records with at least this timestamp (of the record, not of an event), and what follows them.
        last
            Only this many offsets of each partition.
        start
            First offset of each partition to read; partitions not named are left out.

        Raises
        ------
        DeadlineExceeded
            If no record comes for 30 seconds before the end is reached.
        """
        spans = await self.spans(topic)
        starts = {p: span.start for p, span in spans.items()}
        if start is not None:
            starts = {p: max(spans[p].start, offset) for p, offset in start.items() if p in spans}
        if last is not None:
            starts = {p: max(first, spans[p].end - last) for p, first in starts.items()}
        if since_ms is not None:
            starts = await self._at_time(topic, since_ms, starts, spans)
        open_ends = {
            TopicPartition(topic, p): spans[p].end for p, first in starts.items() if first < spans[p].end
        }
        if not open_ends:
            return
        self._consumer.assign(list(open_ends))
        for tp in open_ends:
            self._consumer.seek(tp, starts[tp.partition])
        async for record in self._until(open_ends):
            yield record

    async def _until(self, open_ends: dict[TopicPartition, int]) -> AsyncIterator[Record]:
        progress_s = time.monotonic()
        progress = {tp: ReadProgress(await self._consumer.position(tp), progress_s) for tp in open_ends}
        while open_ends:
            batches = await self._consumer.getmany(*open_ends, timeout_ms=POLL_MS)
            if batches:
                progress_s = time.monotonic()
            elif time.monotonic() - progress_s > IDLE_DEADLINE_S:
                raise DeadlineExceeded(
                    f"no record for {IDLE_DEADLINE_S:.0f} s before the end was reached",
                    where=", ".join(f"{tp.topic}[{tp.partition}]" for tp in open_ends),
                    action="check that these partitions have a leader, and the broker's log",
                )
            for tp, records in batches.items():
                for record in records:
                    if record.offset < open_ends[tp]:
                        yield record
            for tp, end in list(open_ends.items()):
                # Not the last record's offset: a log may end in offsets that hold no record.
                progress[tp].observe(
                    position=await self._consumer.position(tp),
                    answer=last_answer(self._consumer, tp),
                    had_records=bool(batches.get(tp)),
                    now_s=time.monotonic(),
                )
                if progress[tp].complete >= end:
                    del open_ends[tp]

    async def _at_time(
        self, topic: str, since_ms: int, starts: dict[int, int], spans: dict[int, Span]
    ) -> dict[int, int]:
        wanted = {TopicPartition(topic, p): since_ms for p in starts}
        found = await self._consumer.offsets_for_times(wanted)
        return {
            tp.partition: max(starts[tp.partition], at.offset if at is not None else spans[tp.partition].end)
            for tp, at in found.items()
        }

    async def _partitions(self, topic: str) -> list[TopicPartition]:
        if topic not in self._counts:
            self._counts = await self.topics()
        if topic not in self._counts:
            raise TopicsMismatch([f"{topic}: missing"], action="run `bandit-streams topics create`")
        return [TopicPartition(topic, number) for number in range(self._counts[topic])]
