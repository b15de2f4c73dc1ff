"""Replaying dead letters into their source topics after what was wrong is right.

What: a letter's original value is produced again, to the same source topic, on the partition of its unit
(murmur2 of ``unit_id``, or of the original key where the value has none), with the header
``bandit-replayed`` naming where it first stood. When it is acknowledged, a marker in the topic of dead
letters remembers it.

Why nothing is counted twice: the join knows an event by its id. An id is forgotten only after the
watermark has passed the event by its window and the grace; from then on the event is late, and is
rejected before it is counted. So a letter replayed twice, by mistake or because this command was killed
between the acknowledgement and the marker, is a duplicate or late, never a second count.

What is not replayed, and said so: letters replayed before (unless asked for), letters that would be late
again, letters of which only a part or nothing was kept, letters of other topics. A letter that is still
wrong comes back as a new dead letter.

Cost: the topic is read twice, and once more to replay; what is in memory is the identities and one chunk.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from msgspec import Struct

from streams.config import Settings
from streams.connection import explain
from streams.deadletters import (
    REPLAYED_HEADER,
    DeadLetter,
    DeadLetterProducer,
    Filter,
    StoredLetter,
    read_letters,
)
from streams.errors import BrokerUnavailable, RecordError
from streams.journal_tail import read_progress
from streams.log_reader import LogReader
from streams.partitioning import partition_of
from streams.topics import EVENT_MAX_BYTES

__all__ = ["Fate", "Planned", "Replay", "Summary", "event_time_ms", "unit_key"]

CHUNK = 500


class Fate(StrEnum):
    """What happens to a letter in a replay."""

    REPLAY = "replay"
    REPLAYED_BEFORE = "replayed before"
    LATE = "would be late"
    INCOMPLETE = "original not kept whole"
    NO_UNIT = "has neither unit_id nor key"
    OTHER_TOPIC = "of a topic that is no source here"


class Planned(NamedTuple):
    """A letter, what happens to it, and the key and partition it goes to (None where it is not replayed)."""

    stored: StoredLetter
    fate: Fate
    key: bytes | None
    partition: int | None


class Summary(Struct, kw_only=True):
    """Letters by fate, and those to replay by reason."""

    fates: Counter[Fate]
    reasons: Counter[str]

    @property
    def to_replay(self) -> int:
        """How many letters are replayed."""
        return self.fates[Fate.REPLAY]


class _Peek(Struct):
    """The fields of an event that a replay looks at."""

    unit_id: Any = None
    timestamp: Any = None


class Replay:
    """A replay under way; make it with `open`.

    Parameters
    ----------
    settings
        Topics, partitions and grace.
    reader
        Started reader.
    maxima
        Running maximum of event time, ms, by (source topic, partition), as of now.
    wanted
        Which letters.
    again
        Replay those replayed before, too.
    """

    def __init__(
        self,
        settings: Settings,
        reader: LogReader,
        maxima: dict[tuple[str, int], int],
        wanted: Filter,
        *,
        again: bool = False,
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._maxima = maxima
        self._wanted = wanted
        self._again = again
        self._sources = {settings.topic("exposures"), settings.topic("conversions")}
        self.problems: list[RecordError] = []

    @classmethod
    async def open(
        cls,
        settings: Settings,
        reader: LogReader,
        wanted: Filter,
        *,
        again: bool = False,
    ) -> "Replay":
        """Read the running maxima from the journal and make a replay."""
        maxima = {}
        for partition, progress in (await read_progress(reader, settings)).items():
            if "exposures" in progress.maxima:
                maxima[settings.topic("exposures"), partition] = progress.maxima["exposures"]
            if "conversions" in progress.maxima:
                maxima[settings.topic("conversions"), partition] = progress.maxima["conversions"]
        return cls(settings, reader, maxima, wanted, again=again)

    async def plan(self) -> AsyncIterator[Planned]:
        """Yield every wanted letter with its fate; changes nothing."""
        self.problems.clear()
        topic = self._settings.topic("dead-letters")
        async for stored in read_letters(self._reader, topic, self._wanted, self.problems):
            yield self._decide(stored)

    async def summarise(self) -> Summary:
        """Count what `run` would do."""
        summary = Summary(fates=Counter(), reasons=Counter())
        async for planned in self.plan():
            summary.fates[planned.fate] += 1
            if planned.fate is Fate.REPLAY:
                summary.reasons[planned.stored.letter.reason] += 1
        return summary

    def _decide(self, stored: StoredLetter) -> Planned:
        letter = stored.letter
        if letter.topic not in self._sources:
            return Planned(stored, Fate.OTHER_TOPIC, None, None)
        if letter.value is None or stored.truncated_bytes is not None:
            return Planned(stored, Fate.INCOMPLETE, None, None)
        if stored.replayed_at_ms is not None and not self._again:
            return Planned(stored, Fate.REPLAYED_BEFORE, None, None)
        key = unit_key(letter)
        if key is None:
            return Planned(stored, Fate.NO_UNIT, None, None)
        partition = partition_of(key, self._settings.partitions)
        if self._is_late(letter, partition):
            return Planned(stored, Fate.LATE, None, None)
        return Planned(stored, Fate.REPLAY, key, partition)

    def _is_late(self, letter: DeadLetter, partition: int) -> bool:
        maximum_ms = self._maxima.get((letter.topic, partition))
        timestamp_ms = event_time_ms(letter.value or b"")
        if maximum_ms is None or timestamp_ms is None:
            return False
        return timestamp_ms < maximum_ms - self._settings.grace_ms

    async def run(
        self, now_ms: Callable[[], int], progress: Callable[[int], None] = lambda _: None
    ) -> Summary:
        """Replay, chunk by chunk: produce, wait for the acknowledgements, write the markers.

        Parameters
        ----------
        now_ms
            Wall clock, epoch ms.
        progress
            Called with the number of letters replayed so far.

        Raises
        ------
        BrokerUnavailable
            If a record is not acknowledged; what was replayed until then is remembered, so run it again.
        """
        summary = Summary(fates=Counter(), reasons=Counter())
        async with DeadLetterProducer(self._settings) as letters, _source_producer(self._settings) as source:
            chunk: list[Planned] = []
            async for planned in self.plan():
                summary.fates[planned.fate] += 1
                if planned.fate is not Fate.REPLAY:
                    continue
                summary.reasons[planned.stored.letter.reason] += 1
                chunk.append(planned)
                if len(chunk) == CHUNK:
                    await self._replay(chunk, source, letters, now_ms())
                    chunk = []
                    progress(summary.to_replay)
            if chunk:
                await self._replay(chunk, source, letters, now_ms())
                progress(summary.to_replay)
        return summary

    async def _replay(
        self, chunk: list[Planned], source: Any, letters: DeadLetterProducer, now_ms: int
    ) -> None:
        try:
            futures = [
                await source.send(
                    planned.stored.letter.topic,
                    value=planned.stored.letter.value,
                    key=planned.key,
                    partition=planned.partition,
                    headers=[(REPLAYED_HEADER, _origin(planned.stored.letter))],
                )
                for planned in chunk
            ]
            for future in futures:
                await future
        except KafkaError as error:
            raise BrokerUnavailable(
                f"a replayed record was not acknowledged: {error}",
                where=chunk[0].stored.letter.topic,
                action="run the same command again: what was replayed is remembered, nothing counts twice",
            ) from error
        await letters.mark_replayed([planned.stored.letter for planned in chunk], now_ms)


@asynccontextmanager
async def _source_producer(settings: Settings) -> AsyncIterator[Any]:
    producer = AIOKafkaProducer(
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_request_size=2 * EVENT_MAX_BYTES,
        **settings.kafka_options(),
    )
    try:
        await producer.start()
        yield producer
    except (KafkaError, OSError) as error:
        raise explain(error) or BrokerUnavailable(str(error)) from error
    finally:
        await producer.stop()


def unit_key(letter: DeadLetter) -> bytes | None:
    """Key to replay under: the event's ``unit_id`` where it can be read, else the original key, if any."""
    try:
        unit_id = msgspec.json.decode(letter.value or b"", type=_Peek).unit_id
    except msgspec.DecodeError:
        unit_id = None
    if isinstance(unit_id, str) and unit_id:
        return unit_id.encode()
    return letter.key or None


def event_time_ms(value: bytes) -> int | None:
    """Event time of an event's JSON, epoch ms; None where it cannot be read."""
    try:
        stamp = msgspec.json.decode(value, type=_Peek).timestamp
    except msgspec.DecodeError:
        return None
    if isinstance(stamp, str):
        try:
            at = msgspec.convert(stamp, type=datetime)
        except msgspec.ValidationError:
            return None
        return None if at.tzinfo is None else round(at.timestamp() * 1000)
    return stamp if isinstance(stamp, int) and not isinstance(stamp, bool) else None


def _origin(letter: DeadLetter) -> bytes:
    return f"{letter.topic}/{letter.partition}/{letter.offset}".encode()
