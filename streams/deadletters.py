"""Dead letters: every rejected event, with its original bytes, why it was rejected and where it came from.

What: a record of the topic ``dead-letters`` has the original key and value, and these headers (UTF-8 text).
Those that Kafka Connect has, too (KIP-298), have its names, so that tools made for Connect can read them:

=========================================  =============================================================
``__connect.errors.topic``                 source topic, full name
``__connect.errors.partition``             source partition
``__connect.errors.offset``                source offset; the three are the letter's identity
``__connect.errors.stage``                 KEY_CONVERTER, VALUE_CONVERTER or TASK_PUT, Connect's stages
``__connect.errors.exception.class.name``  the reason: one of `streams.errors.DeadLetterReason`
``__connect.errors.exception.message``     what was found and what is expected
``bandit-field``                           path of the field, ``$`` for the record as a whole
``bandit-truncated``                       bytes the value had, if only its beginning fitted
``bandit-replayed``                        on a marker: when the letter was replayed, epoch ms
=========================================  =============================================================

A *marker* has the letter's key, no value, the three headers of its identity, and ``bandit-replayed``. Markers
remember what was replayed: in the same topic, because they then live at least as long as the letter does.

Why at least once: letters are produced from the journal's verdicts and may be produced again after a crash;
by the identity readers recognise the copies and leave them out.

Cost: one record a letter; `emit_all` waits once for many. Reading keeps the identities, not the letters.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordTooLargeError
from msgspec import Struct
from msgspec.structs import replace

from streams.config import Settings
from streams.connection import explain
from streams.errors import BrokerUnavailable, RecordError
from streams.log_reader import LogReader, Record
from streams.topics import DEAD_LETTER_MAX_BYTES

__all__ = [
    "DeadLetter",
    "DeadLetterProducer",
    "Filter",
    "Identity",
    "StoredLetter",
    "decode",
    "marker_headers",
    "read_letters",
    "read_markers",
    "to_headers",
]

TOPIC_HEADER = "__connect.errors.topic"
PARTITION_HEADER = "__connect.errors.partition"
OFFSET_HEADER = "__connect.errors.offset"
STAGE_HEADER = "__connect.errors.stage"
MESSAGE_HEADER = "__connect.errors.exception.message"
REASON_HEADER = "__connect.errors.exception.class.name"
FIELD_HEADER = "bandit-field"
TRUNCATED_HEADER = "bandit-truncated"
REPLAYED_HEADER = "bandit-replayed"

TRUNCATED_BYTES = 4096
_HEADERS_ROOM_BYTES = 16 * 1024
_STAGES = {
    "key_mismatch": "KEY_CONVERTER",
    "wrong_partition": "KEY_CONVERTER",
    "undecodable": "VALUE_CONVERTER",
    "invalid_field": "VALUE_CONVERTER",
    "value_out_of_range": "VALUE_CONVERTER",
    "oversize": "VALUE_CONVERTER",
}

Identity = tuple[str, int, int]
"""Full name of the source topic, partition, offset."""


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One rejected record; ``topic`` is the source's full name."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    reason: str
    field: str
    message: str

    @property
    def identity(self) -> Identity:
        """What tells this letter from any other."""
        return self.topic, self.partition, self.offset


class StoredLetter(Struct, frozen=True, kw_only=True):
    """A letter as it stands in the topic.

    Parameters
    ----------
    letter
        What was rejected.
    written_at_ms
        When it was dead-lettered first.
    truncated_bytes
        Length of the original value if only its beginning is stored, else None.
    replayed_at_ms
        When it was replayed last; None if it never was.
    """

    letter: DeadLetter
    written_at_ms: int
    truncated_bytes: int | None = None
    replayed_at_ms: int | None = None


class Filter(Struct, frozen=True, kw_only=True):
    """Which letters are wanted; every condition must hold, an empty one always does.

    Parameters
    ----------
    reasons
        Reasons, any of them.
    topic
        Full name of the source topic.
    since_ms, until_ms
        ``[since, until)`` of the time of dead-lettering.
    """

    reasons: frozenset[str] = frozenset()
    topic: str = ""
    since_ms: int | None = None
    until_ms: int | None = None

    def wants(self, stored: StoredLetter) -> bool:
        """Tell whether a letter fulfils every condition."""
        return (
            (not self.reasons or stored.letter.reason in self.reasons)
            and (not self.topic or stored.letter.topic == self.topic)
            and (self.since_ms is None or stored.written_at_ms >= self.since_ms)
            and (self.until_ms is None or stored.written_at_ms < self.until_ms)
        )


def to_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """Headers of a letter's record."""
    return [
        *_identity_headers(letter.identity),
        (STAGE_HEADER, _STAGES.get(letter.reason, "TASK_PUT").encode()),
        (MESSAGE_HEADER, letter.message.encode()),
        (REASON_HEADER, letter.reason.encode()),
        (FIELD_HEADER, letter.field.encode()),
    ]


