"""``bandit-streams dead-letters``: look at rejected events, and replay them after a fix."""

import asyncio
import base64
import heapq
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streams.commands import pass_settings
from streams.config import Settings
from streams.deadletters import Filter, StoredLetter, read_letters
from streams.errors import RecordError
from streams.log_reader import LogReader
from streams.metrics import DEAD_LETTER_REASONS
from streams.replay import Fate, Replay, Summary

SHOWN_BYTES = 160
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class _Time(click.ParamType):
    """``90m`` (ago) or ``2026-01-31T10:00:00Z``; gives epoch ms."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return epoch ms."""
        if isinstance(value, int):
            return value
        if ago := re.fullmatch(r"(\d+)([smhd])", value):
            return int(time.time() * 1000) - int(ago[1]) * _UNITS_MS[ago[2]]
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither like 90m, 6h or 2d nor like 2026-01-31T10:00:00Z", param, ctx)
        return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--until", "until_ms", type=_Time(), help="Dead-lettered before this time."),
        click.option(
            "--since",
            "since_ms",
            type=_Time(),
            help="Dead-lettered at or after: 90m, 6h, 2d, or RFC 3339 (UTC).",
        ),
        click.option(
            "--topic", type=click.Choice(["exposures", "conversions"]), help="From this topic only."
        ),
        click.option(
            "--reason",
            "reasons",
            multiple=True,
            type=click.Choice(DEAD_LETTER_REASONS),
            help="Of this reason only; may be repeated.",
        ),
    ):
        command = option(command)
    return command


def _filter(
    settings: Settings,
    reasons: tuple[str, ...],
    topic: Literal["exposures", "conversions"] | None,
    since_ms: int | None,
    until_ms: int | None,
) -> Filter:
    return Filter(
        reasons=frozenset(reasons),
        topic=settings.topic(topic) if topic else "",
        since_ms=since_ms,
        until_ms=until_ms,
    )


@click.group()
def command() -> None:
    """List rejected events, and replay them after a fix."""


