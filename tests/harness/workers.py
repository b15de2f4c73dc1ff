"""Workers as real processes: start, stop, kill, pause, and ask what they say of themselves."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from streams.config import Settings
from streams.embedded.probe import free_port

READY_DEADLINE_S = 90.0
POLL_S = 0.05


async def until(
    condition: Callable[[], Awaitable[Any]], *, deadline_s: float, what: str, poll_s: float = POLL_S
) -> Any:
    """Poll until the condition is true; its value. AssertionError with ``what`` after the deadline."""
    end = time.monotonic() + deadline_s
    while not (value := await condition()):
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        await asyncio.sleep(poll_s)
    return value


def environment(settings: Settings) -> dict[str, str]:
    """Environment variables that give a process these settings."""
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    result: dict[str, str] = {}
    for name, value in changed.items():
        if isinstance(value, dict):
            result |= {f"BANDIT_{name.upper()}__{k.upper()}": str(v) for k, v in value.items()}
        else:
            result[f"BANDIT_{name.upper()}"] = str(value)
    return result


class WorkerHandle:
    """One worker process; may be started again after it ended.

    Parameters
    ----------
    settings
        Settings of the installation; id, folder and port are this worker's own.
    name
        Its worker_id.
    folder
        Where its data folder and its log are.
    """

    def __init__(self, settings: Settings, name: str, folder: Path, *, roles: str = "join,allocator") -> None:
        self.name = name
        self.roles = roles
        self.settings = settings.model_copy(
            update={
                "worker_id": name,
                "data_dir": folder / name,
                "web_host": "127.0.0.1",
                "web_port": free_port(),
            }
        )
        self.log_path = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, extra: Mapping[str, str] | None = None) -> None:
        """Start the process."""
        assert self.process is None or self.process.poll() is not None
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import sys; from streams.cli import main; sys.exit(main())",
                    "worker",
                    "--roles",
                    self.roles,
                ],
                env=os.environ | environment(self.settings) | dict(extra or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def running(self) -> bool:
        """Whether the process lives (a paused one does)."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the process lives."""
        if self.running and self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10)

    def pause(self) -> None:
        """SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    async def stop(self, deadline_s: float = 40.0) -> int:
        """SIGTERM, and wait; the exit status. A process that does not end in time is an error."""
        if self.process is None:
            return 0
        self.signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self.process.wait, deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{self.name} did not end within {deadline_s} s of SIGTERM\n{self.tail()}"
            ) from None

    async def ready(self) -> bool:
        """Whether /readyz says so."""
        return (await self.get("readyz"))[0] == 200

    async def wait_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        """Wait until it is ready; an AssertionError with the end of its log if it is not, or ends."""

        async def condition() -> bool:
            assert self.running, f"{self.name} ended\n{self.tail()}"
            return await self.ready()

        try:
            await until(condition, deadline_s=deadline_s, what=f"{self.name} ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(await self.get('readyz'))[1]}\n{self.tail()}") from None

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page; (0, "") if nothing answers."""
        url = f"http://127.0.0.1:{self.settings.web_port}/{path}"
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
                session.get(url) as r,
            ):
                return r.status, await r.text()
        return 0, ""

    def tail(self, lines: int = 40) -> str:
        """Return the end of its log."""
        with contextlib.suppress(OSError):
            text = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
            return "\n".join(f"  {self.name} | {line}" for line in text[-lines:])
        return ""