def marker_headers(identity: Identity, replayed_at_ms: int) -> list[tuple[str, bytes]]:
    """Headers of the marker that remembers a replay."""
    return [*_identity_headers(identity), (REPLAYED_HEADER, str(replayed_at_ms).encode())]


def _identity_headers(identity: Identity) -> list[tuple[str, bytes]]:
    topic, partition, offset = identity
    return [
        (TOPIC_HEADER, topic.encode()),
        (PARTITION_HEADER, str(partition).encode()),
        (OFFSET_HEADER, str(offset).encode()),
    ]


def decode(record: Record) -> StoredLetter | tuple[Identity, int]:
    """Read a record of the topic: a letter, or a marker as (identity, replayed at, ms).

    Raises
    ------
    RecordError
        If a header is missing or is not what it should be.
    """
    headers = dict(record.headers)
    where = f"{record.topic}[{record.partition}] offset {record.offset}"
    try:
        identity = (
            headers[TOPIC_HEADER].decode(),
            int(headers[PARTITION_HEADER]),
            int(headers[OFFSET_HEADER]),
        )
        if REPLAYED_HEADER in headers:
            return identity, int(headers[REPLAYED_HEADER])
        truncated = headers.get(TRUNCATED_HEADER)
        return StoredLetter(
            letter=DeadLetter(
                topic=identity[0],
                partition=identity[1],
                offset=identity[2],
                key=record.key,
                value=record.value,
                reason=headers[REASON_HEADER].decode(),
                field=headers[FIELD_HEADER].decode(),
                message=headers[MESSAGE_HEADER].decode(),
            ),
            written_at_ms=record.timestamp,
            truncated_bytes=None if truncated is None else int(truncated),
        )
    except KeyError as error:
        raise RecordError(
            f"header {error.args[0]} is missing",
            where=where,
            action="nothing: it was not written by this product, and is left alone",
        ) from error
    except ValueError as error:
        raise RecordError(
            f"a header is not readable: {error}",
            where=where,
            action="nothing: it was not written by this product, and is left alone",
        ) from error


