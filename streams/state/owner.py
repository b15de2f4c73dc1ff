"""Owner: writes a partition's journal; what it wrote counts only if replay says so.

One record per step. A step succeeded if its record was acknowledged at exactly the next offset and
``apply`` accepted it there. Anything else (error, time-out, another or no offset) leaves the outcome open, so
the owner does not guess: it claims the partition again, which makes every earlier record of its own that may
still be on its way worthless, reads the journal up to its claim, and tells its caller to go on from the
positions that the journal then has.

A claim is written only after a heartbeat that was sent, and answered, after the doubt arose. Two workers that
both believe in themselves for a moment can therefore waste records but never count one twice. An owner yields
to a claim of a higher group generation, unless a heartbeat sent after it was read confirms its own: a group
that was deleted starts again at generation 1.

Cost: one append per step; a claim is a heartbeat, an append and a read of what others wrote.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from msgspec.structs import replace

from streams.errors import BanditError, BrokerUnavailable
from streams.join.step import Batch, StepResult
from streams.state.errors import (
    JournalAppendError,
    JournalDiverged,
    JournalGap,
    JournalRefused,
    JournalUnavailable,
    SourceTruncated,
)
from streams.state.journal import (
    NO_POSITION,
    BatchRecord,
    Claim,
    Flag,
    Head,
    JournalLog,
    SweepRecord,
    encode,
)
from streams.state.outcomes import (
    HEAD_ROOM_BYTES,
    Claimed,
    Committed,
    Fenced,
    OwnerLimits,
    OwnerStatistics,
    Redo,
    Swept,
    TooLarge,
)
from streams.state.partition import Divergence, Partition
from streams.state.recovery import recover
from streams.state.sweep import KEEP, KeyRange, Sweeper, sweep_range

__all__ = [
    "Claimed",
    "Committed",
    "Fenced",
    "Heartbeat",
    "Owner",
    "OwnerLimits",
    "OwnerStatistics",
    "Redo",
    "Swept",
    "TooLarge",
]

logger = logging.getLogger(__name__)

Heartbeat = Callable[[], Awaitable[bool]]
"""True once a heartbeat sent after the call was answered: still a member, of the claim's generation."""

_CLAIM_RECOVERIES = 3


