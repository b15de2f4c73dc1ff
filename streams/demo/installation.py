"""A small installation of the product for the demo: topics of its own, and a real worker process.

What: :class:`Installation` creates the topics under a prefix that nobody else uses, applies the definitions,
starts ``bandit-streams worker`` as a child process with the settings in its environment, and takes everything
away again.

Why a process: what is shown is the product as it is installed, not functions called side by side; the worker
shares nothing with the demo but Kafka.

Cost: seconds to start, most of them the worker's group joining.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from streams.config import CONFIG_VARIABLE, TOPIC_NAMES, Settings
from streams.errors import Stop
from streams.experiments.definition import ExperimentRecord
from streams.experiments.store import ExperimentStore
from streams.topics import admin_client, create_topics

__all__ = ["Installation", "MakeInstallation", "WorkerFailed", "demo_settings"]

DAY_MS: Final = 86_400_000
READY_DEADLINE_S: Final = 90.0
STOP_DEADLINE_S: Final = 30.0
_POLL_S: Final = 0.1
_ENDING_S: Final = 10.0
_LOG_TAIL_LINES: Final = 15
_HTTP_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_PASSED_ON: Final = (
    "bootstrap_servers",
    "topic_prefix",
    "partitions",
    "counts_partitions",
    "replication_factor",
    "min_insync_replicas",
    "group",
    "worker_id",
    "data_dir",
    "clock",
    "counts_flush_ms",
    "idle_after_ms",
    "sweep_interval_ms",
    "web_host",
    "web_port",
)


class WorkerFailed(Stop):
    """The worker process ended, or never became ready."""

    exit_code = 70


def demo_settings(base: Settings, *, bootstrap_servers: str, prefix: str, data_dir: Path) -> Settings:
    """Make the settings of one part of the demo.

    Parameters
    ----------
    base
        The person's own settings: security is taken from them.
    bootstrap_servers, prefix, data_dir
        Where Kafka is, what the topics' names begin with, where the worker keeps its state.
    """
    values: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers,
        "topic_prefix": prefix,
        "partitions": 4,
        "counts_partitions": 2,
        "replication_factor": 1,
        "min_insync_replicas": 1,
        "group": f"{prefix}workers",
        "worker_id": "demo-worker",
        "data_dir": data_dir,
        "clock": "stream",
        "counts_flush_ms": 50,
        "idle_after_ms": 0,  # watermarks move by events and markers alone, so that a run can be repeated
        "sweep_interval_ms": DAY_MS,  # the journal stays whole: the final check reads every verdict there
        "web_host": "127.0.0.1",
        "web_port": _free_port(),
    }
    return base.model_copy(update=values)


class Installation:
    """Topics, definitions and one worker; an asynchronous context manager.

    Parameters
    ----------
    settings
        From :func:`demo_settings`.
    records
        Experiments to apply.
    log_file
        Where the worker's output goes.
    remove_topics
        Whether to delete the topics at the end: for a broker that stays.
    config
        Settings file for the worker, which still takes from here what :func:`demo_settings` says.
    """

    def __init__(
        self,
        settings: Settings,
        records: Sequence[ExperimentRecord],
        *,
        log_file: Path,
        remove_topics: bool,
        config: Path | None = None,
    ) -> None:
        self.settings = settings
        self._records = records
        self.log_file = log_file
        self._remove_topics = remove_topics
        self._config = config
        self._log: IO[bytes] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        try:
            await create_topics(self.settings)
            async with ExperimentStore(self.settings) as store:
                for record in self._records:
                    await store.write(record)
            await self._start_worker()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def require_alive(self) -> None:
        """Raise if the worker has ended.

        Raises
        ------
        WorkerFailed
            With its exit status and the end of its log.
        """
        process = self._process
        if process is None or process.returncode is not None:
            status = "was not started" if process is None else f"ended with status {process.returncode}"
            raise WorkerFailed(
                f"the worker {status}; its last lines were:\n{self._log_tail()}",
                where=str(self.log_file),
                action="read the log; `bandit-streams doctor` checks the broker and the topics",
            )

    async def events_read(self) -> int:
        """Return how many source records the worker has counted, of any outcome, markers included.

        Raises
        ------
        WorkerFailed
            It does not answer any more.
        """
        url = f"http://127.0.0.1:{self.settings.web_port}/metrics"
        try:
            async with aiohttp.ClientSession(timeout=_HTTP_TIMEOUT) as session, session.get(url) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            await self._until_ended()  # it closes its port some time before it ends
            self.require_alive()
            raise WorkerFailed(
                f"the worker does not answer at {url}; its last lines were:\n{self._log_tail()}",
                where=str(self.log_file),
                action="read the log",
            ) from error
        return sum(
            int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "bandit_events_total" and sample.labels["outcome"] != "skipped"
        )

    async def _until_ended(self) -> None:
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ENDING_S):
                    await self._process.wait()

    async def _start_worker(self) -> None:
        self._log = self.log_file.open("wb")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys; from streams.cli import main; sys.exit(main())",
            "worker",
            env=os.environ | _environment(self.settings, self._config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C reaches the demo, which then stops the worker in order
        )
        url = f"http://127.0.0.1:{self.settings.web_port}/readyz"
        deadline = time.monotonic() + READY_DEADLINE_S
        async with aiohttp.ClientSession(timeout=_HTTP_TIMEOUT) as session:
            while not await _is_ready(session, url):
                self.require_alive()
                if time.monotonic() > deadline:
                    raise WorkerFailed(
                        f"not ready after {READY_DEADLINE_S:.0f} s; its last lines were:\n{self._log_tail()}",
                        where=str(self.log_file),
                        action=f"read the log; {url} says what it waits for",
                    )
                await asyncio.sleep(_POLL_S)

    async def _close(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_DEADLINE_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None
        await asyncio.to_thread(shutil.rmtree, self.settings.data_dir, ignore_errors=True)
        if self._remove_topics:
            await _delete_topics(self.settings)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
            return "\n".join(f"  | {line}" for line in lines[-_LOG_TAIL_LINES:])
        return "  | (no log)"


def _environment(settings: Settings, config: Path | None) -> dict[str, str]:
    """Return what the worker process must be told; the rest it reads where the demo read it."""
    told = {f"BANDIT_{name.upper()}": str(getattr(settings, name)) for name in _PASSED_ON}
    return told if config is None else told | {CONFIG_VARIABLE: str(config)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


MakeInstallation = Callable[[Sequence[ExperimentRecord]], Installation]
"""Makes an installation for the experiments of a part."""


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with session.get(url) as response:
            return response.status == 200
    return False


async def _delete_topics(settings: Settings) -> None:
    """Delete this installation's topics, and nothing else."""
    names = {settings.topic(name) for name in TOPIC_NAMES}
    async with admin_client(settings) as admin:
        present = sorted(names & set(await admin.list_topics()))
        if present:
            await admin.delete_topics(present)
