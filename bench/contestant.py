"""What a contestant is, and how one is run: a process of its own on one core, the broker on another."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bench.workload import Counts, Workload

BROKER_CORE, CONTESTANT_CORE = 0, 1
READ_LINE_BYTES = 1 << 26


class Unavailable(Exception):
    """The contestant cannot run here; the message says why."""


class Failed(Exception):
    """The contestant did not come to a result; the message says what it did instead."""


class Arena(NamedTuple):
    """Where all contestants run: the broker, the topics that hold the work, and what it counts to."""

    bootstrap: str
    topics: dict[str, str]  # exposures, conversions -> full name
    work: Workload
    n_events: int
    folder: Path
    broker_data: Path
    prefix: str
    deadline_s: float


class Run(NamedTuple):
    """What one run of one contestant came to.

    Attributes
    ----------
    seconds
        From the first record's processing to the last one's results being stored.
    cpu_seconds
        CPU of the process in that time, all threads.
    peak_bytes
        Greatest resident memory of the process.
    counts
        What it counted; None for one that only reads.
    state_bytes, journal_bytes, journal_disk_bytes
        Local database; what was sent to the journal or changelog; the same as it lies on the broker's disk.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    counts: Counts | None
    state_bytes: int = 0
    journal_bytes: int = 0
    journal_disk_bytes: int = 0


class Contestant(Protocol):
    """Something that can be given the work."""

    name: str
    settings: str
    """What was set, in a sentence."""

    async def run(self, arena: Arena, number: int) -> Run:
        """Process the whole work once, from nothing.

        Raises
        ------
        Unavailable
            If it cannot run on this machine.
        Failed
            If it crashed, or was not done in time.
        """
        ...


def can_pin() -> bool:
    """Whether processes can be pinned here: Linux with two cores or more."""
    return hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Let what is started inside run on one core only, where the machine can."""
    if not can_pin():
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def spawn(
    command: Sequence[str], *, core: int = CONTESTANT_CORE, **options: Any
) -> "subprocess.Popen[bytes]":
    """Start a contestant's process on its core."""
    with on_core(core % (os.cpu_count() or 1)):
        return subprocess.Popen(command, **options)


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far, user and system, all threads; from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """Greatest resident memory of a process so far; from /proc."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def disk_bytes(folder: Path, pattern: str = "**/*") -> int:
    """Size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def topic_disk_bytes(arena: Arena, pattern: str) -> int:
    """Size of a topic's segments on the broker's disk; ``pattern`` matches the topic's name."""
    return sum(path.stat().st_size for path in arena.broker_data.glob(f"**/{pattern}-[0-9]*/*.log"))


async def run_script(command: Sequence[str], arena: Arena, *, log: Path) -> Run:
    """Run a process that prints JSON lines: one when its clock starts, one with what it came to.

    The first has ``began``; the last has ``seconds`` and, unless it only reads, ``counts`` as a list of
    ``[experiment, arm, hour, trials, successes]``. CPU is taken from the system between the two.
    """
    with log.open("wb") as errors:
        process = spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    try:
        async with asyncio.timeout(arena.deadline_s):
            await asyncio.to_thread(_line, process, log)
            before_s = cpu_seconds(process.pid)
            done = await asyncio.to_thread(_line, process, log)
            used_s, peak = cpu_seconds(process.pid) - before_s, peak_bytes(process.pid)
    except TimeoutError:
        raise Failed(f"not done within {arena.deadline_s:.0f} s: {tail(log)}") from None
    finally:
        process.kill()
        process.wait()
    counts = done.get("counts")
    return Run(
        done["seconds"],
        used_s,
        peak,
        None if counts is None else {(e, a, h): [t, s] for e, a, h, t, s in counts if t or s},
        state_bytes=done.get("state_bytes", 0),
        journal_bytes=done.get("journal_bytes", 0),
    )


def _line(process: "subprocess.Popen[bytes]", log: Path) -> dict[str, Any]:
    if process.stdout is None:
        raise RuntimeError("no stdout")
    while line := process.stdout.readline(READ_LINE_BYTES):
        if line.startswith(b"{"):
            return dict(json.loads(line))
    raise Failed(f"the process ended without a result: {tail(log)}")


def tail(log: Path) -> str:
    """End of a process's log."""
    return log.read_text(errors="replace")[-3000:]


def script(module: str, arena: Arena, **more: Any) -> list[str]:
    """Command line of a Python contestant: a module that takes one JSON argument."""
    arguments = {
        "bootstrap": arena.bootstrap,
        "topics": arena.topics,
        "partitions": arena.work.partitions,
        "window_ms": arena.work.window_ms,
        "n_events": arena.n_events,
        **more,
    }
    return [sys.executable, "-m", module, json.dumps(arguments)]
