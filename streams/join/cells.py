"""Cells: what is counted. A cell is keyed by everything a reader may want to tell apart.

Byte layouts, as they stand in journal and database (both begin with a version, so that a later layout can be
told apart):

Key, version 1; sorts by experiment, then bucket, so that all cells of one counts record are neighbours::

    u8 version | u16 n, n bytes experiment_id (UTF-8) | i64 bucket, sign bit flipped | u8 view
    u32 definition version | i64 allocation_version | u8 group | metric, arm_id, segment: each u16 n, n bytes

All integers are big-endian; ``view`` is 0 steering, 1 reporting; ``group`` 0 bandit, 1 comparison, 2 default.

Value, version 1: the version byte, then one MessagePack array of integers::

    [trials, crossovers, (lag, successes, value_hi, value_lo, sq_hi, sq_lo) for each lag, ascending]

A number that may pass 64 bits (the sums of values, 1e15 each, and of their squares) is ``hi * 2**62 + lo``
with ``0 <= lo < 2**62``; ``hi`` is one byte for usual sums, and negative for a negative sum. MessagePack
integers take as few bytes as they need, and msgspec reads the array in C: about 0.3 us a cell.
"""

import struct
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import msgspec

from streams.errors import StateCorrupt

HOUR_MS = 3_600_000
NEVER_MS: Final = 2**62
"""Later than every timestamp and every horizon."""
NO_ALLOCATION: Final = -1
"""``allocation_version`` of a cell whose exposures name no allocation."""

View = Literal["steering", "reporting"]
Group = Literal["bandit", "comparison", "default"]
VIEWS: Final[tuple[View, ...]] = ("steering", "reporting")
GROUPS: Final[tuple[Group, ...]] = ("bandit", "comparison", "default")

KEY_VERSION = 1
VALUE_VERSION = 1
_BITS = 62
_LOW = (1 << _BITS) - 1
_KEY_PREFIX = bytes([KEY_VERSION])
_VERSION_PREFIX = bytes([VALUE_VERSION])
_FIXED = struct.Struct(">BIqB")
_BUCKET = struct.Struct(">Q")
_SIGN = 1 << 63
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[int]).decode

LagIncrements = dict[int, list[int]]
"""lag -> [successes, value_micros, value_sq_micros2]; any of them may be negative."""


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


def _text(value: str) -> bytes:
    raw = value.encode()
    return len(raw).to_bytes(2, "big") + raw


def experiment_prefix(experiment_id: str) -> bytes:
    """Prefix of the keys of all cells of an experiment."""
    return _KEY_PREFIX + _text(experiment_id)


@lru_cache(maxsize=65_536)
def bucket_prefix(experiment_id: str, bucket: int) -> bytes:
    """Prefix of the keys of all cells of an experiment in one bucket."""
    return experiment_prefix(experiment_id) + _BUCKET.pack(bucket + _SIGN)


def decode_prefix(raw: bytes) -> tuple[str, int]:
    """Experiment and bucket of a prefix that :func:`bucket_prefix` has made."""
    experiment_id, at = _take(raw, 1)
    return experiment_id, int.from_bytes(raw[at:], "big") - _SIGN


def split_key(raw: bytes) -> tuple[bytes, bytes]:
    """Prefix of the key's bucket and what follows it, for a key that :func:`encode_key` has made."""
    end = 3 + int.from_bytes(raw[1:3], "big") + _BUCKET.size
    return raw[:end], raw[end:]


@lru_cache(maxsize=65_536)
def encode_tail(
    version: int, view: View, metric: str, arm_id: str, segment: str, group: Group, allocation_version: int
) -> bytes:
    """Give what follows the bucket's prefix in a cell's key; kept, since many keys have the same."""
    fixed = _FIXED.pack(VIEWS.index(view), version, allocation_version, GROUPS.index(group))
    return fixed + _text(metric) + _text(arm_id) + _text(segment)


def encode_key(key: CellKey) -> bytes:
    """Bytes of a cell's key, layout in the module's head.

    Raises
    ------
    struct.error, OverflowError
        If a number or a string's length does not fit its field.
    """
    return bucket_prefix(key.experiment_id, key.bucket) + encode_tail(*key[1:-1])


def decode_key(raw: bytes) -> CellKey:
    """Cell key from its bytes.

    Raises
    ------
    StateCorrupt
        If the bytes are not a key of a version that this program knows.
    """
    if raw[:1] != _KEY_PREFIX:
        raise StateCorrupt(
            f"cell key of version {raw[:1].hex() or 'none'}, expected {KEY_VERSION:02x}",
            where=repr(raw),
            action="run the version of bandit-streams that wrote this state, or a newer one",
        )
    try:
        experiment_id, at = _take(raw, 1)
        (bucket,) = _BUCKET.unpack_from(raw, at)
    except (ValueError, IndexError, struct.error) as error:
        raise StateCorrupt(f"not a cell key: {error}", where=repr(raw), action=_REBUILD) from error
    return CellKey(experiment_id, *decode_tail(raw[at + _BUCKET.size :]), bucket - _SIGN)


