"""The database: opening, closing, damage, and being a prefix of its journal."""

import multiprocessing
import os
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from streams.state.errors import (
    JournalGap,
    JournalStartsInTheMiddle,
    JournalVersionError,
    StoreCorrupt,
    StoreLocked,
    StoreUnavailable,
)
from streams.state.journal import Claim, Head, encode
from streams.state.partition import Applied, Partition
from streams.state.recovery import recover
from streams.state.store import StoreOptions
from tests.state.conftest import Open
from tests.state.doubles import MemoryLog, Source, check, content, make_owner, run_to_end, take


async def written_log(open_partition: Open, *, n: int = 40, name: str = "writer") -> tuple[MemoryLog, Source]:
    """Journal of a run over all of a source."""
    source, log = Source(n=n), MemoryLog()
    owner = make_owner(open_partition(name), log)
    await take(owner, source)
    await run_to_end(owner, source)
    owner.partition.close()
    return log, source


def set_aside(folder: Path, name: str) -> list[Path]:
    """Folders set aside of one partition, oldest first."""
    return sorted(folder.glob(f"{name}.set-aside-*"))


def test_an_empty_partition(open_partition: Open) -> None:
    partition = open_partition()
    assert partition.empty
    assert not partition.complete
    assert partition.head == Head()
    assert partition.persisted_offset is None
    assert partition.get_units([]) == []
    assert partition.get_units([b"a", b"b"]) == [None, None]
    assert list(partition.units()) == []
    assert partition.pending_verdicts() == []


async def test_it_closes_for_real_and_opens_with_the_same_content(open_partition: Open) -> None:
    log, source = await written_log(open_partition)
    partition = open_partition()
    await recover(partition, log)
    before = content(partition)
    scan = partition.units()
    next(scan)  # a scan half read must not keep the lock
    partition.close()
    partition.close()
    assert partition.closed
    with pytest.raises(StoreUnavailable, match="closed"):
        partition.get_units([b"a"])
    again = open_partition()
    assert content(again) == before
    assert again.persisted_offset == len(log.records) - 1
    check(again, source)


def _hold(path: Path, pipe: Connection) -> None:
    partition = Partition.open(path, name="held")
    pipe.send("open")
    pipe.recv()
    partition.close()


def test_two_processes_on_one_folder_is_a_clear_error(tmp_path: Path, open_partition: Open) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path / "p", theirs))
    process.start()
    try:
        assert ours.poll(60)
        assert ours.recv() == "open"
        with pytest.raises(StoreLocked, match="Operator action: stop the other worker, or give each worker"):
            open_partition()
    finally:
        ours.send("close")
        process.join(60)
    open_partition()


def test_twice_in_one_process_is_the_same_error(open_partition: Open) -> None:
    open_partition()
    with pytest.raises(StoreLocked):
        open_partition()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_not_taken_for_damage(tmp_path: Path, open_partition: Open) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreUnavailable, match="Operator action"):
            open_partition()
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_place_of_the_folder_is_not_taken_for_damage(tmp_path: Path, open_partition: Open) -> None:
    (tmp_path / "p").write_text("a file")
    with pytest.raises(StoreUnavailable):
        open_partition()
    assert (tmp_path / "p").read_text() == "a file"


async def test_records_seen_again_are_left_alone_and_a_gap_is_refused(open_partition: Open) -> None:
    log, _ = await written_log(open_partition)
    partition = open_partition()
    for offset in range(5):
        assert partition.apply(offset, log.records[offset]).accepted
    before = content(partition)
    assert partition.apply(3, log.records[3]) == Applied(False, "foreign", "already_applied")
    with pytest.raises(JournalGap, match=r"journal\[0\]: record 6 follows 4"):
        partition.apply(6, log.records[6])
    assert content(partition) == before
    assert partition.head.journal_offset == 5


