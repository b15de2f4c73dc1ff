"""Many runs in parallel processes, with the same figures however many processes there are.

Why chunks: runs are vectorised within a chunk, and every chunk has a generator of its own, keyed by seed,
scenario, contestant and the chunk's number. So neither the number of processes nor the order in which they
finish changes a figure, and more runs only add to those that there were.

Cost: about a second to start a process.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bandit_core.league import CHUNK_RUNS, Figures, chunk_key, figures_of, joined
from bandit_core.policies import Policy
from bandit_core.simulator import PENDING_AS, Scenario, Simulation, simulate
from streams.experiments.definition import ExperimentRecord
from streams.simulation.definition import simulate_definition

__all__ = ["Contestant", "Task", "chunks", "in_processes", "run_figures", "run_task", "usable_processes"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Contestant:
    """What is simulated: a bare policy, or a whole definition.

    Attributes
    ----------
    label
        Its name in tables; part of the key of its generators.
    policy
        Used where there is no definition.
    record
        The definition as the allocator would read it; it names its policy itself.
    pending_as
        What pending trials count as for a bare policy, one of ``PENDING_AS``.
    """

    label: str
    policy: Policy
    record: ExperimentRecord | None = None
    pending_as: str = "estimated"

    def __post_init__(self) -> None:
        if self.pending_as not in PENDING_AS:
            raise ValueError(f"pending_as: {self.pending_as!r} is not one of {', '.join(PENDING_AS)}")


@dataclass(frozen=True, slots=True)
class Task:
    """One chunk of runs of one contestant in one scenario."""

    scenario: Scenario
    contestant: Contestant
    chunk: int
    n_runs: int
    seed: int


def chunks(scenario: Scenario, contestant: Contestant, *, n_runs: int, seed: int) -> list[Task]:
    """Cut the runs of one contestant in one scenario into chunks."""
    return [
        Task(scenario, contestant, chunk, min(CHUNK_RUNS, n_runs - chunk * CHUNK_RUNS), seed)
        for chunk in range(-(-n_runs // CHUNK_RUNS))
    ]


def run_task(task: Task) -> Simulation:
    """Run one chunk; the same whatever process it runs in."""
    scenario, contestant = task.scenario, task.contestant
    key = chunk_key(task.seed, scenario.name, contestant.label, task.chunk)
    rng = np.random.default_rng(key)
    if contestant.record is not None:
        return simulate_definition(contestant.record, scenario, n_runs=task.n_runs, rng=rng)
    pending = contestant.pending_as if scenario.mean_delay_periods is not None else "known"
    return simulate(scenario, contestant.policy, n_runs=task.n_runs, rng=rng, pending_as=pending)


def _figures(task: Task) -> Figures:
    return figures_of(run_task(task))


def usable_processes() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(len(os.sched_getaffinity(0)), 1)
    return os.cpu_count() or 1


def in_processes(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    processes: int,
    done: Callable[[], None] = lambda: None,
) -> list[R]:
    """Apply a function of a module to every task, in order of the tasks.

    Parameters
    ----------
    function, tasks
        Both have to be picklable.
    processes
        One: in this process.
    done
        Called after each task, for a progress bar.
    """
    if processes <= 1 or len(tasks) <= 1:
        results = []
        for task in tasks:
            results.append(function(task))
            done()
        return results
    # Started afresh, not forked: a fork of a process with threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(tasks)), mp_context=context) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
                done()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def run_figures(
    entries: Sequence[tuple[Scenario, Contestant]],
    *,
    n_runs: int,
    seed: int,
    processes: int,
    done: Callable[[], None] = lambda: None,
) -> list[Figures]:
    """Figures of every entry, in order, each over ``n_runs`` runs."""
    tasks = [chunks(scenario, contestant, n_runs=n_runs, seed=seed) for scenario, contestant in entries]
    flat = [task for group in tasks for task in group]
    results = iter(in_processes(_figures, flat, processes=processes, done=done))
    return [joined([next(results) for _ in group]) for group in tasks]
