"""``bandit-streams results``: figures of an experiment that may be reported, and what they do not say."""

import asyncio
import csv
import io
import time

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streams.allocator.compute import counting_at
from streams.allocator.logged import Logged, decode_logged
from streams.allocator.observed import Observation, next_hour, versions_in
from streams.allocator.published import read_allocation
from streams.allocator.reporting import ResultsJob, make_results
from streams.commands import pass_settings
from streams.config import Settings
from streams.counts import decode_key
from streams.errors import ConfigError, RecordError, UnknownExperiment
from streams.experiments.definition import Counting, ExperimentRecord
from streams.experiments.view import ExperimentsView
from streams.join.cells import HOUR_MS
from streams.log_reader import LogReader
from streams.partitioning import partition_of
from streams.results import ArmResult, Results, decode_results, encode_results


@click.command()
@click.argument("experiment")
@click.option(
    "--version", "number", type=click.IntRange(1), help="Definition version.  [default: the newest in effect]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="The arms as CSV instead of a table.")
@click.option("--published", is_flag=True, help="The newest record of the topic results, as it stands there.")
@pass_settings
def command(
    settings: Settings, experiment: str, number: int | None, as_json: bool, as_csv: bool, published: bool
) -> None:
    """Show what an experiment's counts say, per arm, and what they do not say.

    Counts are those of the reporting view: every unit once, by its first exposure. Works out from the topics
    counts and allocation-log what the topic results has as of the last boundary; changes nothing.
    """
    if published and number is not None:
        raise click.UsageError("--published has the version in effect only; leave out --version")
    made = _published(settings, experiment) if published else _results(settings, experiment, number)
    found = asyncio.run(made)
    if as_json:
        click.echo(encode_results(found).decode())
        return
    if as_csv:
        click.echo(_csv(found), nl=False)
        return
    _show(found)


async def _results(settings: Settings, experiment_id: str, number: int | None) -> Results:
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
    observation = Observation()
    async with LogReader(settings) as reader:
        partition = partition_of(experiment_id.encode(), settings.counts_partitions)
        async for item in reader.read(settings.topic("counts"), start={partition: 0}):
            if _is_of(item.key, experiment_id):
                observation.absorb(item.key or b"", item.value)
        allocation = await read_allocation(reader, settings, experiment_id)
        records = observation.records()
        log = await _logged(reader, settings, partition, experiment_id, versions_in(records))
    boundary_ms = allocation.boundary_ms if allocation is not None else 0
    return make_results(
        ResultsJob(
            record=record,
            counting=counting,
            records=records,
            log=log,
            allocation=allocation,
            boundary_ms=max(boundary_ms, next_hour(records) * HOUR_MS),
            computed_at_ms=time.time_ns() // 1_000_000,
        )
    )


async def _published(settings: Settings, experiment_id: str) -> Results:
    newest = None
    topic = settings.topic("results")
    async with LogReader(settings) as reader:
        partition = partition_of(experiment_id.encode(), settings.counts_partitions)
        async for item in reader.read(topic, start={partition: 0}):
            if item.key == experiment_id.encode():
                newest = item.value
    if newest is None:
        raise UnknownExperiment(
            f"no results of {experiment_id!r}",
            where=topic,
            action="they follow the experiment's allocations; without --published they are worked out now",
        )
    return decode_results(newest, where=topic)


async def _logged(
    reader: LogReader, settings: Settings, partition: int, experiment_id: str, versions: set[int]
) -> dict[int, Logged]:
    """Allocations of these versions, from the log, where a version is an offset."""
    if not versions:
        return {}
    topic = settings.topic("allocation-log")
    found = {}
    async for item in reader.read(topic, start={partition: min(versions)}):
        if item.offset in versions and item.key == experiment_id.encode() and item.value is not None:
            found[item.offset] = decode_logged(item.value)
    return found


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


def _show(found: Results) -> None:
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
    for line in found.statements:
        console.print(escape(line), highlight=False)
    for warning in found.inference.warnings if found.inference is not None else ():
        console.print(f"[bold]Warning:[/bold] {escape(warning)}", highlight=False)
    for note in found.notes:
        console.print(f"- {escape(note)}", highlight=False)


def _csv(found: Results) -> str:
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


def _cells(arm: ArmResult) -> tuple[str, ...]:
    low, high = arm.interval
    return (
        f"{arm.trials:,}",
        f"{arm.successes:,}",
        f"{arm.mean:.4g}",
        f"{low:.4g} to {high:.4g}",
        "" if arm.probability_best is None else f"{arm.probability_best:.3f}",
        "" if arm.weight is None else f"{arm.weight:.3f}",
    )
