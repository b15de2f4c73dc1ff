"""The reporting view of one experiment, from records of the topic ``counts``. No I/O.

What: `Observation` keeps the experiment's records, of each only the cells of the reporting view; `observe`
says what was counted before an hour: the bandit group by hour, arm and lag, the comparison group by hour,
and every cell by the allocation that its units name.

Why kept as bytes: the allocator holds this for all experiments of a partition, and works it out in another
process once an interval. A cell with its names takes some 60 bytes.

Cost: absorbing some ten microseconds a record of ten arms; `observe` O(cells).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandit_core.counts import PeriodCounts
from streams.allocator.counts_state import LAG_MAX_HOURS, ArmCounts
from streams.allocator.history import MICRO
from streams.counts import CellRow, Order, decode_key, decode_rows
from streams.experiments.definition import Counting
from streams.join.cells import HOUR_MS

__all__ = [
    "Cells",
    "Observation",
    "Observed",
    "Records",
    "next_hour",
    "observe",
    "versions_in",
    "window_hours",
]

Records = tuple[tuple[int, bytes], ...]
"""Hour and packed cells of each record; what travels to another process."""

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(tuple[Order, tuple[CellRow, ...]])
NEVER = 2**62


class Observation:
    """Counts of one experiment, reporting view.

    Attributes
    ----------
    first_version
        Least allocation that any unit has named so far; a large number if none has.
    """

    def __init__(self) -> None:
        self.first_version = NEVER
        self._records: dict[tuple[int, int], bytes] = {}

    def __bool__(self) -> bool:
        """Tell whether there is any record."""
        return bool(self._records)

    @property
    def n_bytes(self) -> int:
        """Size of the records."""
        return sum(map(len, self._records.values()))

    def absorb(self, raw_key: bytes, raw_value: bytes | None) -> None:
        """Take in a record of the experiment; its order decides, not when it is read.

        Raises
        ------
        RecordError
            If it does not decode; what was known stays.
        """
        key = decode_key(raw_key)
        place = (key.bucket, key.source_partition)
        if raw_value is None:
            self._records.pop(place, None)
            return
        order, rows = decode_rows(raw_value)
        known = self._records.get(place)
        if known is not None and order <= _decoder.decode(known)[0]:
            return
        kept = [row for row in rows if row.view == "reporting" and row.group != "default"]
        self._records[place] = _encode((order, kept))
        named = [row.allocation_version for row in kept if row.allocation_version >= 0]
        self.first_version = min([self.first_version, *named])

    def records(self) -> Records:
        """Return what is known, in an order that does not depend on when it was read."""
        return tuple((bucket, raw) for (bucket, _), raw in sorted(self._records.items()))


class Cells(NamedTuple):
    """Units of the bandit group, a row for each cell.

    ``hour`` counts from the first; ``version`` is -1 where no allocation was named; ``reward`` is a sum of
    shares of the cap.
    """

    hour: NDArray[np.intp]
    arm: NDArray[np.intp]
    version: NDArray[np.int64]
    segment: tuple[str, ...]
    trials: NDArray[np.float64]
    reward: NDArray[np.float64]


class Observed(NamedTuple):
    """What was counted, hour by hour, the oldest first.

    ``counts``: bandit group, rewards as shares of the cap; ``comparison``: trials, sums of rewards and their
    squares by hour, None without such a group; ``totals``: per arm, the comparison group's as "".
    """

    first_hour: int
    counts: PeriodCounts
    cells: Cells
    comparison: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None
    crossovers: int
    totals: dict[str, ArmCounts]

    @property
    def end_hour(self) -> int:
        """First hour after those told."""
        return self.first_hour + self.counts.n_periods


class _Row(NamedTuple):
    """A cell as of the end: its place, units, and the sums of its lags dated before the end."""

    bucket: int
    cell: CellRow
    lags: tuple[tuple[int, int, int, int], ...]
    successes: int
    value: int
    square: int


def window_hours(counting: Counting) -> int:
    """Give the conversion window in whole hours."""
    return math.ceil(counting.conversion_window_ms / HOUR_MS)


def next_hour(records: Records) -> int:
    """First hour after everything that was counted."""
    last = -1
    for bucket, raw in records:
        lags = [lag[0] for row in _decoder.decode(raw)[1] for lag in row.lags]
        last = max(last, bucket + max(lags, default=0))
    return last + 1


def versions_in(records: Records) -> set[int]:
    """Give the allocations that units of the bandit group name."""
    return {
        row.allocation_version
        for _, raw in records
        for row in _decoder.decode(raw)[1]
        if row.group == "bandit" and row.allocation_version >= 0
    }


def observe(records: Records, counting: Counting, arm_ids: Sequence[str], end_hour: int) -> Observed | None:
    """Tell what was counted of one version of an experiment.

    Parameters
    ----------
    records
        From :meth:`Observation.records`.
    counting
        The version of the definition.
    arm_ids
        The arms; others are left out.
    end_hour
        Hours since the epoch; exposures and conversions dated before it count.

    Returns
    -------
    Observed or None
        None if nothing was.
    """
    rows = list(_rows(records, counting, end_hour))
    if not rows:
        return None
    first = min(row.bucket for row in rows)
    place = {arm_id: i for i, arm_id in enumerate(arm_ids)}
    bandit = [row for row in rows if row.cell.group == "bandit" and row.cell.arm_id in place]
    others = [row for row in rows if row.cell.group == "comparison"]
    cap = round(counting.reward.cap * MICRO)
    n_lags = min(window_hours(counting), LAG_MAX_HOURS) + 1
    shape = (end_hour - first, len(arm_ids), n_lags)
    cells = _cells(bandit, first, place, cap)
    trials = np.bincount(
        cells.hour * shape[1] + cells.arm, cells.trials, minlength=shape[0] * shape[1]
    ).reshape(shape[:2])
    places, values, squared = [], [], []
    for row, at in zip(bandit, ((cells.hour * shape[1] + cells.arm) * n_lags).tolist(), strict=True):
        for lag, _, value, square in row.lags:
            places.append(at + min(lag, n_lags - 1))
            values.append(value / cap)
            squared.append(square / cap**2)
    where = np.array(places, dtype=np.intp)
    rewards, squares = (
        np.bincount(where, np.array(sums, dtype=np.float64), minlength=math.prod(shape)).reshape(shape)
        for sums in (values, squared)
    )
    compared = np.zeros((3, shape[0]))
    for row in others:
        compared[:, row.bucket - first] += (row.cell.trials, row.value / cap, row.square / cap**2)
    return Observed(
        first_hour=first,
        # A corrected count may take from one lag what it gives to another.
        counts=PeriodCounts.of(trials, np.maximum(rewards, 0.0), rewards, squares),
        cells=_cells(bandit, first, place, cap),
        comparison=(compared[0], compared[1], compared[2]) if others else None,
        crossovers=sum(row.cell.crossovers for row in bandit),
        totals=_totals(bandit + others),
    )


def _rows(records: Records, counting: Counting, end_hour: int) -> Iterable[_Row]:
    version, metric = counting.version, counting.reward.metric
    for bucket, raw in records:
        if bucket >= end_hour:
            continue
        for cell in _decoder.decode(raw)[1]:
            if cell.version != version or cell.metric != metric:
                continue
            lags = cell.lags
            if lags and bucket + lags[-1][0] >= end_hour:  # lags ascend
                lags = tuple(lag for lag in lags if bucket + lag[0] < end_hour)
            successes = value = square = 0
            for _, more, worth, worth_sq in lags:
                successes += more
                value += worth
                square += worth_sq
            yield _Row(bucket, cell, lags, successes, value, square)


def _cells(rows: Sequence[_Row], first: int, place: dict[str, int], cap: int) -> Cells:
    return Cells(
        hour=np.array([row.bucket - first for row in rows], dtype=np.intp),
        arm=np.array([place[row.cell.arm_id] for row in rows], dtype=np.intp),
        version=np.array([row.cell.allocation_version for row in rows], dtype=np.int64),
        segment=tuple(row.cell.segment for row in rows),
        trials=np.array([row.cell.trials for row in rows], dtype=np.float64),
        reward=np.array([row.value / cap for row in rows], dtype=np.float64),
    )


def _totals(rows: Sequence[_Row]) -> dict[str, ArmCounts]:
    found: dict[str, list[int]] = {}
    for row in rows:
        total = found.setdefault(row.cell.arm_id if row.cell.group == "bandit" else "", [0, 0, 0, 0])
        total[0] += row.cell.trials
        total[1] += row.successes
        total[2] += row.value
        total[3] += row.square
    return {name: ArmCounts(*total) for name, total in found.items()}
