"""How weights moved: a line of blocks for each arm in the terminal, and a picture in a file.

Cost: matplotlib is imported only when a picture is drawn, and draws without a display.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Course", "RegretCourse", "draw_shop", "sparkline"]

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_ASCII: Final = " .:-=+*#%"


class Course(NamedTuple):
    """Weights of one experiment's arms over time.

    Attributes
    ----------
    title
        What the experiment is.
    hours
        Hours since the start, one for each allocation.
    weights
        Arm to its realised weights, each as long as ``hours``.
    best_arm
        The arm that is truly best.
    comparison
        Share that sees no arm.
    """

    title: str
    hours: tuple[float, ...]
    weights: dict[str, tuple[float, ...]]
    best_arm: str
    comparison: float


class RegretCourse(NamedTuple):
    """Expected conversions lost against always showing the best arm, summed over experiments, by hour."""

    hours: tuple[float, ...]
    product: tuple[float, ...]
    equal_split: tuple[float, ...]


def sparkline(values: Sequence[float], width: int, *, is_utf8: bool = True) -> str:
    """Draw numbers in [0, 1] as one line of at most ``width`` characters; each is the mean of its stretch."""
    if not values or width < 1:
        return ""
    levels = _BLOCKS if is_utf8 else _ASCII
    n = min(width, len(values))
    line = []
    for i in range(n):
        stretch = values[i * len(values) // n : (i + 1) * len(values) // n]
        mean = min(1.0, max(0.0, sum(stretch) / len(stretch)))
        line.append(levels[round(mean * (len(levels) - 1))])
    return "".join(line)


def draw_shop(courses: Sequence[Course], regret: RegretCourse, path: Path) -> None:
    """Write a picture: one panel of stacked weights for each experiment, and one of the regret.

    Parameters
    ----------
    courses
        At least one.
    regret
        For the last panel.
    path
        A file whose suffix says the format, such as ``shop.png``.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and part of the extra `demo`

    figure = Figure(figsize=(9.0, 2.4 * (len(courses) + 1)), layout="constrained")
    panels = figure.subplots(len(courses) + 1, 1)
    for panel, course in zip(panels, courses, strict=False):
        days = [hour / 24 for hour in course.hours]
        labels = [f"{arm} (best)" if arm == course.best_arm else arm for arm in course.weights]
        panel.stackplot(days, *course.weights.values(), labels=labels, step="post", alpha=0.85)
        if course.comparison:
            panel.fill_between(days, 1.0 - course.comparison, 1.0, color="lightgray", label="no arm")
        panel.set_title(course.title, fontsize=10, loc="left")
        panel.set_ylabel("share of visitors")
        panel.set_ylim(0.0, 1.0)
        panel.margins(x=0.0)
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    panel = panels[-1]
    days = [hour / 24 for hour in regret.hours]
    panel.plot(days, regret.equal_split, label="equal split", color="tab:gray")
    panel.plot(days, regret.product, label="allocations", color="tab:red")
    panel.set_title("conversions lost against always showing the best arm", fontsize=10, loc="left")
    panel.set_xlabel("days")
    panel.set_ylabel("conversions")
    panel.margins(x=0.0)
    panel.set_ylim(bottom=0.0)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.savefig(path, dpi=110)
