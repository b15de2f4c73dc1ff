"""Partition: one RocksDB that is exactly the journal up to its journal offset.

Keys (raw bytes; the first byte is the kind)::

    b"c" + cell key                 cell
    b"h"                            head (:class:`streams.state.journal.Head`)
    b"l"                            what is local to this copy: format, where it started, known journal id
    b"u" + unit id, UTF-8           unit state
    b"v" + journal offset, 8 bytes  topic and verdicts of that record, until their dead letters are out

Every journal record is one WriteBatch with the new head in it. RocksDB applies a WriteBatch whole or not at
all; after ``kill -9`` or a power failure it comes back with some earlier prefix of its batches, which is a
prefix of the journal, so the rest is replayed. Hence no fsync and no write-ahead log: the journal is both.
What is lost is at most what the memtables hold, and they are flushed when a sweep ends, because the journal
before it is deleted then.

One block cache is shared by all partitions (:class:`streams.state.store.StoreOptions`), and so are the bytes
for the units that were changed last (:mod:`streams.state.unit_cache`).

Cost: apply is one decode and one WriteBatch, O(entries of the record); reads are multi-gets; an open after an
unclean end reads everything once to find damage, O(database).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import msgspec
from msgspec import Struct
from rocksdict import WriteBatch

from streams.join.step import Verdict
from streams.state.errors import JournalGap, JournalStartsInTheMiddle, JournalVersionError, StoreCorrupt
from streams.state.journal import (
    BatchRecord,
    Claim,
    Head,
    JournalLog,
    Record,
    SweepRecord,
    decode,
    decode_head,
    encode_head,
    record_hash,
)
from streams.state.replay import Ignored, ignored_because, next_head
from streams.state.store import Store, StoreOptions
from streams.state.unit_cache import UnitCache

__all__ = ["Applied", "Divergence", "Kind", "Partition", "PendingVerdicts", "StoreOptions"]

UNIT = b"u"
CELL = b"c"
VERDICT = b"v"
HEAD_KEY = b"h"
LOCAL_KEY = b"l"
FORMAT = 1
"""Layout of the keys and of the local entry; a store of a newer format is refused."""

Kind = Literal["claim", "batch", "sweep", "foreign"]
Divergence = Literal["recreated", "truncated", "trimmed"]


class Applied(NamedTuple):
    """What became of one journal record; ``reason`` says why it did not count."""

    accepted: bool
    kind: Kind
    reason: Ignored | Literal["already_applied"] | None


class PendingVerdicts(NamedTuple):
    """Verdicts of one journal record whose dead letters may not have been produced yet."""

    journal_offset: int
    topic: str
    verdicts: list[Verdict]


class _Local(Struct, frozen=True, kw_only=True):
    """What this copy knows beside the journal.

    Parameters
    ----------
    base
        Journal offset that this copy started from; -1 while it is empty.
    known_journal_id
        Greatest journal id of the copies that were set aside for this one.
    is_cut
        Whether one of them was set aside because the journal had lost records that it had.
    """

    format: int = FORMAT
    base: int = -1
    known_journal_id: int = 0
    is_cut: bool = False


class _StoredVerdicts(Struct, frozen=True, array_like=True):
    topic: str
    verdicts: list[Verdict]


_verdicts_decoder = msgspec.msgpack.Decoder(_StoredVerdicts)
_local_decoder = msgspec.msgpack.Decoder(_Local)


def _kind(record: Record | None) -> Kind:
    if isinstance(record, Claim):
        return "claim"
    if isinstance(record, BatchRecord):
        return "batch"
    return "foreign" if record is None else "sweep"


class Partition:
    """State of one source partition; made by :meth:`open`."""

    def __init__(self, store: Store, *, name: str, on_reset: Callable[[str], None] | None) -> None:
        self._store = store
        self._cache = UnitCache(store.options.unit_cache)
        self._on_reset = on_reset
        self.name = name
        self.head = Head()
        self._local = _Local()
        self._load()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        name: str,
        options: StoreOptions | None = None,
        on_reset: Callable[[str], None] | None = None,
    ) -> Self:
        """Open or create the database in folder ``path``.

        A damaged database is set aside and an empty one takes its place; ``on_reset`` is told the reason.

        Parameters
        ----------
        path
            Folder of this partition alone; its parent is made.
        name
            Topic and partition, for messages.
        options
            Pass one object for all partitions of the process: it holds the shared block cache.

        Raises
        ------
        StoreLocked
            If the database is open elsewhere.
        StoreUnavailable
            If the operating system refuses (rights, disk full, open files).
        JournalVersionError
            If a newer version of this program wrote the database.
        """
        store = Store(path, options or StoreOptions())
        try:
            store.open()
            return cls(store, name=name, on_reset=on_reset)
        except StoreCorrupt as damage:
            store.set_aside("corrupt", detail=str(damage))
            store.open()
            if on_reset is not None:
                on_reset("corrupt")
            return cls(store, name=name, on_reset=on_reset)
        except JournalVersionError:
            store.close()
            raise

    def _load(self) -> None:
        stored_head, stored_local = self._store.get([HEAD_KEY, LOCAL_KEY])
        try:
            self.head = Head() if stored_head is None else decode_head(stored_head)
            self._local = _Local() if stored_local is None else _local_decoder.decode(stored_local)
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"head does not decode: {error}", where=str(self._store.path)) from error
        if self._local.format > FORMAT:
            raise JournalVersionError(
                f"store has format {self._local.format}, this worker knows {FORMAT}",
                where=str(self._store.path),
                action="upgrade this worker, or give it an empty data folder",
            )
        if (stored_head is None) is not (self._local.base < 0):
            raise StoreCorrupt("head and local entry contradict each other", where=str(self._store.path))

    @property
    def empty(self) -> bool:
        """Whether no journal record has been applied yet."""
        return self._local.base < 0

    @property
    def base(self) -> int:
        """Journal offset of the first record applied; -1 while empty."""
        return self._local.base

    @property
    def complete(self) -> bool:
        """False while the state is rebuilt from a sweep whose round has not ended yet."""
        return not self.empty and _is_complete(self._local, self.head)

    @property
    def persisted_offset(self) -> int | None:
        """Journal offset of the last record applied; None while empty."""
        return None if self.empty else self.head.journal_offset - 1

    @property
    def known_journal_id(self) -> int:
        """Greatest journal id that this data folder has seen."""
        return max(self.head.journal_id, self._local.known_journal_id)

    @property
    def must_outrank(self) -> bool:
        """Whether records of this journal are lost under whose claims counts were published."""
        return self._local.is_cut and self._local.known_journal_id >= self.head.journal_id

    @property
    def closed(self) -> bool:
        """Whether the database is closed and its lock given back."""
        return self._store.closed

    def close(self) -> None:
        """Close the database and give its lock back; again is harmless."""
        self._cache.clear()
        self._store.close()

    # Reads

    def get_units(self, unit_ids: Sequence[bytes]) -> Sequence[bytes | None]:
        """States of units, None for the unknown, in the order asked for."""
        return self._cache.get(
            unit_ids, lambda missing: self._store.get([UNIT + unit_id for unit_id in missing])
        )

    def estimated_entries(self) -> int:
        """Return the number of entries as RocksDB estimates it; O(1)."""
        return self._store.estimated_entries()

    def get_cells(self, cell_keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Cells, None for the unknown, in the order asked for."""
        return self._store.get([CELL + key for key in cell_keys])

    def units(self) -> Iterator[tuple[bytes, bytes]]:
        """All units by id, ascending."""
        return ((key[1:], value) for key, value in self.scan(UNIT))

    def cells(self) -> Iterator[tuple[bytes, bytes]]:
        """All cells by key, ascending."""
        return ((key[1:], value) for key, value in self.scan(CELL))

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Entries whose raw key starts with ``prefix``, ascending; writes in between are seen or not."""
        return self._store.scan(prefix, prefix)

    def scan_from(self, raw_key: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Units, cells and verdicts from ``raw_key`` on, by raw key, ascending."""
        return (entry for entry in self._store.scan(raw_key) if entry[0] not in (HEAD_KEY, LOCAL_KEY))

    def pending_verdicts(self) -> list[PendingVerdicts]:
        """Verdicts whose dead letters are not known to be out, by journal offset."""
        return [
            PendingVerdicts(int.from_bytes(key[1:], "big"), stored.topic, stored.verdicts)
            for key, value in self.scan(VERDICT)
            for stored in (_verdicts_decoder.decode(value),)
        ]

    # Replay

    def apply(self, offset: int, data: bytes, record: Record | None = None) -> Applied:
        """Apply the journal record at ``offset``: the one way in which state ever changes.

        Parameters
        ----------
        offset
            Offset of the record; the next one, or one that was applied already.
        data
            Its bytes.
        record
            What the bytes decode to, if the caller made them of it.

        Raises
        ------
        JournalGap
            If records before it were never applied: :meth:`reset` and recover.
        JournalStartsInTheMiddle
            If the store is empty and the record neither has offset 0 nor starts a sweep.
        JournalVersionError
            If a newer version of this program wrote the record.
        StoreCorrupt, StoreUnavailable
            From the database; nothing of the record is in it then, or all of it.
        """
        if offset < self.head.journal_offset:
            return Applied(accepted=False, kind="foreign", reason="already_applied")
        if record is None:
            record = decode(data, where=f"{self.name} offset {offset}")
        head, local = self.head, self._local
        if self.empty:
            head, local = self._beginning(offset, record)
        elif offset > head.journal_offset:
            raise JournalGap(
                f"record {offset} follows {head.journal_offset - 1}: those between were not seen",
                where=self.name,
            )
        reason = ignored_because(head, offset, record)
        after = next_head(head, offset, record, data_hash=record_hash(data), data_bytes=len(data))
        batch = WriteBatch(raw_mode=True)
        if reason is None:
            self._change(batch, offset, record, restate=not _is_complete(local, head))
        if after.dead_letters_through > head.dead_letters_through:
            self._drop_verdicts(batch, after.dead_letters_through)
        batch[HEAD_KEY] = encode_head(after)
        if local is not self._local:
            batch[LOCAL_KEY] = msgspec.msgpack.encode(local)
        self._store.write(batch)
        self.head, self._local = after, local
        if reason is None:
            self._remember(record, len(data))
            if isinstance(record, SweepRecord) and record.last:
                self._store.flush(wait=False)
        return Applied(accepted=reason is None, kind=_kind(record), reason=reason)

    def _remember(self, record: Record | None, n_bytes: int) -> None:
        """Bring the unit cache up to what was written by a record of so many bytes."""
        if isinstance(record, BatchRecord):
            self._cache.put(record.units, n_bytes)
        elif isinstance(record, SweepRecord) and record.changed:
            changed = record.changed.items()
            self._cache.put({key[1:]: value for key, value in changed if key.startswith(UNIT)}, n_bytes)

    def _beginning(self, offset: int, record: Record | None) -> tuple[Head, _Local]:
        local = msgspec.structs.replace(self._local, base=offset)
        if offset == 0:
            return Head(), local
        head = record.head if isinstance(record, SweepRecord) else None
        if head is None or ignored_because(head, offset, record) is not None:
            raise JournalStartsInTheMiddle(
                f"journal starts in the middle, at offset {offset}, which is no sweep's start; "
                "the state of this partition cannot be had from it",
                where=self.name,
                action="bring back a data folder of this partition that is not older than the journal "
                "(another worker's, a backup, or one set aside), or recreate the journal topic and count "
                "again from the source topics",
            )
        return head, local

    def _change(self, batch: WriteBatch, offset: int, record: Record | None, *, restate: bool) -> None:
        if isinstance(record, BatchRecord):
            _put_all(batch, UNIT, record.units)
            _put_all(batch, CELL, record.cells)
            if record.verdicts:
                stored = _StoredVerdicts(record.topic, record.verdicts)
                batch[VERDICT + offset.to_bytes(8, "big")] = msgspec.msgpack.encode(stored)
        elif isinstance(record, SweepRecord):
            if restate:
                for key, value in record.restated.items():
                    batch[key] = value
            _put_all(batch, b"", record.changed)

    def _drop_verdicts(self, batch: WriteBatch, through: int) -> None:
        end = VERDICT + through.to_bytes(8, "big")
        for key, _ in self.scan(VERDICT):
            if key >= end:
                return
            batch.delete(key)

    # Against the journal

    async def compare(self, log: JournalLog) -> Divergence | None:
        """Whether this copy is a prefix of the journal; None if it is.

        Returns
        -------
        ``truncated``
            The journal ends before this copy's last record.
        ``recreated``
            Another record stands at the place of this copy's last one.
        ``trimmed``
            The journal starts after this copy's last record: too old to go on from.

        Raises
        ------
        JournalStartsInTheMiddle
            If the copy would have to be rebuilt and the journal cannot give the state back. The copy stays.
        """
        if self.empty:
            return None
        last, last_hash = self.head.journal_offset - 1, self.head.last_hash
        start, end = await log.start_offset(), await log.end_offset()
        found: Divergence | None = "truncated" if last >= end else "trimmed" if last < start else None
        if found is None:
            found = "recreated"
            try:
                async for _, data in log.read(last, last + 1):
                    found = None if record_hash(data) == last_hash else "recreated"
            except JournalGap:  # trimmed since we asked for its start
                found, start = "trimmed", await log.start_offset()
        if found is not None:
            await self._require_rebuildable(log, start, end)
        return found

    async def verify(self, log: JournalLog) -> Divergence | None:
        """Compare with the journal; if they differ, set this copy aside and start an empty one.

        Returns
        -------
        What was found, as :meth:`compare`; after anything but None, recover from the journal's start.
        """
        found = await self.compare(log)
        if found is not None:
            self.reset(found)
        return found

    async def _require_rebuildable(self, log: JournalLog, start: int, end: int) -> None:
        first: Record | None = None
        if 0 < start < end:
            async for offset, data in log.read(start, start + 1):
                first = decode(data, where=f"{self.name} offset {offset}")
        self._beginning(start, first)

    async def rebuild(self, log: JournalLog, reason: str) -> None:
        """As :meth:`reset`, once it is sure that the journal can give the state back.

        Raises
        ------
        JournalStartsInTheMiddle
            If it cannot. The copy stays.
        """
        await self._require_rebuildable(log, await log.start_offset(), await log.end_offset())
        self.reset(reason)

    def reset(self, reason: str) -> None:
        """Set the database aside (a bounded number is kept) and go on with an empty one."""
        known = self.known_journal_id
        is_cut = reason in ("truncated", "recreated") or self.must_outrank
        self._cache.clear()
        self._store.set_aside(reason, detail=f"{self.name} at journal offset {self.head.journal_offset}")
        self._store.open()
        self.head, self._local = Head(), _Local(known_journal_id=known, is_cut=is_cut)
        batch = WriteBatch(raw_mode=True)
        batch[LOCAL_KEY] = msgspec.msgpack.encode(self._local)
        self._store.write(batch)
        self._store.flush(wait=True)
        if self._on_reset is not None:
            self._on_reset(reason)


def _is_complete(local: _Local, head: Head) -> bool:
    return local.base == 0 or head.sweep.completed >= local.base


def _put_all(batch: WriteBatch, prefix: bytes, entries: dict[bytes, bytes | None]) -> None:
    for key, value in entries.items():
        if value is None:
            batch.delete(prefix + key)
        else:
            batch[prefix + key] = value
