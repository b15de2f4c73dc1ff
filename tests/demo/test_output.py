"""What the demo prints and draws, without running anything."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from streams.demo.part import PartSummary
from streams.demo.plot import Course, RegretCourse, draw_shop, sparkline
from streams.demo.progress import Narrator
from streams.demo.report import summary_line
from streams.demo.verification import add_cells, differences
from streams.join.cells import Cell, CellKey, LagCounts


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([0.0, 0.5, 1.0], 10, " ▄█"),
        ([0.0, 1.0, 1.0, 1.0], 2, "▄█"),
        ([-1.0, 2.0], 10, " █"),
        ([], 10, ""),
        ([0.3], 0, ""),
    ],
)
def test_sparkline(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line
    assert sparkline(values, width, is_utf8=False).isascii()


def test_a_picture_is_drawn_without_a_display(tmp_path: Path) -> None:
    course = Course("shop", (0.0, 1.0, 2.0), {"a": (0.5, 0.3, 0.1), "b": (0.4, 0.6, 0.8)}, "b", 0.1)
    path = tmp_path / "shop.png"
    draw_shop([course, course], RegretCourse((1.0, 2.0), (1.0, 1.5), (1.0, 2.0)), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 10_000


def test_without_a_terminal_steps_are_plain_lines() -> None:
    text = io.StringIO()
    narrator = Narrator(Console(file=text, width=80, highlight=False))
    narrator.title("Part 1")
    with narrator.step("counting", 10) as step:
        step.advance(4)
        step.reach(10)
        step.reach(3)
    narrator.say("[x] " + "long " * 40)
    lines = text.getvalue().splitlines()
    assert lines[1:3] == ["== Part 1", "counting ..."]
    assert lines[3].startswith("  counting: ")
    assert lines[4] == "[x] " + "long " * 40
    assert "\x1b" not in text.getvalue()


def test_on_a_terminal_steps_are_bars() -> None:
    text = io.StringIO()
    narrator = Narrator(Console(file=text, width=80, force_terminal=True))
    with narrator.step("counting", 10) as step:
        step.advance(10)
    assert "10/10" in text.getvalue()
    assert "\x1b[" in text.getvalue()


def test_the_summary_is_one_line_of_json() -> None:
    part = PartSummary(
        events=3,
        exposures=2,
        conversions=1,
        trials=2,
        successes=1,
        duplicates=0,
        dead_letters=0,
        allocations=5,
        counts_equal_oracle=True,
        seconds=1.5,
    )
    line = summary_line(part, {"replay": part})
    assert line.startswith("summary: {")
    assert "\n" not in line
    figures = json.loads(line.removeprefix("summary: "))
    assert figures["parts"]["replay"] | {"parts": figures["parts"]} == figures
    assert (figures["events"], figures["counts_equal_oracle"], figures["seconds"]) == (3, True, 1.5)


KEY = CellKey("e", 1, "steering", "click", "a", "", "bandit", 1, 7)
OTHER = KEY._replace(arm_id="b")


def test_cells_of_all_partitions_are_added_and_empty_ones_left_out() -> None:
    first = {KEY: Cell(3, 1, {0: LagCounts(1, 5, 25), 2: LagCounts(1, 1, 1)}), OTHER: Cell(0, 0, {})}
    second = {KEY: Cell(2, 0, {0: LagCounts(1, 2, 4), 2: LagCounts(-1, -1, -1)})}
    assert add_cells([first, second]) == {KEY: Cell(5, 1, {0: LagCounts(2, 7, 29)})}


@pytest.mark.parametrize(
    ("found", "expected", "n_lines"),
    [
        ({KEY: Cell(1, 0, {})}, {KEY: Cell(1, 0, {})}, 0),
        ({KEY: Cell(1, 0, {})}, {KEY: Cell(2, 0, {})}, 1),
        ({KEY: Cell(1, 0, {})}, {KEY: Cell(1, 1, {})}, 1),
        ({KEY: Cell(1, 0, {})}, {KEY: Cell(1, 0, {1: LagCounts(1, 1, 1)})}, 1),
        ({KEY: Cell(1, 0, {})}, {OTHER: Cell(1, 0, {})}, 2),
        ({}, {OTHER: Cell(1, 0, {})}, 1),
        ({KEY: Cell(1, 0, {})}, {KEY: Cell(1, 0, {}), OTHER: Cell(0, 0, {})}, 0),
    ],
)
def test_every_difference_is_named(
    found: dict[CellKey, Cell], expected: dict[CellKey, Cell], n_lines: int
) -> None:
    assert len(differences(found, expected)) == n_lines
