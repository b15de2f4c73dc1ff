"""Checks of the counting: is a worker there, does every partition move, do its counts reach the allocator."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
    for_code,
)

from streams.counts import decode_key, decode_progress
from streams.doctor.findings import Context, Finding, Level, ok
from streams.errors import RecordError
from streams.journal_tail import Progress, read_progress
from streams.log_reader import Span
from streams.topics import admin_client

__all__ = ["check_counting", "check_counts_published", "check_group"]

SOURCES: tuple[Literal["exposures", "conversions"], ...] = ("exposures", "conversions")
COUNTS_SAMPLED = 2_000
MANY_RECORDS = 1_000_000
COORDINATOR_DEADLINE_S = 15.0
_COORDINATOR_MOVES = (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
)
START = "start one: `bandit-streams worker`"


async def check_group(context: Context) -> Sequence[Finding]:
    """See whether a worker is in the consumer group."""
    group = context.settings.group
    described = await _describe_group(context)
    members = described["members"]
    if not members:
        return [Finding(Level.FAIL, "workers", "no worker runs", f"group {group}", START)]
    if described["state"] != "Stable":
        return [
            Finding(
                Level.WARN,
                "workers",
                f"{len(members)} workers, the group is in state {described['state']}",
                f"group {group}",
                "run doctor again in a minute; if it stays, workers start and end in turn: see their logs",
            )
        ]
    return [ok("workers", f"{len(members)} running", f"group {group}")]


async def _describe_group(context: Context) -> dict[str, Any]:
    """Describe the group; a cluster that has never had one first makes the topic that keeps them."""
    deadline_s = time.monotonic() + COORDINATOR_DEADLINE_S
    async with admin_client(context.settings) as admin:
        while True:
            try:
                (response,) = await admin.describe_consumer_groups([context.settings.group])
                described: dict[str, Any] = response.to_object()["groups"][0]
                if described["error_code"]:
                    raise for_code(described["error_code"])(context.settings.group)
            except _COORDINATOR_MOVES:
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(0.2)
            else:
                return described


async def check_counting(context: Context) -> Sequence[Finding]:
    """Compare where each partition's journal stands with its source topics."""
    if not context.has("journal", *SOURCES):
        return []
    # Positions before ends: what is produced in between looks like lag, never like a position above the end.
    progress = await read_progress(context.reader, context.settings)
    spans = {name: await context.reader.spans(context.settings.topic(name)) for name in SOURCES}
    findings: list[Finding] = []
    lag = 0
    for partition, state in sorted(progress.items()):
        if any(partition not in spans[name] for name in SOURCES):
            continue  # unequal partition counts are a finding of the check of topics
        own, behind = _partition(context, state, {name: spans[name][partition] for name in SOURCES})
        findings += own
        lag += behind
    if not findings:
        findings.append(ok("counting", f"{len(progress)} partitions move; {lag} records still to count"))
    return findings


def _partition(
    context: Context, state: Progress, spans: Mapping[Literal["exposures", "conversions"], Span]
) -> tuple[list[Finding], int]:
    settings = context.settings
    where = f"partition {state.partition}"
    behind = sum(max(0, span.end - state.positions.get(name, span.start)) for name, span in spans.items())
    if state.written_at_ms is None:
        if behind == 0:
            return [], 0
        return [
            Finding(Level.FAIL, "counting", f"never counted; {behind} records wait", where, START)
        ], behind
    findings = []
    for name, span in spans.items():
        position = state.positions.get(name, span.start)
        if position < span.start:
            findings.append(
                Finding(
                    Level.FAIL,
                    "counting",
                    f"{span.start - position} records were deleted by retention before they were counted",
                    f"{settings.topic(name)}[{state.partition}]",
                    "they are lost to the counts; raise BANDIT_SOURCE_RETENTION_MS and keep workers running",
                )
            )
        elif position > span.end:
            findings.append(
                Finding(
                    Level.FAIL,
                    "counting",
                    f"the journal is at offset {position}, but the topic ends at {span.end}",
                    f"{settings.topic(name)}[{state.partition}]",
                    "the topic was deleted or cut: counting stops here; see docs/operators.md, Rebuild",
                )
            )
    quiet_ms = context.now_ms() - state.written_at_ms
    if behind and quiet_ms > settings.stall_deadline_ms:
        findings.append(
            Finding(
                Level.FAIL,
                "counting",
                f"{behind} records wait and nothing was counted for {quiet_ms / 1000:.0f} s",
                f"{where}, last owner {state.owner or 'unknown'}",
                "see /readyz and the log of the worker that owns it; restart that worker",
            )
        )
    elif behind > MANY_RECORDS:
        findings.append(
            Finding(
                Level.WARN,
                "counting",
                f"{behind} records wait",
                where,
                "let it catch up, or start another worker",
            )
        )
    findings += _one_sided(state, spans, where)
    return findings, behind


def _one_sided(
    state: Progress, spans: Mapping[Literal["exposures", "conversions"], Span], where: str
) -> list[Finding]:
    """Find a watermark that is held back because one of the two topics has never had a record."""
    empty = [name for name in SOURCES if name not in state.maxima and spans[name].end == 0]
    if len(empty) != 1 or not state.maxima:
        return []
    return [
        Finding(
            Level.WARN,
            "counting",
            f"{empty[0]} has no record yet, so the watermark rests until the partition counts as idle",
            where,
            "nothing if conversions are rare; else see that both topics are produced to",
        )
    ]


async def check_counts_published(context: Context) -> Sequence[Finding]:
    """See whether what is counted reaches the topic counts, by the progress records in its end."""
    if not context.has("counts", "journal"):
        return []
    settings = context.settings
    written_ms: dict[int, int] = {}
    async for record in context.reader.read(settings.topic("counts"), last=COUNTS_SAMPLED):
        try:
            key = decode_key(record.key or b"")
            if key.experiment_id == "" and record.value is not None:
                decode_progress(record.value)
                written_ms[key.source_partition] = max(
                    record.timestamp, written_ms.get(key.source_partition, 0)
                )
        except RecordError as error:
            return [
                Finding(Level.FAIL, "counts", error.what, error.where, "see who else writes to this topic")
            ]
    progress = await read_progress(context.reader, settings)
    behind = [
        partition
        for partition, state in sorted(progress.items())
        if state.written_at_ms is not None
        and state.maxima
        and state.written_at_ms - written_ms.get(partition, 0) > settings.stall_deadline_ms
    ]
    if behind:
        return [
            Finding(
                Level.WARN,
                "counts",
                f"progress of partitions {behind} is older than their journal: new counts do not arrive",
                settings.topic("counts"),
                "see the logs of the workers that own them for errors of writing to counts",
            )
        ]
    if not written_ms:
        return [ok("counts", "nothing published yet", settings.topic("counts"))]
    return [ok("counts", f"progress of {len(written_ms)} partitions is published", settings.topic("counts"))]