async def test_foreign_records_move_the_offset_and_nothing_else(open_partition: Open) -> None:
    log, source = await written_log(open_partition)
    for at in (0, 3, 7, len(log.records)):
        log.records.insert(at, b"somebody else's")
    partition = open_partition()
    # A claim is named by its offset: foreign records before it make every batch of the old numbering void,
    # so only what comes behind the last insertion point may be compared.
    assert partition.apply(0, log.records[0]) == Applied(False, "foreign", "foreign")
    assert partition.head.journal_offset == 1
    assert not partition.empty
    assert partition.complete
    partition.close()
    assert not open_partition().empty
    assert source.records


@pytest.mark.parametrize("offset", [1, 7])
async def test_an_empty_database_does_not_start_in_the_middle(open_partition: Open, offset: int) -> None:
    log, _ = await written_log(open_partition)
    partition = open_partition()
    with pytest.raises(
        JournalStartsInTheMiddle, match=rf"at offset {offset}, .* Operator action: bring back"
    ):
        partition.apply(offset, log.records[offset])
    assert partition.empty
    log.start = offset
    with pytest.raises(JournalStartsInTheMiddle):
        await recover(partition, log)


async def test_recreated_truncated_and_trimmed_journals_are_noticed(
    open_partition: Open, tmp_path: Path
) -> None:
    log, _ = await written_log(open_partition)
    partition = open_partition()
    await recover(partition, log)
    assert await partition.verify(log) is None

    truncated = MemoryLog(log.records[:-1])
    recreated = MemoryLog([*log.records[:-1], encode(Claim(owner="z", generation=1, written_at_ms=1))])
    for other, found in ((truncated, "truncated"), (recreated, "recreated")):
        resets: list[str] = []
        copy = open_partition(f"copy-{found}", on_reset=resets.append)
        await recover(copy, log)
        assert await copy.compare(other) == found
        assert copy.persisted_offset == len(log.records) - 1
        assert await copy.verify(other) == found
        assert resets == [found]
        assert content(copy) == {}
        assert len(set_aside(tmp_path, f"copy-{found}")) == 1
        await recover(copy, other)
        assert copy.head.journal_offset == len(other.records)


async def test_a_copy_that_cannot_be_rebuilt_is_not_set_aside(open_partition: Open, tmp_path: Path) -> None:
    """All of the journal was deleted by somebody: the copy may be the last there is."""
    log, _ = await written_log(open_partition)
    partition = open_partition()
    await recover(partition, log)
    before = content(partition)
    for start in (len(log.records), len(log.records) - 1):
        log.start = start
        if start == len(log.records):
            with pytest.raises(JournalStartsInTheMiddle):
                await partition.verify(log)
        else:
            assert await partition.verify(log) is None
    assert content(partition) == before
    assert set_aside(tmp_path, "p") == []


