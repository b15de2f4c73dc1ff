"""The endpoint over real HTTP: answers, time-outs, refusals, retries, and what is counted."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from pydantic import SecretStr

from streams.config import GenerateSettings
from streams.errors import ConfigError, EndpointFailed
from streams.proposals.endpoint import ANSWER_MAX_BYTES, Endpoint
from streams.proposals.generating import Meter
from streams.proposals.prompts import Prompt
from tests.proposals.server import FakeEndpoint, completion, moderation, serving, variants

PROMPT = Prompt(count=2, system="propose", user='{"arms": []}')
KEY = "sk-secret"


class Pauses(list[float]):
    """Waits at once, and remembers for how long it should have been."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def settings(url: str, **fields: object) -> GenerateSettings:
    return GenerateSettings.model_validate(
        {"url": url, "model": "small", "api_key": SecretStr(KEY), "max_answer_tokens": 200} | fields
    )


@asynccontextmanager
async def asking(server: FakeEndpoint, **fields: object) -> AsyncIterator[tuple[Endpoint, Pauses]]:
    pauses = Pauses()
    async with Endpoint(settings(server.url, **fields), sleep=pauses) as endpoint:
        yield endpoint, pauses


async def test_variants_come_with_what_they_took() -> None:
    async with serving() as server, asking(server) as (endpoint, pauses):
        server.answers = [variants("One", "Two", "Three")]
        meter = Meter()
        found = await endpoint.generate(PROMPT, 3, meter)
        assert [(each.content, each.rationale) for each in found.candidates] == [
            ("One", "why"),
            ("Two", "why"),
        ]
        assert (found.refusal, meter.requests, meter.tokens, pauses) == ("", 1, 123, [])
        (asked,) = server.asked
        assert asked["model"] == "small"
        assert asked["max_tokens"] == 200
        assert asked["response_format"] == {"type": "json_object"}
        assert [(each["role"], each["content"]) for each in asked["messages"]] == [
            ("system", "propose"),
            ("user", '{"arms": []}'),
        ]
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_what_passes_is_asked_again_and_the_endpoint_may_say_when() -> None:
    async with serving() as server, asking(server) as (endpoint, pauses):
        server.answers = [
            web.Response(status=429, headers={"Retry-After": "7"}),
            web.Response(status=503),
            variants("One"),
        ]
        meter = Meter()
        found = await endpoint.generate(PROMPT, 5, meter)
        assert [each.content for each in found.candidates] == ["One"]
        assert (meter.requests, meter.tokens) == (3, 123)
        assert pauses[0] == 7.0
        assert 1.0 <= pauses[1] <= 2.0


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_after_as_many_attempts_as_are_allowed_it_gives_up(status: int) -> None:
    async with serving() as server, asking(server, max_attempts=3) as (endpoint, pauses):
        for allowed, made in ((9, 3), (2, 2)):
            server.answers = [web.Response(status=status, text="busy") for _ in range(9)]
            meter = Meter()
            with pytest.raises(
                EndpointFailed, match=rf"in {made} attempts; the last one: status {status}: busy"
            ):
                await endpoint.generate(PROMPT, allowed, meter)
            assert (meter.requests, meter.tokens) == (made, 0)
        assert len(pauses) == 3, "not after the last attempt"


async def test_an_endpoint_that_hangs_is_given_up() -> None:
    never = asyncio.Event()

    async def hang() -> web.Response:
        await never.wait()
        return web.Response()

    async with serving() as server, asking(server, timeout_ms=100, max_attempts=2) as (endpoint, pauses):
        server.answers = [hang, hang]
        meter = Meter()
        with pytest.raises(EndpointFailed, match="in 2 attempts; the last one: no answer within 100 ms"):
            await endpoint.generate(PROMPT, 2, meter)
        assert (meter.requests, len(pauses)) == (2, 1)
        never.set()
        server.answers = [hang, variants("One")]
        assert (await endpoint.generate(PROMPT, 2, meter)).candidates, "and may be asked again"


