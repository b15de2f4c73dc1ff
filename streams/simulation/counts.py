"""Simulated counts in the form in which the allocator asks for its counts.

Cost: O(hours asked for * arms * lags) for each question.
"""

# ruff: noqa: ARG002 - the signatures are a protocol's

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streams.allocator.counts_state import LAG_MAX_HOURS, ArmCounts
from streams.allocator.history import MICRO
from streams.allocator.packing import Period, lags_of_lump
from streams.join.cells import View

__all__ = ["Known", "RunCounts"]

_MICRO2 = MICRO * MICRO

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


class Known(Protocol):
    """What all runs of a chunk know at the present hour.

    ``exposed`` and ``converted`` have the shape (n_runs, n_segments, n_arms). An hour's entry of ``hourly``
    is (n_runs, n_arms), of ``by_lag`` (3, n_runs, n_arms, n_lags): conversions, their values in micro-units
    and the squares of these, whenever they come; ``arrived`` is the sum of those that have, of that shape.
    """

    arm_ids: list[str]
    segment_names: list[str]
    exposed: Counts
    converted: Counts
    hourly: list[Counts]
    by_lag: list[Array]
    arrived: Array


class RunCounts:
    """Counts of one run, as the allocator asks for them; always those of the present hour.

    Units do not return, so both views are the same; of metrics there is only ``metric``.
    """

    def __init__(self, world: Known, run: int, metric: str) -> None:
        self._world, self._run, self._metric = world, run, metric

    def as_of(
        self, experiment_id: str, version: int, metric: str, hour: int, *, view: View | None = None
    ) -> dict[str, ArmCounts]:
        """Everything dated before the hour, per arm."""
        world, run = self._world, self._run
        trials, sums = world.exposed[run].sum(axis=0).tolist(), world.arrived[:, run].sum(axis=2).T
        return {
            arm_id: ArmCounts(n, *map(int, row))
            for arm_id, n, row in zip(world.arm_ids, trials, sums.tolist(), strict=True)
            if n
        }

    def by_segment(
        self, experiment_id: str, version: int, metric: str, hour: int
    ) -> dict[str, dict[str, ArmCounts]]:
        """Tell :meth:`as_of` apart by segment."""
        world, run = self._world, self._run
        return {
            name: _by_arm(world.arm_ids, world.exposed[run, row], world.converted[run, row])
            for row, name in enumerate(world.segment_names)
        }

    def by_segment_and_day(
        self, experiment_id: str, version: int, metric: str, hour: int, *, n_days: int
    ) -> list[Mapping[str, Mapping[str, ArmCounts]]]:
        """Give everything as older than all days: simulated segments are not told apart by time."""
        return [*({} for _ in range(n_days)), self.by_segment(experiment_id, version, metric, hour)]

    def periods(
        self,
        experiment_id: str,
        version: int,
        metric: str,
        hour: int,
        *,
        n_hours: int,
        older: bool,
        view: View | None = None,
    ) -> Mapping[int, Mapping[str, Period]]:
        """Tell :meth:`as_of` apart by hour, with all hours before the first ``n_hours`` as one if wanted."""
        world, run = self._world, self._run
        if metric != self._metric:
            return {}  # guardrails; their metrics are not simulated
        found: dict[int, dict[str, Period]] = {}
        trials_left, by_lag_left = world.exposed[run].sum(axis=0), world.arrived[:, run].copy()
        for bucket in range(max(hour - n_hours, 0), hour):
            age = hour - 1 - bucket
            trials = world.hourly[bucket][run]
            known = world.by_lag[bucket][:, run, :, : age + 1]
            trials_left = trials_left - trials
            by_lag_left[:, :, : known.shape[2]] -= known
            rows = zip(world.arm_ids, trials.tolist(), known.transpose(1, 2, 0).tolist(), strict=True)
            found[age] = {arm_id: Period(n, _lags(row)) for arm_id, n, row in rows if n}
        if older and trials_left.any():
            exact = min(n_hours, LAG_MAX_HOURS)
            rest = {}
            rows = zip(world.arm_ids, trials_left.tolist(), by_lag_left.transpose(1, 0, 2), strict=True)
            for arm_id, n, sums in rows:
                if n:
                    by_lag = [int(k) for k in sums[0, :exact]]
                    # Squares beyond 2^53 are rounded: what is left of them may be a little below zero.
                    totals = [max(int(total), 0) for total in sums.sum(axis=1)]
                    rest[arm_id] = Period(n, lags_of_lump(by_lag, totals))
            found[n_hours] = rest
        return found


def _by_arm(arm_ids: Sequence[str], trials: Counts, successes: Counts) -> dict[str, ArmCounts]:
    """Give the counts of the arms with trials; every reward is 1."""
    rows = zip(arm_ids, trials.tolist(), successes.tolist(), strict=True)
    return {arm_id: ArmCounts(n, k, k * MICRO, k * _MICRO2) for arm_id, n, k in rows if n}


def _lags(rows: Sequence[tuple[float, float, float]]) -> tuple[tuple[int, int, int, int], ...]:
    """Give the lags with conversions: lag, conversions, value and squares."""
    return tuple((lag, int(k), int(value), int(square)) for lag, (k, value, square) in enumerate(rows) if k)
