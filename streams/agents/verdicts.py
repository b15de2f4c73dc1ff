"""From journalled verdicts to dead letters.

A verdict is in the journal with its batch; its dead letter is produced after that, at least once, in
journal order. How far this has got goes into a later journal record (``dead_letters_through``), so the next
owner of the partition emits what a crash left out, reading the originals again by offset.

Cost: one produce a rejected record; in memory wait at most ``BACKLOG`` and one batch's.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiokafka.errors import KafkaError

from streams.agents.source import Record, SourceTopics
from streams.deadletters import DeadLetter, DeadLetterProducer
from streams.errors import BanditError
from streams.join.step import Verdict
from streams.state.partition import PendingVerdicts

__all__ = ["VerdictEmitter"]

log = logging.getLogger(__name__)

BACKLOG = 40_000  # rejected records, with their originals
RETRY_S = 1.0


class _Work(NamedTuple):
    through: int
    topic: str
    verdicts: Sequence[Verdict]
    records: Mapping[int, Record]


class VerdictEmitter:
    """Emits one partition's dead letters in journal order.

    Parameters
    ----------
    number
        The source partition.
    dead_letters
        Where they go.
    source
        Reads originals that are no longer in memory.
    topic_names
        Full topic name by logical name.
    """

    def __init__(
        self,
        number: int,
        dead_letters: DeadLetterProducer,
        source: SourceTopics,
        topic_names: Mapping[str, str],
    ) -> None:
        self._number = number
        self._dead_letters = dead_letters
        self._source = source
        self._topic_names = topic_names
        self._work: asyncio.Queue[_Work] = asyncio.Queue()
        self._n_waiting = 0
        self._has_room = asyncio.Event()
        self.through = 0  # every verdict of a journal record with a smaller offset is emitted
        self._queued = 0  # ... or queued

    async def put(
        self, journal_offset: int, topic: str, verdicts: Sequence[Verdict], records: Mapping[int, Record]
    ) -> None:
        """Queue the verdicts of one journal record; waits while too many are queued."""
        self._queued = journal_offset + 1
        while self._n_waiting >= BACKLOG:
            self._has_room.clear()
            await self._has_room.wait()
        self._n_waiting += len(verdicts)
        self._work.put_nowait(_Work(journal_offset + 1, topic, verdicts, records))

    async def put_pending(self, pending: Sequence[PendingVerdicts]) -> None:
        """Queue what an earlier owner, or an earlier claim of this one, may not have emitted.

        What is queued already is left out; the originals of the rest are read again.
        """
        for each in pending:
            if each.journal_offset >= self._queued:
                await self.put(each.journal_offset, each.topic, each.verdicts, {})

    async def run(self) -> None:
        """Emit until cancelled; a failure is retried, and the records after it wait."""
        while True:
            work = await self._work.get()
            while True:
                try:
                    await self._emit(work)
                    break
                except (KafkaError, BanditError) as error:
                    log.warning(
                        "partition %d: dead letters of journal record %d not out (%s); tried again in %.0f s",
                        self._number,
                        work.through - 1,
                        error,
                        RETRY_S,
                    )
                    await asyncio.sleep(RETRY_S)
            self.through = work.through
            self._n_waiting -= len(work.verdicts)
            self._has_room.set()

    async def _emit(self, work: _Work) -> None:
        topic = self._topic_names[work.topic]
        missing = [verdict.offset for verdict in work.verdicts if verdict.offset not in work.records]
        records = dict(work.records)
        if missing:
            records |= await self._source.fetch(topic, self._number, missing)
        await self._dead_letters.emit_all(
            self._letter(topic, verdict, records.get(verdict.offset)) for verdict in work.verdicts
        )

    def _letter(self, topic: str, verdict: Verdict, record: Record | None) -> DeadLetter:
        message = verdict.message
        if record is None:
            message += " (the original was deleted by retention before it could be copied)"
        return DeadLetter(
            topic=topic,
            partition=self._number,
            offset=verdict.offset,
            key=record.key if record else None,
            value=record.value if record else None,
            reason=verdict.reason,
            field=verdict.field,
            message=message,
        )