async def test_an_endpoint_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        async with Endpoint(settings(url, max_attempts=1)) as endpoint:
            with pytest.raises(EndpointFailed, match="in 1 attempts; the last one: no answer"):
                await endpoint.generate(PROMPT, 3, Meter())


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (web.Response(text="<html>"), "the answer is no chat completion"),
        (web.json_response({"choices": []}), "the answer is no chat completion"),
        (web.json_response({"choices": [{"message": {"content": 5}}]}), "the answer is no chat completion"),
        (completion("Here you are:"), "the answer is not the JSON that was asked for"),
        (completion(None), "the answer is not the JSON that was asked for"),
        (completion('{"arms": [{"con', choice={"finish_reason": "length"}), "cut off at max_answer_tokens"),
        (completion("x" * (ANSWER_MAX_BYTES + 1)), f"longer than {ANSWER_MAX_BYTES} bytes"),
    ],
)
async def test_malformed_answers_are_asked_again_and_cost(answer: web.Response, problem: str) -> None:
    body = answer.body

    async def same() -> web.Response:
        return web.Response(body=body, content_type="application/json")

    async with serving() as server, asking(server, max_attempts=2) as (endpoint, _):
        server.answers = [same, same]
        meter = Meter()
        with pytest.raises(EndpointFailed, match=problem):
            await endpoint.generate(PROMPT, 2, meter)
        assert meter.requests == 2
        server.answers = [same, variants("One")]
        assert (await endpoint.generate(PROMPT, 2, meter)).candidates[0].content == "One"


async def test_tokens_that_are_not_reported_are_estimated() -> None:
    async with serving() as server, asking(server) as (endpoint, _):
        server.answers = [completion('{"arms": [{"content": "x"}]}', usage=None)]
        meter = Meter()
        await endpoint.generate(PROMPT, 1, meter)
        assert 20 < meter.tokens <= endpoint.tokens_of(PROMPT)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422])
async def test_what_does_not_pass_is_an_error_at_once(status: int) -> None:
    async with serving() as server, asking(server) as (endpoint, pauses):
        server.answers = [web.Response(status=status, text="no", headers={"Location": "http://127.0.0.1:9/"})]
        meter = Meter()
        with pytest.raises(ConfigError, match=f"refuses the request: status {status}: no") as caught:
            await endpoint.generate(PROMPT, 3, meter)
        assert (meter.requests, pauses) == (1, [])
        assert KEY not in str(caught.value)


async def test_a_model_that_refuses_is_not_asked_again() -> None:
    async with serving() as server, asking(server) as (endpoint, _):
        server.answers = [
            completion(None, message={"refusal": "I will not"}),
            completion("", choice={"finish_reason": "content_filter"}),
        ]
        meter = Meter()
        first, second = [await endpoint.generate(PROMPT, 3, meter) for _ in range(2)]
        assert (first.candidates, first.refusal) == ((), "I will not")
        assert second.refusal == "its content filter has stopped the answer"
        assert (meter.requests, meter.tokens) == (2, 246)


async def test_moderation_says_why_and_fails_closed() -> None:
    async with serving() as server, asking(server, max_attempts=2) as (endpoint, _):
        server.moderations = [
            moderation(),
            moderation("violence", "hate"),
            web.json_response({"results": [{"flagged": True}]}),
            web.Response(status=500),
            web.json_response({"results": []}),
            web.Response(status=404, text="no such route"),
        ]
        assert await endpoint.objection("fine") == ""
        assert await endpoint.objection("bad") == "hate, violence"
        assert await endpoint.objection("bad") == "flagged"
        with pytest.raises(EndpointFailed, match="the answer is no moderation"):
            await endpoint.objection("unknown")
        with pytest.raises(ConfigError, match="no such route"):
            await endpoint.objection("unknown")
        assert server.judged == ["fine", "bad", "bad", "unknown", "unknown", "unknown"]


async def test_without_a_url_there_is_no_endpoint() -> None:
    with pytest.raises(ConfigError, match=r"no endpoint is set.*BANDIT_GENERATE__URL"):
        Endpoint(GenerateSettings())
    async with serving() as server:
        with pytest.raises(RuntimeError, match="outside of its context"):
            await Endpoint(settings(server.url)).objection("x")


def test_settings_that_contradict_each_other() -> None:
    for fields, problem in (
        ({"url": "ftp://host", "model": "m"}, "is not the base of an HTTP API"),
        ({"url": "https://host/v1"}, "url is set but no model"),
    ):
        with pytest.raises(ValueError, match=problem):
            GenerateSettings.model_validate(fields)
