"""Large batches are computed elsewhere, with the same bytes, also after a process was killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.allocations import Allocation, encode_allocation
from streams.allocator.compute import Computed, Failure, Job, Stamp, compute, inputs_of
from streams.allocator.counts_state import ArmCounts
from streams.allocator.pool import DIRECT_MAX_ARMS, ComputePool
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward


def jobs(n: int) -> list[Job]:
    record = ExperimentRecord(
        experiment_id="e",
        revision=1,
        status="live",
        arms=(Arm(arm_id="a"), Arm(arm_id="b")),
        control="a",
        versions=(Counting(version=1, effective_from_ms=0, reward=Reward(metric="click")),),
    )
    return [
        Job(
            inputs_of(record, hour * 3_600_000, {"a": ArmCounts(100, hour, hour * 10**6, 0)}, None),
            Stamp(0, "interval", 1),
        )
        for hour in range(n)
    ]


def encoded(found: list[Computed | Failure]) -> list[bytes]:
    return [each.raw for each in found if isinstance(each, Computed)]


def tables(work: list[Job]) -> list[Allocation]:
    return [each for each in compute(work) if isinstance(each, Allocation)]


@pytest.fixture
def pool() -> Iterator[ComputePool]:
    pool = ComputePool(max_workers=1)
    yield pool
    pool.close()


async def test_a_small_batch_starts_no_process(pool: ComputePool) -> None:
    few = jobs(DIRECT_MAX_ARMS // 2)
    assert encoded(await pool.compute(few)) == [encode_allocation(each) for each in tables(few)]
    assert not pool.started


async def test_a_large_batch_gives_the_same_bytes_also_after_its_process_was_killed(
    pool: ComputePool,
) -> None:
    many = jobs(90)
    expected = [encode_allocation(each) for each in tables(many)]
    assert encoded(await pool.compute(many)) == expected
    assert pool.started
    (child,) = multiprocessing.active_children()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    assert encoded(await pool.compute(many)) == expected


async def test_results_give_way_to_allocations(pool: ComputePool) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    nice = ComputePool(max_workers=1, niceness=7)
    try:
        assert await pool.run(os.getpriority, os.PRIO_PROCESS, 0) == own
        assert await nice.run(os.getpriority, os.PRIO_PROCESS, 0) == min(own + 7, 19)
    finally:
        nice.close()


def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, multiprocessing\n"
        "from streams.allocator.pool import ComputePool\n"
        "from tests_jobs import jobs\n"
        "async def main():\n"
        "    await ComputePool(max_workers=1).compute(jobs(90))\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    (tmp_path / "tests_jobs.py").write_text(Path(__file__).read_text())
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
        deadline_s = time.monotonic() + 10
        while is_alive(child) and time.monotonic() < deadline_s:
            time.sleep(0.02)  # between two looks
        assert not is_alive(child)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