async def test_a_copy_older_than_a_trimmed_journal_is_rebuilt_from_the_sweep(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    old = open_partition("old")
    await recover(old, log)
    await run_to_end(owner, source)
    await owner.sweep_step(max_bytes=10**6)
    assert log.start > old.head.journal_offset
    assert await old.compare(log) == "trimmed"
    await recover(old, log)
    assert old.base == log.start
    assert old.complete
    assert content(old) == content(owner.partition)


async def test_only_the_newest_folders_set_aside_are_kept(open_partition: Open, tmp_path: Path) -> None:
    log, _ = await written_log(open_partition)
    partition = open_partition(options=StoreOptions(set_aside_keep=2))
    for _ in range(4):
        partition.reset("test")
        await recover(partition, log)
    aside = set_aside(tmp_path, "p")
    assert len(aside) == 2
    shutil.copytree(aside[-1], tmp_path / "looked-at")
    looked_at = open_partition("looked-at")
    assert content(looked_at) == content(partition)


def _files(path: Path, suffix: str) -> list[Path]:
    found = sorted(path.glob(f"*{suffix}"), key=lambda file: file.stat().st_size)
    assert found
    return found


async def _closed_copy(open_partition: Open, log: MemoryLog) -> None:
    partition = open_partition()
    await recover(partition, log)
    partition.close()


@pytest.mark.parametrize("damage", ["truncated_sst", "manifest", "no_current"])
async def test_damage_found_on_open_sets_aside_and_rebuilds(
    open_partition: Open, tmp_path: Path, damage: str
) -> None:
    log, source = await written_log(open_partition)
    await _closed_copy(open_partition, log)
    path = tmp_path / "p"
    if damage == "truncated_sst":
        sst = _files(path, ".sst")[-1]
        sst.write_bytes(sst.read_bytes()[:-50])
    elif damage == "manifest":
        next(path.glob("MANIFEST-*")).write_bytes(b"garbage" * 20)
    else:
        (path / "CURRENT").unlink()
    resets: list[str] = []
    partition = open_partition(on_reset=resets.append)
    assert resets == ["corrupt"]
    assert partition.empty
    assert len(set_aside(tmp_path, "p")) == 1
    await recover(partition, log)
    check(partition, source)


async def test_flipped_bytes_after_an_unclean_end_are_found_on_open(
    open_partition: Open, tmp_path: Path
) -> None:
    log, source = await written_log(open_partition)
    await _closed_copy(open_partition, log)
    _flip(_files(tmp_path / "p", ".sst")[-1])
    (tmp_path / "p.clean").unlink()
    resets: list[str] = []
    partition = open_partition(on_reset=resets.append)
    assert resets == ["corrupt"]
    await recover(partition, log)
    check(partition, source)


async def test_flipped_bytes_after_a_clean_end_are_found_when_they_are_read(
    open_partition: Open, tmp_path: Path
) -> None:
    log, source = await written_log(open_partition)
    await _closed_copy(open_partition, log)
    _flip(_files(tmp_path / "p", ".sst")[-1])
    with pytest.raises(StoreCorrupt):  # noqa: PT012 - the open reads the head, which may be in the block
        partition = open_partition()
        if not partition.empty:
            list(partition.scan(b""))
        raise StoreCorrupt("found on open")
    partition = open_partition("fresh")
    await recover(partition, log)
    check(partition, source)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 0xFF
    path.write_bytes(bytes(data))


async def test_a_scan_does_not_end_quietly_at_a_damaged_block(open_partition: Open, tmp_path: Path) -> None:
    """rocksdict's own iterators do."""
    path = tmp_path / "big"
    database = Rdict(str(path), Options(raw_mode=True))
    for i in range(30_000):
        database[b"u%08d" % i] = os.urandom(50)
    database.flush()
    database.close()
    (tmp_path / "big.clean").touch()
    sst = _files(path, ".sst")[-1]
    data = bytearray(sst.read_bytes())
    data[len(data) // 2] ^= 0xFF
    sst.write_bytes(bytes(data))
    partition = open_partition("big")
    with pytest.raises(StoreCorrupt, match="checksum"):
        list(partition.units())


async def test_a_database_of_a_newer_format_is_refused_and_left_alone(
    open_partition: Open, tmp_path: Path
) -> None:
    log, _ = await written_log(open_partition)
    await _closed_copy(open_partition, log)
    database = Rdict(str(tmp_path / "p"), Options(raw_mode=True))
    local = database[b"l"]
    assert local is not None
    database[b"l"] = local.replace(b"\xa6format\x01", b"\xa6format\x02")
    database.close()
    with pytest.raises(JournalVersionError, match="store has format 2, this worker knows 1"):
        open_partition()
    assert set_aside(tmp_path, "p") == []


async def test_damage_met_during_recovery_sets_aside_and_starts_over(
    open_partition: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, source = await written_log(open_partition)
    partition = open_partition()
    apply = Partition.apply
    calls = iter(range(100))

    def damaged_once(self: Partition, offset: int, data: bytes) -> Applied:
        if next(calls) == 5:
            raise StoreCorrupt("block checksum mismatch")
        return apply(self, offset, data)

    monkeypatch.setattr(Partition, "apply", damaged_once)
    progress: list[int] = []
    await recover(partition, log, on_progress=progress.append)
    check(partition, source)
    assert progress[-1] == 0
