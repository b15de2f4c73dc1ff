"""The partition databases of one worker, and the Faust table that moves with its assignment.

:class:`Shards` holds the open :class:`~streams.state.partition.Partition` databases by number; it knows
nothing of Faust. :class:`JournalTable` is a Faust table whose changelog topic is the journal and whose
store is those databases, so that Faust's machinery gives assignment, recovery and standby replicas:

- ``on_rebalance`` closes what went to other workers and opens what came, each compared with its journal;
- ``persisted_offset`` is the journal offset, so Faust replays from there; ``apply_changelog_batch`` is
  replay;
- ``on_recovery_completed`` hands the active partitions to their owners, who claim them.

Faust logs and swallows errors in recovery, and may stop short. Nothing depends on it having been complete:
an owner's claim verifies its database and reads the journal to its end by itself. A record that is not the
next one is left out here; a standby that has missed records is brought up directly from the journal.

Cost: replay is O(bytes of the journal); everything else O(partitions).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import faust
from faust.stores.base import Store
from faust.tables.table import Table
from faust.types import TP

from streams.errors import BanditError, Stop
from streams.state.errors import JournalGap, StoreCorrupt
from streams.state.journal import unpack
from streams.state.kafka_journal import KafkaJournal
from streams.state.partition import Partition
from streams.state.recovery import recover
from streams.state.store import StoreOptions

__all__ = ["JournalTable", "NotSupportedError", "RawSchema", "Shards"]

log = logging.getLogger(__name__)

Hand = Callable[[dict[int, Partition], set[int], int], Awaitable[None]]  # active, standby, generation
Release = Callable[[], Awaitable[object]]


class Shards:
    """The partition databases open in this worker.

    Parameters
    ----------
    folder
        Where the databases are; one folder each.
    journal
        The journal they are compared with and rebuilt from.
    options
        Memory limits of RocksDB.
    verify_deadline_s
        Longest wait for that comparison at an assignment; a claim compares again.
    on_reset
        Called with (partition, reason) when a database was set aside.
    """

    def __init__(
        self,
        folder: Path,
        journal: KafkaJournal,
        *,
        options: StoreOptions,
        verify_deadline_s: float,
        recovery_deadline_s: float,
        on_reset: Callable[[int, str], None],
    ) -> None:
        self.journal = journal
        self._folder = folder
        self._options = options
        self._verify_deadline_s = verify_deadline_s
        self._recovery_deadline_s = recovery_deadline_s
        self._on_reset = on_reset
        self._open: dict[int, Partition] = {}
        self._catching_up: dict[int, asyncio.Task[None]] = {}
        self._owned: set[int] = set()
        self._assigned_at: dict[int, int] = {}

    def __getitem__(self, number: int) -> Partition:
        return self._open[number]

    def get(self, number: int) -> Partition | None:
        """Return the open database of a partition, if it is open here."""
        return self._open.get(number)

    async def assign(self, active: set[int], standby: set[int]) -> None:
        """Close what is no longer wanted here, open what is, and compare it with its journal."""
        wanted = active | standby
        self._owned.clear()
        for number in set(self._open) - wanted:
            await self._close(number)
        fresh = wanted - set(self._open)
        for number in fresh:
            self._open[number] = Partition.open(
                self._folder / f"partition-{number:05d}",
                name=f"{self.journal.topic}[{number}]",
                options=self._options,
                on_reset=partial(self._on_reset, number),
            )
        await asyncio.gather(*(self._verify(number) for number in fresh))
        self._assigned_at = {number: each.head.journal_offset for number, each in self._open.items()}

    async def _verify(self, number: int) -> None:
        try:
            async with asyncio.timeout(self._verify_deadline_s):
                await self._open[number].verify(self.journal.log(number))
        except (BanditError, TimeoutError) as error:
            log.warning("partition %d: not compared with its journal yet (%s); its claim will", number, error)

    def assigned_at(self, number: int) -> int:
        """Journal offset that the database had when it was assigned last: what is below was not replayed."""
        return self._assigned_at[number]

    def own(self, number: int) -> None:
        """Say that an owner writes and applies this partition's journal from here on."""
        self._owned.add(number)

    def apply(self, number: int, offset: int, data: bytes) -> None:
        """Replay one journal record read by Faust; what does not fit is left to direct recovery."""
        partition = self._open.get(number)
        if partition is None or number in self._owned or number in self._catching_up:
            return
        try:
            partition.apply(offset, data)
        except JournalGap as gap:
            log.warning("partition %d: %s; it is read from the journal directly", number, gap)
            self._catch_up(number, partition)
        except StoreCorrupt as error:
            log.warning("partition %d: %s; it is set aside and rebuilt", number, error)
            partition.reset("corrupt")
            self._catch_up(number, partition)

    def _catch_up(self, number: int, partition: Partition) -> None:
        async def read() -> None:
            try:
                await recover(partition, self.journal.log(number), deadline_s=self._recovery_deadline_s)
            except BanditError as error:
                log.error(  # noqa: TRY400 - the error says what to do
                    "partition %d: cannot be read from the journal: %s", number, error
                )
            finally:
                self._catching_up.pop(number, None)

        self._catching_up[number] = asyncio.get_running_loop().create_task(read())

    async def settle(self, number: int) -> None:
        """Wait until no task of this object writes to the partition: its owner is about to."""
        if (task := self._catching_up.get(number)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._catching_up.pop(number, None)

    async def _close(self, number: int) -> None:
        await self.settle(number)
        self._open.pop(number).close()
        await self.journal.release(number)

    async def close(self) -> None:
        """Close every database."""
        for number in list(self._open):
            await self._close(number)


class RawSchema(faust.Schema[Any, Any]):
    """Passes a message's key and value on as they are: bytes of a record, or a chunk of records."""

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return message.value


class _JournalStore(Store[Any, Any]):
    """Faust's view of the shards: offsets, replay and assignment, no keys and values."""

    def __init__(self, table: "JournalTable", **kwargs: Any) -> None:
        super().__init__("journal://", table.app, table, **kwargs)
        self.data: dict[Any, Any] = {}
        self._table = table

    def persisted_offset(self, tp: TP) -> int | None:
        partition = self._table.shards.get(tp.partition)
        return None if partition is None else partition.persisted_offset

    def apply_changelog_batch(self, batch: Iterable[Any], to_key: Any, to_value: Any) -> None:
        for event in batch:
            message = event.message
            if message.value is not None:
                self._table.shards.apply(message.partition, message.offset, unpack(message.value))

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        table = self._table
        await table.release()
        assignor = table.app.assignor
        await table.shards.assign(
            table.numbers(assignor.assigned_actives()), table.numbers(assignor.assigned_standbys())
        )
        table.generation = generation_id

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        table = self._table
        active = {number: table.shards[number] for number in table.numbers(active_tps)}
        await table.hand(active, table.numbers(standby_tps), table.generation)

    def reset_state(self) -> None:
        """Do nothing: a database is set aside where it does not match its journal, not when Faust says."""

    async def backup_partition(self, tp: Any, *_args: Any, **_kwargs: Any) -> None:
        raise NotSupportedError("backup", tp)

    def restore_backup(self, tp: Any, *_args: Any, **_kwargs: Any) -> None:
        raise NotSupportedError("restore", tp)


class NotSupportedError(Stop):
    """Faust's own backups are not used: the journal is the backup."""

    def __init__(self, what: str, where: object) -> None:
        super().__init__(
            f"{what} of a partition database", where=str(where), action="rebuild it from the journal instead"
        )


class JournalTable(Table[Any, Any]):
    """Faust table of the join; see the module.

    Parameters
    ----------
    hand
        Called after recovery with the active partitions, the standby numbers and the group's generation.
    release
        Called at the start of every rebalance: owners must let go.
    """

    def __init__(self, app: Any, *, topic: str, shards: Shards, hand: Hand, release: Release) -> None:
        self.shards = shards
        self.hand = hand
        self.release = release
        self.generation = -1
        self._topic_name = topic
        super().__init__(
            app,
            name="journal",
            changelog_topic=app.topic(topic, schema=RawSchema(), acks=False),
            # 1 would make Faust read active changelogs again after recovery.
            recovery_buffer_size=2,
            standby_buffer_size=1,
        )

    def numbers(self, tps: Iterable[TP]) -> set[int]:
        """Return the partition numbers of the journal among ``tps``."""
        return {tp.partition for tp in tps if tp.topic == self._topic_name}

    def _new_store(self) -> Any:
        return _JournalStore(self, loop=self.loop)

    async def on_start(self) -> None:
        """Start the store; the journal topic is created by `topics create`, never here."""
        await self.add_runtime_dependency(self.data)
