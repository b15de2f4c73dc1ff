"""``bandit-streams doctor``: look the installation over and say what to do."""

import asyncio
import json
import time

import click

from streams.commands import pass_settings
from streams.config import Settings
from streams.doctor import CHECKS, Finding, Level, diagnose

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each finding.")
@click.option(
    "--check",
    "checks",
    multiple=True,
    type=click.Choice([name for name, _ in CHECKS]),
    help="Only this check, after that of the address; may be repeated.",
)
@pass_settings
def command(settings: Settings, as_json: bool, checks: tuple[str, ...]) -> None:
    """Check the installation and say what to do about each finding.

    Looks at addresses, TLS and passwords, brokers, topics, definitions, what producers write, workers, lag,
    counts, allocations and dead letters. Changes nothing. Ends with status 1 if something is broken.
    """

    async def run() -> list[Finding]:
        findings = []
        async for finding in diagnose(settings, lambda: int(time.time() * 1000), checks):
            findings.append(finding)
            click.echo(json.dumps(finding._asdict()) if as_json else to_text(finding))
        return findings

    levels = [finding.level for finding in asyncio.run(run())]
    if not as_json:
        click.echo(f"{levels.count(Level.FAIL)} failed, {levels.count(Level.WARN)} to look at")
    click.get_current_context().exit(1 if Level.FAIL in levels else 0)


def to_text(finding: Finding) -> str:
    """Return a finding as lines for people."""
    mark = click.style(f"{finding.level.value:<5}", fg=_COLOURS[finding.level], bold=True)
    where = f"{finding.where}: " if finding.where else ""
    text = f"{mark} {finding.check:<13} {where}{finding.what}"
    return f"{text}\n{'':<20}what to do: {finding.action}" if finding.action else text
