"""Rebuilding a partition from its journal: no broker, real RocksDB, against bare RocksDB writes.

Writes a journal as an owner does (batches of units and cells, then one rolling sweep), with the states that
the join's units have after ten exposures and a conversion (``--unit-bytes``: random bytes instead), then
measures:

- ``raw``: the same entries by WriteBatches of the same size into an empty RocksDB, nothing else;
- ``replay``: all batch records applied to an empty partition (a journal that was never trimmed);
- ``rebuild``: the sweep's records applied to an empty partition (a trimmed journal), and what that journal
  has in bytes per unit, before compression.

Figures are from CPU seconds of the process, RocksDB's background threads included, best of ``--repeat``;
``--json`` prints them as one line.

Run: ``python -m bench.restore [--units N] [--batch N] [--unit-bytes N] [--rounds N] [--repeat N] [--json]``
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from rocksdict import WriteBatch

from bench import join_step
from streams.join.step import Batch, SourceRecord, StepResult
from streams.state.owner import Committed, Owner, Swept
from streams.state.partition import CELL, UNIT, Partition
from streams.state.store import StoreOptions

CELL_BYTES = 60
CELLS_PER_BATCH = 200
SAMPLES = 2_000


class ListLog:
    """A journal in a list."""

    name = "journal[0]"

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.start = 0

    async def append(self, data: bytes, *, timeout_s: float) -> int:
        """Append at once."""
        del timeout_s
        self.records.append(data)
        return len(self.records) - 1

    async def read(self, from_offset: int, to_offset: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield from the list."""
        for offset in range(from_offset, to_offset):
            yield offset, self.records[offset]

    async def start_offset(self) -> int:
        """First offset that is left."""
        return self.start

    async def end_offset(self) -> int:
        """Next offset."""
        return len(self.records)

    async def delete_before(self, offset: int) -> None:
        """Forget nothing: the replay of the whole is measured, too."""
        self.start = offset


async def _fresh() -> bool:
    return True


def states(args: argparse.Namespace, rng: random.Random) -> list[bytes]:
    """Return unit states to choose from."""
    if args.unit_bytes is not None:
        return [rng.randbytes(args.unit_bytes) for _ in range(args.units)]
    store = join_step.Store()
    records = join_step.workload(10 * SAMPLES, SAMPLES, 10, 48 * join_step.HOUR_MS, seed=7)
    join_step.join(join_step.batches(records, args.batch), store, join_step.definitions(10))
    return list(store.units.values())


def changes(args: argparse.Namespace) -> list[tuple[dict[bytes, bytes | None], dict[bytes, bytes]]]:
    """Units and cells of every batch; each unit is rewritten ``--rounds`` times, in a random order."""
    rng = random.Random(7)
    found = []
    samples = states(args, rng)
    order = [b"user-%09d" % i for i in range(args.units)]
    for _ in range(args.rounds):
        rng.shuffle(order)
        for start in range(0, args.units, args.batch):
            units: dict[bytes, bytes | None] = {
                key: rng.choice(samples) for key in order[start : start + args.batch]
            }
            cells = {
                b"cell-%06d" % rng.randrange(50_000): rng.randbytes(CELL_BYTES)
                for _ in range(CELLS_PER_BATCH)
            }
            found.append((units, cells))
    return found


