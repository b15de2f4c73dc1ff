"""``bandit-streams results``: figures of an experiment that may be reported, and what they do not say."""

import asyncio
import csv
import io
import json
import time
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bandit_core.shares import ArmStatus
from streams.allocations import Allocation, decode_allocation
from streams.allocator.compute import counting_at
from streams.allocator.counts_state import ArmCounts
from streams.allocator.inference import Inference, infer, wording
from streams.allocator.observed import Observation
from streams.allocator.published import read_allocation
from streams.allocator.reporting import ArmReport, Report, present_statuses, report
from streams.commands import pass_settings
from streams.config import Settings
from streams.counts import decode_key
from streams.errors import ConfigError, RecordError, UnknownExperiment
from streams.experiments.definition import Counting, ExperimentRecord
from streams.experiments.view import ExperimentsView
from streams.log_reader import LogReader
from streams.partitioning import partition_of


@click.command()
@click.argument("experiment")
@click.option(
    "--version", "number", type=click.IntRange(1), help="Definition version.  [default: the newest in effect]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="The arms as CSV instead of a table.")
@pass_settings
def command(settings: Settings, experiment: str, number: int | None, as_json: bool, as_csv: bool) -> None:
    """Show what an experiment's counts say, per arm, and what they do not say.

    Counts are those of the reporting view: every unit once, by its first exposure. Reads the experiment's
    partition of the topic counts; changes nothing.
    """
    found = asyncio.run(_report(settings, experiment, number))
    if as_json:
        arms = [arm._asdict() for arm in found.arms]
        comparison = None if found.comparison is None else found.comparison._asdict()
        values = found._asdict() | {"arms": arms, "comparison": comparison}
        values["inference"] = _plain(found.inference)
        click.echo(json.dumps(values, ensure_ascii=False, allow_nan=False))
        return
    if as_csv:
        click.echo(_csv(found), nl=False)
        return
    _show(found)


async def _report(settings: Settings, experiment_id: str, number: int | None) -> Report:
    view = ExperimentsView(settings)
    await view.start()
    try:
        record = view.get(experiment_id)
    finally:
        await view.stop()
    if record is None:
        raise UnknownExperiment(
            f"no experiment {experiment_id!r}",
            where=settings.topic("experiments"),
            action="`bandit-streams experiments list --all` shows those there are",
        )
    counting = _counting(record, number)
    observation = Observation(experiment_id, counting)
    async with LogReader(settings) as reader:
        partition = partition_of(experiment_id.encode(), settings.counts_partitions)
        async for item in reader.read(settings.topic("counts"), start={partition: 0}):
            if _is_of(item.key, experiment_id):
                observation.absorb(item.key or b"", item.value)
        allocation = await read_allocation(reader, settings, experiment_id)
        log = await _logged(reader, settings, partition, experiment_id, observation.allocation_versions)
    others = observation.totals(comparison=True).values()
    return report(
        record,
        counting,
        observation.totals(),
        comparison=ArmCounts(*map(sum, zip(*others, strict=True))) if others else ArmCounts(0, 0, 0, 0),
        allocation=allocation,
        n_allocations=len(observation.allocation_versions),
        inference=_inference(record, counting, observation, allocation, log),
    )


async def _logged(
    reader: LogReader, settings: Settings, partition: int, experiment_id: str, versions: set[int]
) -> dict[int, Allocation]:
    """Allocations of these versions, from the log, where a version is an offset."""
    if not versions:
        return {}
    topic = settings.topic("allocation-log")
    spans = await reader.spans(topic)
    start = max(min(versions), spans[partition].start)
    found = {}
    async for item in reader.read(topic, start={partition: start}):
        if item.offset in versions and item.key == experiment_id.encode() and item.value is not None:
            found[item.offset] = decode_allocation(item.value)
    return found


def _inference(
    record: ExperimentRecord,
    counting: Counting,
    observation: Observation,
    allocation: Allocation | None,
    log: dict[int, Allocation],
) -> Inference | None:
    arm_ids = [arm.arm_id for arm in record.arms]
    observed = observation.by_hour(arm_ids)
    if observed is None:
        return None
    propensities = {}
    for version, logged in log.items():
        if logged.segments:
            continue  # the propensity was another one in each segment
        weights = {arm.arm_id: arm.weight / (1.0 - logged.comparison) for arm in logged.arms}
        propensities[version] = [weights.get(arm_id, 0.0) for arm_id in arm_ids]
    return infer(
        observed,
        arm_ids,
        eligible=[ArmStatus(status).eligible for status in present_statuses(record, allocation)],
        control=record.control,
        cap=counting.reward.cap,
        window_hours=observation.window_hours,
        lower_is_better=counting.reward.lower_is_better,
        propensities=propensities,
        by_segment=any(logged.segments for logged in log.values()),
    )


def _counting(record: ExperimentRecord, number: int | None) -> Counting:
    if number is None:
        return counting_at(record, time.time_ns() // 1_000_000)
    for counting in record.versions:
        if counting.version == number:
            return counting
    known = ", ".join(str(counting.version) for counting in record.versions)
    raise ConfigError(
        f"experiment {record.experiment_id!r} has no version {number}",
        where="--version",
        action=f"use one of {known}",
    )


def _is_of(key: bytes | None, experiment_id: str) -> bool:
    try:
        return key is not None and decode_key(key).experiment_id == experiment_id
    except RecordError:
        return False


def _show(found: Report) -> None:
    title = f"{found.experiment_id}: {found.status}, metric {found.metric} ({found.kind})"
    title += f", definition version {found.version}"
    if found.allocation_version is not None:
        title += f", allocation {found.allocation_version}, {found.model_state}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("arm")
    table.add_column("status")
    for name in ("trials", "successes", "mean", "95% interval", "P(best)", "weight"):
        table.add_column(name, justify="right")
    for arm in found.arms:
        table.add_row(escape(arm.arm_id), arm.status, *_cells(arm))
    if found.comparison is not None:
        table.add_section()
        table.add_row("(no arm)", found.comparison.status, *_cells(found.comparison))
    console = Console()
    console.print(table)
    if found.inference is not None:
        for line in wording(found.inference, lower_is_better=found.lower_is_better):
            console.print(escape(line), highlight=False)
        for warning in found.inference.warnings:
            console.print(f"[bold]Warning:[/bold] {escape(warning)}", highlight=False)
    for note in found.notes:
        console.print(f"- {escape(note)}", highlight=False)


def _plain(value: Any) -> Any:
    """Named tuples as mappings, all the way down."""
    if hasattr(value, "_asdict"):
        return {key: _plain(inner) for key, inner in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _csv(found: Report) -> str:
    """Arms, one a line, and the comparison group with an empty name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["arm", "status", "trials", "successes", "mean", "low", "high", "probability_best", "weight"]
    )
    for arm in (*found.arms, *([found.comparison] if found.comparison else [])):
        figures = (arm.trials, arm.successes, arm.mean, *arm.interval, arm.probability_best, arm.weight)
        writer.writerow([arm.arm_id, arm.status, *figures])
    return text.getvalue()


def _cells(arm: ArmReport) -> tuple[str, ...]:
    low, high = arm.interval
    return (
        f"{arm.trials:,}",
        f"{arm.successes:,}",
        f"{arm.mean:.4g}",
        f"{low:.4g} to {high:.4g}",
        "" if arm.probability_best is None else f"{arm.probability_best:.3f}",
        "" if arm.weight is None else f"{arm.weight:.3f}",
    )
