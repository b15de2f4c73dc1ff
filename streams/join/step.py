"""The batch step: records of one source topic-partition in, state changes out.

:func:`run_step` is a pure function of the batch, the partition's head, the definitions and the stored state
it asks for. It reads every record's verdict in offset order, loads the state of all units at once, applies
each unit's events, and turns what they add into absolute cells. Nothing is written: the owner journals the
result and applies it after the acknowledgement, so a step may be run again at will.

Units are handled one by one, their order does not matter: what an event adds depends on its unit alone. The
horizon for evictions is that of the head before the batch; see ``streams.join.eviction``.

Cost: O(records + bytes of the state of their units); see ``bench/join_step.py`` for figures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct, field

from streams.errors import StateCorrupt
from streams.join.cells import add_to_cell
from streams.join.conversions import apply_all_conversions
from streams.join.definitions import Definitions, MissingDefinition
from streams.join.eviction import SweptUnit, horizon_ms, sweep_unit
from streams.join.exposures import apply_all_exposures
from streams.join.kernel import KERNEL, Kernel
from streams.join.ledger import Ledger, Limits, Scope, Verdict
from streams.join.reading import (
    END_MS,
    REROUTED_HEADER,
    WATERMARK_HEADER,
    Reading,
    SourceRecord,
)
from streams.partitioning import partitions_of

__all__ = [
    "END_MS",
    "REROUTED_HEADER",
    "WATERMARK_HEADER",
    "Batch",
    "HeadView",
    "Limits",
    "LoadMany",
    "SourceRecord",
    "StepResult",
    "SweptUnit",
    "Verdict",
    "run_step",
    "sweep_unit",
]


class Batch(Struct, frozen=True, kw_only=True):
    """Consecutive records of one source partition; covers offsets ``[start, next)``.

    ``oversize_bytes`` is not 0 where the one record in it has been tried and made a journal record of that
    size, which is more than there may be: its event is refused, unless it is a duplicate.
    """

    topic: str  # "exposures" or "conversions", without prefix
    partition: int
    start: int
    next: int
    records: Sequence[SourceRecord]
    oversize_bytes: int = 0


class HeadView(Protocol):
    """What the step needs of a partition's head."""

    @property
    def maxima(self) -> Mapping[str, int]:
        """Running maximum by topic; a topic without records is not in it."""

    @property
    def totals(self) -> Mapping[str, int]:
        """Records by outcome, ``topic/outcome`` or ``topic/outcome/reason``."""

    @property
    def pending(self) -> int:
        """Conversions that wait for their exposure."""


class StepResult(Struct, kw_only=True):
    """Everything that a batch changes, all absolute; the owner journals it and then applies it.

    Attributes
    ----------
    units
        New state by unit id (UTF-8).
    cells
        New cell by cell key, see ``streams.join.cells``.
    verdicts
        Rejected records by offset.
    reroutes
        Offsets to be produced again to the right partition, with the header ``bandit-rerouted``, before
        journalling.
    maxima, totals, pending
        The head's fields after the batch.
    unknown_experiments
        Experiments (and metrics of conversions that name none) that the definitions lack: read them to their
        end, then run again with ``final=True``. While it is not empty, nothing else is decided.
    other_levels
        Context features that fell into ``other`` for want of a known level, by experiment.
    """

    units: dict[bytes, bytes | None]
    cells: dict[bytes, bytes]
    verdicts: list[Verdict]
    reroutes: list[int]
    maxima: dict[str, int]
    totals: dict[str, int]
    pending: int
    unknown_experiments: set[str]
    other_levels: dict[str, int] = field(default_factory=dict)


LoadMany = Callable[[Sequence[bytes]], Sequence[bytes | None]]


