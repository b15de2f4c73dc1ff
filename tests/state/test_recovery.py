"""Recovery's bounds, and a disk that takes no more."""

import asyncio
import contextlib
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from streams.state.errors import JournalStartsInTheMiddle, RecoveryDeadline, StoreCorrupt, StoreUnavailable
from streams.state.journal import encode_head
from streams.state.owner import Fenced
from streams.state.partition import Partition
from streams.state.recovery import recover
from streams.state.store import StoreOptions
from tests.state.conftest import Open
from tests.state.doubles import (
    FileLog,
    MemoryLog,
    Source,
    check,
    commit_next,
    content,
    make_owner,
    run_to_end,
    take,
)

ROOT = Path(__file__).parents[2]


class StallingLog(MemoryLog):
    """Stops in the middle of a read; with ``only_from``, of reads that begin there alone."""

    stall_at = 6
    only_from: int | None = None

    async def read(self, from_offset: int, to_offset: int) -> AsyncGenerator[tuple[int, bytes], None]:
        async for offset, data in super().read(from_offset, to_offset):
            if offset == self.stall_at and self.only_from in (None, from_offset):
                await asyncio.Event().wait()
            yield offset, data


async def test_recovery_ends_at_its_deadline_and_goes_on_later(open_partition: Open) -> None:
    source, log = Source(), StallingLog()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await run_to_end(owner, source)
    partition = open_partition()
    with pytest.raises(
        RecoveryDeadline, match=r"had reached journal offset 6 after 0\.2 s\. Operator action"
    ):
        await recover(partition, log, deadline_s=0.2)
    assert partition.head.journal_offset == 6
    log.stall_at = -1
    assert await recover(partition, log) == len(log.records) - 6
    assert content(partition) == content(owner.partition)
    assert await recover(partition, log) == 0


async def test_a_recovery_that_does_not_move_before_its_deadline_is_started_from_nothing(
    open_partition: Open,
) -> None:
    source, log = Source(), StallingLog()
    log.stall_at = -1
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await commit_next(owner, source, "exposures")
    told: list[str] = []
    partition = open_partition("stuck", on_reset=told.append)
    await recover(partition, log)
    stuck_at = len(log.records)
    await run_to_end(owner, source)
    log.stall_at, log.only_from = stuck_at, stuck_at
    assert await recover(partition, log, deadline_s=0.5) == len(log.records)
    assert told == ["stuck"]
    assert content(partition) == content(owner.partition)
    check(partition, source)


async def test_a_recovery_that_does_not_move_keeps_a_state_that_the_journal_lacks(
    open_partition: Open,
) -> None:
    source, log = Source(), StallingLog()
    log.stall_at = -1
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await commit_next(owner, source, "exposures")
    partition = open_partition("stuck")
    await recover(partition, log)
    stuck_at = len(log.records)
    await run_to_end(owner, source)
    log.stall_at, log.only_from, log.start = stuck_at, stuck_at, stuck_at - 1
    with pytest.raises(JournalStartsInTheMiddle):
        await recover(partition, log, deadline_s=0.2)
    assert partition.head.journal_offset == stuck_at


async def test_recovery_of_an_empty_journal_does_nothing(open_partition: Open) -> None:
    partition = open_partition()
    progress: list[int] = []
    assert await recover(partition, MemoryLog(), on_progress=progress.append) == 0
    assert partition.empty
    assert progress == [0]


