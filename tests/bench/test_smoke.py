"""A small run of the bench: fails on wrong counts or a crash, never on time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_small_run_counts_exactly() -> None:
    sizes = ["--exposures", "20000", "--units", "2000", "--partitions", "4"]
    command = [sys.executable, "-m", "bench", *sizes, "--contestants", "aiokafka,bandit-streams", "--json"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    documents = {each["name"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert documents.keys() == {"aiokafka", "bandit-streams"}
    product = documents["bandit-streams"]
    assert product["exact"] is True, product["wrong"]
    assert product["events"] > 20_000
    assert product["events_per_s"] > 0
    assert 0 < product["ratio_to_aiokafka"] < 1


def test_a_wrong_count_is_found() -> None:
    from bench.__main__ import difference

    wanted = {("e", "a", 1): [2, 1]}
    assert difference({("e", "a", 1): [2, 1]}, wanted) is None
    assert "instead of [2, 1]" in (difference({("e", "a", 1): [2, 0]}, wanted) or "")
    assert "None instead of" in (difference({}, wanted) or "")


def test_oracle_on_paper() -> None:
    from bench.workload import HOUR_MS, Converted, Exposed, _count_unit

    own: list[Exposed | Converted] = [
        Exposed(0, 0, 7, 1, 2),
        Exposed(10, 1, 7, 1, 3),  # another arm in the hour: no trial and no touch
        Converted(HOUR_MS - 1, 0, 7),
        Converted(HOUR_MS, 1, 7),  # one millisecond after the window
        Exposed(HOUR_MS + 5, 2, 7, 1, 3),
        Converted(HOUR_MS + 6, 2, 7),
        Converted(HOUR_MS + 7, 3, 7),  # the trial has succeeded already
    ]
    counts: dict[tuple[str, str, int], list[int]] = {
        ("experiment-1", "arm-2", 0): [0, 0],
        ("experiment-1", "arm-3", 1): [0, 0],
    }
    _count_unit(own, HOUR_MS, counts)
    assert counts == {("experiment-1", "arm-2", 0): [1, 1], ("experiment-1", "arm-3", 1): [1, 1]}
