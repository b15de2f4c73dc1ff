"""A partition in memory: what the owner does around the step, less Kafka and RocksDB."""

from collections.abc import Iterable, Mapping, Sequence

from streams.events import Conversion, Exposure, encode_event, event_key
from streams.experiments.definition import ExperimentRecord
from streams.join.cells import Cell, CellKey, decode_cell, decode_key
from streams.join.definitions import Definitions
from streams.join.kernel import KERNEL, Kernel
from streams.join.step import (
    Batch,
    Limits,
    SourceRecord,
    StepResult,
    Verdict,
    run_step,
    sweep_unit,
)
from streams.oracle import EventRow, Position, read_row

HOUR = 3_600_000
LIMITS = Limits(n_partitions=1, grace_ms=24 * HOUR, max_ahead_ms=300_000, unit_max_events=10_000)
TOPICS = ("exposures", "conversions")


class Head:
    """The head's fields that the step reads."""

    def __init__(self) -> None:
        self.maxima: Mapping[str, int] = {}
        self.totals: Mapping[str, int] = {}
        self.pending = 0


class Partition:
    """Runs steps on dictionaries and keeps what an oracle needs."""

    def __init__(
        self, experiments: Iterable[ExperimentRecord], limits: Limits = LIMITS, number: int = 0
    ) -> None:
        self.definitions = Definitions(experiments)
        self.limits = limits
        self.number = number
        self.head = Head()
        self.units: dict[bytes, bytes] = {}
        self.raw_cells: dict[bytes, bytes] = {}
        self.verdicts: dict[Position, Verdict] = {}
        self.rerouted: list[tuple[str, SourceRecord]] = []
        self.rows: dict[str, list[EventRow]] = {topic: [] for topic in TOPICS}
        self.next = dict.fromkeys(TOPICS, 0)
        self.other_levels: dict[str, int] = {}

    def feed(self, topic: str, records: Sequence[SourceRecord], *, oversize_bytes: int = 0) -> StepResult:
        """Step one batch, apply it, and check the account."""
        batch = Batch(
            topic=topic,
            partition=self.number,
            start=self.next[topic],
            next=records[-1].offset + 1 if records else self.next[topic],
            records=records,
            oversize_bytes=oversize_bytes,
        )
        result = self.step(batch)
        if result.unknown_experiments:
            result = self.step(batch, final=True)
        assert not result.unknown_experiments
        for unit, state in result.units.items():
            if state is None:
                self.units.pop(unit, None)
            else:
                self.units[unit] = state
        self.raw_cells.update(result.cells)
        for verdict in result.verdicts:
            self.verdicts[topic, self.number, verdict.offset] = verdict
        by_offset = {record.offset: record for record in records}
        self.rerouted += [(topic, by_offset[offset]) for offset in result.reroutes]
        self.head.maxima, self.head.totals, self.head.pending = result.maxima, result.totals, result.pending
        self.next[topic] = batch.next
        for name, n in result.other_levels.items():
            self.other_levels[name] = self.other_levels.get(name, 0) + n
        self.rows[topic] += [
            read_row(topic, self.number, r.offset, r.timestamp_ms, r.key, r.value, r.headers) for r in records
        ]
        self.check_account()
        return result

    def step(self, batch: Batch, *, final: bool = False) -> StepResult:
        """Run the step in Python; where the kernel was built, with it as well, and want the same result."""
        result = self._step(batch, None, final=final)
        if KERNEL is not None:
            assert self._step(batch, KERNEL, final=final) == result
        return result

    def _step(self, batch: Batch, kernel: Kernel | None, *, final: bool) -> StepResult:
        return run_step(
            batch,
            self.head,
            self.definitions,
            self.limits,
            lambda keys: [self.units.get(key) for key in keys],
            lambda keys: [self.raw_cells.get(key) for key in keys],
            final=final,
            kernel=kernel,
        )

    def events(self, *events: Exposure | Conversion, append_ms: int | None = None) -> list[StepResult]:
        """Produce events in this order, in as few batches as that allows."""
        results: list[StepResult] = []
        run: list[Exposure | Conversion] = []
        for event in (*events, None):
            if run and (event is None or type(event) is not type(run[0])):
                topic = TOPICS[isinstance(run[0], Conversion)]
                first = self.next[topic]
                records = [record(e, first + i, append_ms=append_ms) for i, e in enumerate(run)]
                results.append(self.feed(topic, records))
                run = []
            if event is not None:
                run.append(event)
        return results

    def sweep(self, *, final: bool = True) -> None:
        """Pass the rolling sweep over every unit."""
        known = [self.head.maxima[topic] for topic in TOPICS if topic in self.head.maxima]
        watermark_ms = min(known) if len(known) == len(TOPICS) else None
        totals = dict(self.head.totals)
        for unit, raw in list(self.units.items()):
            swept = sweep_unit(raw, watermark_ms, self.definitions, self.limits, final=final)
            self.head.pending += swept.pending
            for name, n in swept.totals.items():
                totals[name] = totals.get(name, 0) + n
            if swept.state is None:
                del self.units[unit]
            else:
                self.units[unit] = swept.state
        self.head.totals = totals
        self.check_account()

    def cells(self) -> dict[CellKey, Cell]:
        """Cells that hold anything."""
        cells = {decode_key(key): decode_cell(raw) for key, raw in self.raw_cells.items()}
        return {key: cell for key, cell in cells.items() if cell != Cell(0, 0, {})}

    def total(self, name: str) -> int:
        return self.head.totals.get(name, 0)

    def check_account(self) -> None:
        """Every record has one outcome, every accepted conversion one state."""
        names = ("accepted", "duplicate", "dead_letter/", "rerouted", "marker", "test", "archived")
        for topic in TOPICS:
            n = sum(
                count
                for name, count in self.head.totals.items()
                if any(name.startswith(f"{topic}/{outcome}") for outcome in names)
            )
            assert n == len(self.rows[topic]), (topic, self.head.totals)
        settled = self.total("conversions/attributed") + self.total("conversions/expired")
        assert self.total("conversions/accepted") == settled + self.head.pending
        assert self.head.pending >= 0


def record(
    event: Exposure | Conversion,
    offset: int,
    *,
    append_ms: int | None = None,
    headers: Sequence[tuple[str, bytes]] = (),
) -> SourceRecord:
    """Record of an event, appended at its own time unless told otherwise."""
    if append_ms is None:
        assert isinstance(event.timestamp, int)
        append_ms = event.timestamp
    return SourceRecord(offset, event_key(event), encode_event(event), append_ms, headers)
