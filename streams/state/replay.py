"""Replay: which journal records count, and what the head is after them. Pure.

Owner, standby, recovery and audit all decide by these two functions, so they agree by construction. A batch
or sweep counts only if it names the newest claim before it, its ``seq`` is the last plus one and its source
start is the position. That is what makes a paused owner's late writes, and a record written twice because an
acknowledgement was lost, harmless: they stand in the journal, and everybody ignores them.

Cost: O(topics + outcomes) per record; units and cells are not looked at.
"""

from typing import Literal

from msgspec.structs import replace

from streams.state.journal import NO_POSITION, BatchRecord, Claim, Head, Record, Sweep, SweepRecord

Ignored = Literal["foreign", "journal_id", "claim", "seq", "position", "malformed"]


def ignored_because(head: Head, offset: int, record: Record | None) -> Ignored | None:
    """Why the record at ``offset`` does not count after ``head``; None if it does."""
    if record is None:
        return "foreign"
    if isinstance(record, Claim):
        return None
    if record.journal_id != head.journal_id:
        return "journal_id"
    if record.claim != head.claim:
        return "claim"
    if record.seq != head.seq + 1:
        return "seq"
    if isinstance(record, BatchRecord):
        return _batch_fault(head, record)
    return _sweep_fault(head, offset, record)


def _batch_fault(head: Head, record: BatchRecord) -> Ignored | None:
    position = head.positions.get(record.topic, NO_POSITION)
    if record.start != position:
        return "position"
    if record.flag == "idle":
        well_formed = position != NO_POSITION and record.next == record.start
    elif record.flag == "skip":
        well_formed = record.next > record.start
    else:
        well_formed = position != NO_POSITION and record.next > record.start
    return None if well_formed else "malformed"


def _sweep_fault(head: Head, offset: int, record: SweepRecord) -> Ignored | None:
    in_progress = head.sweep.start >= 0
    if record.head is not None:
        # Nothing may stand between the head it holds and itself, or a database that starts here would differ.
        started_here = record.head.journal_offset == offset and not in_progress and record.from_key == b""
        return None if started_here else "position"
    return None if in_progress and record.from_key == head.sweep.cursor else "position"


def next_head(head: Head, offset: int, record: Record | None, *, data_hash: bytes, data_bytes: int) -> Head:
    """Head after the record at ``offset``, which counts unless ``ignored_because`` says why not."""
    moved = replace(
        head,
        journal_offset=offset + 1,
        last_hash=data_hash,
        journal_bytes=head.journal_bytes + data_bytes,
    )
    if record is None or ignored_because(head, offset, record) is not None:
        return moved
    if isinstance(record, Claim):
        return _after_claim(moved, offset, record)
    if isinstance(record, BatchRecord):
        return _after_batch(moved, record)
    return _after_sweep(moved, offset, record, bytes_before=head.journal_bytes)


def _after_claim(head: Head, offset: int, record: Claim) -> Head:
    first = head.journal_id == 0
    return replace(
        head,
        journal_id=record.journal_id or record.written_at_ms
        if first
        else max(head.journal_id, record.journal_id),
        claim=offset,
        owner=record.owner,
        generation=record.generation,
        sweep=replace(head.sweep, started_at_ms=record.written_at_ms) if first else head.sweep,
    )


def _after_batch(head: Head, record: BatchRecord) -> Head:
    skips = head.log_start_skips
    if record.flag == "skip" and record.start != NO_POSITION:
        skips = {**skips, record.topic: skips.get(record.topic, 0) + record.next - record.start}
    return replace(
        head,
        seq=record.seq,
        positions={**head.positions, record.topic: record.next},
        maxima={**head.maxima, **record.maxima},
        totals={**head.totals, **record.totals},
        pending=record.pending,
        dead_letters_through=max(head.dead_letters_through, record.dead_letters_through),
        log_start_skips=skips,
    )


def _after_sweep(head: Head, offset: int, record: SweepRecord, *, bytes_before: int) -> Head:
    return replace(
        head,
        seq=record.seq,
        totals={**head.totals, **record.totals},
        pending=record.pending,
        dead_letters_through=max(head.dead_letters_through, record.dead_letters_through),
        sweep=_swept(head, offset, record, bytes_before=bytes_before),
    )


def _swept(head: Head, offset: int, record: SweepRecord, *, bytes_before: int) -> Sweep:
    sweep = head.sweep
    if record.head is not None:
        sweep = replace(
            sweep,
            round=sweep.round + 1,
            start=offset,
            started_at_ms=record.written_at_ms,
            start_bytes=bytes_before,
        )
    if not record.last:
        return replace(sweep, cursor=record.to_key)
    return replace(
        sweep,
        start=-1,
        cursor=b"",
        completed=sweep.start,
        completed_bytes=sweep.start_bytes,
        ended_bytes=head.journal_bytes,
        ended_seq=record.seq,
    )
