"""The exact checks at the end of a run. Each returns what is wrong, one line each; empty is right."""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from streams.audit import audit
from streams.config import Settings
from streams.deadletters import DeadLetter, Filter, StoredLetter, read_letters
from streams.demo.verification import add_cells, read_counts
from streams.errors import RecordError
from streams.experiments.definition import ExperimentRecord
from streams.join.cells import Cell, CellKey, decode_cell, decode_key
from streams.log_reader import LogReader
from streams.oracle import EventRow, check_verdicts, compute_cells, read_row
from streams.state.kafka_journal import KafkaJournal
from streams.state.partition import LOCAL_KEY, Partition
from streams.state.recovery import recover
from tests.chaos.watch import SOURCES, JournalWatch, Position, SourceWatch
from tests.harness.check import differences, limits_of
from tests.harness.workers import until

COUNTS_DEADLINE_S = 30.0
Rows = Mapping[str, list[EventRow]]


def rows_of(sources: SourceWatch, skipped: set[Position]) -> Rows:
    """All records of the sources that somebody may have read, as the oracle wants them."""
    rows: dict[str, list[EventRow]] = {topic: [] for topic in SOURCES}
    for (topic, partition, offset), r in sources.records.items():
        if (topic, partition, offset) not in skipped:
            rows[topic].append(read_row(topic, partition, offset, r.timestamp, r.key, r.value, r.headers))
    return rows


async def oracle(
    rows: Rows, definitions: list[ExperimentRecord], watch: JournalWatch, settings: Settings
) -> dict[CellKey, Cell]:
    """Cells as DuckDB counts them from the accepted records."""
    limits = limits_of(settings)
    cells = await asyncio.to_thread(
        compute_cells, rows["exposures"], rows["conversions"], definitions, watch.verdicts.keys(), limits
    )
    return add_cells([cells])


async def check_counts(
    settings: Settings, expected: Mapping[CellKey, Cell], definitions: list[ExperimentRecord]
) -> list[str]:
    """The topic counts, as the allocator reads it, against the oracle.

    Records of archived experiments remain there until a sweep has passed them; nobody reads them.
    """
    over = {record.experiment_id for record in definitions if record.status == "archived"}
    found: list[str] = []

    async def equal() -> bool:
        async with LogReader(settings) as reader:
            counted = await read_counts(settings, reader)
        cells = {key: cell for key, cell in counted.cells.items() if key.experiment_id not in over}
        found[:] = differences(cells, expected)
        return not found

    try:
        await until(equal, deadline_s=COUNTS_DEADLINE_S, what="counts equal the oracle", poll_s=0.5)
    except AssertionError:
        return [f"{len(found)} cells differ", *found[:10]]
    return [] if expected else ["nothing was counted: the check would be empty"]


def check_rules(
    rows: Rows, definitions: list[ExperimentRecord], watch: JournalWatch, settings: Settings
) -> list[str]:
    """Every verdict's own predicate; and that what is known to be bad has one."""
    limits = limits_of(settings)
    reasons = {position: verdict.reason for position, (_, verdict) in watch.verdicts.items()}
    problems = check_verdicts(rows["exposures"], rows["conversions"], definitions, reasons, limits)
    over = {record.experiment_id for record in definitions if record.status == "archived"}
    for topic, topic_rows in rows.items():
        for row in topic_rows:
            event: Any = row.event
            if getattr(event, "experiment_id", None) in over:
                continue
            known_bad = (
                getattr(event, "experiment_id", None) == "nobody" or getattr(event, "arm_id", "") == "z"
            )
            if known_bad and (topic, row.partition, row.offset) not in reasons:
                problems.append(f"{topic}[{row.partition}]@{row.offset}: bad, but has no verdict: {event}")
    return problems