class Owner:
    """Writes the journal of one partition; calls are serialised.

    Parameters
    ----------
    partition
        Open database; the owner is the only one that changes it while it is active.
    log
        Its journal.
    name
        Worker, for people who read the journal.
    heartbeat_fresh
        See :data:`Heartbeat`.
    clock_ms
        Wall clock, epoch ms; goes into claims and sweeps, decides nothing.
    published
        Greatest journal id and claim under which counts of this partition have been published, as far as
        that is known.
    """

    def __init__(
        self,
        partition: Partition,
        log: JournalLog,
        *,
        name: str,
        heartbeat_fresh: Heartbeat,
        clock_ms: Callable[[], int],
        limits: OwnerLimits | None = None,
        sweeper: Sweeper = KEEP,
        published: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.partition = partition
        self.log = log
        self.name = name
        self.statistics = OwnerStatistics()
        self._heartbeat_fresh = heartbeat_fresh
        self._clock_ms = clock_ms
        self._limits = limits or OwnerLimits()
        self._sweeper = sweeper
        self._published = published
        self._lock = asyncio.Lock()
        self._generation = -1
        self._claim = NO_POSITION
        self._inactive_because = "never claimed"
        self._dead_letters_through = 0

    @property
    def active(self) -> bool:
        """Whether records of this owner may count."""
        return not self._inactive_because

    # Claims

    async def claim(
        self, generation: int, *, on_progress: Callable[[int], None] | None = None
    ) -> Claimed | Fenced:
        """Take the partition: compare with the journal, replay what is missing, claim, read up to the claim.

        Raises
        ------
        JournalUnavailable
            If no claim could be written and read back before the deadline.
        StateCorrupt, RecoveryDeadline
            As :func:`streams.state.recovery.recover`.
        """
        async with self._lock:
            self._generation = generation
            self._inactive_because = "claim in progress"
            for _ in range(_CLAIM_RECOVERIES - 1):
                try:
                    return await self._recover_and_claim(on_progress)
                except JournalDiverged as error:
                    # The owner before us may end a sweep, and trim, between our replay and our claim.
                    logger.warning("%s: recovering again: %s", self.log.name, error.what)
            return await self._recover_and_claim(on_progress)

    async def _recover_and_claim(self, on_progress: Callable[[int], None] | None) -> Claimed | Fenced:
        reset = await self.partition.verify(self.log)
        await recover(
            self.partition, self.log, on_progress=on_progress, deadline_s=self._limits.recovery_deadline_s
        )
        return await self._claim_until_deadline() or Claimed(self._claim, reset)

    async def _claim_until_deadline(self) -> Fenced | None:
        last_error: BrokerUnavailable | None = None
        try:
            async with asyncio.timeout(self._limits.claim_deadline_s):
                while True:
                    try:
                        fenced = await self._claim_once()
                    except BrokerUnavailable as error:
                        last_error = error
                        logger.warning("%s: claim failed, trying again: %s", self.log.name, error)
                        await asyncio.sleep(self._limits.claim_backoff_s)
                        continue
                    if fenced is not None:
                        self._inactive_because = fenced.reason
                        self.statistics.fenced += 1
                    else:
                        self._inactive_because = ""
                    return fenced
        except TimeoutError as error:
            self._inactive_because = "no claim before the deadline"
            raise JournalUnavailable(
                f"no claim within {self._limits.claim_deadline_s:g} s; last error: {last_error}",
                where=self.log.name,
                action="check the brokers and the journal topic's in-sync replicas",
            ) from error

    async def _claim_once(self) -> Fenced | None:
        self._inactive_because = "claim in progress"
        found = await self._catch_up()
        if not await self._heartbeat_fresh():
            return Fenced("no fresh heartbeat: the group has gone on without this worker")
        if found is not None:
            raise self._diverged(found)
        known = max(self.partition.known_journal_id, self._published()[0])
        record = Claim(
            owner=self.name,
            generation=self._generation,
            written_at_ms=self._clock_ms(),
            journal_id=max(self._clock_ms(), known + 1) if self._begins_a_life() else 0,
        )
        data = encode(record)
        offset = await self.log.append(data, timeout_s=self._limits.append_timeout_s)
        self.statistics.claims += 1
        if offset < self.partition.head.journal_offset:
            raise BrokerUnavailable(f"claim was acknowledged at odd offset {offset}", where=self.log.name)
        if offset == self.partition.head.journal_offset:
            self.partition.apply(offset, data)
            rival = -1
        else:
            rival = await self._read_to(offset + 1)
        if self.partition.head.claim != offset:
            raise BrokerUnavailable(f"claim {offset} is not in the journal", where=self.log.name)
        self._claim = offset
        if rival > self._generation and not await self._heartbeat_fresh():
            return Fenced(f"generation {rival} has claimed, this worker has {self._generation}")
        return None

    def _begins_a_life(self) -> bool:
        """Whether what this claim leads to must come after all that was published of the journal so far.

        So for an empty journal, and for one whose end was lost: claims in the lost part had greater offsets.
        Counts may be known whose claim the journal does not have, although it was read to its end.
        """
        head = self.partition.head
        return (
            head.journal_id == 0
            or self.partition.must_outrank
            or self._published() > (head.journal_id, head.claim)
        )

    async def _catch_up(self) -> Divergence | None:
        """Apply all that the journal has; else say why this copy cannot follow it."""
        try:
            found = await self.partition.compare(self.log)
            if found is None:
                await self._read_to(await self.log.end_offset())
        except JournalGap:  # trimmed between the comparison and the read
            return "trimmed"
        return found

    def _diverged(self, found: Divergence) -> JournalDiverged:
        self._inactive_because = f"journal {found}"
        return JournalDiverged(
            f"the journal was {found} while this worker owned the partition",
            where=self.log.name,
            action="restart the worker: it sets its state aside and rebuilds; find out who changed the topic",
        )

    async def _read_to(self, end: int) -> int:
        """Apply records below ``end``; return the highest generation claimed in them, -1 if none was."""
        highest = -1
        if self.partition.head.journal_offset < end:
            async with aclosing(self.log.read(self.partition.head.journal_offset, end)) as records:
                async for offset, data in records:
                    if self.partition.apply(offset, data).kind == "claim":
                        highest = max(highest, self.partition.head.generation)
        return highest

    async def _in_doubt(self, reason: str) -> Redo | Fenced:
        logger.warning("%s: %s; claiming again", self.log.name, reason)
        self.statistics.redos += 1
        return await self._claim_until_deadline() or Redo(reason)

    # Records

    async def commit(self, result: StepResult, batch: Batch) -> Committed | Redo | Fenced | TooLarge:
        """Journal what a batch changes, then apply it.

        Nothing is written if the batch does not start at the journal's position of its topic (``Redo``) or
        the record would be greater than the limit (``TooLarge``).
        """
        async with self._lock:
            if self._inactive_because:
                return Fenced(self._inactive_because)
            position = self.partition.head.positions.get(batch.topic)
            if batch.start != position:
                self.statistics.redos += 1
                return Redo(
                    f"{batch.topic} batch starts at {batch.start}, the journal's position is {position}"
                )
            record = replace(
                self._step("normal", batch.topic, batch.start, batch.next),
                units=result.units,
                cells=dict(result.cells),
                verdicts=result.verdicts,
                maxima=result.maxima,
                totals=result.totals,
                pending=result.pending,
            )
            data = encode(record)
            if len(data) > self._limits.max_record_bytes:
                self.statistics.too_large += 1
                return TooLarge(len(data), self._limits.max_record_bytes)
            return await self._write(data, record)

    async def check_source(
        self, topic: str, log_start: int, log_end: int
    ) -> Committed | Redo | Fenced | None:
        """Compare the journal's position of a source topic with the ends of its log; after every claim.

        Returns
        -------
        As :meth:`skip`.

        Raises
        ------
        SourceTruncated
            If the log ends before the position: records that were counted are gone.
        """
        position = self.partition.head.positions.get(topic, NO_POSITION)
        if position > log_end:
            raise SourceTruncated(
                f"{topic} ends at offset {log_end}, but the journal has counted up to {position}",
                where=self.partition.name,
                action="the source topic was recreated or lost records: find out which; to count what it has "
                "now from its start, recreate the journal topic too",
            )
        return await self.skip(topic, log_start)

    async def skip(self, topic: str, log_start: int) -> Committed | Redo | Fenced | None:
        """Journal that reading goes on at the source's log start, if that is beyond the position.

        Returns
        -------
        None if nothing was to do. What was skipped over a position is in ``head.log_start_skips``.
        """
        async with self._lock:
            if self._inactive_because:
                return Fenced(self._inactive_because)
            position = self.partition.head.positions.get(topic, NO_POSITION)
            if log_start <= position:
                return None
            outcome = await self._write(encode(self._step("skip", topic, position, log_start)))
            if position != NO_POSITION and isinstance(outcome, Committed):
                self.statistics.skips += 1
                logger.error(
                    "%s: %s offsets %d to %d were deleted before they were counted; raise its retention",
                    self.partition.name,
                    topic,
                    position,
                    log_start - 1,
                )
            return outcome

    async def raise_watermark(self, topic: str, maximum_ms: int) -> Committed | Redo | Fenced | None:
        """Journal a higher maximum of an idle topic; None if it is not higher."""
        async with self._lock:
            if self._inactive_because:
                return Fenced(self._inactive_because)
            head = self.partition.head
            position = head.positions.get(topic)
            if position is None:
                raise ValueError(f"{topic} has no position yet: check_source comes before raise_watermark")
            if maximum_ms <= head.maxima.get(topic, -1):
                return None
            record = replace(self._step("idle", topic, position, position), maxima={topic: maximum_ms})
            return await self._write(encode(record))

    def dead_lettered(self, through: int) -> None:
        """Note that the dead letters of all records below ``through`` are out; the next record says so."""
        limit = self.partition.head.journal_offset
        self._dead_letters_through = max(self._dead_letters_through, min(through, limit))

    def _step(self, flag: Flag, topic: str, start: int, next_offset: int) -> BatchRecord:
        head = self.partition.head
        return BatchRecord(
            journal_id=head.journal_id,
            claim=self._claim,
            seq=head.seq + 1,
            flag=flag,
            topic=topic,
            start=start,
            next=next_offset,
            pending=head.pending,
            dead_letters_through=max(head.dead_letters_through, self._dead_letters_through),
        )

    async def _write(self, data: bytes, record: BatchRecord | None = None) -> Committed | Redo | Fenced:
        expected = self.partition.head.journal_offset
        try:
            offset = await self.log.append(data, timeout_s=self._limits.append_timeout_s)
        except JournalAppendError as error:
            return await self._in_doubt(str(error))
        except JournalRefused as error:
            self._inactive_because = str(error)
            raise
        if offset != expected:
            return await self._in_doubt(f"acknowledged at offset {offset}, expected {expected}")
        try:
            applied = self.partition.apply(offset, data, record)
        except BanditError as error:
            self._inactive_because = str(error)
            raise
        if not applied.accepted:
            return await self._in_doubt(f"own record {offset} does not count: {applied.reason}")
        self.statistics.records += 1
        self.statistics.bytes += len(data)
        return Committed(offset, len(data))

    # Sweeps

    def sweep_due(self, *, now_ms: int, interval_ms: int, max_bytes: int) -> bool:
        """Whether a sweep step is due: a round is in progress, or one should start.

        Parameters
        ----------
        interval_ms
            Time between the starts of two rounds, if anything was journalled between.
        max_bytes
            Journal bytes since the end of the last round that start one before its time.
        """
        head = self.partition.head
        if head.sweep.start >= 0:
            return True
        if head.seq <= head.sweep.ended_seq:
            return False
        grown_bytes = head.journal_bytes - head.sweep.ended_bytes
        return grown_bytes >= max_bytes or now_ms - head.sweep.started_at_ms >= interval_ms

    async def sweep_step(self, *, max_bytes: int) -> Swept | Redo | Fenced:
        """Sweep one range of keys; starts a round if none is in progress, trims the journal when one ends.

        Raises
        ------
        JournalRefused
            If one entry alone is greater than a record may be.
        """
        async with self._lock:
            if self._inactive_because:
                return Fenced(self._inactive_because)
            head = self.partition.head
            budget = min(max_bytes, self._limits.max_record_bytes - HEAD_ROOM_BYTES)
            swept = sweep_range(self.partition, self._sweeper, max_bytes=budget)
            data = encode(self._sweep_record(head, swept))
            if len(data) > self._limits.max_record_bytes:
                raise JournalRefused(
                    f"sweep record of {len(data)} bytes from key {swept.from_key!r} is over the limit",
                    where=self.partition.name,
                    action="raise journal_max_message_bytes and the journal topic's max.message.bytes",
                )
            outcome = await self._write(data)
            if not isinstance(outcome, Committed):
                return outcome
            self.statistics.sweep_records += 1
            self.statistics.sweep_bytes += len(data)
            if swept.last:
                self.statistics.sweeps_completed += 1
                await self._trim()
            return Swept(*outcome, swept.cells(), swept.dropped_cells(), swept.last, swept.n_entries)

    def _sweep_record(self, head: Head, swept: KeyRange) -> SweepRecord:
        totals = {outcome: head.totals.get(outcome, 0) + change for outcome, change in swept.totals.items()}
        return SweepRecord(
            journal_id=head.journal_id,
            claim=self._claim,
            seq=head.seq + 1,
            head=head if head.sweep.start < 0 else None,
            last=swept.last,
            from_key=swept.from_key,
            to_key=swept.to_key,
            restated=swept.restated,
            changed=swept.changed,
            totals=totals,
            pending=head.pending + swept.pending,
            dead_letters_through=max(head.dead_letters_through, self._dead_letters_through),
            written_at_ms=self._clock_ms(),
        )

    async def trim(self) -> int | None:
        """Delete the journal below the start of the newest complete round; the new start, None if unchanged.

        A failure is counted and logged, not raised: the end of the next round tries again.
        """
        async with self._lock:
            return await self._trim()

    async def _trim(self) -> int | None:
        completed = self.partition.head.sweep.completed
        if completed < 0:
            return None
        try:
            if completed <= await self.log.start_offset():
                return None
            await self.log.delete_before(completed)
        except (BrokerUnavailable, JournalRefused) as error:
            self.statistics.trim_errors += 1
            logger.warning("%s: not trimmed: %s", self.log.name, error)
            return None
        self.statistics.trims += 1
        return completed
