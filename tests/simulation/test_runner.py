"""Runs in parallel: no figure depends on the number of processes, or on what runs beside it."""

from dataclasses import fields

import pytest

from bandit_core.league import CHUNK_RUNS, Figures
from bandit_core.policies import policy_from_definition
from bandit_core.scenarios import scenario_from_definition
from streams.experiments.validation import parse_definition
from streams.simulation.definition import record_of
from streams.simulation.planning import plan
from streams.simulation.runner import Contestant, chunks, in_processes, run_figures

SHORT = scenario_from_definition(
    {"name": "short", "rates": [0.05, 0.10], "n_periods": 24, "units_per_period": 300}
)
TWO_DAYS = scenario_from_definition(
    {"name": "two days", "rates": [0.05, 0.10], "n_periods": 48, "units_per_period": 300}
)
THOMPSON = Contestant("thompson", policy_from_definition("thompson"))
UNIFORM = Contestant("uniform", policy_from_definition("uniform"))
DEFINITION = Contestant(
    "e",
    policy_from_definition("uniform"),
    record_of(parse_definition("id: e\narms: [a, b]\nreward: {metric: m, kind: click}")),
)


def same(one: Figures, other: Figures) -> bool:
    return all(getattr(one, f.name).tobytes() == getattr(other, f.name).tobytes() for f in fields(Figures))


def figures(*contestants: Contestant, n_runs: int = CHUNK_RUNS + 1, processes: int = 1) -> list[Figures]:
    entries = [(SHORT, contestant) for contestant in contestants]
    return run_figures(entries, n_runs=n_runs, seed=7, processes=processes)


def test_figures_do_not_depend_on_the_number_of_processes() -> None:
    alone = figures(THOMPSON, UNIFORM, DEFINITION)
    parallel = figures(THOMPSON, UNIFORM, DEFINITION, processes=2)
    for one, other in zip(alone, parallel, strict=True):
        assert len(one.regret) == CHUNK_RUNS + 1
        assert same(one, other)


def test_figures_do_not_depend_on_what_runs_beside_and_more_runs_only_add() -> None:
    (alone,) = figures(THOMPSON)
    assert same(alone, figures(UNIFORM, THOMPSON)[1])
    (more,) = figures(THOMPSON, n_runs=2 * CHUNK_RUNS)
    assert more.regret[:CHUNK_RUNS].tolist() == alone.regret[:CHUNK_RUNS].tolist()


def test_chunks_have_all_runs_once() -> None:
    found = chunks(SHORT, THOMPSON, n_runs=2 * CHUNK_RUNS + 1, seed=7)
    assert [(task.chunk, task.n_runs) for task in found] == [(0, CHUNK_RUNS), (1, CHUNK_RUNS), (2, 1)]


def broken(number: int) -> int:
    if number == 1:
        raise ValueError("this one")
    return number


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_process_is_the_caller_s(processes: int) -> None:
    with pytest.raises(ValueError, match="this one"):
        in_processes(broken, [0, 1, 2], processes=processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_are_in_order_and_each_is_told(processes: int) -> None:
    told: list[None] = []
    found = in_processes(abs, [-3, -2, -1], processes=processes, done=lambda: told.append(None))
    assert found == [3, 2, 1]
    assert len(told) == 3


def test_pending_as_is_checked() -> None:
    with pytest.raises(ValueError, match="pending_as"):
        Contestant("x", policy_from_definition("uniform"), pending_as="ignored")


def test_a_plan_names_the_way_and_its_days() -> None:
    found = plan(TWO_DAYS, THOMPSON, UNIFORM, power=0.8, n_runs=20, seed=1, processes=1)
    assert list(found) == [
        "thompson, daily looks",
        "equal split, daily looks",
        "equal split, one look at a fixed end",
    ]
    # 5% against 10% at 150 units an arm and hour: z = 5.1 a day by an equal split.
    assert found["equal split, one look at a fixed end"].days == 1.0
    assert found["equal split, daily looks"].days <= 2.0
    # What goes to the better arm says little of the other: learning while earning takes longer to tell.
    assert found["thompson, daily looks"].days >= found["equal split, daily looks"].days
    same_twice = plan(TWO_DAYS, UNIFORM, UNIFORM, power=0.8, n_runs=20, seed=1, processes=1)
    assert list(same_twice) == ["uniform, daily looks", "equal split, one look at a fixed end"]