def check_account(rows: Rows, watch: JournalWatch) -> list[str]:
    """Every record read has exactly one outcome; every accepted conversion exactly one fate."""
    problems = []
    n_records = Counter((topic, row.partition) for topic in SOURCES for row in rows[topic])
    totals: Counter[str] = Counter()
    for number, head in watch.heads.items():
        totals.update(head.totals)
        for topic in SOURCES:
            outcomes = {
                name: n
                for name, n in head.totals.items()
                if name.startswith(f"{topic}/") and name.split("/")[1] not in {"attributed", "expired"}
            }
            if sum(outcomes.values()) != n_records[topic, number]:
                problems.append(
                    f"{topic}[{number}]: {n_records[topic, number]} records read, outcomes {outcomes}"
                )
    pending = sum(head.pending for head in watch.heads.values())
    fates = totals["conversions/attributed"] + totals["conversions/expired"] + pending
    if fates != totals["conversions/accepted"]:
        problems.append(
            f"{totals['conversions/accepted']} conversions accepted, but {totals['conversions/attributed']}"
            f" attributed + {totals['conversions/expired']} expired + {pending} pending"
        )
    n_verdicts = Counter((topic, number) for topic, number, _ in watch.verdicts)
    for number, head in watch.heads.items():
        for topic in SOURCES:
            n = sum(
                count for name, count in head.totals.items() if name.startswith(f"{topic}/dead_letter/")
            ) or head.totals.get(f"{topic}/dead_letter", 0)
            if n != n_verdicts[topic, number] and not watch.n_missed:
                problems.append(
                    f"{topic}[{number}]: {n} dead letters in the totals, {n_verdicts[topic, number]} verdicts"
                )
    return problems


async def read_all_letters(settings: Settings) -> tuple[dict[Position, list[DeadLetter]], list[str]]:
    """All dead letters by position in the sources (topics without prefix), copies included."""
    letters: dict[Position, list[DeadLetter]] = {}
    problems: list[RecordError] = []
    names = {settings.topic("exposures"): "exposures", settings.topic("conversions"): "conversions"}
    async with LogReader(settings) as reader:
        async for stored in read_letters(reader, settings.topic("dead-letters"), Filter(), problems):
            letter: StoredLetter = stored
            where = (names[letter.letter.topic], letter.letter.partition, letter.letter.offset)
            letters.setdefault(where, []).append(letter.letter)
    return letters, [str(problem) for problem in problems]


async def check_letters(settings: Settings, watch: JournalWatch, sources: SourceWatch) -> list[str]:
    """Dead letters are exactly the records with a verdict, with their bytes."""
    found: dict[Position, list[DeadLetter]] = {}
    problems: list[str] = []

    async def complete() -> bool:
        nonlocal problems
        letters, problems = await read_all_letters(settings)
        found.clear()
        found.update(letters)
        return watch.verdicts.keys() <= found.keys()

    try:
        await until(complete, deadline_s=30, what="every verdict has its dead letter", poll_s=0.5)
    except AssertionError:
        missing = sorted(watch.verdicts.keys() - found.keys())
        problems.append(f"{len(missing)} verdicts without a dead letter, first {missing[:5]}")
    extra = found.keys() - watch.verdicts.keys() - watch.withdrawn
    if extra and not watch.n_missed:
        problems.append(f"{len(extra)} dead letters without a verdict, first {sorted(extra)[:5]}")
    for where, copies in found.items():
        for letter in copies:
            problems += _letter_problems(where, letter, sources, watch)
    return problems


def _letter_problems(
    where: Position, letter: DeadLetter, sources: SourceWatch, watch: JournalWatch
) -> list[str]:
    original = sources.records.get(where)
    if original is None:
        return [f"{where}: dead letter of a record that never was"]
    if letter.value is None and not letter.key and "deleted by retention" in letter.message:
        return []
    is_cut = letter.value is not None and len(original.value or b"") > len(letter.value)
    same = (
        (original.value or b"").startswith(letter.value or b"") if is_cut else original.value == letter.value
    )
    key_same = (original.key or b"") == (letter.key or b"")
    known = watch.verdicts.get(where)
    problems = []
    if not same or not key_same or (is_cut and len(original.value or b"") < 1 << 20):
        problems.append(f"{where}: the dead letter's bytes are not the record's")
    if known is not None and known[1].reason != letter.reason and where not in watch.withdrawn:
        problems.append(f"{where}: dead letter says {letter.reason}, the journal {known[1].reason}")
    return problems


