"""A small run of the bench: fails on wrong counts or a crash, never on time."""

import asyncio
import json
import random
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
    from bench.workload import difference

    wanted = {("e", "a", 1): [2, 1]}
    assert difference({("e", "a", 1): [2, 1]}, wanted) is None
    assert "instead of [2, 1]" in (difference({("e", "a", 1): [2, 0]}, wanted) or "")
    assert "None instead of" in (difference({}, wanted) or "")


def test_one_that_fails_is_reported_and_the_others_run() -> None:
    from bench.__main__ import COLUMNS, compete
    from bench.contestant import Arena, Contestant, Failed, Run, Unavailable
    from bench.report import table
    from bench.workload import Workload

    wanted = {("e", "a", 1): [2, 1]}

    class Fixed:
        settings = "none"

        def __init__(self, name: str, *outcomes: Run | Exception) -> None:
            self.name = name
            self._outcomes = outcomes

        async def run(self, arena: Arena, number: int) -> Run:  # noqa: ARG002 - a contestant's signature
            outcome = self._outcomes[number]
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    field: dict[str, Contestant] = {
        each.name: each
        for each in (
            Fixed("aiokafka", Run(2.0, 1.0, 0, None), Run(1.0, 0.5, 0, None)),
            Fixed("crashing", Run(1.0, 1.0, 0, wanted), Failed("the process ended | without a result")),
            Fixed("absent", Unavailable("there is no java")),
            Fixed("wrong", Run(4.0, 4.0, 0, wanted), Run(4.0, 4.0, 0, {})),
        )
    }
    arena = Arena("", {}, Workload(), 100, Path(), Path(), "", 1.0)
    found = asyncio.run(compete(field, arena, wanted, 2))
    aiokafka, crashing, wrong = found
    assert aiokafka["events_per_s"] == 100
    assert aiokafka["runs_events_per_s"] == [50, 100]
    assert aiokafka["spread"] == 0.5
    assert aiokafka["exact"] is None
    assert crashing == {"name": "crashing", "error": "Failed: the process ended | without a result"}
    assert wrong["exact"] is False
    assert wrong["ratio_to_aiokafka"] == 0.25
    assert "| crashing | failed: Failed: the process ended / without a result |" in table(found, COLUMNS)


@pytest.mark.parametrize("seed", range(5))
def test_other_engines_join_counts_exactly_in_any_order(seed: int) -> None:
    from bench.unit_counts import State, apply, empty
    from bench.workload import Workload, counted, events, record

    work = Workload(exposures=600, units=12, experiments=2, arms=2, converting=0.5, seed=seed, end_ms=10**12)
    found = list(events(work))
    _, wanted = counted(found, work.window_ms)
    random.Random(seed).shuffle(found)
    states: dict[int, State] = {}
    counts: dict[tuple[str, str, int], list[int]] = {}
    for event in found + found[:100]:  # some come twice
        fields = json.loads(record(event)[2])
        for key, change in apply(states.setdefault(event.unit, empty()), fields, work.window_ms).items():
            own = counts.setdefault(key, [0, 0])
            own[0] += change[0]
            own[1] += change[1]
    assert {key: own for key, own in counts.items() if own != [0, 0]} == wanted


def test_hot_units_and_long_windows_leave_the_rest_as_it_is() -> None:
    from bench.workload import HOUR_MS, Converted, Workload, events

    base = Workload(exposures=2_000, units=1_000, end_ms=10**12)
    hot = [event.unit for event in events(base._replace(hot_share=0.5, hot_units=2))]
    assert 0.45 < sum(unit < 2 for unit in hot) / len(hot) < 0.56
    long = base._replace(window_ms=168 * HOUR_MS)
    assert max(event.at_ms for event in events(long)) < long.end_ms
    assert any(isinstance(event, Converted) for event in events(long))


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
