"""Health and metrics of a worker over HTTP: ``/metrics``, ``/livez`` and ``/readyz`` on one port.

What: the worker's parts say how they are in a `Health`; `WebServer` shows it. Ready: every named check is
ok, and nothing stalls. Live: the event loop runs, and everything that promised to beat did so within the
stall deadline. Answers are 200 or 503 with a JSON body that says for every check why not and what to do.

Why this way: readiness keeps traffic and roll-outs away while a worker recovers, and may be false for
long; liveness restarts the process, and must be false only where a restart helps. So a broker that is
away makes a worker not ready, never dead, and a partition that does not move with work before it makes it
both. The server runs in the worker's own event loop: when the loop hangs, the probe's time-out says so.
Nothing here is secret and nothing can be changed.

Cost: a request is O(checks + series); the loop monitor wakes twice a second.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

from streams.errors import ConfigError

__all__ = ["EVENT_LOOP", "START", "Check", "Health", "WebServer"]

log = logging.getLogger(__name__)

START = "start"
EVENT_LOOP = "event-loop"
TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class Check:
    """State of one thing; ``since_s`` is on the clock of the `Health` that holds it."""

    ok: bool
    why: str
    action: str
    since_s: float


class Health:
    """How a worker is, by named checks and heartbeats.

    It begins with the check ``start`` failed, so that a worker is not ready before it says ``ok("start")``.

    Parameters
    ----------
    stall_deadline_ms
        Longest time between two beats of one name.
    clock
        Seconds, monotonic.
    """

    def __init__(self, *, stall_deadline_ms: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_deadline_s = stall_deadline_ms / 1000
        self._clock = clock
        self._checks: dict[str, Check] = {}
        self._beats: dict[str, tuple[float, str]] = {}
        self.fail(START, "the worker is starting", "wait; the log says what it waits for")

    def ok(self, name: str) -> None:
        """Say that the named thing is as it should be."""
        self._set(name, ok=True, why="", action="")

    def fail(self, name: str, why: str, action: str) -> None:
        """Say what is wrong with the named thing and what a person can do; the worker is not ready."""
        self._set(name, ok=False, why=why, action=action)

    def _set(self, name: str, *, ok: bool, why: str, action: str) -> None:
        before = self._checks.get(name)
        since_s = before.since_s if before is not None and before.ok is ok else self._clock()
        self._checks[name] = Check(ok, why, action, since_s)

    def beat(
        self, name: str, action: str = "the process is to be restarted; report it if it happens again"
    ) -> None:
        """Say that the named thing moves or has nothing to do, and promise to say so again in time."""
        self._beats[name] = (self._clock(), action)

    def excuse(self, seconds: float) -> None:
        """Leave out of every beat's age a time in which nothing could beat: the process was suspended."""
        self._beats = {name: (at_s + seconds, action) for name, (at_s, action) in self._beats.items()}

    def forget(self, name: str) -> None:
        """Drop the check and the heartbeat of this name, e.g. of a partition that went to another worker."""
        self._checks.pop(name, None)
        self._beats.pop(name, None)

    def checks(self) -> dict[str, Check]:
        """Return every check, stalls included."""
        return self._checks | self.stalls()

    def stalls(self) -> dict[str, Check]:
        """Return a failed check for everything that has not beaten within the deadline."""
        now_s = self._clock()
        return {
            f"{name} moves": Check(
                ok=False,
                why=f"no progress for {now_s - at_s:.0f} s, more than {self._stall_deadline_s:.0f} s",
                action=action,
                since_s=at_s,
            )
            for name, (at_s, action) in self._beats.items()
            if now_s - at_s > self._stall_deadline_s
        }

    def is_live(self) -> bool:
        """Whether everything that beats did so within the deadline."""
        return not self.stalls()

    def is_ready(self) -> bool:
        """Whether every check is ok and nothing stalls."""
        return all(check.ok for check in self.checks().values())

    def describe(self, checks: dict[str, Check]) -> list[dict[str, Any]]:
        """Return the checks as JSON values, failed ones first."""
        now_s = self._clock()
        rows = []
        for name, check in sorted(checks.items(), key=lambda item: (item[1].ok, item[0])):
            row: dict[str, Any] = {
                "name": name,
                "ok": check.ok,
                "for_seconds": round(now_s - check.since_s, 1),
            }
            if not check.ok:
                row |= {"why": check.why, "what_to_do": check.action}
            rows.append(row)
        return rows


class WebServer:
    """The HTTP server; an async context manager, or `start` and `stop`.

    Parameters
    ----------
    health
        What /livez and /readyz show.
    registry
        What /metrics shows.
    host, port
        Where to listen; port 0 takes a free one, see `port`.
    loop_lag
        Gauge for the event loop's lag, seconds.
    """

    def __init__(
        self,
        health: Health,
        registry: CollectorRegistry,
        *,
        host: str,
        port: int,
        loop_lag: Gauge | None = None,
    ) -> None:
        self._health = health
        self._registry = registry
        self._host = host
        self._wanted_port = port
        self._loop_lag = loop_lag
        self._runner: web.AppRunner | None = None
        self._monitor: asyncio.Task[None] | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """Port it listens on; 0 before `start`."""
        return self._port

    async def start(self) -> None:
        """Listen, and watch the event loop.

        Raises
        ------
        ConfigError
            If the address cannot be listened on.
        """
        application = web.Application()
        application.add_routes(
            [
                web.get("/", self._index),
                web.get("/metrics", self._metrics),
                web.get("/livez", self._probe(self._live)),
                web.get("/readyz", self._probe(self._ready)),
            ]
        )
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._wanted_port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"cannot listen on {self._host}:{self._wanted_port}: {error.strerror or error}",
                where="web_host, web_port",
                action="end what listens there, or set BANDIT_WEB_PORT to another port (0: any free one)",
            ) from error
        self._runner = runner
        self._port = runner.addresses[0][1]
        self._monitor = asyncio.create_task(self._watch_loop(), name="event loop monitor")
        log.info("serving /metrics, /livez and /readyz on http://%s:%d", self._host, self._port)

    async def stop(self) -> None:
        """Stop watching and listening; may be called twice."""
        if self._monitor is not None:
            self._monitor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._monitor
            self._monitor = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._health.forget(EVENT_LOOP)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def _watch_loop(self) -> None:
        while True:
            self._health.beat(EVENT_LOOP)
            due_s = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            if self._loop_lag is not None:
                self._loop_lag.set(max(0.0, time.monotonic() - due_s))

    def _live(self) -> tuple[bool, dict[str, Any]]:
        stalls = self._health.stalls()
        return not stalls, {"live": not stalls, "checks": self._health.describe(stalls)}

    def _ready(self) -> tuple[bool, dict[str, Any]]:
        ready = self._health.is_ready()
        return ready, {"ready": ready, "checks": self._health.describe(self._health.checks())}

    def _probe(
        self, answer: Callable[[], tuple[bool, dict[str, Any]]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def respond(_request: web.Request) -> web.Response:
            ok, body = answer()
            return web.json_response(
                text=json.dumps(body, indent=2) + "\n",
                status=200 if ok else 503,
                headers={"Cache-Control": "no-store"},
            )

        return respond

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body = encode(self._registry)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _index(self, _request: web.Request) -> web.Response:
        return web.Response(text="bandit-streams worker: /metrics /livez /readyz\n")
