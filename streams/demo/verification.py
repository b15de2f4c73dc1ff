"""Check that what the worker counted equals what an independent program counts from the same topics.

What: reads the source topics, the journal's verdicts and the topic ``counts`` from Kafka; has the oracle
count the accepted events with SQL; and compares the cells exactly, every one.

Why from Kafka: nothing that the demo remembers of what it sent is used, so an event lost on the way in, by
the worker or by the demo itself, shows as a difference or as a wrong account. Verdicts are taken from the
journal by the rules by which every worker replays it: a record that a replay ignores says nothing.

Cost: every topic read once; the events are held in memory while DuckDB counts.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from streams.config import Settings
from streams.counts import Order, decode_counts, decode_key, decode_progress
from streams.experiments.definition import ExperimentRecord
from streams.join.cells import Cell, CellKey, LagCounts
from streams.join.ledger import Limits, Verdict
from streams.join.step import END_MS
from streams.log_reader import LogReader
from streams.oracle import EventRow, check_verdicts, compute_cells, read_row
from streams.state.journal import BatchRecord, Head, decode, unpack
from streams.state.replay import ignored_because, next_head

__all__ = [
    "Counted",
    "Journalled",
    "add_cells",
    "compare_with_oracle",
    "differences",
    "read_counts",
    "read_journal",
]

SOURCES: Final = ("exposures", "conversions")


class Journalled(NamedTuple):
    """What the journals of all partitions say.

    Attributes
    ----------
    verdicts
        By source topic, partition and offset.
    totals
        Records by ``topic/outcome`` and ``topic/outcome/reason``, summed over partitions.
    """

    verdicts: dict[tuple[str, int, int], Verdict]
    totals: dict[str, int]


class Counted(NamedTuple):
    """What the topic ``counts`` says.

    Attributes
    ----------
    cells
        Summed over source partitions.
    watermarks_ms
        By source partition: the least that any counts partition was told.
    """

    cells: dict[CellKey, Cell]
    watermarks_ms: dict[int, int]


async def read_journal(settings: Settings, reader: LogReader) -> Journalled:
    """Replay the journals: heads and verdicts only."""
    verdicts: dict[tuple[str, int, int], Verdict] = {}
    heads = dict.fromkeys(range(settings.partitions), Head())
    async for entry in reader.read(settings.topic("journal")):
        data = unpack(entry.value)
        head = heads[entry.partition]
        record = decode(data, where=f"{entry.topic}/{entry.partition} offset {entry.offset}")
        is_accepted = ignored_because(head, entry.offset, record) is None
        if is_accepted and isinstance(record, BatchRecord):
            for verdict in record.verdicts:
                verdicts[record.topic, entry.partition, verdict.offset] = verdict
        heads[entry.partition] = next_head(head, entry.offset, record, data_hash=b"", data_bytes=len(data))
    totals: dict[str, int] = {}
    for head in heads.values():
        for name, count in head.totals.items():
            totals[name] = totals.get(name, 0) + count
    return Journalled(verdicts, totals)


async def read_counts(settings: Settings, reader: LogReader) -> Counted:
    """Read the newest record of every key, by its order, and add up the source partitions."""
    orders: dict[bytes, Order] = {}
    records: dict[bytes, dict[CellKey, Cell]] = {}
    progress: dict[tuple[int, int], tuple[Order, int]] = {}
    async for entry in reader.read(settings.topic("counts")):
        raw = entry.key or b""
        key = decode_key(raw)
        if entry.value is None:
            records.pop(raw, None)
        elif key.experiment_id == "":
            said = decode_progress(entry.value)
            place = (entry.partition, key.source_partition)
            if place not in progress or said.order >= progress[place][0]:
                progress[place] = (said.order, said.watermark_ms)
        else:
            record = decode_counts(key, entry.value)
            if raw not in orders or record.order >= orders[raw]:
                orders[raw], records[raw] = record.order, record.cells
    watermarks_ms: dict[int, int] = {}
    for (_, source), (_, watermark_ms) in progress.items():
        watermarks_ms[source] = min(watermark_ms, watermarks_ms.get(source, END_MS))
    return Counted(add_cells(records.values()), watermarks_ms)


async def compare_with_oracle(
    settings: Settings,
    reader: LogReader,
    records: Sequence[ExperimentRecord],
    journalled: Journalled,
    counted: Counted,
) -> list[str]:
    """Have the oracle count the source topics, and name every difference.

    Parameters
    ----------
    settings
        The worker's.
    reader
        Started.
    records
        The definitions.
    journalled, counted
        From :func:`read_journal` and :func:`read_counts`.

    Returns
    -------
    list of str
        Cells that differ and verdicts that do not hold; empty if all is equal.

    Raises
    ------
    ConfigError
        DuckDB is not installed.
    """
    rows: dict[str, list[EventRow]] = {}
    for topic in SOURCES:
        rows[topic] = [
            read_row(topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
            async for r in reader.read(settings.topic(topic))
        ]
    limits = Limits(
        n_partitions=settings.partitions,
        grace_ms=settings.grace_ms,
        max_ahead_ms=settings.max_ahead_ms,
        unit_max_events=settings.unit_max_events,
    )
    reasons = {position: verdict.reason for position, verdict in journalled.verdicts.items()}
    expected = await asyncio.to_thread(
        compute_cells, rows["exposures"], rows["conversions"], records, reasons, limits
    )
    problems = check_verdicts(rows["exposures"], rows["conversions"], records, reasons, limits)
    return differences(counted.cells, expected) + problems


def differences(found: Mapping[CellKey, Cell], expected: Mapping[CellKey, Cell]) -> list[str]:
    """Name the cells that are not equal, in order of their keys."""
    expected = add_cells([expected])
    return [
        f"{tuple(key)}: counted {_said(found.get(key))}, oracle {_said(expected.get(key))}"
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ]


def _said(cell: Cell | None) -> str:
    if cell is None:
        return "nothing"
    lags = {lag: tuple(counts) for lag, counts in sorted(cell.lags.items())}
    return f"{cell.trials} trials, {cell.crossovers} crossovers, lags {lags}"


def add_cells(parts: Iterable[Mapping[CellKey, Cell]]) -> dict[CellKey, Cell]:
    """Add cells of the same key; cells and lags that hold nothing are left out."""
    total: dict[CellKey, Cell] = {}
    for part in parts:
        for key, cell in part.items():
            held = total.get(key)
            total[key] = cell if held is None else _sum(held, cell)
    return {key: slim for key, cell in total.items() if (slim := _without_zeros(cell)) is not None}


def _sum(a: Cell, b: Cell) -> Cell:
    lags = dict(a.lags)
    for lag, counts in b.lags.items():
        held = lags.get(lag, LagCounts(0, 0, 0))
        lags[lag] = LagCounts(*(x + y for x, y in zip(held, counts, strict=True)))
    return Cell(a.trials + b.trials, a.crossovers + b.crossovers, lags)


def _without_zeros(cell: Cell) -> Cell | None:
    lags = {lag: counts for lag, counts in cell.lags.items() if any(counts)}
    return Cell(cell.trials, cell.crossovers, lags) if cell.trials or cell.crossovers or lags else None
