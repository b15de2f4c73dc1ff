"""A process that dies, at every step of a batch, and the one that comes after it.

The child process does some steps and kills itself with SIGKILL at the point that is asked for, or is killed
while it writes to RocksDB. Whatever it leaves behind, the next process must end with exactly the state of a
run without a crash.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streams.state.journal import BatchRecord, Claim, Record, encode
from streams.state.outcomes import Swept
from streams.state.partition import Partition, StoreOptions
from streams.state.recovery import recover
from tests.state.conftest import Open
from tests.state.doubles import (
    TOPICS,
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
POINTS = ("before_produce", "after_produce", "after_ack", "after_write")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _child(folder: Path, point: str, batches: int, flushes: bool) -> None:
    """Claim, commit some batches, die in the next one."""
    source = Source()
    log = FileLog(folder / "journal")
    partition = Partition.open(folder / "p", name="journal[0]")
    owner = make_owner(partition, log)
    await take(owner, source)
    for i in range(batches):
        await commit_next(owner, source, TOPICS[i % 2], 5)
    if flushes:
        partition._store.flush(wait=True)
    if point == "before_produce":
        log.before_append = _die
    elif point == "after_produce":  # in the journal, the acknowledgement not yet here
        log.after_append = _die
    elif point == "after_ack":
        partition.apply = lambda *_: _die()  # type: ignore[method-assign,assignment]  # dies
    else:
        apply = partition.apply

        def apply_and_die(offset: int, data: bytes, record: Record | None) -> None:
            apply(offset, data, record)
            _die()

        partition.apply = apply_and_die  # type: ignore[method-assign,assignment] # dies
    await commit_next(owner, source, TOPICS[batches % 2], 5)
    raise AssertionError("should be dead")


def _spawn(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.state.test_crash", *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize("batches", [0, 3])
@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_a_point_of_a_batch(
    tmp_path: Path, open_partition: Open, point: str, batches: int, flushes: bool
) -> None:
    with _spawn("point", str(tmp_path), point, str(batches), "flush" if flushes else "") as child:
        assert await asyncio.to_thread(child.wait, 60) == -signal.SIGKILL
    source = Source()
    log = FileLog(tmp_path / "journal")
    happened = point != "before_produce"
    partition = open_partition()
    records = 3 + batches + happened  # a claim, two first positions
    assert len(log.records) == records
    assert partition.head.journal_offset == (3 + batches if flushes else 0)
    owner = make_owner(partition, log, name="next")
    await take(owner, source, generation=2)
    assert sum(partition.head.positions.values()) == 5 * (batches + happened)
    check(partition, source)
    await run_to_end(owner, source)
    await assert_like_a_run_without_a_crash(open_partition, partition, source)
    copy = open_partition("copy")
    await recover(copy, log)
    assert content(copy) == content(partition)


async def assert_like_a_run_without_a_crash(
    open_partition: Open, partition: Partition, source: Source
) -> None:
    calm = make_owner(open_partition("calm"), MemoryLog())
    await take(calm, source)
    await run_to_end(calm, source)
    check(partition, source)
    assert dict(partition.units()) == dict(calm.partition.units())
    assert dict(partition.cells()) == dict(calm.partition.cells())
    assert partition.head.totals == calm.partition.head.totals
    assert partition.head.positions == calm.partition.head.positions
    assert partition.head.maxima == calm.partition.head.maxima


def _big_log(path: Path, n_units: int, value_bytes: int) -> None:
    """Journal with one claim and batches that rewrite all units; takes RocksDB a while to write."""
    log = FileLog(path)
    log._write(encode(Claim(owner="w", generation=1, written_at_ms=1, journal_id=1)))
    skip = {"journal_id": 1, "claim": 0, "pending": 0, "dead_letters_through": 0, "topic": "exposures"}
    log._write(encode(BatchRecord(**skip, seq=1, flag="skip", start=-1, next=0)))  # type: ignore[arg-type] # mixed
    for i in range(12):
        units: dict[bytes, bytes | None] = {
            b"%06d" % unit: b"%06d" % i * (value_bytes // 6) for unit in range(n_units)
        }
        log._write(
            encode(BatchRecord(**skip, seq=2 + i, flag="normal", start=i, next=i + 1, units=units))  # type: ignore[arg-type] # mixed
        )


def _apply_all(folder: Path) -> None:
    log = FileLog(folder / "journal")
    options = StoreOptions(write_buffer_bytes=2**20)  # less than a batch
    partition = Partition.open(folder / "p", name="journal[0]", options=options)
    sys.stdout.write("writing\n")
    sys.stdout.flush()
    for offset in range(partition.head.journal_offset, len(log.records)):
        partition.apply(offset, log.records[offset])
    sys.stdout.write("done\n")
    sys.stdout.flush()
    signal.pause()


def _assert_prefix(partition: Partition, n_units: int, value_bytes: int) -> int:
    """Every unit has the value of the very batch that the head says is the last."""
    last = partition.head.journal_offset - 3
    units = dict(partition.units())
    if last < 0:
        assert units == {}
        return last
    assert len(units) == n_units
    assert set(units.values()) == {b"%06d" % last * (value_bytes // 6)}
    return last


async def test_killed_while_rocksdb_writes(tmp_path: Path, open_partition: Open) -> None:
    """SIGKILL at many moments of a stream of large writes: each batch is there whole or not at all."""
    n_units, value_bytes = 4_000, 600
    _big_log(tmp_path / "journal", n_units, value_bytes)
    found: set[int] = set()
    for kill_after_ms in (0, 3, 8, 15, 25, 40, 60, 90):
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        with _spawn("apply", str(tmp_path)) as child:
            assert child.stdout is not None
            assert await asyncio.to_thread(child.stdout.readline) == "writing\n"
            until = time.perf_counter() + kill_after_ms / 1000
            while time.perf_counter() < until:
                pass
            child.send_signal(signal.SIGKILL)
            assert await asyncio.to_thread(child.wait, 60) == -signal.SIGKILL
        partition = open_partition()
        found.add(_assert_prefix(partition, n_units, value_bytes))
        log = FileLog(tmp_path / "journal")
        await recover(partition, log)
        assert _assert_prefix(partition, n_units, value_bytes) == 11
        partition.close()
    assert len(found) > 1, f"all kills met the same moment: {found}"


async def test_what_stands_on_the_disk_is_a_prefix_at_every_moment(
    tmp_path: Path, open_partition: Open
) -> None:
    """Copies of the folder, made between batches, are what a machine that stops then would leave."""
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("whole"), log)
    await take(owner, source)
    flushed: list[int] = [0]
    for i in range(10):
        await commit_next(owner, source, TOPICS[i % 2], 5)
        if i % 3 == 1:
            owner.partition._store.flush(wait=True)
        flushed.append(owner.partition.head.journal_offset if i % 3 == 1 else flushed[-1])
        shutil.copytree(tmp_path / "whole", tmp_path / f"copy-{i}")
    for i, head in enumerate(flushed[1:]):
        partition = open_partition(f"copy-{i}")
        assert partition.head.journal_offset == head
        check(partition, source)
        assert await partition.compare(log) is None
        await recover(partition, log)
        assert content(partition) == content(owner.partition)
        partition.close()


def _in_memory(partition: Partition) -> int:
    """Entries that are on no disk yet."""
    db = partition._store._opened()
    names = ("num-entries-active-mem-table", "num-entries-imm-mem-tables", "num-immutable-mem-table")
    return sum(db.property_int_value(f"rocksdb.{name}") or 0 for name in names)


async def test_a_sweep_that_ends_leaves_nothing_in_memory_alone(tmp_path: Path, open_partition: Open) -> None:
    """The journal before a complete sweep is deleted: a copy older than that would have to be rebuilt."""
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("whole"), log)
    await take(owner, source)
    for i in range(6):
        await commit_next(owner, source, TOPICS[i % 2], 5)
    swept = await owner.sweep_step(max_bytes=2**20)
    assert isinstance(swept, Swept)
    assert swept.completed
    assert log.start > 0
    deadline = time.monotonic() + 30
    while _in_memory(owner.partition):
        assert time.monotonic() < deadline, "what the sweep found is still in memory alone"
    shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    partition = open_partition("copy")
    assert partition.head.journal_offset >= log.start
    assert await partition.compare(log) is None
    await recover(partition, log)
    assert content(partition) == content(owner.partition)


if __name__ == "__main__":
    if sys.argv[1] == "point":
        asyncio.run(_child(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), bool(sys.argv[5])))
    else:
        _apply_all(Path(sys.argv[2]))
