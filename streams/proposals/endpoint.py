"""An OpenAI-compatible endpoint as generator and as moderator.

What: :class:`Endpoint` asks ``POST <url>/chat/completions`` for variants and, where the settings say so,
``POST <url>/moderations`` about them. A request has a time-out; what passes by itself (429, 5xx, no answer,
an answer that is not the JSON asked for) is asked again, at most ``max_attempts`` times, after a pause that
doubles or that the endpoint names. What does not pass (a wrong key, an unknown model) is an error at once.

Why no client library: two requests with ``json`` in and out; aiohttp is here anyway.

Cost: every attempt is counted with its tokens, as the endpoint reports them, else as they are estimated.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from streams.config import GenerateSettings
from streams.errors import ConfigError, EndpointFailed
from streams.proposals.generating import Generated, Meter
from streams.proposals.prompts import Prompt, read_answer

__all__ = ["Endpoint"]

T = TypeVar("T")

PAUSE_S = 1.0
PAUSE_MAX_S = 60.0
ANSWER_MAX_BYTES = 4 * 1024 * 1024
BYTES_PER_TOKEN = 3  # an estimate on the safe side; English has about four


class _Message(Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(Struct):
    total_tokens: int = 0


class _Completion(Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Verdict(Struct):
    flagged: bool
    categories: dict[str, bool | None] = {}


class _Moderation(Struct):
    results: list[_Verdict]


class _Passing(Exception):
    """Something that may pass: ask again, at the earliest after ``after_s``."""

    def __init__(self, what: str, after_s: float = 0.0) -> None:
        super().__init__(what)
        self.after_s = after_s


class Endpoint:
    """Generator and moderator over HTTP; an async context manager.

    Parameters
    ----------
    settings
        ``url`` is set.
    sleep
        Waits between attempts, seconds.
    """

    def __init__(
        self, settings: GenerateSettings, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        if settings.url is None:
            raise ConfigError(
                "no endpoint is set that could generate",
                where="generate.url",
                action="set BANDIT_GENERATE__URL and BANDIT_GENERATE__MODEL, or use factors",
            )
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        key = self._settings.api_key
        self._session = aiohttp.ClientSession(
            headers={} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"},
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_ms / 1000),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._settings.model

    def tokens_of(self, prompt: Prompt) -> int:
        """Longest answer and the prompt's estimate."""
        return self._settings.max_answer_tokens + _estimate(prompt)

    async def generate(self, prompt: Prompt, max_attempts: int, meter: Meter) -> Generated:
        """Ask ``/chat/completions``; see :class:`streams.proposals.generating.Generator`."""
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": prompt.user},
            ],
            "max_tokens": self._settings.max_answer_tokens,
            "response_format": {"type": "json_object"},
        }

        async def ask() -> Generated:
            meter.requests += 1
            raw = await self._post("/chat/completions", body)
            meter.tokens += self._tokens(raw, prompt)
            return self._read(raw, prompt)

        return await self._repeat(ask, min(max_attempts, self._settings.max_attempts))

    def _tokens(self, raw: bytes, prompt: Prompt) -> int:
        """Tokens of an answer, if only estimated."""
        try:
            usage = msgspec.json.decode(raw, type=_Completion).usage
        except msgspec.DecodeError:
            usage = None
        if usage is not None and usage.total_tokens > 0:
            return usage.total_tokens
        return min(_estimate(prompt) + len(raw) // BYTES_PER_TOKEN, self.tokens_of(prompt))

    def _read(self, raw: bytes, prompt: Prompt) -> Generated:
        try:
            choice = msgspec.json.decode(raw, type=_Completion).choices[0]
        except (msgspec.DecodeError, IndexError) as error:
            raise _Passing(f"the answer is no chat completion: {error}") from error
        refusal = choice.message.refusal or (
            "its content filter has stopped the answer" if choice.finish_reason == "content_filter" else ""
        )
        if refusal:
            return Generated((), refusal)
        try:
            candidates = read_answer(choice.message.content or "", prompt.count)
        except ValueError as error:
            cut = ", cut off at max_answer_tokens" if choice.finish_reason == "length" else ""
            raise _Passing(f"{error}{cut}") from error
        return Generated(candidates, "")

    async def objection(self, text: str) -> str:
        """Ask ``/moderations``; see :class:`streams.proposals.generating.Moderator`."""

        async def ask() -> str:
            raw = await self._post("/moderations", {"input": text})
            try:
                verdict = msgspec.json.decode(raw, type=_Moderation).results[0]
            except (msgspec.DecodeError, IndexError) as error:
                raise _Passing(f"the answer is no moderation: {error}") from error
            named = sorted(name for name, is_it in verdict.categories.items() if is_it)
            return (", ".join(named) or "flagged") if verdict.flagged else ""

        return await self._repeat(ask, self._settings.max_attempts)

    async def _repeat(self, ask: Callable[[], Awaitable[T]], max_attempts: int) -> T:
        pause_s, attempt = PAUSE_S, 0
        while True:
            attempt += 1
            try:
                return await ask()
            except _Passing as passing:
                if attempt >= max_attempts:
                    raise EndpointFailed(
                        f"no usable answer in {attempt} attempts; the last one: {passing}",
                        where=self._url,
                        action="try again later; if it stays, check the endpoint",
                    ) from passing
                # Jitter keeps those who were refused together from coming again together.
                wait_s = max(passing.after_s, pause_s * random.uniform(0.5, 1.0))  # noqa: S311
                await self._sleep(min(wait_s, PAUSE_MAX_S))
                pause_s *= 2

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        if self._session is None:
            raise RuntimeError("the endpoint is used outside of its context")
        try:
            async with self._session.post(self._url + path, json=body, allow_redirects=False) as response:
                raw = b""
                async for chunk in response.content.iter_any():
                    raw += chunk
                    if len(raw) > ANSWER_MAX_BYTES:
                        raise _Passing(f"the answer is longer than {ANSWER_MAX_BYTES} bytes")
                status, after = response.status, response.headers.get("Retry-After", "")
        except TimeoutError as error:
            raise _Passing(f"no answer within {self._settings.timeout_ms} ms") from error
        except aiohttp.ClientError as error:
            raise _Passing(f"no answer: {error!r}") from error
        if status == 200:
            return raw
        what = f"status {status}: {raw[:300].decode(errors='replace')}"
        if status in (408, 409, 425, 429) or status >= 500:
            raise _Passing(what, float(after) if after.isdecimal() else 0.0)
        raise ConfigError(
            f"the endpoint refuses the request: {what}",
            where=self._url + path,
            action="check generate.url, generate.model and BANDIT_GENERATE__API_KEY",
        )


def _estimate(prompt: Prompt) -> int:
    return (len(prompt.system.encode()) + len(prompt.user.encode())) // BYTES_PER_TOKEN + 1
