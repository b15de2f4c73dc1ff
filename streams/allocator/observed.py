"""Gathers the reporting view of one experiment from records of the topic ``counts``. No I/O.

What: `Observation` takes in the records of one experiment and says what was observed: the counts of the
bandit group and of the comparison group by hour, and the units by the allocation that they name.

Cost: O(cells).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bandit_core.counts import PeriodCounts
from streams.allocator.counts_state import LAG_MAX_HOURS, ArmCounts, CountsState
from streams.allocator.history import MICRO, pack_history, read_history
from streams.allocator.inference import Observed
from streams.counts import CountsKey, Order, decode_key, decode_rows
from streams.experiments.definition import Counting
from streams.join.cells import HOUR_MS

__all__ = ["Observation"]


class Observation:
    """Counts of one experiment and version, reporting view.

    Parameters
    ----------
    experiment_id
        The experiment.
    counting
        The version of its definition.
    """

    def __init__(self, experiment_id: str, counting: Counting) -> None:
        self._experiment_id = experiment_id
        self._counting = counting
        self._bandit = CountsState(views=("reporting",))
        self._comparison = CountsState(views=("reporting",), group="comparison")
        self._orders: dict[CountsKey, Order] = {}
        self._units: dict[
            CountsKey, list[tuple[str, int, int, int]]
        ] = {}  # arm, allocation, units, crossovers

    def absorb(self, raw_key: bytes, raw_value: bytes | None) -> None:
        """Take in a record of the experiment."""
        key = decode_key(raw_key)
        for state in (self._bandit, self._comparison):
            state.absorb(raw_key, raw_value)
        if raw_value is None:
            self._units.pop(key, None)
            return
        order, rows = decode_rows(raw_value)
        if key in self._orders and order <= self._orders[key]:
            return
        self._orders[key] = order
        wanted = ("reporting", self._counting.version, self._counting.reward.metric, "bandit")
        self._units[key] = [
            (row.arm_id, row.allocation_version, row.trials, row.crossovers)
            for row in rows
            if (row.view, row.version, row.metric, row.group) == wanted
        ]

    @property
    def allocation_versions(self) -> set[int]:
        """Allocations that units were assigned by, as far as they name one."""
        return {version for rows in self._units.values() for _, version, n, _ in rows if n and version >= 0}

    @property
    def next_hour(self) -> int:
        """First hour after everything that was counted."""
        last = [
            hour
            for hour in (
                self._bandit.last_hour(self._experiment_id),
                self._comparison.last_hour(self._experiment_id),
            )
            if hour is not None
        ]
        return max(last, default=-1) + 1

    def totals(self, *, comparison: bool = False) -> dict[str, ArmCounts]:
        """All counts, per arm."""
        state = self._comparison if comparison else self._bandit
        name, counting = self._experiment_id, self._counting
        return state.as_of(name, counting.version, counting.reward.metric, self.next_hour)

    def by_hour(self, arm_ids: Sequence[str]) -> Observed | None:
        """All counts, by hour; None if there are none."""
        hours = [key.bucket for key, rows in self._units.items() if rows]
        if not hours:
            return None
        first, end = min(hours), self.next_hour
        n_hours = end - first
        counts = self._read(self._bandit, arm_ids, end, n_hours)
        n_hours = counts.n_periods
        by_version: dict[int, NDArray[np.float64]] = {}
        crossovers = 0
        place = {arm_id: i for i, arm_id in enumerate(arm_ids)}
        for key, rows in self._units.items():
            for arm_id, version, units, crossed in rows:
                crossovers += crossed
                if arm_id in place and units:
                    table = by_version.setdefault(version, np.zeros((n_hours, len(arm_ids))))
                    table[n_hours - (end - key.bucket), place[arm_id]] += units
        others = self._read(self._comparison, [""], end, end - first)
        comparison = None
        if others.n_periods:
            trials, successes = np.zeros(n_hours), np.zeros(n_hours)
            shown = min(n_hours, others.n_periods)
            trials[n_hours - shown :] = others.trials[others.n_periods - shown :, 0]
            successes[n_hours - shown :] = others.totals()[others.n_periods - shown :, 0]
            comparison = (trials, successes)
        return Observed(counts, by_version, comparison, crossovers)

    @property
    def window_hours(self) -> int:
        """The conversion window in whole hours."""
        return math.ceil(self._counting.conversion_window_ms / HOUR_MS)

    def _read(self, state: CountsState, arm_ids: Sequence[str], end: int, n_hours: int) -> PeriodCounts:
        reward = self._counting.reward
        found = state.periods(
            self._experiment_id, self._counting.version, reward.metric, end, n_hours=n_hours, older=False
        )
        return read_history(
            pack_history(found, arm_ids),
            len(arm_ids),
            cap_micros=round(reward.cap * MICRO),
            values=False,
            lag_max_hours=min(self.window_hours, LAG_MAX_HOURS),
        )
