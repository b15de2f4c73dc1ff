"""What a person sees while the demo works: bars on a terminal, plain lines elsewhere.

Why two forms: a bar redraws its line, which fills a log file or a CI page with rubbish; there, each step is
one line when it begins and one when it ends, with some in between on long ones.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

__all__ = ["Narrator", "Step"]

_LINE_EVERY_S: Final = 5.0
_WIDTH: Final = 110


class Step:
    """One step under way; ``advance`` or ``reach`` say how far it is."""

    def __init__(self, console: Console, text: str, total: int | None, progress: Progress | None) -> None:
        self._console = console
        self._text = text
        self._total = total
        self._progress = progress
        self._task = None if progress is None else progress.add_task(text, total=total)
        self._done = 0
        self._told_at = time.monotonic()

    def advance(self, count: int) -> None:
        """Take ``count`` more as done."""
        self.reach(self._done + count)

    def reach(self, done: int) -> None:
        """Take ``done`` as done so far; a smaller number than before changes nothing."""
        if done <= self._done:
            return
        self._done = done
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done)
        elif time.monotonic() - self._told_at > _LINE_EVERY_S:
            self._told_at = time.monotonic()
            self._console.print(f"  {self._text}: {done:,}" + (f" of {self._total:,}" if self._total else ""))


class Narrator:
    """Prints the demo's story.

    Parameters
    ----------
    console
        Where to; by default standard output, at most 110 columns wide where it is no terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        if console is None:
            console = Console(highlight=False)
            if not console.is_terminal:
                console = Console(highlight=False, width=_WIDTH)
        self.console = console

    def title(self, text: str) -> None:
        """Print a heading."""
        self.console.print()
        self.console.rule(f"[bold]{text}", align="left") if self.console.is_terminal else self.console.print(
            f"== {text}"
        )

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def step(self, text: str, total: int | None = None) -> Iterator[Step]:
        """Show a step while it is under way, and how long it took."""
        started = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"{text} ...", markup=False)
            step = Step(self.console, text, total, None)
            yield step
        else:
            columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}")]
            if total is not None:
                columns += [BarColumn(), MofNCompleteColumn()]
            with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as progress:
                yield Step(self.console, text, total, progress)
        self.console.print(f"  {text}: {time.monotonic() - started:.1f} s", markup=False)
