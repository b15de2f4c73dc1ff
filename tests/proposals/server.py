"""A real HTTP server that answers like an OpenAI-compatible endpoint, as a test tells it to."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Answer = Callable[[], Awaitable[web.Response]]


def completion(content: str | None, **fields: Any) -> web.Response:
    """A chat completion with this text."""
    message = {"role": "assistant", "content": content} | fields.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | fields.pop("choice", {})
    body = {"id": "x", "object": "chat.completion", "choices": [choice]}
    return web.json_response(body | {"usage": {"total_tokens": 123}} | fields)


def variants(*contents: str) -> web.Response:
    return completion(json.dumps({"arms": [{"content": each, "rationale": "why"} for each in contents]}))


def moderation(*categories: str) -> web.Response:
    result = {
        "flagged": bool(categories),
        "categories": {"violence": False} | dict.fromkeys(categories, True),
    }
    return web.json_response({"id": "m", "results": [result]})


class FakeEndpoint:
    """What it was asked, and what it answers next; without an answer left it fails the test by a 500."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[web.Response | Answer] = []
        self.moderations: list[web.Response | Answer] = []
        self.asked: list[dict[str, Any]] = []
        self.judged: list[str] = []
        self.headers: list[dict[str, str]] = []

    async def complete(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        self.headers.append(dict(request.headers))
        return await self._next(self.answers)

    async def moderate(self, request: web.Request) -> web.Response:
        self.judged.append((await request.json())["input"])
        return await self._next(self.moderations)

    @staticmethod
    async def _next(answers: list[web.Response | Answer]) -> web.Response:
        if not answers:
            return web.Response(status=500, text="the test has no answer left")
        answer = answers.pop(0)
        return answer if isinstance(answer, web.Response) else await answer()


@asynccontextmanager
async def serving() -> AsyncIterator[FakeEndpoint]:
    endpoint = FakeEndpoint()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", endpoint.complete)
    app.router.add_post("/v1/moderations", endpoint.moderate)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield endpoint
    finally:
        await runner.cleanup()