def contents(partition: Partition) -> dict[bytes, bytes]:
    """Everything in a partition database but what is local to the copy."""
    return {key: value for key, value in partition.scan(b"") if key != LOCAL_KEY}


async def check_replays(
    settings: Settings, watch: JournalWatch, copies: Mapping[str, Path], expected: Mapping[CellKey, Cell]
) -> list[str]:
    """Two fresh replays of every journal, and every worker's own database, have the same bytes.

    Parameters
    ----------
    copies
        Data folders of the workers (ended), by name.
    expected
        The oracle's cells: the replayed ones must add up to them.
    """
    problems: list[str] = []
    cells: list[dict[CellKey, Cell]] = []
    journal = KafkaJournal(topic=settings.topic("journal"), kafka_options=settings.kafka_options())
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(settings.partitions):
                name, log = f"journal[{number}]", journal.log(number)
                end = await log.end_offset()  # workers that still run may claim again between two replays
                replays = []
                for n in range(2):
                    partition = Partition.open(Path(folder) / f"{number}-{n}", name=name)
                    await recover(partition, log, upto=end, deadline_s=120)
                    replays.append(contents(partition))
                    partition.close()
                if replays[0] != replays[1]:
                    problems.append(f"{name}: two replays differ: {_unequal(*replays)}")
                cells.append(
                    {decode_key(k[1:]): decode_cell(v) for k, v in replays[0].items() if k[:1] == b"c"}
                )
                owner = watch.heads[number].owner
                for worker, data_dir in copies.items():
                    path = data_dir / settings.group / f"partition-{number:05d}"
                    if not (path / "CURRENT").exists():
                        problems += [f"{name}: {owner} has no database"] if worker == owner else []
                        continue
                    problems += await _check_copy(path, worker, owner, name, log, replays[0])
    finally:
        await journal.stop()
    problems += [f"replayed: {each}" for each in differences(add_cells(cells), expected)[:10]]
    return problems


async def _check_copy(
    path: Path, worker: str, owner: str, name: str, log: Any, replayed: dict[bytes, bytes]
) -> list[str]:
    partition = Partition.open(path, name=name)
    try:
        last = partition.head.journal_offset
        if worker == owner and last != await log.end_offset():
            return [
                f"{name}: {worker} owned it and stands at {last}, the journal at {await log.end_offset()}"
            ]
        if worker != owner and await partition.compare(log) is not None:
            return []  # a copy of long ago: it is rebuilt when it is wanted
        await recover(partition, log, deadline_s=120)
        own = contents(partition)
    finally:
        partition.close()
    return [] if own == replayed else [f"{name}: {worker}'s copy differs: {_unequal(own, replayed)}"]


def _unequal(one: Mapping[bytes, bytes], other: Mapping[bytes, bytes]) -> str:
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    first = [(key, (one.get(key) or b"")[:200], (other.get(key) or b"")[:200]) for key in keys[:3]]
    return f"{len(keys)} entries, {first}"


async def check_allocations(settings: Settings) -> list[str]:
    """The product's own audit: every table recomputed, weights sum to 1, versions and boundaries ascend."""
    report = await audit(settings)
    problems = [str(difference) for difference in report.differences]
    return problems if report.compared else [*problems, "no allocation was published: nothing was audited"]


def check_edge(versions: Mapping[str, list[int]]) -> list[str]:
    """No decision from an older version after one from a newer."""
    return [
        f"{experiment_id}: decided from version {after} after {before}"
        for experiment_id, seen in versions.items()
        for before, after in pairwise(seen)
        if after < before
    ] + ([] if any(versions.values()) else ["the edge never had an allocation"])


def check_logs(paths: list[Path]) -> list[str]:
    """No worker met an error that nobody had thought of."""
    problems = []
    for path in paths:
        for n, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if any(sign in line for sign in ("unexpected error", "Task exception was never", "Segmentation")):
                problems.append(f"{path.name}:{n}: {line[:300]}")
    return problems


def write_json(path: Path, value: object) -> None:
    """Write a report."""
    path.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
