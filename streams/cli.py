"""The command line of the product, ``bandit-streams``.

What: one root command with the global options; every other command lives in a module of
`streams.commands` and is imported when it is run. Errors that the product raises on purpose are printed
as what, where and what to do, and end the process with their exit code; a traceback is shown only with
``--debug``.

Cost: ``--help`` imports click and nothing of the product that talks to Kafka.
"""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import click

from streams.errors import BanditError
from streams.logs import LogFormat, configure_logging

__all__ = ["COMMANDS", "cli", "main", "version"]

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Run the product on real input and on a simulated shop."),
    "worker": ("worker", "Join events, keep counts, publish allocations."),
    "kafka": ("kafka", "Run a real Apache Kafka here, for trying things out."),
    "topics": ("topics", "Create and check the topics."),
    "experiments": ("experiments", "Apply, list and steer experiments."),
    "proposals": ("proposals", "Propose arms; approve and reject proposals."),
    "results": ("results", "Show what an experiment's counts say."),
    "simulate": ("simulate", "Simulate policies, or a definition before it goes live."),
    "plan": ("plan", "Say how many days an effect takes to be found."),
    "dead-letters": ("deadletters", "List rejected events, and replay them after a fix."),
    "audit": ("audit", "Compute published allocations again and compare."),
    "doctor": ("doctor", "Check the installation and say what to do."),
    "config": ("config", "Show the settings in force."),
}
"""Command -> (module of `streams.commands`, one line of help)."""

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
EXIT_UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h


class _LazyGroup(click.Group):
    """A group that imports a command's module when the command is looked up to be run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order in which a new user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return the command; ``None`` if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"streams.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["--help", "-h"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file with settings; environment variables BANDIT_... win over it.  [env: BANDIT_CONFIG]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Least severe message shown.  [default: info for worker and kafka, else warning]",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="bandit-streams", message="%(prog)s %(version)s")
@click.pass_context
def cli(
    ctx: click.Context, config: Path | None, log_level: str | None, log_format: LogFormat, debug: bool
) -> None:
    """Turn exposure and conversion events on Kafka into traffic allocations for experiments."""
    from streams.commands import Invocation  # noqa: PLC0415 - keeps --help from importing pydantic

    default = "info" if ctx.invoked_subcommand in ("worker", "kafka") else "warning"
    configure_logging(log_level or default, log_format)
    ctx.obj = Invocation(config, debug=debug)


def version() -> str:
    """Return the installed product's version."""
    return metadata.version("bandit-streams")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; ``sys.argv[1:]`` when not given.

    Returns
    -------
    int
        Exit status: 0 for success, 2 for wrong usage, else as `streams.errors` says.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    try:
        result = cli.main(args=args, prog_name="bandit-streams", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, e.g. `| head`: say nothing, and keep Python from flushing
        # into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except BanditError as error:
        _show(error, debug=debug)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence: a person is to read a message
        return _show_unexpected(error, debug=debug)
    return result if isinstance(result, int) else 0


def _show(error: BanditError, *, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {error.what}", err=True)
    if error.where:
        click.echo(f"  where: {error.where}", err=True)
    if error.action:
        click.echo(f"  what to do: {error.action}", err=True)


def _show_unexpected(error: Exception, *, debug: bool) -> int:
    from streams.connection import explain  # noqa: PLC0415 - knows Kafka's errors; not needed until now

    explained = explain(error)
    if explained is not None:
        _show(explained, debug=debug)
        return explained.exit_code
    # What serves (worker, kafka) logs at info and cannot just be run again: its log must have the traceback.
    if debug or logging.getLogger().isEnabledFor(logging.INFO):
        traceback.print_exception(error)
    click.echo(f"unexpected error: {type(error).__name__}: {error}", err=True)
    click.echo("  what to do: run the same command with --debug and report the traceback", err=True)
    return EXIT_UNEXPECTED
