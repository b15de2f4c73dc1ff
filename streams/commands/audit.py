"""``bandit-streams audit``: compute every published allocation again and compare."""

import asyncio
import sys

import click
from rich.console import Console
from rich.progress import Progress

from streams.audit import AuditReport, audit
from streams.commands import pass_settings
from streams.config import Settings

SHOWN = 20


async def _run(settings: Settings) -> AuditReport:
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("records of the allocation log", total=None)
        return await audit(
            settings, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


@click.command()
@pass_settings
def command(settings: Settings) -> None:
    """Compute every published allocation again and compare.

    Reads the allocation log, recomputes each table from the inputs in it and compares bytes; checks claims,
    versions, boundaries and that weights add up to 1; and that the topic allocations has the newest of each
    experiment. Ends with status 1 on any difference.
    """
    report = asyncio.run(_run(settings))
    click.echo(
        f"{report.tables} allocations of {report.experiments} experiments: {report.compared} computed again,"
        f" {report.claims} claims, {report.foreign} written late and never in force"
    )
    if report.other_engine:
        click.echo(f"{report.other_engine} were computed by another version of the maths and not compared")
    if report.ok:
        click.echo("no difference")
        return
    click.echo(f"{report.n_differences} differences; the first:", err=True)
    for difference in report.differences[:SHOWN]:
        click.echo(f"  {difference}", err=True)
    click.get_current_context().exit(1)