async def test_recovery_up_to_an_offset(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await run_to_end(owner, source)
    partition = open_partition()
    assert await recover(partition, log, upto=5) == 5
    assert partition.head.journal_offset == 5
    check(partition, source)


class TrimmedMeanwhile(MemoryLog):
    """Trimmed to ``trim_to`` right after its end was asked for ``trim_after`` times."""

    trim_to = 0
    trim_after = -1

    async def end_offset(self) -> int:
        self.trim_after -= 1
        if self.trim_after == 0:
            self.start = self.trim_to
        return await super().end_offset()


@pytest.mark.parametrize("claims", [False, True])
@pytest.mark.parametrize("trim_after", range(1, 7))
async def test_a_trim_at_any_moment_of_a_recovery_or_claim(
    open_partition: Open, claims: bool, trim_after: int
) -> None:
    """The copy is older than the sweep's start: whenever it notices, it is rebuilt from the sweep."""
    source, log = Source(), TrimmedMeanwhile()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    old = open_partition("old")
    await recover(old, log)
    await run_to_end(owner, source)
    await owner.sweep_step(max_bytes=10**6)
    log.trim_to, log.start, log.trim_after = log.start, 0, trim_after
    if claims:
        await take(make_owner(old, log, name="next"), source, generation=2)
        await recover(owner.partition, log)
    else:
        await recover(old, log)
    check(old, source)
    assert content(old) == content(owner.partition)


@pytest.mark.parametrize("trim_after", range(1, 4))
async def test_a_trim_under_a_paused_owner_fences_it_or_stops_it(
    open_partition: Open, trim_after: int
) -> None:
    source, log = Source(), TrimmedMeanwhile()
    member = {"old": True}

    async def old_is_member() -> bool:
        return member["old"]

    old = make_owner(open_partition("old"), log, name="old", heartbeat_fresh=old_is_member)
    await take(old, source)
    other = make_owner(open_partition("other"), log, name="other")
    await take(other, source, generation=2)
    await run_to_end(other, source)
    await other.sweep_step(max_bytes=10**6)
    log.trim_to, log.start, log.trim_after = log.start, 0, trim_after
    member["old"] = False
    assert isinstance(await commit_next(old, source, "exposures"), Fenced)


async def test_a_claim_survives_that_the_owner_before_trims_meanwhile(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    before = make_owner(open_partition("before"), log, name="before")
    await take(before, source)
    await commit_next(before, source, "exposures")
    after = make_owner(open_partition("after"), log, name="after")
    partition = after.partition
    await recover(partition, log)
    calls = iter(range(100))
    verify = partition.verify

    async def verify_then_sweep(journal: MemoryLog) -> object:
        found = await verify(journal)
        if next(calls) == 1:  # of the recovery in the claim: the old owner's last act comes right behind
            await commit_next(before, source, "conversions")
            await before.sweep_step(max_bytes=10**6)
        return found

    partition.verify = verify_then_sweep  # type: ignore[method-assign,assignment] # a moment to strike
    await take(after, source, generation=2)
    await run_to_end(after, source)
    check(partition, source)
    assert partition.base > 0


def test_a_head_that_does_not_decode_is_damage(tmp_path: Path, open_partition: Open) -> None:
    partition = open_partition()
    partition._store._db[b"h"] = b"\xc1"  # type: ignore[index] # open
    partition.close()
    resets: list[str] = []
    assert open_partition(on_reset=resets.append).empty
    assert resets == ["corrupt"]
    assert len(list(tmp_path.glob("p.set-aside-*-corrupt"))) == 1


def test_a_head_without_its_local_entry_is_damage(open_partition: Open) -> None:
    partition = open_partition()
    partition._store._db[b"h"] = encode_head(partition.head)  # type: ignore[index] # open
    partition.close()
    resets: list[str] = []
    open_partition(on_reset=resets.append)
    assert resets == ["corrupt"]


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        StoreOptions(set_aside_keep=-1)


async def test_a_trimmed_journal_without_a_single_record_is_no_beginning(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    log.start = len(log.records)
    fresh = make_owner(open_partition("fresh"), log)
    log.records.append(b"foreign")
    with pytest.raises(JournalStartsInTheMiddle):
        await fresh.claim(2)


def _fill(folder: Path) -> None:
    """Apply a journal under a limit on file sizes: the kernel refuses as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = FileLog(folder / "journal")
    half = len(log.records) // 2
    partition = Partition.open(folder / "p", name="journal[0]")
    for offset in range(half):
        partition.apply(offset, log.records[offset])
    partition._store.flush(wait=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    try:
        for offset in range(half, len(log.records)):
            partition.apply(offset, log.records[offset])
            with contextlib.suppress(StoreUnavailable):  # the next write has to say so, too
                partition._store.flush(wait=True)
    except StoreUnavailable:
        sys.exit(75 if partition.head.journal_offset < len(log.records) else 1)
    except StoreCorrupt:
        sys.exit(2)


async def test_a_disk_that_takes_no_more_is_not_taken_for_damage(
    tmp_path: Path, open_partition: Open
) -> None:
    source, log = Source(), FileLog(tmp_path / "journal")
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await run_to_end(owner, source)
    child = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.state.test_recovery", str(tmp_path)],
        cwd=ROOT,
        check=False,
    )
    assert child.returncode == 75
    partition = open_partition()  # the disk has room again
    assert len(log.records) // 2 <= partition.head.journal_offset < len(log.records)
    check(partition, source)
    await recover(partition, log)
    assert content(partition) == content(owner.partition)


if __name__ == "__main__":
    _fill(Path(sys.argv[1]))
