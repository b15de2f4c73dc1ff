"""The journal: one record per step of a partition; what it says is the truth.

A partition's state is a function of the records of its journal, in offset order, and of nothing else. There
are three kinds of record, msgpack maps with a ``kind`` and a version ``v``:

``claim``
    A worker takes the partition. The record's own offset names the claim.
``batch``
    What one batch of source records changed (``flag`` ``normal``), a watermark raised by idleness (``idle``),
    or a source position set because the source's log starts there (``skip``). All values are absolute.
``sweep``
    All entries of one range of keys, written again, so that older records can be deleted. The first record of
    a round holds the whole head; from there an empty database can start.

Rules of evolution: a new field gets a default, is written from the next version on, and is never reused; a
field is never renamed and never changes its type. A reader ignores fields that it does not know in a record
of its own version or an older one, and refuses a record of a newer one, because ignoring it would make its
state differ from that of newer readers. Bytes that are no record at all are ignored by everyone.

Records travel and are kept **packed**: as a map of kind ``zstd`` with the version 2, which holds the record's
bytes. So a reader that knows no packed records refuses them, and records that were written before them are
read as they are. Sizes and hashes are those of a record that is not packed.

Cost: O(bytes); one encode and one decode per record, no per-entry work in Python.
"""

from collections.abc import AsyncGenerator
from hashlib import sha256
from typing import Literal, Protocol

import cramjam
import msgspec
from msgspec import Struct

from streams.join.step import Verdict
from streams.state.errors import JournalVersionError

VERSION = 1
PACKED_VERSION = 2
PACKING_LEVEL = 1
"""Of zstd: takes 2.0 us for the 600 bytes of a large event, where level 3 takes 2.6 and packs no better."""
SOURCE_TOPICS = ("exposures", "conversions")
NO_POSITION = -1
"""``start`` of the ``skip`` that records the first position of a topic."""

Flag = Literal["normal", "idle", "skip"]


class Sweep(Struct, frozen=True, kw_only=True):
    """How far the rolling sweep is.

    Parameters
    ----------
    round
        Number of the newest round; 0 before the first.
    start
        Journal offset of the first record of the round in progress; -1 if none is.
    cursor
        Raw key at which the next record of the round starts.
    completed
        ``start`` of the newest complete round, -1 if there is none. Nothing from here on may be deleted.
    started_at_ms
        Owner's clock when the newest round started; before the first round, when the first claim was written.
    start_bytes, completed_bytes
        ``Head.journal_bytes`` before the first record of the newest and of the newest complete round.
    ended_bytes, ended_seq
        ``Head.journal_bytes`` and ``Head.seq`` after the last record of the newest complete round.
    """

    round: int = 0
    start: int = -1
    cursor: bytes = b""
    completed: int = -1
    started_at_ms: int = 0
    start_bytes: int = 0
    completed_bytes: int = 0
    ended_bytes: int = 0
    ended_seq: int = 0


class Head(Struct, frozen=True, kw_only=True):
    """State of a partition less its units, cells and verdicts.

    Parameters
    ----------
    journal_id
        Which life of the journal this is: greater for every one created later. 0 before the first claim.
    journal_offset
        Offset of the next journal record to apply.
    last_hash
        ``record_hash`` of the record before ``journal_offset``.
    claim, owner, generation
        Offset, worker and consumer-group generation of the newest claim; ``claim`` is -1 before the first.
    seq
        Batch and sweep records accepted so far.
    positions
        Next offset of every source topic; a topic never yet read is not in it.
    maxima
        Greatest event timestamp (ms) accepted per source topic.
    totals
        Records by outcome, ``topic/outcome`` or ``topic/outcome/reason``.
    pending
        Conversions that wait for their exposure.
    dead_letters_through
        Dead letters of all journal records below this offset have been produced.
    log_start_skips
        Source offsets lost per topic because the source's retention overtook the position.
    journal_bytes
        Bytes of all records so far, ignored ones included.
    """

    journal_id: int = 0
    journal_offset: int = 0
    last_hash: bytes = b""
    claim: int = -1
    owner: str = ""
    generation: int = -1
    seq: int = 0
    positions: dict[str, int] = {}
    maxima: dict[str, int] = {}
    totals: dict[str, int] = {}
    pending: int = 0
    dead_letters_through: int = 0
    sweep: Sweep = Sweep()
    log_start_skips: dict[str, int] = {}
    journal_bytes: int = 0

    def watermark_ms(self) -> int | None:
        """Everything dated before it has been read, up to lateness; None until both topics have a maximum."""
        maxima = [self.maxima.get(topic) for topic in SOURCE_TOPICS]
        known = [maximum for maximum in maxima if maximum is not None]
        return min(known) if len(known) == len(maxima) else None


class Claim(Struct, frozen=True, kw_only=True, tag_field="kind", tag="claim"):
    """A worker takes the partition; ``journal_id`` counts where the journal has none or a smaller one."""

    v: int = VERSION
    owner: str
    generation: int
    written_at_ms: int
    journal_id: int = 0


