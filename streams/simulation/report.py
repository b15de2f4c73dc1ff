"""What simulations and plans look like: rows for tables, lines for the terminal, a picture in a file.

Cost: matplotlib is imported only when a picture is drawn, and draws without a display.
"""

import html
import io
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bandit_core.league import Detection, Estimate, Figures, LeagueRow
from streams.demo.plot import sparkline
from streams.errors import ConfigError

__all__ = [
    "COLUMNS",
    "FORMATS",
    "Course",
    "cells",
    "check_picture",
    "course_of",
    "days_text",
    "detection_cells",
    "draw",
    "pair",
    "plain",
    "sparklines",
]

COLUMNS = ("policy", "regret", "best arm's share", "starved arms", "false winners", "coverage")
FORMATS = (".html", ".png", ".svg")

_SPARKLINE_WIDTH = 48


class Course(NamedTuple):
    """Mean over runs by period: share of the best arm, and successes lost so far."""

    scenario: str
    policy: str
    best_share: tuple[float, ...]
    lost: tuple[float, ...]


def course_of(figures: Figures, scenario: str, policy: str) -> Course:
    """Average the course of all runs."""
    lost = np.add.accumulate(figures.lost_by_period.mean(axis=1))
    return Course(scenario, policy, tuple(figures.best_by_period.mean(axis=1).tolist()), tuple(lost.tolist()))


def pair(estimate: Estimate, digits: int) -> str:
    """Write a mean and its error; one run has none."""
    if math.isnan(estimate.mean):
        return "–"
    error = "" if math.isnan(estimate.error) else f" ± {estimate.error:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{error}"


def cells(row: LeagueRow) -> tuple[str, ...]:
    """Cells of a row under :data:`COLUMNS`."""
    return (
        row.policy,
        pair(row.regret, 1 if row.regret.mean < 100 else 0),
        pair(row.best_share, 2),
        pair(row.starved, 2),
        pair(row.false_winners, 3),
        pair(row.coverage, 3),
    )


def plain(value: Any) -> Any:
    """Plain values for JSON: what is not a number is null, what never happens, too."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def sparklines(courses: Sequence[Course], *, is_utf8: bool = True) -> list[str]:
    """One line a contestant: the best arm's share from the first period to the last."""
    width = max(len(course.policy) for course in courses)
    return [
        f"{course.policy:<{width}}  {sparkline(course.best_share, _SPARKLINE_WIDTH, is_utf8=is_utf8)}"
        f"  {course.best_share[-1]:.2f}"
        for course in courses
    ]


def days_text(days: float, most: int) -> str:
    """Days as a person writes them; more than were simulated are said to be so."""
    return f"> {most}" if math.isinf(days) else f"{days:.0f}"


def detection_cells(found: Detection, most: int) -> tuple[str, ...]:
    """Days with their interval, the median, and the share of runs that found it."""
    interval = f"{days_text(found.low, most)} to {days_text(found.high, most)}"
    return days_text(found.days, most), interval, days_text(found.median, most), f"{found.detected:.0%}"


def check_picture(path: Path) -> None:
    """Make sure before the work that a picture can be drawn after it.

    Raises
    ------
    ConfigError
        If the suffix is none of :data:`FORMATS`, the folder is missing, or matplotlib is not installed.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"no picture of the kind {path.suffix or 'without suffix'!r}",
            where=str(path),
            action=f"use one of {', '.join(FORMATS)}",
        )
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            "its folder does not exist", where=str(path), action="make it, or name another file with --plot"
        )
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "pictures need matplotlib",
            where=str(path),
            action="install bandit-streams[demo], or use --no-plot",
        )


def draw(courses: Sequence[Course], rows: Sequence[LeagueRow], path: Path) -> None:
    """Write a picture: for each scenario the best arm's share and what was lost so far.

    Parameters
    ----------
    courses, rows
        Of all scenarios, in order; at least one.
    path
        Its suffix says the format, one of :data:`FORMATS`; HTML has the table, too.

    Raises
    ------
    ConfigError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and part of the extra `demo`

    names = list(dict.fromkeys(course.scenario for course in courses))
    figure = Figure(figsize=(11.0, 3.0 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    for (left, right), name in zip(panels, names, strict=True):
        for course in (each for each in courses if each.scenario == name):
            days = np.arange(1, len(course.lost) + 1) / 24
            left.plot(days, course.best_share, label=course.policy, linewidth=1.2)
            right.plot(days, course.lost, label=course.policy, linewidth=1.2)
        left.set_title(f"{name}: share of the best arm", fontsize=10, loc="left")
        left.set_ylim(0.0, 1.0)
        right.set_title("successes lost against always the best arm", fontsize=10, loc="left")
        right.set_ylim(bottom=0.0)
        for panel in (left, right):
            panel.set_xlabel("days", fontsize=8)
            panel.margins(x=0.0)
        right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    try:
        if path.suffix == ".html":
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg")
            path.write_text(_page(rows, buffer.getvalue()), encoding="utf-8")
        else:
            figure.savefig(path, dpi=110)
    except OSError as error:
        raise ConfigError(
            f"the picture cannot be written: {error}", where=str(path), action="name another file with --plot"
        ) from error


def _page(rows: Sequence[LeagueRow], picture: str) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("scenario", *COLUMNS))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (row.scenario, *cells(row))) + "</tr>"
        for row in rows
    )
    style = "body{font-family:sans-serif}td,th{padding:2px 12px;text-align:left}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Simulation</title>'
        f"<style>{style}</style>"
        f"<h1>Simulation</h1><table><tr>{head}</tr>{body}</table>{picture[picture.index('<svg') :]}</html>\n"
    )
