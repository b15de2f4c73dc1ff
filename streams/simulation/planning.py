"""How long an effect takes to be found: by confidence sequences, and by a fixed end for comparison.

Cost: that of simulating two contestants for the longest time one is ready to wait.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bandit_core.league import Detection, claims, detection, fixed_end
from bandit_core.simulator import Scenario
from streams.simulation.runner import Contestant, Task, chunks, in_processes, run_task

__all__ = ["DAY_HOURS", "plan"]

DAY_HOURS = 24

_Named = tuple[NDArray[np.float64], NDArray[np.bool_]]


def plan(
    scenario: Scenario,
    contestant: Contestant,
    equal: Contestant,
    *,
    power: float,
    n_runs: int,
    seed: int,
    processes: int,
    done: Callable[[], None] = lambda: None,
) -> dict[str, Detection]:
    """Find the days that each way to decide takes.

    Parameters
    ----------
    scenario
        With the effect hoped for, one arm better than all others, and as long as one is ready to wait.
    contestant, equal
        Who allocates, and an equal split of the same experiment.
    power
        Probability with which the better arm is to be named.
    n_runs, seed, processes, done
        As in :func:`streams.simulation.runner.run_figures`.

    Returns
    -------
    dict of str to Detection
        By way to decide, the contestant with confidence sequences first.
    """
    parts = [chunks(scenario, each, n_runs=n_runs, seed=seed) for each in (contestant, equal)]
    flat = [task for group in parts for task in group]
    results = in_processes(_named, flat, processes=processes, done=done)
    cut = len(parts[0])
    days = [np.concatenate([each[0] for each in group]) for group in (results[:cut], results[cut:])]
    named = np.concatenate([each[1] for each in results[cut:]], axis=1)
    ways = {f"{contestant.label}, daily looks": detection(days[0], power)}
    if contestant.label != equal.label:
        ways["equal split, daily looks"] = detection(days[1], power)
    ways["equal split, one look at a fixed end"] = _shortest_end(named, power)
    return ways


def _named(task: Task) -> _Named:
    """Day on which each run names the best arm, (n_runs,); whether a fixed end does, (n_days, n_runs)."""
    simulation = run_task(task)
    return claims(simulation).winner_period / DAY_HOURS, fixed_end(simulation)


def _shortest_end(named: NDArray[np.bool_], power: float) -> Detection:
    """Shortest end at which enough runs name the best arm; interval from the error of their share."""
    share = named.mean(axis=1)
    half = 1.96 * np.sqrt(share * (1.0 - share) / named.shape[1])

    def first(reached: NDArray[np.bool_]) -> float:
        return float(reached.argmax() + 1) if reached.any() else float("inf")

    return Detection(
        days=first(share >= power),
        low=first(share + half >= power),
        high=first(share - half >= power),
        median=first(share >= 0.5),
        detected=float(share[-1]),
    )
