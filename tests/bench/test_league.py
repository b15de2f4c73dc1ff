"""The league's page: docs/statistics.md shows what `make league` prints, table by table."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from streams.simulation.files import SHIPPED
from streams.simulation.report import COLUMNS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- league: (.+?) -->\n(.*?)\n<!-- end -->", PAGE, re.DOTALL))


def form(block: str) -> list[str]:
    """What must not differ from run to run: the caption without its numbers, the header, the first column."""
    lines = []
    for line in block.splitlines():
        if not line.startswith("|"):
            lines.append(re.sub(r"[\d,]+", "N", line))
        elif not lines or not lines[-1].startswith("|"):
            lines.append(line)  # the header
        else:
            lines.append("|" + re.sub(r"[\d,]+ runs", "N runs", line.split("|")[1]))
    return lines


def test_every_scenario_and_policy_has_its_row_on_the_page() -> None:
    assert [name for name in BLOCKS if name in SHIPPED] == list(SHIPPED)
    for name in SHIPPED:
        header, _, *rows = [line for line in BLOCKS[name].splitlines() if line.startswith("|")]
        assert [cell.strip() for cell in header.strip("|").split("|")] == list(COLUMNS)
        policies = [row.split("|")[1].strip() for row in rows]
        assert {"uniform", "thompson", "top_two", "epsilon_greedy", "softmax", "ucb1"} <= set(policies)
        assert ("contextual" in policies) == (name == "contextual")


def test_delays_are_in_the_bounds_that_the_page_promises() -> None:
    shares = {
        row[0]: [float(cell.split("±")[0]) for cell in row[2:4]]
        for line in BLOCKS["delay"].splitlines()[2:]
        for row in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    for way in ("worth what the estimated delay says", "the same, by the allocator's own computation"):
        after_72_hours, after_168_hours = shares[way]
        assert after_72_hours >= 0.70
        assert after_168_hours >= 0.85
    assert shares["counted as failures"][0] < 0.1


def test_a_grid_is_worse_than_the_closed_forms_and_the_quadrature_is_not() -> None:
    from bench.exact_best import cases, largest_error

    error, n_cases = largest_error()
    assert error < 1e-6
    assert n_cases == len(list(cases())) > 200


def test_a_page_without_a_place_for_a_table_is_told() -> None:
    from bench.league import written

    page = "a\n<!-- league: x -->\nold\n<!-- end -->\nb"
    assert written(page, {"x": "new"}) == "a\n<!-- league: x -->\nnew\n<!-- end -->\nb"
    with pytest.raises(SystemExit, match="no place for 'y'"):
        written(page, {"y": "new"})


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_short_run_prints_the_page_s_tables_and_ends_with_json() -> None:
    options = ["--runs", "2", "--seeds", "2", "--mabwiser-seeds", "0", "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.league", *options],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    found = json.loads(last.removeprefix("league: "))
    assert found.keys() == {"probability_best", "delay", "sample_ratio", "rows", "benchmark"}
    printed = dict(
        re.findall(r"^### (.+?)\n\n(.*?)\n\n(?=###|league:)", done.stdout, re.DOTALL | re.MULTILINE)
    )
    assert printed.keys() == BLOCKS.keys()
    for name, block in printed.items():
        assert form(block) == form(BLOCKS[name]), name