@command.command("list")
@_filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The newest this many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the whole original.")
@pass_settings
def list_command(
    settings: Settings,
    reasons: tuple[str, ...],
    topic: Literal["exposures", "conversions"] | None,
    since_ms: int | None,
    until_ms: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show rejected events, oldest first, each with its reason and where it stands.

    Originals are shown with control characters escaped; --json gives those that are not UTF-8 as base64.
    """
    wanted = _filter(settings, reasons, topic, since_ms, until_ms)
    letters, total, problems = asyncio.run(newest(settings, wanted, limit))
    if as_json:
        for stored in letters:
            click.echo(json.dumps(to_json(stored), ensure_ascii=False))
    else:
        _print_table(letters, total)
    for problem in problems:
        click.echo(f"not a dead letter: {problem}", err=True)


async def newest(
    settings: Settings, wanted: Filter, limit: int
) -> tuple[list[StoredLetter], int, list[RecordError]]:
    """Read the newest ``limit`` letters, oldest first; how many there are; records that are no letters."""
    problems: list[RecordError] = []
    heap: list[tuple[int, tuple[str, int, int], StoredLetter]] = []
    total = 0
    async with LogReader(settings) as reader:
        async for stored in read_letters(reader, settings.topic("dead-letters"), wanted, problems):
            total += 1
            entry = (stored.written_at_ms, stored.letter.identity, stored)
            if len(heap) < limit:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
    return [entry[2] for entry in sorted(heap, key=lambda entry: entry[:2])], total, problems


def to_json(stored: StoredLetter) -> dict[str, Any]:
    """Return a letter as JSON values; bytes that are not UTF-8 as base64 under another name."""
    letter = stored.letter
    return {
        "written_at": _rfc3339(stored.written_at_ms),
        "reason": letter.reason,
        "field": letter.field,
        "message": letter.message,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        **_bytes_json("key", letter.key),
        **_bytes_json("value", letter.value),
        "truncated_bytes": stored.truncated_bytes,
        "replayed_at": None if stored.replayed_at_ms is None else _rfc3339(stored.replayed_at_ms),
    }


def _bytes_json(name: str, data: bytes | None) -> dict[str, str | None]:
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def shown(data: bytes | None, limit: int = SHOWN_BYTES) -> str:
    r"""Return bytes as text that a terminal can be given: control characters and bad UTF-8 as ``\x1b``."""
    if data is None:
        return "-"
    text = data[:limit].decode("utf-8", "backslashreplace")
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"{safe}… ({len(data)} bytes)" if len(data) > limit else safe


def _print_table(letters: list[StoredLetter], total: int) -> None:
    if not letters:
        click.echo("no dead letters")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("dead-lettered", "reason", "where", "what", "original"):
        table.add_column(name, overflow="fold")
    for stored in letters:
        letter = stored.letter
        replayed = "" if stored.replayed_at_ms is None else f"\nreplayed {_rfc3339(stored.replayed_at_ms)}"
        table.add_row(
            _rfc3339(stored.written_at_ms),
            escape(letter.reason) + replayed,
            escape(f"{letter.topic}[{letter.partition}] {letter.offset}"),
            escape(f"{letter.field}: {letter.message}" if letter.field else letter.message),
            escape(shown(letter.value)),
        )
    Console().print(table)
    click.echo(f"{len(letters)} of {total} shown")


@command.command("replay")
@_filters
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@click.option("--again", is_flag=True, help="Replay those that were replayed before, too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_settings
def replay_command(
    settings: Settings,
    reasons: tuple[str, ...],
    topic: Literal["exposures", "conversions"] | None,
    since_ms: int | None,
    until_ms: int | None,
    dry_run: bool,
    again: bool,
    yes: bool,
) -> None:
    """Produce rejected events again, after what was wrong is right.

    Nothing is counted twice: events are known by their ids, also when the same letter is replayed twice.
    Events older than the grace would be rejected again as late; they are left out, and their number is
    told. What is still wrong comes back as a new dead letter.
    """
    wanted = _filter(settings, reasons, topic, since_ms, until_ms)

    async def look() -> Summary:
        async with LogReader(settings) as reader:
            return await (await Replay.open(settings, reader, wanted, again=again)).summarise()

    async def act() -> Summary:
        async with LogReader(settings) as reader:
            replay = await Replay.open(settings, reader, wanted, again=again)
            return await replay.run(lambda: int(time.time() * 1000))

    planned = asyncio.run(look())
    _print_summary(settings, planned, "to replay")
    if dry_run or planned.to_replay == 0:
        return
    if not yes:
        click.confirm(f"replay {planned.to_replay} events now?", abort=True)
    done = asyncio.run(act())
    click.echo(
        f"replayed {done.to_replay} events; `bandit-streams dead-letters list` shows what is rejected again"
    )


def _print_summary(settings: Settings, summary: Summary, title: str) -> None:
    by_reason = ", ".join(f"{reason} {n}" for reason, n in sorted(summary.reasons.items()))
    click.echo(f"{title}: {summary.to_replay}{f' ({by_reason})' if by_reason else ''}")
    hints = {
        Fate.LATE: f"older than the grace of {settings.grace_ms / 3_600_000:g} h: their trials are"
        " closed and are not opened again",
        Fate.REPLAYED_BEFORE: "--again replays them once more; the join drops those it has counted",
        Fate.INCOMPLETE: "the producer has to send them again",
        Fate.NO_UNIT: "nothing tells whose event it is",
        Fate.OTHER_TOPIC: "written with another BANDIT_TOPIC_PREFIX",
    }
    for fate, hint in hints.items():
        if summary.fates[fate]:
            click.echo(f"left out, {fate.value}: {summary.fates[fate]} ({hint})")


def _rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
