"""Records of the compacted topic ``counts``: absolute cells, from the join to the allocator.

What: one record holds all cells of one (experiment, source partition, bucket); a progress record says how far
a source partition has got. Records are absolute, so reading any of them twice changes nothing, and compaction
may drop all but the newest of a key.

Byte layout (JSON, UTF-8, no spaces; cells and lags sorted, so equal records are equal bytes)::

    key       ["experiment_id", source_partition, bucket]        progress: ["", source_partition]
    value     {"order": [journal_id, claim, offset], "cells": [cell, ...]}
    cell      [version, view, metric, arm_id, segment, group, allocation_version, trials, crossovers, lags]
    lags      [[lag_hours, successes, value_micros, value_sq_micros2], ...]
    progress  {"order": [journal_id, claim, offset], "watermark_ms": n}

Integers have no bound: sums of squares exceed 64 bits. Fields may be added to the two objects; readers ignore
those that they do not know. A deleted key is a tombstone: its cells are gone (an archived experiment).

Cost: some microseconds a record of ten arms, either way.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from streams.errors import RecordError
from streams.join.cells import Cell, CellKey, Group, LagCounts, View

__all__ = [
    "CellRow",
    "CountsKey",
    "CountsRecord",
    "Order",
    "ProgressRecord",
    "decode_counts",
    "decode_key",
    "decode_order",
    "decode_progress",
    "decode_rows",
    "encode_counts",
    "encode_key",
    "encode_progress",
    "encode_rows",
]

T = TypeVar("T")


class Order(NamedTuple):
    """Where in a partition's history a counts record stands; a smaller one never replaces a greater one."""

    journal_id: int
    claim: int
    offset: int


class CountsKey(NamedTuple):
    """Compaction key; ``experiment_id == ""`` is the progress record of a source partition (bucket 0)."""

    experiment_id: str
    source_partition: int
    bucket: int


class CountsRecord(NamedTuple):
    """All cells of one experiment, source partition and bucket."""

    order: Order
    cells: dict[CellKey, Cell]


class ProgressRecord(NamedTuple):
    """All that is dated before ``watermark_ms`` in this source partition was counted and published first."""

    order: Order
    watermark_ms: int


class CellRow(Struct, frozen=True, array_like=True, gc=False):
    """A cell as it stands on the wire, an array: experiment and bucket are the key's."""

    version: int
    view: View
    metric: str
    arm_id: str
    segment: str
    group: Group
    allocation_version: int
    trials: int
    crossovers: int
    lags: tuple[tuple[int, int, int, int], ...]


class _CountsValue(Struct, frozen=True):
    order: Order
    cells: tuple[CellRow, ...]


class _AnyValue(Struct, frozen=True):
    order: Order


class _ProgressValue(Struct, frozen=True):
    order: Order
    watermark_ms: int


_encode = msgspec.json.Encoder().encode
_counts_decoder = msgspec.json.Decoder(_CountsValue)
_progress_decoder = msgspec.json.Decoder(_ProgressValue)
_order_decoder = msgspec.json.Decoder(_AnyValue)
_key_decoder = msgspec.json.Decoder(tuple[str, int, int])
_progress_key_decoder = msgspec.json.Decoder(tuple[str, int])
_ACTION = "the record is skipped; find its writer, or delete the key if no worker of this version wrote it"


def _decoded(decode: Callable[[bytes], T], raw: bytes, what: str) -> T:
    try:
        return decode(raw)
    except msgspec.DecodeError as error:
        raise RecordError(f"{what} does not decode: {error}", where="counts", action=_ACTION) from error


def encode_key(key: CountsKey) -> bytes:
    """Bytes of a record's key; a progress record's key has two elements."""
    return _encode(key[:2] if key.experiment_id == "" else key)


def decode_key(raw: bytes) -> CountsKey:
    """Key of a record.

    Raises
    ------
    RecordError
        If it is neither a counts nor a progress key.
    """
    if raw.startswith(b'["",'):
        return CountsKey(*_decoded(_progress_key_decoder.decode, raw, f"progress key {raw!r}"), 0)
    return CountsKey(*_decoded(_key_decoder.decode, raw, f"key {raw!r}"))


def encode_counts(key: CountsKey, record: CountsRecord) -> bytes:
    """Bytes of a counts record's value.

    Raises
    ------
    ValueError
        If a cell belongs to another experiment or bucket than the key says.
    """
    rows: list[Sequence[Any]] = []
    for cell_key, cell in record.cells.items():
        if cell_key.experiment_id != key.experiment_id or cell_key.bucket != key.bucket:
            raise ValueError(f"cell {cell_key} does not belong to counts key {key}")
        lags = [(lag, *counts) for lag, counts in sorted(cell.lags.items())]
        rows.append((*cell_key[1:-1], cell.trials, cell.crossovers, lags))
    return encode_rows(record.order, rows)


def encode_rows(order: Order, rows: Iterable[Sequence[Any]]) -> bytes:
    """Bytes of a counts record's value from cells as they stand on the wire, in any order; lags ascend."""
    return _encode({"order": order, "cells": sorted(rows)})


def decode_order(raw: bytes) -> Order:
    """Order of a counts or progress record's value; the rest is not looked at.

    Raises
    ------
    RecordError
        If it does not decode.
    """
    return _decoded(_order_decoder.decode, raw, "value").order


def decode_rows(raw: bytes) -> tuple[Order, tuple[CellRow, ...]]:
    """Order and cells of a counts record's value, as they stand on the wire.

    Raises
    ------
    RecordError
        If it does not decode; the message names the field.
    """
    value = _decoded(_counts_decoder.decode, raw, "value")
    return value.order, value.cells


def decode_counts(key: CountsKey, raw: bytes) -> CountsRecord:
    """Return a counts record from its value; the key supplies experiment and bucket.

    Raises
    ------
    RecordError
        If it does not decode; the message names the field.
    """
    order, rows = decode_rows(raw)
    return CountsRecord(order, dict(_cells(key, rows)))


def _cells(key: CountsKey, rows: Iterable[CellRow]) -> Iterable[tuple[CellKey, Cell]]:
    for row in rows:
        cell_key = CellKey(
            key.experiment_id,
            row.version,
            row.view,
            row.metric,
            row.arm_id,
            row.segment,
            row.group,
            row.allocation_version,
            key.bucket,
        )
        lags = {lag: LagCounts(*counts) for lag, *counts in row.lags}
        yield cell_key, Cell(row.trials, row.crossovers, lags)


def encode_progress(record: ProgressRecord) -> bytes:
    """Bytes of a progress record's value."""
    return _encode(record._asdict())


def decode_progress(raw: bytes) -> ProgressRecord:
    """Progress record from its value.

    Raises
    ------
    RecordError
        If it does not decode; the message names the field.
    """
    value = _decoded(_progress_decoder.decode, raw, "progress value")
    return ProgressRecord(value.order, value.watermark_ms)