async def write_journal(
    path: Path, work: Sequence[tuple[dict[bytes, bytes | None], dict[bytes, bytes]]]
) -> tuple[ListLog, int, float]:
    """Journal of an owner: the log, the offset of its sweep, and the CPU seconds of all commits."""
    log = ListLog()
    partition = Partition.open(path, name=log.name)
    owner = Owner(partition, log, name="bench", heartbeat_fresh=_fresh, clock_ms=lambda: 1)
    await owner.claim(1)
    await owner.check_source("exposures", 0, 0)
    began = time.process_time()
    for i, (units, cells) in enumerate(work):
        result = StepResult(
            units=units,
            cells=cells,
            verdicts=[],
            reroutes=[],
            maxima={"exposures": i},
            totals={"exposures/accepted": i},
            pending=0,
            unknown_experiments=set(),
        )
        records = [SourceRecord(i, None, None, 0)]
        batch = Batch(topic="exposures", partition=0, start=i, next=i + 1, records=records)
        if not isinstance(await owner.commit(result, batch), Committed):
            raise SystemExit("a commit failed")
    committed_s = time.process_time() - began
    sweep_start = len(log.records)
    done = False
    while not done:
        swept = await owner.sweep_step(max_bytes=2**20)
        if not isinstance(swept, Swept):
            raise SystemExit("a sweep failed")
        done = swept.completed
    partition.close()
    return log, sweep_start, committed_s


def raw_writes(path: Path, entries: Sequence[dict[bytes, bytes]]) -> float:
    """CPU seconds of bare WriteBatches."""
    database = StoreOptions().connect(path)
    began = time.process_time()
    for chunk in entries:
        batch = WriteBatch(raw_mode=True)
        for key, value in chunk.items():
            batch[key] = value
        database.write(batch)
    elapsed_s = time.process_time() - began
    database.close()
    return elapsed_s


def applied(path: Path, log: ListLog, start: int, end: int) -> float:
    """CPU seconds of applying the records of an offset range to an empty partition."""
    partition = Partition.open(path, name=log.name)
    began = time.process_time()
    for offset in range(start, end):
        partition.apply(offset, log.records[offset])
    elapsed_s = time.process_time() - began
    if not partition.complete:
        raise SystemExit("the rebuilt state is not complete")
    partition.close()
    return elapsed_s


def best(repeat: int, measure: Callable[[Path], float]) -> float:
    """Least of several runs, each in a folder of its own."""
    seconds = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(measure(Path(folder) / "p"))
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=3_000, help="units changed per batch")
    parser.add_argument("--unit-bytes", type=int, help="random bytes of a unit instead of the join's states")
    parser.add_argument("--rounds", type=int, default=2, help="times that each unit is written")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    work = changes(args)
    with tempfile.TemporaryDirectory() as folder:
        log, sweep_start, commit_s = asyncio.run(write_journal(Path(folder) / "p", work))
    end = len(log.records)
    raw_entries = [
        {UNIT + k: v for k, v in units.items() if v is not None} | {CELL + k: v for k, v in cells.items()}
        for units, cells in work
    ]
    n_written = sum(len(units) for units, _ in work)
    raw_s = best(args.repeat, lambda path: raw_writes(path, raw_entries))
    replay_s = best(args.repeat, lambda path: applied(path, log, 0, sweep_start))
    rebuild_s = best(args.repeat, lambda path: applied(path, log, sweep_start, end))
    batch_bytes = sum(map(len, log.records[:sweep_start]))
    sweep_bytes = sum(map(len, log.records[sweep_start:]))
    unit_bytes = [[len(value or b"") for value in units.values()] for units, _ in work]
    figures = {
        "commit_units_per_s": round(n_written / commit_s),
        "raw_units_per_s": round(n_written / raw_s),
        "replay_units_per_s": round(n_written / replay_s),
        "replay_records_per_s": round(sweep_start / replay_s, 1),
        "replay_share_of_raw": round(raw_s / replay_s, 3),
        "rebuild_units_per_s": round(args.units / rebuild_s),
        "rebuild_mib_per_s": round(sweep_bytes / rebuild_s / 2**20, 1),
        "journal_bytes_per_unit_written": round(batch_bytes / n_written, 1),
        "swept_journal_bytes_per_unit": round(sweep_bytes / args.units, 1),
        "unit_bytes": round(sum(map(sum, unit_bytes)) / n_written, 1),
    }
    if args.json:
        print(json.dumps(figures))
        return
    for name, figure in figures.items():
        print(f"{name:32}{figure:>12,}")


if __name__ == "__main__":
    main()
