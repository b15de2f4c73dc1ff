"""``bandit-streams proposals``: arms that were proposed, and what becomes of them."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import click
import msgspec

from streams.allocations import Allocation
from streams.allocator.published import newest_allocation
from streams.allocator.service import wall_clock_ms
from streams.commands import pass_settings
from streams.config import Settings
from streams.errors import LifecycleError
from streams.experiments import proposals
from streams.experiments.definition import ExperimentRecord, Proposal
from streams.experiments.store import ExperimentStore
from streams.proposals.endpoint import Endpoint
from streams.proposals.factors import propose_combination_of, untested, weakest
from streams.proposals.generating import add_proposals, change
from streams.proposals.generating import generate as generate_from
from streams.proposals.prompts import CANDIDATES_MAX

_experiment = click.argument("experiment_id", metavar="EXPERIMENT")
_ids = click.argument("proposal_ids", metavar="PROPOSAL...", nargs=-1, required=True)
_as_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@click.group()
def command() -> None:
    """Look at proposed arms, make proposals, approve and reject them."""


async def _read(settings: Settings, experiment_id: str) -> ExperimentRecord:
    async with ExperimentStore(settings) as store:
        return store.get(experiment_id)


def _line(proposal: Proposal) -> str:
    chances = [
        "" if chance is None else f"{chance:.3f}"
        for chance in (proposal.probability_best, proposal.probability_better)
    ]
    shown = msgspec.json.encode(proposal.content or "").decode()[1:-1]
    return (
        f"{proposal.proposal_id:<6} {proposal.status:<9} {proposal.source:<10} {proposal.arm_id:<24}"
        f" {chances[0]:>8} {chances[1]:>9}  {proposal.dropped or '-':<16} {shown[:60]}"
    ).rstrip()


@command.command("list")
@_experiment
@click.option("--all", "with_decided", is_flag=True, help="With approved and rejected ones.")
@_as_json
@pass_settings
def list_command(settings: Settings, experiment_id: str, with_decided: bool, as_json: bool) -> None:
    """Show the pending proposals of EXPERIMENT."""
    record = asyncio.run(_read(settings, experiment_id))
    shown = [each for each in record.proposals if with_decided or each.status == "pending"]
    if as_json:
        for proposal in shown:
            click.echo(msgspec.json.encode(proposal))
        return
    if shown:
        click.echo(
            f"{'id':<6} {'status':<9} {'source':<10} {'arm':<24} {'P(best)':>8} {'P(better)':>9}"
            f"  {'in place of':<16} content"
        )
    for proposal in shown:
        click.echo(_line(proposal))
    budget, spent = record.proposing, record.spending
    click.echo(
        f"{len(shown)} proposal{'' if len(shown) == 1 else 's'}; generating has taken {spent.requests} of"
        f" {budget.max_requests} requests, {spent.tokens} of {budget.max_tokens} tokens"
    )


@command.command("show")
@_experiment
@click.argument("proposal_id", metavar="PROPOSAL")
@pass_settings
def show(settings: Settings, experiment_id: str, proposal_id: str) -> None:
    """Show one PROPOSAL of EXPERIMENT with everything known of it, as JSON."""
    proposal = proposals.find(asyncio.run(_read(settings, experiment_id)), proposal_id)
    click.echo(msgspec.json.format(msgspec.json.encode(proposal), indent=2))


def _decide(
    settings: Settings,
    experiment_id: str,
    proposal_ids: tuple[str, ...],
    decide: Callable[..., ExperimentRecord],
) -> None:
    """Settle proposals one after another; the first that cannot be ends it."""

    async def run() -> None:
        async with ExperimentStore(settings) as store:
            for proposal_id in proposal_ids:
                step = partial(_decided, decide, proposal_id)
                record = await change(store, experiment_id, step)
                proposal = proposals.find(record, proposal_id)
                arm = f", arm {proposal.arm_id} incubates" if proposal.status == "approved" else ""
                click.echo(f"{proposal_id}: {proposal.status}{arm}")

    asyncio.run(run())


def _decided(
    decide: Callable[..., ExperimentRecord], proposal_id: str, record: ExperimentRecord
) -> ExperimentRecord:
    return decide(record, proposal_id, now_ms=wall_clock_ms())


@command.command("approve")
@_experiment
@_ids
@pass_settings
def approve(settings: Settings, experiment_id: str, proposal_ids: tuple[str, ...]) -> None:
    """Make each PROPOSAL an arm of EXPERIMENT; it begins incubating."""
    _decide(settings, experiment_id, proposal_ids, proposals.approve)


@command.command("reject")
@_experiment
@_ids
@pass_settings
def reject(settings: Settings, experiment_id: str, proposal_ids: tuple[str, ...]) -> None:
    """Put each PROPOSAL of EXPERIMENT aside; the same is not proposed again."""
    _decide(settings, experiment_id, proposal_ids, proposals.reject)


@command.command("generate")
@_experiment
@click.option(
    "--source",
    type=click.Choice(["factors", "endpoint"]),
    help="Where from.  [default: both, as far as there are untested factors and an endpoint]",
)
@click.option(
    "--count",
    type=click.IntRange(1, CANDIDATES_MAX),
    default=1,
    show_default=True,
    help="Contents to ask the endpoint for.",
)
@click.option("--for", "replaced", metavar="ARM", help="Arm to be replaced.  [default: the weakest]")
@_as_json
@pass_settings
def generate(
    settings: Settings,
    experiment_id: str,
    source: str | None,
    count: int,
    replaced: str | None,
    as_json: bool,
) -> None:
    """Propose arms for EXPERIMENT now: a combination of factors, and content from the endpoint."""

    async def run() -> None:
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(ExperimentStore(settings))
            record = store.get(experiment_id)
            allocation = await newest_allocation(settings, experiment_id)
            if allocation is None:
                raise LifecycleError(
                    f"experiment {experiment_id} has no allocation yet, so nothing is known of its arms",
                    action="launch it, and repeat the command when the worker has published one",
                )
            dropped = _replaced(record, allocation, replaced)
            added: list[Proposal] = []
            if source == "factors" or (source is None and untested(record)):
                added += await _from_factors(store, record, allocation, dropped)
            if source == "endpoint" or (source is None and settings.generate.url is not None):
                endpoint = await stack.enter_async_context(Endpoint(settings.generate))
                outcome = await generate_from(
                    store,
                    experiment_id,
                    allocation,
                    endpoint,
                    endpoint if settings.generate.moderation == "endpoint" else None,
                    count=count,
                    dropped=dropped,
                    max_attempts=settings.generate.max_attempts,
                    now_ms=wall_clock_ms,
                )
                added += outcome.added
                for why in outcome.refused:
                    click.echo(f"refused: {why}", err=True)
            for proposal in added:
                click.echo(msgspec.json.encode(proposal) if as_json else _line(proposal))
            if not added:
                click.echo("nothing new was proposed", err=True)

    asyncio.run(run())


def _replaced(record: ExperimentRecord, allocation: Allocation, replaced: str | None) -> str | None:
    if replaced is None:
        return weakest(record, allocation)
    arm = record.find_arm(replaced)
    if arm is None:
        shown = ", ".join(record.newest_arms)
        raise LifecycleError(f"{replaced!r} is no arm of {record.experiment_id}; the arms are {shown}")
    return arm.arm_id


async def _from_factors(
    store: ExperimentStore, record: ExperimentRecord, allocation: Allocation, dropped: str | None
) -> tuple[Proposal, ...]:
    if not untested(record):
        raise LifecycleError(
            f"experiment {record.experiment_id}: every combination of its factors was tested or proposed",
            action="add factors or levels to its definition, and list its `arms`; or use --source endpoint",
        )
    found = propose_combination_of(record, allocation, dropped)
    return await add_proposals(
        store,
        record.experiment_id,
        [] if found is None else [found],
        approve_them=record.proposing.auto_approve,
        now_ms=wall_clock_ms,
    )