@lru_cache(maxsize=65_536)
def decode_tail(raw: bytes) -> tuple[int, View, str, str, str, Group, int]:
    """Take apart what :func:`encode_tail` has made: version, view, metric, arm, segment, group, allocation.

    Raises
    ------
    StateCorrupt
        If it is not that.
    """
    try:
        view, version, allocation, group = _FIXED.unpack_from(raw, 0)
        metric, at = _take(raw, _FIXED.size)
        arm, at = _take(raw, at)
        segment, at = _take(raw, at)
        tail = version, VIEWS[view], metric, arm, segment, GROUPS[group], allocation
    except (ValueError, IndexError, struct.error) as error:
        raise StateCorrupt(f"not a cell key: {error}", where=repr(raw), action=_REBUILD) from error
    if at != len(raw):
        raise StateCorrupt(f"{len(raw) - at} bytes too many in a cell key", where=repr(raw), action=_REBUILD)
    return tail


_REBUILD = "stop the worker and remove its database: it is rebuilt from the journal"


def _take(raw: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + int.from_bytes(raw[at : at + 2], "big")
    if end > len(raw):
        raise ValueError(f"truncated at byte {at}")
    return raw[at + 2 : end].decode(), end


def encode_cell(cell: Cell) -> bytes:
    """Bytes of a cell; lags whose counts are all zero are left out."""
    flat = [cell.trials, cell.crossovers]
    for lag, counts in sorted(cell.lags.items()):
        if any(counts):
            _, value, square = counts
            flat += (lag, counts[0], value >> _BITS, value & _LOW, square >> _BITS, square & _LOW)
    return _VERSION_PREFIX + _encode(flat)


def _flat(raw: bytes) -> list[int]:
    if not raw or raw[0] != VALUE_VERSION:
        raise StateCorrupt(
            f"cell of version {raw[:1].hex() or 'none'}, expected {VALUE_VERSION:02x}",
            action="run the version of bandit-streams that wrote this state, or a newer one",
        )
    try:
        flat = _decode(raw[1:])
    except msgspec.DecodeError as error:
        raise StateCorrupt(f"not a cell: {error}", where=repr(raw), action=_REBUILD) from error
    if len(flat) % 6 != 2:
        raise StateCorrupt(f"not a cell: {len(flat)} numbers", where=repr(raw), action=_REBUILD)
    return flat


def decode_cell(raw: bytes) -> Cell:
    """Cell from its bytes.

    Raises
    ------
    StateCorrupt
        If the bytes are not a cell of a version that this program knows.
    """
    trials, crossovers, lags = decode_numbers(raw)
    return Cell(trials, crossovers, {lag: LagCounts(*counts) for lag, *counts in lags})


def decode_numbers(raw: bytes) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    """Trials, crossovers and (lag, successes, value_micros, value_sq_micros2), ascending; as decode_cell."""
    flat = _flat(raw)
    lags = [
        (flat[i], flat[i + 1], (flat[i + 2] << _BITS) + flat[i + 3], (flat[i + 4] << _BITS) + flat[i + 5])
        for i in range(2, len(flat), 6)
    ]
    return flat[0], flat[1], lags


def add_to_cell(raw: bytes | None, trials: int, crossovers: int, lags: LagIncrements) -> bytes:
    """Bytes of a cell after adding increments, which may be negative.

    O(lags of the cell) in C and O(lags added) in Python. A cell that becomes zero stays, as zero, so that its
    readers learn of it.

    Parameters
    ----------
    raw
        Bytes before; None for a cell that does not exist yet.
    trials, crossovers, lags
        Increments.
    """
    flat = [0, 0] if raw is None else _flat(raw)
    flat[0] += trials
    flat[1] += crossovers
    for lag, counts in lags.items():
        if any(counts):
            _add_lag(flat, lag, counts)
    return _VERSION_PREFIX + _encode(flat)


def _add_lag(flat: list[int], lag: int, counts: Sequence[int]) -> None:
    """Add counts at one lag, at its place in ascending order; a lag that becomes zero goes."""
    successes, value, square = counts
    at = 2 + 6 * bisect_left(flat[2::6], lag)
    end = at
    if at < len(flat) and flat[at] == lag:
        end = at + 6
        successes += flat[at + 1]
        value += (flat[at + 2] << _BITS) + flat[at + 3]
        square += (flat[at + 4] << _BITS) + flat[at + 5]
    if successes or value or square:
        flat[at:end] = (lag, successes, value >> _BITS, value & _LOW, square >> _BITS, square & _LOW)
    else:
        del flat[at:end]
