"""Cells: what is counted. A cell is keyed by everything a reader may want to tell apart."""

from typing import Literal, NamedTuple

HOUR_MS = 3_600_000
View = Literal["steering", "reporting"]
Group = Literal["bandit", "comparison", "default"]


class CellKey(NamedTuple):
    """Identity of a cell; ``bucket`` is the hour (epoch ms // 3,600,000) of the trial's first exposure."""

    experiment_id: str
    version: int
    view: View
    metric: str
    arm_id: str
    segment: str
    group: Group
    allocation_version: int
    bucket: int


class LagCounts(NamedTuple):
    """Increments at one lag (hours between the conversion's hour and the trial's bucket)."""

    successes: int
    value_micros: int
    value_sq_micros2: int


class Cell(NamedTuple):
    """Counts of one cell; the sum over lags <= k is the state as of k hours after the bucket."""

    trials: int
    crossovers: int
    lags: dict[int, LagCounts]
