"""The workers of a run, each with connections of its own, and the supervisor that starts again what ends."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from streams.config import Settings
from tests.chaos.network import Link
from tests.harness.workers import WorkerHandle

DISK_BYTES = 192 << 20
STOP_DEADLINE_S = 40.0
INSPECT = f"{Path(__file__).with_name('inspect')}{os.pathsep}{Path(__file__).parents[2]}"
SUPERVISE_S = 0.5
CLOCK_AHEAD = {"PYTHONPATH": INSPECT, "CHAOS_CLOCK_SHIFT_S": "86400"}
CLOCK_BEHIND = {"PYTHONPATH": INSPECT, "CHAOS_CLOCK_SHIFT_S": "-86400"}


class Ended(NamedTuple):
    """A worker process that ended by itself."""

    worker: str
    at_s: float
    status: int
    last_line: str


class Member:
    """One worker: its process, its proxy, and what is wanted of it."""

    def __init__(self, settings: Settings, number: int, folder: Path, link: Link) -> None:
        own = settings.model_copy(update={"bootstrap_servers": link.address})
        self.handle = WorkerHandle(own, f"w{number + 1}", folder)
        self.link = link
        self.wanted = False
        self.lock = asyncio.Lock()
        self.extra: dict[str, str] = {}
        self.is_mounted = False

    @property
    def name(self) -> str:
        """Its worker_id."""
        return self.handle.name

    @property
    def data_dir(self) -> Path:
        """Its data folder."""
        return self.handle.settings.data_dir

    def start(self) -> None:
        """Start the process if it does not run."""
        self.wanted = True
        if not self.handle.running:
            self.handle.start({"PYTHONPATH": INSPECT} | self.extra)

    async def stop(self) -> int:
        """SIGTERM; the exit status. One that does not end says where it waits, in its log, and is killed."""
        process = self.handle.process
        if process is None:
            return 0
        self.handle.signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(process.wait, STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            tail = self.handle.tail(20)
            self.handle.signal(signal.SIGUSR1)
            await asyncio.sleep(1)
            self.handle.kill()
            raise AssertionError(
                f"{self.name} did not end within {STOP_DEADLINE_S:.0f} s of SIGTERM\n{tail}"
            ) from None

    def mount_disk(self) -> bool:
        """Give it a small disk of its own; False where mounting is not allowed."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.data_dir)],
            capture_output=True,
            check=False,
        )
        self.is_mounted = done.returncode == 0
        return self.is_mounted

    def unmount_disk(self) -> None:
        """Give the disk back, with what is on it."""
        if self.is_mounted:
            subprocess.run(["umount", str(self.data_dir)], capture_output=True, check=False)
            self.is_mounted = False


class Crew:
    """All workers; an async context manager that supervises them."""

    def __init__(self, settings: Settings, folder: Path, links: list[Link]) -> None:
        self.members = [Member(settings, n, folder, link) for n, link in enumerate(links)]
        self.ended: list[Ended] = []
        self._began_s = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Crew":
        self._task = asyncio.create_task(self._supervise())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for member in self.members:
            member.handle.kill()
            member.unmount_disk()

    async def _supervise(self) -> None:
        while True:
            await asyncio.sleep(SUPERVISE_S)
            for member in self.members:
                if member.wanted and not member.handle.running and not member.lock.locked():
                    self.note_end(member)
                    member.start()

    def note_end(self, member: Member) -> None:
        """Note how a process ended that nobody ended."""
        process = member.handle.process
        status = 0 if process is None else process.returncode or 0
        tail = member.handle.tail(1).strip()
        self.ended.append(Ended(member.name, round(time.monotonic() - self._began_s, 1), status, tail))

    def running(self) -> list[Member]:
        """Members that are wanted."""
        return [member for member in self.members if member.wanted]

    @contextlib.asynccontextmanager
    async def hold_all(self) -> AsyncIterator[None]:
        """Hold every member, in order."""
        async with contextlib.AsyncExitStack() as stack:
            for member in self.members:
                await stack.enter_async_context(member.lock)
            yield

    def heal(self) -> None:
        """Everything as it should be: connections pass, nobody is stopped, two workers at least run."""
        for member in self.members:
            member.link.set("pass")
            member.handle.resume()
        for member in self.members[:2]:
            member.wanted = True