def run_step(
    batch: Batch,
    head: HeadView,
    definitions: Definitions,
    limits: Limits,
    load_units: LoadMany,
    load_cells: LoadMany,
    *,
    final: bool = False,
    kernel: Kernel | None = KERNEL,
) -> StepResult:
    """Join the records of one batch.

    Parameters
    ----------
    batch
        Records of one topic-partition, none below the journal's position.
    head
        Head of the partition before the batch.
    definitions
        All experiments.
    limits
        Settings.
    load_units
        Stored states by unit id, None for a unit without one; called once with distinct ids.
    load_cells
        Stored cells by cell key, None for a new one; called once with distinct keys.
    final
        Decide although experiments, arms or metrics are unknown: the definitions were read to their end.
    kernel
        Compiled short ways; None for Python alone. The result is the same.

    Raises
    ------
    StateCorrupt
        If stored bytes cannot be read, or a unit is bound to a version that is gone from the definitions.
    """
    ledger = Ledger(batch.topic)
    reading = Reading(batch.partition, head.maxima.get(batch.topic, -1), definitions, limits, ledger, kernel)
    if batch.topic == "exposures":
        reading.read_exposures(batch.records)
    else:
        reading.read_conversions(batch.records)
    if reading.unknown and not final:
        return _undecided(head, reading.unknown)
    horizon = horizon_ms(head.maxima, limits.grace_ms)
    if batch.oversize_bytes:
        kernel = None
    scope = Scope(
        definitions,
        limits,
        ledger,
        horizon,
        final=final,
        kernel=kernel,
        oversize_bytes=batch.oversize_bytes,
    )
    try:
        units = _apply(batch, reading, scope, load_units)
    except MissingDefinition as missing:
        if final:
            raise StateCorrupt(missing.what, where=missing.where, action=missing.action) from missing
        return _undecided(head, {missing.experiment_id})
    maxima = dict(head.maxima)
    if reading.maximum_ms >= 0:
        maxima[batch.topic] = reading.maximum_ms
    return StepResult(
        units=units,
        cells=_cells(ledger, definitions, load_cells),
        verdicts=sorted(ledger.verdicts),
        reroutes=sorted(ledger.reroutes),
        maxima=maxima,
        totals=ledger.totals(head.totals),
        pending=head.pending + ledger.n_pending,
        unknown_experiments=set(),
        other_levels=reading.other_levels,
    )


def _undecided(head: HeadView, unknown: set[str]) -> StepResult:
    return StepResult(
        units={},
        cells={},
        verdicts=[],
        reroutes=[],
        maxima=dict(head.maxima),
        totals=dict(head.totals),
        pending=head.pending,
        unknown_experiments=unknown,
    )


def _apply(batch: Batch, reading: Reading, scope: Scope, load_units: LoadMany) -> dict[bytes, bytes | None]:
    """Compute the new state of every unit that changes; misplaced units are routed again."""
    groups = reading.exposures or reading.conversions
    keys = list(groups)
    states = load_units(keys) if keys else ()
    stored = dict(zip(keys, states, strict=True))
    _reroute_strangers(batch, reading, [key for key, state in stored.items() if state is None])
    return {
        **apply_all_exposures(reading.exposures, stored, scope),
        **apply_all_conversions(reading.conversions, stored, scope),
    }


def _reroute_strangers(batch: Batch, reading: Reading, fresh: Sequence[bytes]) -> None:
    """Take units that belong to another partition out of the reading; only those without state can."""
    if not fresh:
        return
    partitions = partitions_of(fresh, reading.limits.n_partitions).tolist()
    strangers = [
        key for key, partition in zip(fresh, partitions, strict=True) if partition != batch.partition
    ]
    if not strangers:
        return
    headers = {record.offset: record.headers for record in batch.records}
    for key in strangers:
        for item in (*reading.exposures.pop(key, ()), *reading.conversions.pop(key, ())):
            reading.misplace(item[0], headers[item[0]])


def _cells(ledger: Ledger, definitions: Definitions, load_cells: LoadMany) -> dict[bytes, bytes]:
    """Absolute bytes of every cell that changes."""
    changes = list(ledger.tally.changes(definitions))
    if not changes:
        return {}
    states = load_cells([change[0] for change in changes])
    return {
        key: add_to_cell(state, trials, crossovers, lags)
        for (key, trials, crossovers, lags), state in zip(changes, states, strict=True)
    }
