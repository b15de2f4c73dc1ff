"""A worker of this product as a process on a core of its own, and what it says of itself."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

from bench.contestant import CONTESTANT_CORE, Failed, cpu_seconds, peak_bytes, spawn, tail
from streams.config import Settings, TopicName
from streams.embedded.probe import free_port
from streams.topics import admin_client, create_topics

POLL_S = 0.05
DRAIN_POLL_S = 2.0  # a page of metrics costs the worker 10 ms
STOP_DEADLINE_S = 60.0
START = "import sys; from streams.cli import main; sys.exit(main())"
OWN_TOPICS: tuple[TopicName, ...] = ("journal", "counts", "allocation-log", "allocations", "dead-letters")


def settings_of(bootstrap: str, prefix: str, partitions: int, **changes: object) -> Settings:
    """Every default but the address, the topics' prefix and counts, and one replica on the one broker."""
    values: dict[str, Any] = {
        "bootstrap_servers": bootstrap,
        "topic_prefix": prefix,
        "group": f"{prefix}workers",
        "partitions": partitions,
        "replication_factor": 1,
        "min_insync_replicas": 1,
    }
    return Settings.model_validate(values | changes)


async def fresh_topics(settings: Settings) -> None:
    """Make the topics that the product itself writes anew."""
    async with admin_client(settings) as admin:
        names = {settings.topic(name) for name in OWN_TOPICS}
        await admin.delete_topics(list(names))
        while names & set(await admin.list_topics()):  # noqa: ASYNC110 - Kafka tells of it only when asked
            await asyncio.sleep(POLL_S)
    await create_topics(settings)


class Worker:
    """One worker process, started as an operator starts it; a context manager that ends it.

    Parameters
    ----------
    settings
        Of the installation; folder, name and port are this worker's own.
    folder
        Where its log and its data folder are.
    number
        0, 1, ...: names it, and says which core it gets, the first one beside the broker's.
    roles
        As for ``bandit-streams worker``.
    changes
        Further environment variables.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        number: int = 0,
        *,
        roles: str = "join",
        changes: dict[str, str] | None = None,
    ) -> None:
        self.data = folder / f"data-{number}"
        self._log = folder / f"worker-{number}.log"
        self._port = free_port()
        own = {
            "worker_id": f"worker-{number}",
            "data_dir": self.data,
            "web_host": "127.0.0.1",
            "web_port": self._port,
        }
        found = settings.model_copy(update=own).model_dump(mode="json", exclude_defaults=True)
        environment = {f"BANDIT_{name.upper()}": str(value) for name, value in found.items()}
        with self._log.open("wb") as output:
            self._process = spawn(
                [sys.executable, "-c", START, "worker", "--roles", roles],
                core=CONTESTANT_CORE + number,
                env=os.environ | environment | (changes or {}),
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds so far."""
        return cpu_seconds(self.pid)

    @property
    def peak_bytes(self) -> int:
        """Greatest resident memory so far."""
        return peak_bytes(self.pid)

    @property
    def log_tail(self) -> str:
        """End of its log."""
        return tail(self._log)

    async def until_ready(self) -> None:
        """Wait until /readyz says so; the caller sets the deadline."""
        while not await self._page("readyz"):  # noqa: ASYNC110 - it tells only when asked
            await asyncio.sleep(POLL_S)

    async def metric(self, name: str) -> float:
        """Sum of all series of a metric; not a number where the worker does not answer."""
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", await self._page("metrics"), re.MULTILINE)
        return sum(map(float, found)) if found else float("nan")

    async def stop(self) -> None:
        """End it in order, so that everything counted is published."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.to_thread(self._process.wait, STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"no end within {STOP_DEADLINE_S:.0f} s of SIGTERM: {self.log_tail}") from None
        if status:
            raise Failed(f"the worker ended with status {status}: {self.log_tail}")

    async def _page(self, path: str) -> str:
        """Body of a page; empty unless it answers 200."""
        if self._process.poll() is not None:
            raise Failed(f"the worker ended: {self.log_tail}")
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
                session.get(f"http://127.0.0.1:{self._port}/{path}") as response,
            ):
                return await response.text() if response.status == 200 else ""
        except (aiohttp.ClientError, OSError, TimeoutError):
            return ""


@asynccontextmanager
async def within(deadline_s: float, worker: Worker) -> AsyncIterator[None]:
    """Give what is inside so much time.

    Raises
    ------
    Failed
        With the end of the worker's log, if it is not done by then.
    """
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError:
        raise Failed(f"not done within {deadline_s:.0f} s: {worker.log_tail}") from None


async def until_drained(workers: Sequence[Worker], n_events: int) -> None:
    """Wait until so many events are counted, and the counts published; the caller sets the deadline."""

    async def total(metric: str) -> float:
        return sum([await each.metric(metric) for each in workers])

    while True:
        if await total("bandit_events_total") >= n_events and not await total("bandit_counts_dirty_cells"):
            return
        await asyncio.sleep(DRAIN_POLL_S)
