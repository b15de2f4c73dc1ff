"""Counts of an hour as the allocator keeps them: packed, and added up.

What: `Packed` is one counts record, reduced to the rows that count, in some 300 bytes for ten arms;
`HourSums` adds up an arm's rows of one hour as of a boundary; `Period` is what comes of it.

Cost: some microseconds a record.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from streams.counts import CellRow, Order

__all__ = [
    "MICROS",
    "MICROS2",
    "HourSums",
    "Packed",
    "Period",
    "Row",
    "increments_of",
    "lags_of_lump",
    "last_hour_of",
    "pack",
    "shortened",
    "sum_of_rows",
    "unpack",
]


class Period(NamedTuple):
    """What an arm got from exposures of one hour; ``lags``: lag, successes, value, squares, ascending."""

    trials: int
    lags: tuple[tuple[int, int, int, int], ...]


class Row(Struct, frozen=True, array_like=True, gc=False):
    """Cells of one view, version, metric, arm and segment, added up."""

    slot: int
    trials: int
    lags: tuple[
        tuple[int, ...], ...
    ]  # lag, successes, value, value_sq; the last two left out for unit rewards


class Packed(Struct, frozen=True, array_like=True, gc=False):
    """One counts record."""

    order: Order
    last_hour: int  # of anything in it, whatever the group; -1 if there is nothing
    rows: tuple[Row, ...]


_pack_encoder = msgspec.msgpack.Encoder()
_pack_decoder = msgspec.msgpack.Decoder(Packed)
_json_encoder = msgspec.json.Encoder()
_json_decoder = msgspec.json.Decoder(Packed)
_JSON_START = ord("[")  # a three-element msgpack array starts with 0x93
MICROS = 10**6
MICROS2 = 10**12


def pack(packed: Packed) -> bytes:
    """Bytes of a record; JSON where a sum passes 64 bits."""
    try:
        return _pack_encoder.encode(packed)
    except OverflowError:  # sums of squares beyond 64 bits, which msgpack has not
        return _json_encoder.encode(packed)


def unpack(raw: bytes) -> Packed:
    """Record from its bytes."""
    return (_json_decoder if raw[0] == _JSON_START else _pack_decoder).decode(raw)


def shortened(lag: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Leave out what follows from the successes when every reward is 1: a third of the memory."""
    _, successes, value, value_sq = lag
    return lag[:2] if value == successes * MICROS and value_sq == successes * MICROS2 else lag


def increments_of(lag: Sequence[int]) -> tuple[int, int, int]:
    """Successes, value and squares of a lag as it is packed."""
    if len(lag) == 2:
        return lag[1], lag[1] * MICROS, lag[1] * MICROS2
    return lag[1], lag[2], lag[3]


class HourSums:
    """An arm's rows of one hour, added up: as of a boundary, and successes by lag whenever dated."""

    __slots__ = ("all_lags", "lags", "trials")

    def __init__(self) -> None:
        self.trials = 0
        self.lags: dict[int, list[int]] = {}
        self.all_lags: dict[int, int] = {}

    def add(self, row: Row, bucket: int, hour: int) -> None:
        """Add a row of exposures of the hour ``bucket``, as of the boundary ``hour``."""
        self.trials += row.trials
        for lag in row.lags:
            successes, value, value_sq = increments_of(lag)
            self.all_lags[lag[0]] = self.all_lags.get(lag[0], 0) + successes
            if bucket + lag[0] < hour:
                sums = self.lags.setdefault(lag[0], [0, 0, 0])
                for i, more in enumerate((successes, value, value_sq)):
                    sums[i] += more

    def total(self) -> tuple[int, int, int]:
        """Successes, value and squares of all lags."""
        sums = list(self.lags.values())
        return sum(s[0] for s in sums), sum(s[1] for s in sums), sum(s[2] for s in sums)

    def period(self) -> Period:
        """Return the sums."""
        return Period(self.trials, tuple((lag, s[0], s[1], s[2]) for lag, s in sorted(self.lags.items())))


def lags_of_lump(known: list[int], sums: list[int]) -> tuple[tuple[int, int, int, int], ...]:
    """Lags of many hours together; what the known ones leave counts as of the lag behind them."""
    by_lag = [*known, sums[0] - sum(known)]
    shown = [(lag, successes) for lag, successes in enumerate(by_lag) if successes]
    if not shown:
        return ((0, 0, sums[1], sums[2]),) if any(sums) else ()
    (first, successes), *others = shown
    return ((first, successes, sums[1], sums[2]), *((lag, n, 0, 0) for lag, n in others))


def sum_of_rows(one: CellRow, other: CellRow) -> CellRow:
    """Cell of both; of their keys only what is common to them means anything."""
    lags = {lag[0]: lag for lag in one.lags}
    for lag, successes, value, value_sq in other.lags:
        _, *before = lags.get(lag, (lag, 0, 0, 0))
        lags[lag] = (lag, before[0] + successes, before[1] + value, before[2] + value_sq)
    return msgspec.structs.replace(one, trials=one.trials + other.trials, lags=tuple(sorted(lags.values())))


def last_hour_of(bucket: int, rows: Sequence[CellRow]) -> int:
    """Hour of the newest thing in rows of exposures of the hour ``bucket``; -1 if there are none."""
    if not rows:
        return -1
    return bucket + max([lag[0] for row in rows for lag in row.lags[-1:]], default=0)  # lags are sorted
