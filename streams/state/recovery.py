"""Recovery: bring a partition's database up to its journal by reading the journal directly.

A recovery has a deadline. One that moved is cut off there and goes on after a restart, with what it applied.
One that did not move at all has a database that nobody can go on from: it is set aside and rebuilt from the
journal, if the journal can give the state back.

Cost: one read and one WriteBatch per record behind; the event loop gets a turn every few milliseconds, so
that heartbeats go on meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from time import perf_counter

from streams.errors import StateCorrupt
from streams.state.errors import JournalGap, RecoveryDeadline, StoreCorrupt
from streams.state.journal import JournalLog
from streams.state.partition import Partition

logger = logging.getLogger(__name__)

_TURN_S = 0.02


async def recover(
    partition: Partition,
    log: JournalLog,
    *,
    upto: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    deadline_s: float = 1800.0,
) -> int:
    """Apply all journal records that the partition does not have yet.

    A database that turns out to be damaged, or older than the journal's start, is set aside and rebuilt.

    Parameters
    ----------
    upto
        Journal offset to stop before; None for the end as of now, at which the state must be complete.
    on_progress
        Told the number of records that remain, a few times a second and at the end.
    deadline_s
        Bound on the whole, and on the rebuild after it if nothing was applied until then.

    Returns
    -------
    Records applied, those of a rebuild included.

    Raises
    ------
    RecoveryDeadline
        After ``deadline_s``; what was applied stays applied.
    JournalStartsInTheMiddle, StateCorrupt
        If the journal cannot give the state back.
    JournalReadError
        If the journal does not answer.
    """
    before = partition.persisted_offset
    try:
        async with asyncio.timeout(deadline_s):
            return await _recover(partition, log, upto, on_progress)
    except TimeoutError as error:
        if partition.empty or partition.persisted_offset != before:
            raise _deadline(partition, deadline_s) from error
    logger.error(
        "%s: no record was applied after journal offset %d within %g s; the state is set aside and rebuilt",
        partition.name,
        partition.head.journal_offset,
        deadline_s,
    )
    try:
        async with asyncio.timeout(deadline_s):
            await partition.rebuild(log, "stuck")
            return await _recover(partition, log, upto, on_progress)
    except TimeoutError as error:
        raise _deadline(partition, deadline_s) from error


def _deadline(partition: Partition, deadline_s: float) -> RecoveryDeadline:
    return RecoveryDeadline(
        f"replay had reached journal offset {partition.head.journal_offset} after {deadline_s:g} s",
        where=partition.name,
        action="raise recovery_deadline_ms, or lower sweep_max_bytes so that journals stay shorter",
    )


async def _recover(
    partition: Partition, log: JournalLog, upto: int | None, on_progress: Callable[[int], None] | None
) -> int:
    end = await log.end_offset() if upto is None else upto
    await partition.verify(log)
    try:
        applied = await _replay(partition, log, end, on_progress)
    except (JournalGap, StoreCorrupt) as error:
        partition.reset("trimmed" if isinstance(error, JournalGap) else "corrupt")
        applied = await _replay(partition, log, end, on_progress)
    if upto is None and not partition.empty and not partition.complete:
        raise StateCorrupt(
            f"the sweep that the journal starts with, at offset {partition.base}, has no end before {end}",
            where=partition.name,
            action="bring back a data folder of this partition, or recreate the journal topic and count "
            "again from the source topics",
        )
    return applied


async def _replay(
    partition: Partition, log: JournalLog, end: int, on_progress: Callable[[int], None] | None
) -> int:
    start = await log.start_offset() if partition.empty else partition.head.journal_offset
    applied = 0
    turn = perf_counter()
    if start < end:
        async with aclosing(log.read(start, end)) as records:
            async for offset, data in records:
                partition.apply(offset, data)
                applied += 1
                if perf_counter() - turn > _TURN_S:
                    if on_progress is not None:
                        on_progress(end - offset - 1)
                    await asyncio.sleep(0)
                    turn = perf_counter()
    if on_progress is not None:
        on_progress(max(0, end - max(partition.head.journal_offset, start)))
    return applied