class DeadLetterProducer:
    """Writes dead letters; an async context manager, or `start` and `stop`.

    Parameters
    ----------
    settings
        Where Kafka is, and the topic's name.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topic("dead-letters")
        self._producer: Any = None

    async def start(self) -> None:
        """Connect.

        Raises
        ------
        BrokerUnavailable
            If no broker answers.
        """
        producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            max_request_size=DEAD_LETTER_MAX_BYTES,
            **self._settings.kafka_options(),
        )
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise explain(error) or BrokerUnavailable(str(error)) from error
        self._producer = producer

    async def stop(self) -> None:
        """Send what is left and disconnect."""
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None

    async def __aenter__(self) -> "DeadLetterProducer":
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def emit(
        self,
        source_topic: str,
        partition: int,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        reason: str,
        field: str,
        message: str,
    ) -> None:
        """Write one letter and wait until all in-sync replicas have it; ``source_topic`` is the full name.

        ``key`` and ``value`` are the original's bytes; both None if the original is gone.

        Raises
        ------
        BrokerUnavailable
            If it was not acknowledged: emit it again, later.
        """
        await self.emit_all(
            [
                DeadLetter(
                    topic=source_topic,
                    partition=partition,
                    offset=offset,
                    key=key,
                    value=value,
                    reason=reason,
                    field=field,
                    message=message,
                )
            ]
        )

    async def emit_all(self, letters: Iterable[DeadLetter]) -> None:
        """Write letters and wait until all in-sync replicas have all of them.

        A letter may be written twice, when an acknowledgement is lost and the caller tries again.

        Raises
        ------
        BrokerUnavailable
            If one of them was not acknowledged: emit all of them again, later.
        """
        pending = [(letter, await self._send(letter)) for letter in letters]
        failed: KafkaError | None = None
        for letter, future in pending:
            try:
                await future
            except (MessageSizeTooLargeError, RecordTooLargeError):
                await (await self._send_truncated(letter))
            except KafkaError as error:
                failed = error
        if failed is not None:
            raise self._unavailable(failed) from failed

    async def mark_replayed(self, letters: Iterable[DeadLetter], replayed_at_ms: int) -> None:
        """Remember that these were replayed, so that the next replay leaves them out."""
        futures = [
            await self._produce(letter.key, None, marker_headers(letter.identity, replayed_at_ms))
            for letter in letters
        ]
        for future in futures:
            try:
                await future
            except KafkaError as error:
                raise self._unavailable(error) from error

    async def _send(self, letter: DeadLetter) -> Any:
        if len(letter.value or b"") + len(letter.key or b"") > DEAD_LETTER_MAX_BYTES - _HEADERS_ROOM_BYTES:
            return await self._send_truncated(letter)
        return await self._produce(letter.key, letter.value, to_headers(letter))

    async def _send_truncated(self, letter: DeadLetter) -> Any:
        value = letter.value or b""
        headers = [*to_headers(letter), (TRUNCATED_HEADER, str(len(value)).encode())]
        return await self._produce((letter.key or b"")[:TRUNCATED_BYTES], value[:TRUNCATED_BYTES], headers)

    async def _produce(self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> Any:
        if key is None and value is None:
            key = b""  # the client refuses a record that has neither
        try:
            return await self._producer.send(self._topic, value=value, key=key, headers=headers)
        except KafkaError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: KafkaError) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"dead letters were not acknowledged: {error}",
            where=self._topic,
            action="nothing if it passes: they are produced again from the journal",
        )


async def read_markers(reader: LogReader, topic: str, *, since_ms: int | None = None) -> dict[Identity, int]:
    """Read which letters were replayed, and when last (epoch ms); markers follow their letters in time."""
    replayed_at_ms: dict[Identity, int] = {}
    async for stored in _decoded(reader.read(topic, since_ms=since_ms), []):
        if isinstance(stored, tuple):
            identity, at_ms = stored
            replayed_at_ms[identity] = max(at_ms, replayed_at_ms.get(identity, 0))
    return replayed_at_ms


async def read_letters(
    reader: LogReader, topic: str, wanted: Filter, problems: list[RecordError]
) -> AsyncIterator[StoredLetter]:
    """Yield the letters that a filter wants, each once, with when it was replayed.

    Parameters
    ----------
    reader
        Started reader.
    topic
        Full name of the topic dead-letters.
    wanted
        Which.
    problems
        Records of the topic that are no letters are added to it.
    """
    replayed_at_ms = await read_markers(reader, topic, since_ms=wanted.since_ms)
    seen: set[Identity] = set()
    async for stored in _decoded(reader.read(topic, since_ms=wanted.since_ms), problems):
        if isinstance(stored, tuple) or not wanted.wants(stored) or stored.letter.identity in seen:
            continue
        seen.add(stored.letter.identity)
        yield replace(stored, replayed_at_ms=replayed_at_ms.get(stored.letter.identity))


async def _decoded(
    records: AsyncIterator[Record], problems: list[RecordError]
) -> AsyncIterator[StoredLetter | tuple[Identity, int]]:
    async for record in records:
        try:
            yield decode(record)
        except RecordError as error:
            problems.append(error)