class BatchRecord(Struct, frozen=True, kw_only=True, tag_field="kind", tag="batch"):
    """What source offsets ``[start, next)`` of ``topic`` changed; units and cells by key without prefix."""

    v: int = VERSION
    journal_id: int
    claim: int
    seq: int
    flag: Flag
    topic: str
    start: int
    next: int
    units: dict[bytes, bytes | None] = {}
    cells: dict[bytes, bytes | None] = {}
    verdicts: list[Verdict] = []
    maxima: dict[str, int] = {}
    totals: dict[str, int] = {}
    pending: int
    dead_letters_through: int


class SweepRecord(Struct, frozen=True, kw_only=True, tag_field="kind", tag="sweep"):
    """All entries of raw keys ``[from_key, to_key)``.

    Parameters
    ----------
    head
        Head before this record, in the first record of a round; None in all others.
    last
        The round ends with this record.
    restated
        Entries as they are already; a complete database has them.
    changed
        Entries that this record changes (evictions; None removes), for everyone.
    """

    v: int = VERSION
    journal_id: int
    claim: int
    seq: int
    head: Head | None = None
    last: bool
    from_key: bytes
    to_key: bytes
    restated: dict[bytes, bytes] = {}
    changed: dict[bytes, bytes | None] = {}
    totals: dict[str, int] = {}
    pending: int
    dead_letters_through: int
    written_at_ms: int


Record = Claim | BatchRecord | SweepRecord


class _Envelope(Struct):
    kind: str
    v: int


class _Packed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="zstd"):
    v: int = PACKED_VERSION
    data: bytes


_encoder = msgspec.msgpack.Encoder()
_sorted_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)
_packed_decoder = msgspec.msgpack.Decoder(_Packed)
_head_decoder = msgspec.msgpack.Decoder(Head)


def encode(record: Record) -> bytes:
    """Bytes of a record; :func:`pack` makes of them what stands in the topic."""
    return _encoder.encode(record)


def pack(data: bytes) -> bytes:
    """Value of the Kafka record for a journal record's bytes."""
    return _encoder.encode(_Packed(data=bytes(cramjam.zstd.compress(data, level=PACKING_LEVEL))))


def unpack(value: bytes | None) -> bytes:
    """Bytes of the journal record in a Kafka record's value; what was never packed is given back as it is."""
    if not value:
        return b""
    try:
        packed = _packed_decoder.decode(value)
    except msgspec.MsgspecError:
        return value
    if packed.v != PACKED_VERSION:
        return value
    try:
        return bytes(cramjam.zstd.decompress(packed.data))
    except cramjam.DecompressionError:
        return b""  # no record, for everyone; the value would be taken for one of a newer program


def decode(data: bytes, *, where: str = "journal") -> Record | None:
    """Read a record.

    Returns
    -------
    The record, or None if the bytes are none: somebody else's data in the topic, to be ignored.

    Raises
    ------
    JournalVersionError
        If a newer version of this program wrote it.
    """
    try:
        record = _decoder.decode(data)
    except msgspec.MsgspecError:
        version = _version_of(data)
    else:
        version = record.v
        if version <= VERSION:
            return record
    if version is not None and version > VERSION:
        raise JournalVersionError(
            f"record has version {version}, this worker knows {VERSION}",
            where=where,
            action="upgrade this worker; do not run an older version on a newer one's journal",
        )
    return None


def _version_of(data: bytes) -> int | None:
    try:
        return _envelope_decoder.decode(data).v
    except msgspec.MsgspecError:
        return None


def encode_head(head: Head) -> bytes:
    """Bytes of a head in the store; equal heads give equal bytes, whatever order their entries came in."""
    return _sorted_encoder.encode(head)


def decode_head(data: bytes) -> Head:
    """Inverse of :func:`encode_head`; raises ``msgspec.MsgspecError``."""
    return _head_decoder.decode(data)


def record_hash(data: bytes) -> bytes:
    """16 bytes that tell a record from any other (SHA-256, cut)."""
    return sha256(data).digest()[:16]


class JournalLog(Protocol):
    """One partition of the journal topic."""

    @property
    def name(self) -> str:
        """Topic and partition, for messages."""
        ...

    async def append(self, data: bytes, *, timeout_s: float) -> int:
        """Write a record; return its offset once all in-sync replicas have it.

        Raises
        ------
        JournalAppendError
            If the outcome is unknown: it may have been written, or be written later.
        JournalRefused
            If trying again cannot help.
        """
        ...

    def read(self, from_offset: int, to_offset: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield the records of offsets ``[from_offset, to_offset)``, ascending.

        Raises
        ------
        JournalReadError
            If no record came for too long.
        JournalGap
            If the journal starts after ``from_offset``.
        """
        ...

    async def start_offset(self) -> int:
        """Offset of the first record that is still there."""
        ...

    async def end_offset(self) -> int:
        """Offset that the next record will get."""
        ...

    async def delete_before(self, offset: int) -> None:
        """Delete all records below ``offset``; those already deleted do not matter."""
        ...
