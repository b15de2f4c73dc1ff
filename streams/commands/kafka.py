"""``bandit-streams kafka``: a real Apache Kafka in the foreground, for trying things out."""

from pathlib import Path

import click

from streams.embedded import run_foreground


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Port for clients.  [default: a free one]")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the data stays.  [default: a temporary folder, removed at the end]",
)
def command(port: int | None, folder: Path | None) -> None:
    """Run a real Apache Kafka here, one node, until Ctrl-C.

    For development: one node has no replicas, so set BANDIT_REPLICATION_FACTOR=1 and
    BANDIT_MIN_INSYNC_REPLICAS=1 for what uses it. Needs the extra `demo`, which brings Java; no Docker.
    """
    click.get_current_context().exit(run_foreground(port, folder))
