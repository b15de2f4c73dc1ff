"""Commands of ``bandit-streams``: each module defines one `click` command or group named ``command``.

`streams.cli` imports a module only when its command is run, so that ``--help`` is fast whatever a command
needs. A command gets its settings with `pass_settings`; they are read when it runs, so that ``--help``
works with a broken configuration. It reports trouble by raising an error of `streams.errors` and ends
with ``ctx.exit(status)`` where the status means something.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import click

from streams.config import Settings, load_settings

__all__ = ["Invocation", "pass_settings"]

P = ParamSpec("P")
R = TypeVar("R")


class Invocation:
    """What the root command was given; the object of the click context.

    Parameters
    ----------
    config
        TOML file of ``--config``; none: the one that ``BANDIT_CONFIG`` names, if any.
    debug
        Whether to show tracebacks.
    """

    def __init__(self, config: Path | None = None, *, debug: bool = False) -> None:
        self.config = config
        self.debug = debug

    @functools.cached_property
    def settings(self) -> Settings:
        """Settings from environment, file and defaults.

        Raises
        ------
        streams.errors.ConfigError
            If they are unreadable or contradict each other.
        """
        return load_settings(self.config)


def pass_settings(callback: Callable[Concatenate[Settings, P], R]) -> Callable[P, R]:
    """Call a command's function with the settings as its first argument."""

    @functools.wraps(callback)
    def with_settings(*args: P.args, **kwargs: P.kwargs) -> R:
        invocation = click.get_current_context().ensure_object(Invocation)
        return callback(invocation.settings, *args, **kwargs)

    return with_settings
