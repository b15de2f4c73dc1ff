"""``bandit-streams experiments``: apply definitions, look at experiments and steer them."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from streams.allocator.published import newest_allocation
from streams.allocator.reporting import present_statuses
from streams.commands import pass_settings
from streams.config import Settings
from streams.errors import ConfigError, DefinitionInvalid, LifecycleError
from streams.experiments import lifecycle
from streams.experiments.changes import Change, apply_definition
from streams.experiments.definition import ExperimentRecord
from streams.experiments.document import to_yaml
from streams.experiments.reader import format_duration
from streams.experiments.store import ExperimentStore
from streams.experiments.validation import Definition, parse_definitions

T = TypeVar("T")


@click.group()
def command() -> None:
    """Apply, list and steer experiments."""


def _now_ms() -> int:
    return int(time.time() * 1000)


def _with_store(settings: Settings, use: Callable[[ExperimentStore], Awaitable[T]]) -> T:
    async def run() -> T:
        async with ExperimentStore(settings) as store:
            result = await use(store)
            for where, problem in store.view.problems().items():
                click.echo(f"unreadable record {where}: {problem}", err=True)
            return result

    return asyncio.run(run())


def _read_files(files: tuple[Path, ...]) -> list[Definition]:
    """Definitions of all files; the problems of all are reported together."""
    definitions: list[Definition] = []
    problems: list[str] = []
    for file in files:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot be read: {error}", where=str(file), action="name a readable UTF-8 file"
            ) from error
        try:
            definitions += parse_definitions(text, str(file))
        except DefinitionInvalid as error:
            problems += [f"{file}: {problem}" for problem in error.problems]
    if problems:
        raise DefinitionInvalid(problems, where="definitions")
    return definitions


_files = click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True, dir_okay=False)
)
_as_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@command.command("validate")
@_files
def validate(files: tuple[Path, ...]) -> None:
    """Check definition FILES (- is standard input) without a broker.

    Ends with status 65 if one has a problem; all problems of all files are named.
    """
    for definition in _read_files(files):
        click.echo(f"{definition.experiment_id}: valid, {len(definition.arms)} arms")


@command.command("apply")
@_files
@click.option("--dry-run", is_flag=True, help="Say what would change; write nothing.")
@_as_json
@pass_settings
def apply(settings: Settings, files: tuple[Path, ...], dry_run: bool, as_json: bool) -> None:
    """Make the definitions in FILES (YAML or JSON; - is standard input) the newest ones.

    What decides counting goes into a new version; the rest holds at once. Applying the same again changes
    nothing.
    """
    definitions = _read_files(files)

    async def use(store: ExperimentStore) -> list[Change]:
        # All are computed before any is written: a file that contradicts its record stops the others, too.
        changes = [
            apply_definition(
                definition,
                store.find(definition.experiment_id),
                now_ms=_now_ms(),
                lead_ms=settings.definition_lead_ms,
            )
            for definition in definitions
        ]
        for change in changes:
            if change.summary and not dry_run:
                await store.write(change.record)
        return changes

    for change in _with_store(settings, use):
        record = change.record
        if as_json:
            click.echo(
                json.dumps(
                    {
                        "experiment_id": record.experiment_id,
                        "revision": record.revision,
                        "changed": bool(change.summary),
                        "written": bool(change.summary) and not dry_run,
                        "summary": change.summary,
                    }
                )
            )
            continue
        verb = "would become" if dry_run else "is now"
        state = f"{verb} revision {record.revision}" if change.summary else f"unchanged at {record.revision}"
        click.echo(f"{record.experiment_id}: {state}")
        for line in change.summary:
            click.echo(f"  {line}")


@command.command("list")
@click.option("--all", "with_archived", is_flag=True, help="With archived ones.")
@_as_json
@pass_settings
def list_command(settings: Settings, with_archived: bool, as_json: bool) -> None:
    """Show all experiments that are not archived."""

    async def use(store: ExperimentStore) -> list[ExperimentRecord]:
        return store.all()

    records = _with_store(settings, use)
    shown = [record for record in records if with_archived or record.status != "archived"]
    if as_json:
        for record in shown:
            click.echo(msgspec.json.encode(record))
        return
    if shown:
        click.echo(f"{'id':<32} {'status':<10} {'arms':>4} {'version':>7} {'interval':>8}  changed")
    for record in shown:
        policy = record.policy
        click.echo(
            f"{record.experiment_id:<32} {record.status:<10} {len(record.arms):>4}"
            f" {record.versions[-1].version:>7} {format_duration(policy.interval_ms):>8} "
            f" {_rfc3339(record.updated_at_ms)}"
        )
    hidden = len(records) - len(shown)
    note = f"; {hidden} archived not shown, see --all" if hidden else ""
    click.echo(f"{len(shown)} experiment{'' if len(shown) == 1 else 's'}{note}")


@command.command("show")
@click.argument("experiment_id", metavar="ID")
@_as_json
@click.option("--document", is_flag=True, help="Only the definition, as YAML to edit and apply again.")
@pass_settings
def show(settings: Settings, experiment_id: str, as_json: bool, document: bool) -> None:
    """Show experiment ID: its definition, arms and counting versions."""

    async def use(store: ExperimentStore) -> ExperimentRecord:
        return store.get(experiment_id)

    record = _with_store(settings, use)
    if as_json:
        click.echo(msgspec.json.encode(record))
        return
    if not document:
        allocation = asyncio.run(newest_allocation(settings, experiment_id))
        click.echo(f"# {record.experiment_id}: {record.status}, revision {record.revision}")
        click.echo(f"# created {_rfc3339(record.created_at_ms)}, changed {_rfc3339(record.updated_at_ms)}")
        if record.winner is not None:
            click.echo(f"# winner: {record.winner}")
        if record.segment_winners is not None:
            for segment, winner in sorted(record.segment_winners.arms.items()):
                click.echo(f"# winner of {segment}: {winner}")
        if allocation is not None:
            until = _rfc3339(allocation.boundary_ms)
            click.echo(f"# allocation {allocation.version}: {allocation.state}, of what is before {until}")
        for arm, status in zip(record.arms, present_statuses(record, allocation), strict=True):
            defined = "" if status == arm.status else f" (defined as {arm.status}; the allocator moved it on)"
            click.echo(f"# arm {arm.arm_id}: {status}{defined}, content {arm.content_hash}")
        for version in record.versions:
            click.echo(f"# counting version {version.version}: from {_rfc3339(version.effective_from_ms)}")
    click.echo(to_yaml(record), nl=False)


@command.command("clone")
@click.argument("experiment_id", metavar="ID")
@click.argument("new_id", metavar="NEW_ID")
@pass_settings
def clone(settings: Settings, experiment_id: str, new_id: str) -> None:
    """Make a draft NEW_ID with the definition of experiment ID."""

    async def use(store: ExperimentStore) -> ExperimentRecord:
        copy = lifecycle.clone(store.get(experiment_id), new_id, now_ms=_now_ms())
        if store.find(new_id) is not None:
            raise LifecycleError(
                f"experiment {new_id} exists already", action="choose another id; ids are never used again"
            )
        return await store.write(copy)

    record = _with_store(settings, use)
    click.echo(f"{record.experiment_id}: draft made from {experiment_id}")
    click.echo(
        f"  edit `bandit-streams experiments show --document {new_id}`, set status: live, and apply it"
    )


def _step(
    settings: Settings, experiment_id: str, step: Callable[..., ExperimentRecord], **options: Any
) -> None:
    async def use(store: ExperimentStore) -> ExperimentRecord:
        return await store.change(experiment_id, lambda record: step(record, **options, now_ms=_now_ms()))

    record = _with_store(settings, use)
    click.echo(f"{record.experiment_id}: {record.status}, revision {record.revision}")


@command.command("pause")
@click.argument("experiment_id", metavar="ID")
@pass_settings
def pause(settings: Settings, experiment_id: str) -> None:
    """Show everyone the default arm of experiment ID until it is resumed."""
    _step(settings, experiment_id, lifecycle.pause)


@command.command("resume")
@click.argument("experiment_id", metavar="ID")
@pass_settings
def resume(settings: Settings, experiment_id: str) -> None:
    """Let paused experiment ID go on."""
    _step(settings, experiment_id, lifecycle.resume)


@command.command("stop-arm")
@click.argument("experiment_id", metavar="ID")
@click.argument("arm_id", metavar="ARM")
@pass_settings
def stop_arm(settings: Settings, experiment_id: str, arm_id: str) -> None:
    """Take all traffic from ARM of experiment ID. Never from control, never from the last arm."""
    _step(settings, experiment_id, lifecycle.stop_arm, arm_id=arm_id)


@command.command("complete")
@click.argument("experiment_id", metavar="ID")
@click.option(
    "--winner",
    metavar="ARM",
    help="Arm that everyone is shown from now on.  [default: control; contextual: the best of each segment]",
)
@pass_settings
def complete(settings: Settings, experiment_id: str, winner: str | None) -> None:
    """End experiment ID and show everyone the winner; where it was learned by segment, each segment's."""
    allocation = None if winner else asyncio.run(newest_allocation(settings, experiment_id))
    _step(settings, experiment_id, lifecycle.complete, winner=winner, allocation=allocation)


@command.command("archive")
@click.argument("experiment_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_settings
def archive(settings: Settings, experiment_id: str, yes: bool) -> None:
    """Put completed experiment ID away for good: its counts are deleted."""
    if not yes:
        click.confirm(f"delete the counts of {experiment_id} for good?", abort=True, err=True)
    _step(settings, experiment_id, lifecycle.archive)


def _rfc3339(timestamp_ms: int) -> str:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
