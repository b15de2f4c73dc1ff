"""Counts of one experiment as the allocator keeps them: packed records, and what they sum up to. No I/O.

What: `ExperimentCounts` holds the newest record of each (bucket, source partition), and the totals of all
hours below ``folded_hour``; :mod:`streams.allocator.counts_state` says which record is the newest.
"""

import heapq
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from streams.allocator.packing import MICROS, MICROS2, Packed, Row, increments_of, unpack
from streams.join.cells import View

__all__ = ["LAG_MAX_HOURS", "ExperimentCounts", "Slot"]

LAG_MAX_HOURS = 168
"""Lags are told apart up to a week; later conversions count as of that lag."""


class Slot(NamedTuple):
    """What sums are kept apart by."""

    view: View
    version: int
    metric: str
    arm_id: str
    segment: str


class ExperimentCounts:
    """Records of one experiment, and the running totals of all hours below ``folded_hour``."""

    __slots__ = (
        "folded_hour",
        "lag_successes",
        "names",
        "open_hours",
        "records",
        "slots",
        "sources",
        "tail_hours",
        "tails",
        "totals",
        "waiting",
    )

    def __init__(self) -> None:
        self.slots: dict[tuple[View, int, str, str, str], int] = {}
        self.sources: set[int] = set()
        self.lag_successes: list[array[int]] = []  # by slot and lag, of all folded buckets, whenever dated
        self.names: list[Slot] = []
        self.records: dict[tuple[int, int], bytes] = {}  # (bucket, source partition)
        self.waiting: dict[int, list[int]] = {}  # bucket >= folded_hour -> source partitions
        self.open_hours: list[int] = []  # heap of the keys of `waiting`
        self.folded_hour = -1
        self.totals: list[list[int]] = []  # by slot: trials, successes, value_micros, value_sq_micros2
        self.tails: dict[
            int, dict[int, list[int]]
        ] = {}  # hour >= folded_hour -> slot -> what folded buckets add
        self.tail_hours: list[int] = []  # heap of the keys of `tails`

    def new_slot(self, name: Slot) -> int:
        """Give a name its number; its sums are 0."""
        index = self.slots[name] = len(self.names)
        self.names.append(name)
        self.totals.append([0, 0, 0, 0])
        self.lag_successes.append(array("q"))
        return index

    def replace(self, place: tuple[int, int], raw: bytes | None) -> None:
        """Put a packed record, or nothing, at (bucket, source partition)."""
        bucket, source_partition = place
        self.sources.add(source_partition)
        before = self.records.pop(place, None)
        if bucket >= self.folded_hour:
            if before is None and raw is not None:
                if bucket not in self.waiting:
                    self.waiting[bucket] = []
                    heapq.heappush(self.open_hours, bucket)
                self.waiting[bucket].append(source_partition)
            elif before is not None and raw is None:
                self.waiting[bucket].remove(source_partition)
        else:
            if before is not None:
                self._add(bucket, unpack(before), -1)
            if raw is not None:
                self._add(bucket, unpack(raw), 1)
        if raw is not None:
            self.records[place] = raw

    def fold(self, hour: int) -> None:
        """Move everything dated before ``hour`` into the totals; ``hour`` is not below ``folded_hour``."""
        self.folded_hour = hour
        while self.open_hours and self.open_hours[0] < hour:
            bucket = heapq.heappop(self.open_hours)
            for source_partition in self.waiting.pop(bucket):
                self._add(bucket, unpack(self.records[bucket, source_partition]), 1)
        while self.tail_hours and self.tail_hours[0] < hour:
            for slot, increments in self.tails.pop(heapq.heappop(self.tail_hours)).items():
                _add_to(self.totals[slot], *increments)

    def _add(self, bucket: int, packed: Packed, sign: int) -> None:
        for row in packed.rows:
            units = successes = value = value_sq = 0
            if row.lags:
                by_lag = self.lag_successes[row.slot]
                most = min(row.lags[-1][0], LAG_MAX_HOURS)
                if most >= len(by_lag):
                    by_lag.extend([0] * (most + 1 - len(by_lag)))
                for lag in row.lags:
                    by_lag[min(lag[0], LAG_MAX_HOURS)] += sign * lag[1]
                    if bucket + lag[0] >= self.folded_hour:
                        self._add_later(bucket + lag[0], row.slot, increments_of(lag), sign)
                    elif len(lag) == 2:
                        units += lag[1]  # rewards of 1
                    else:
                        successes += lag[1]
                        value += lag[2]
                        value_sq += lag[3]
            total = self.totals[row.slot]
            total[0] += sign * row.trials
            total[1] += sign * (units + successes)
            total[2] += sign * (units * MICROS + value)
            total[3] += sign * (units * MICROS2 + value_sq)

    def _add_later(self, hour: int, slot: int, more: tuple[int, int, int], sign: int) -> None:
        if hour not in self.tails:
            self.tails[hour] = {}
            heapq.heappush(self.tail_hours, hour)
        increments = self.tails[hour].setdefault(slot, [0, 0, 0])
        for i, value in enumerate(more):
            increments[i] += sign * value

    def rows_of(self, bucket: int) -> Iterator[Row]:
        """Rows of a bucket, of all source partitions in order."""
        for source in sorted(self.sources):
            raw = self.records.get((bucket, source))
            if raw is not None:
                yield from unpack(raw).rows

    def recount(self, hour: int) -> list[list[int]]:
        """Totals as of ``hour`` from the records alone."""
        totals = [[0, 0, 0, 0] for _ in self.names]
        for (bucket, _), raw in self.records.items():
            if bucket >= hour:
                continue
            for row in unpack(raw).rows:
                totals[row.slot][0] += row.trials
                for lag in row.lags:
                    if bucket + lag[0] < hour:
                        _add_to(totals[row.slot], *increments_of(lag))
        return totals


def _add_to(total: list[int], successes: int, value: int, value_sq: int) -> None:
    total[1] += successes
    total[2] += value
    total[3] += value_sq
