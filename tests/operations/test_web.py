"""Health and the HTTP server, over real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from streams.errors import ConfigError
from streams.metrics import Metrics
from streams.web import EVENT_LOOP, Health, WebServer


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(stall_deadline_ms=10_000, clock=clock)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3")


@pytest.fixture
async def server(health: Health, metrics: Metrics) -> AsyncIterator[WebServer]:
    async with WebServer(
        health, metrics.registry, host="127.0.0.1", port=0, loop_lag=metrics.event_loop_lag_seconds
    ) as server:
        yield server


async def get(server: WebServer, path: str, **headers: str) -> tuple[int, aiohttp.ClientResponse, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{server.port}{path}", headers=headers) as response,
    ):
        return response.status, response, await response.text()


async def get_json(server: WebServer, path: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{server.port}{path}") as response,
    ):
        return response.status, await response.json()


def test_a_new_worker_is_live_but_not_ready(health: Health) -> None:
    assert health.is_live()
    assert not health.is_ready()


def test_ready_needs_every_check(health: Health) -> None:
    health.ok("start")
    assert health.is_ready()
    health.fail("topics", "counts is missing", "run `bandit-streams topics create`")
    assert not health.is_ready()
    assert health.is_live()
    health.ok("topics")
    assert health.is_ready()
    health.fail("partition 3", "recovering", "wait")
    health.forget("partition 3")
    assert health.is_ready()


@pytest.mark.parametrize(("passed_s", "live"), [(9.9, True), (10.0, True), (10.1, False)])
def test_a_beat_lasts_for_the_deadline(health: Health, clock: Clock, passed_s: float, live: bool) -> None:
    health.ok("start")
    health.beat("partition 3")
    clock.now_s += passed_s
    assert health.is_live() is live
    assert health.is_ready() is live


def test_a_stalled_partition_that_is_given_away_is_forgotten(health: Health, clock: Clock) -> None:
    health.beat("partition 3")
    clock.now_s += 60
    assert not health.is_live()
    health.forget("partition 3")
    assert health.is_live()


def test_a_check_remembers_since_when(health: Health, clock: Clock) -> None:
    health.fail("kafka", "away", "start it")
    clock.now_s += 5
    health.fail("kafka", "still away", "start it")
    clock.now_s += 2
    (row,) = [row for row in health.describe(health.checks()) if row["name"] == "kafka"]
    assert row == {
        "name": "kafka", "ok": False, "for_seconds": 7.0, "why": "still away", "what_to_do": "start it",
    }  # fmt: skip


async def test_readyz_says_why_not_and_what_to_do(server: WebServer, health: Health) -> None:
    status, body = await get_json(server, "/readyz")
    assert status == 503
    assert body["ready"] is False
    assert body["checks"][0]["name"] == "start"
    assert body["checks"][0]["why"]
    assert body["checks"][0]["what_to_do"]
    health.ok("start")
    status, body = await get_json(server, "/readyz")
    assert (status, body["ready"]) == (200, True)


async def test_livez_fails_on_a_stall_and_names_it(server: WebServer, health: Health, clock: Clock) -> None:
    health.beat("partition 3")
    assert (await get_json(server, "/livez")) == (200, {"live": True, "checks": []})
    clock.now_s += 11
    status, body = await get_json(server, "/livez")
    assert status == 503
    assert "partition 3 moves" in [check["name"] for check in body["checks"]]
    assert "11 s" in body["checks"][0]["why"]
    assert (await get_json(server, "/readyz"))[0] == 503


async def test_metrics_are_prometheus_text_of_this_registry(server: WebServer, metrics: Metrics) -> None:
    metrics.count_events("exposures", "accepted", 7)
    status, response, text = await get(server, "/metrics")
    assert status == 200
    assert response.headers["Content-Type"].startswith("text/plain")
    assert 'bandit_events_total{outcome="accepted",topic="exposures"} 7.0' in text
    assert 'bandit_build_info{version="1.2.3"} 1.0' in text


async def test_open_metrics_is_spoken_to_those_who_ask(server: WebServer) -> None:
    _, response, text = await get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_the_loop_monitor_beats_and_measures_lag(server: WebServer, metrics: Metrics) -> None:
    def lag_s() -> float:
        return metrics.registry.get_sample_value("bandit_event_loop_lag_seconds") or 0.0

    deadline_s = time.monotonic() + 20
    while lag_s() < 0.5:
        assert time.monotonic() < deadline_s, "the lag of a blocked loop was not seen"
        until_s = time.monotonic() + 1.2
        while time.monotonic() < until_s:
            pass  # hold the event loop, as a mistaken synchronous call would
        await asyncio.sleep(0)


async def test_a_taken_port_is_a_clear_error(server: WebServer, metrics: Metrics) -> None:
    second = WebServer(
        Health(stall_deadline_ms=1000), metrics.registry, host="127.0.0.1", port=server.port, loop_lag=None
    )
    with pytest.raises(ConfigError, match=str(server.port)) as raised:
        await second.start()
    assert "BANDIT_WEB_PORT" in raised.value.action
    await second.stop()


async def test_stopping_twice_is_fine_and_frees_the_port(health: Health, metrics: Metrics) -> None:
    server = WebServer(health, metrics.registry, host="127.0.0.1", port=0)
    await server.start()
    port = server.port
    await server.stop()
    await server.stop()
    assert EVENT_LOOP not in health.checks()
    again = WebServer(health, metrics.registry, host="127.0.0.1", port=port)
    await again.start()
    assert again.port == port
    await again.stop()


async def test_index_names_the_pages(server: WebServer) -> None:
    status, _, text = await get(server, "/")
    assert status == 200
    assert "/metrics" in text
