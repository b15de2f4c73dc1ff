"""The demo's tables.

Why rich: it draws boxes on a terminal and plain aligned columns in a file, from the same table.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from rich import box
from rich.table import Table

from streams.allocations import Allocation, ArmAllocation
from streams.demo.part import PartSummary, Stock
from streams.demo.plot import sparkline
from streams.demo.progress import Narrator

__all__ = ["arms_table", "say_accounts", "say_courses", "shop_table", "summary_line"]

_SPARK_WIDTH: Final = 60


def arms_table(allocation: Allocation, clicks_name: str) -> Table:
    """Make the table of an allocation's arms, greatest weight first.

    Parameters
    ----------
    allocation
        As published.
    clicks_name
        What the successes are called.
    """
    table = _table("trials", clicks_name, "mean", "95% interval", "P(best)", "weight")
    for arm in sorted(allocation.arms, key=lambda arm: -arm.weight):
        table.add_row(
            arm.arm_id,
            f"{arm.trials:,}",
            f"{arm.successes:,}",
            f"{arm.mean:.2%}",
            _interval(arm),
            f"{arm.probability_best:.3f}",
            f"{arm.weight:.3f}",
        )
    return table


def shop_table(
    allocation: Allocation, rates: Mapping[str, float], comparison: tuple[int, int] | None
) -> Table:
    """Make the table of a simulated experiment, the truth beside what was found; ``*`` is the best arm.

    Parameters
    ----------
    allocation
        The last one published.
    rates
        True rate of every arm.
    comparison
        Trials and successes of the units that saw no arm; None if there is no such group.
    """
    best = max(rates, key=lambda arm_id: rates[arm_id])
    table = _table("true", "trials", "success", "mean", "95% interval", "P(best)", "weight")
    for arm in allocation.arms:
        table.add_row(
            f"{arm.arm_id} *" if arm.arm_id == best else arm.arm_id,
            f"{rates[arm.arm_id]:.1%}",
            f"{arm.trials:,}",
            f"{arm.successes:,}",
            f"{arm.mean:.2%}",
            _interval(arm),
            f"{arm.probability_best:.3f}",
            f"{arm.weight:.3f}",
        )
    if comparison is not None:
        trials, successes = comparison
        mean = f"{successes / trials:.2%}" if trials else "–"
        table.add_row(
            "(no arm)", "", f"{trials:,}", f"{successes:,}", mean, "", "", f"{allocation.comparison:.3f}"
        )
    return table


def _table(*numbers: str) -> Table:
    """Make an empty table of arms that fits 80 columns: a name, then numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("arm", no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _interval(arm: ArmAllocation) -> str:
    low, high = arm.interval
    return f"{100 * low:.2f}–{100 * high:.2f}%"


def say_courses(narrator: Narrator, weights: Mapping[str, Sequence[float]]) -> None:
    """Draw each arm's weight over time as one line."""
    encoding = (narrator.console.encoding or "").lower()
    is_utf8 = encoding.replace("-", "") == "utf8"
    width = max(len(arm_id) for arm_id in weights)
    for arm_id, course in weights.items():
        line = sparkline(course, _SPARK_WIDTH, is_utf8=is_utf8)
        narrator.say(f"  {arm_id:<{width}} {line} {course[0]:.2f} -> {course[-1]:.2f}")


def say_accounts(narrator: Narrator, stock: Stock) -> None:
    """Say where every event went, and whether the oracle agrees."""
    for topic in ("exposures", "conversions"):
        outcomes = [
            f"{count:,} {label}"
            for outcome, label in (
                ("accepted", "accepted"),
                ("duplicate", "duplicates"),
                ("dead_letter", "dead letters"),
                ("test", "test"),
                ("archived", "archived"),
                ("rerouted", "rerouted"),
            )
            if (count := stock.outcome(outcome, topic + "/"))
        ]
        narrator.say(f"  {topic}: {stock.events(topic):,} read = {' + '.join(outcomes) or '0'}")
    attributed, expired = stock.outcome("attributed"), stock.outcome("expired")
    accepted = stock.outcome("accepted", "conversions/")
    narrator.say(
        f"  accepted conversions: {accepted:,} = {attributed:,} attributed + {expired:,} expired"
        f" + {accepted - attributed - expired:,} pending"
    )
    if stock.letters:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(stock.letters.items()))
        narrator.say(f"  topic dead-letters: {reasons}")
    if stock.differences:
        narrator.say(f"  DIFFERENT from the oracle in {len(stock.differences):,} cells:")
        for line in stock.differences[:10]:
            narrator.say(f"    {line}")
    else:
        narrator.say(f"  oracle: all {len(stock.counted.cells):,} cells are equal")


def summary_line(total: PartSummary, parts: Mapping[str, PartSummary]) -> str:
    """Make the last line: ``summary:`` and JSON."""
    figures = msgspec.to_builtins(total)
    figures["parts"] = {name: msgspec.to_builtins(part) for name, part in parts.items()}
    return f"summary: {json.dumps(figures)}"
