"""``bandit-streams worker``: the process that joins events, keeps counts and publishes allocations."""

import click

from streams.commands import pass_settings
from streams.config import Settings
from streams.errors import ConfigError

ROLES = ("join", "allocator")


def parse_roles(text: str) -> frozenset[str]:
    """Split ``join,allocator``.

    Raises
    ------
    ConfigError
        If a role is unknown, or there is none.
    """
    roles = frozenset(part.strip() for part in text.split(",") if part.strip())
    if not roles or not roles <= set(ROLES):
        raise ConfigError(
            f"roles {text!r} are not known", where="--roles", action=f"use one or more of {', '.join(ROLES)}"
        )
    return roles


@click.command()
@click.option(
    "--roles",
    default=",".join(ROLES),
    show_default=True,
    help="What this worker does: 'join' counts events, 'allocator' computes allocations.",
)
@pass_settings
def command(settings: Settings, roles: str) -> None:
    """Join events, keep counts, publish allocations.

    Runs until SIGTERM or Ctrl-C. Start as many as there is work for; they share the partitions among
    themselves. /metrics, /livez and /readyz are on the settings' web_port.
    """
    wanted = parse_roles(roles)
    from streams.app import run_worker  # noqa: PLC0415 - after the check, so that a wrong option answers at once

    click.get_current_context().exit(run_worker(settings, wanted))
