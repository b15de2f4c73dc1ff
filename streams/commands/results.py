"""``bandit-streams results``: figures of an experiment that may be reported, and what they do not say."""

import asyncio
import json
import time

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streams.allocations import Allocation, decode_allocation
from streams.allocator.compute import counting_at
from streams.allocator.counts_state import ArmCounts, CountsState
from streams.allocator.reporting import ArmReport, Report, report
from streams.commands import pass_settings
from streams.config import Settings
from streams.counts import decode_key, decode_rows
from streams.errors import ConfigError, RecordError, UnknownExperiment
from streams.experiments.definition import Counting, ExperimentRecord
from streams.experiments.view import ExperimentsView
from streams.log_reader import LogReader
from streams.partitioning import partition_of

ALL_HOURS = 2**53


@click.command()
@click.argument("experiment")
@click.option(
    "--version", "number", type=click.IntRange(1), help="Definition version.  [default: the newest in effect]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@pass_settings
def command(settings: Settings, experiment: str, number: int | None, as_json: bool) -> None:
    """Show what an experiment's counts say, per arm, and what they do not say.

    Counts are those of the reporting view: every unit once, by its first exposure. Reads the experiment's
    partition of the topic counts; changes nothing.
    """
    found = asyncio.run(_report(settings, experiment, number))
    if as_json:
        arms = [arm._asdict() for arm in found.arms]
        comparison = None if found.comparison is None else found.comparison._asdict()
        click.echo(json.dumps(found._asdict() | {"arms": arms, "comparison": comparison}, ensure_ascii=False))
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
    metric = counting.reward.metric
    shown, compared = CountsState(views=("reporting",)), CountsState(views=("reporting",), group="comparison")
    allocations: set[int] = set()
    async with LogReader(settings) as reader:
        partition = partition_of(experiment_id.encode(), settings.counts_partitions)
        async for item in reader.read(settings.topic("counts"), start={partition: 0}):
            if _is_of(item.key, experiment_id):
                for state in (shown, compared):
                    state.absorb(item.key or b"", item.value)
                allocations |= _allocations_in(item.value, counting.version, metric)
        allocation = await _allocation(reader, settings, partition, experiment_id)
    arms = shown.as_of(experiment_id, counting.version, metric, ALL_HOURS)
    others = compared.as_of(experiment_id, counting.version, metric, ALL_HOURS).values()
    return report(
        record,
        counting,
        arms,
        comparison=ArmCounts(*map(sum, zip(*others, strict=True))) if others else ArmCounts(0, 0, 0, 0),
        allocation=allocation,
        n_allocations=len(allocations),
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


def _allocations_in(value: bytes | None, version: int, metric: str) -> set[int]:
    """Allocations that the reported units of a record were assigned by; negative ones mean "not known"."""
    if value is None:
        return set()
    _, rows = decode_rows(value)
    return {
        row.allocation_version
        for row in rows
        if (row.view, row.version, row.metric, row.group) == ("reporting", version, metric, "bandit")
        and row.allocation_version >= 0
    }


async def _allocation(
    reader: LogReader, settings: Settings, partition: int, experiment_id: str
) -> Allocation | None:
    newest = None
    async for item in reader.read(settings.topic("allocations"), start={partition: 0}):
        if item.key == experiment_id.encode():
            newest = item.value
    return None if newest is None else decode_allocation(newest)


def _show(found: Report) -> None:
    title = f"{found.experiment_id}: {found.status}, metric {found.metric} ({found.kind})"
    title += f", definition version {found.version}"
    if found.allocation_version is not None:
        title += f", allocation {found.allocation_version}"
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
    for note in found.notes:
        console.print(f"- {escape(note)}", highlight=False)


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
