"""The batch step: records of one source topic-partition in, state changes out."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from streams.experiments.definition import ExperimentRecord

END_MS = 2**53
WATERMARK_HEADER = "bandit-watermark"
REROUTED_HEADER = "bandit-rerouted"


class SourceRecord(NamedTuple):
    """One record as read from a source topic; ``timestamp_ms`` is the broker's append time."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Sequence[tuple[str, bytes]] = ()


class Batch(Struct, frozen=True, kw_only=True):
    """Consecutive records of one source partition; covers offsets ``[start, next)``."""

    topic: str  # "exposures" or "conversions", without prefix
    partition: int
    start: int
    next: int
    records: Sequence[SourceRecord]


class Limits(Struct, frozen=True, kw_only=True):
    """Settings that the verdicts depend on."""

    n_partitions: int
    grace_ms: int
    max_ahead_ms: int
    unit_max_events: int


class Verdict(NamedTuple):
    """A rejected record: kept in the journal with the batch, then dead-lettered."""

    offset: int
    reason: str
    field: str
    message: str


class StepResult(Struct, kw_only=True):
    """Everything that a batch changes, all absolute; the owner journals it and then applies it."""

    units: dict[bytes, bytes | None]
    cells: dict[bytes, bytes]
    verdicts: list[Verdict]
    reroutes: list[int]  # offsets to be produced again to the right partition before journalling
    maxima: dict[str, int]
    totals: dict[str, int]
    pending: int
    unknown_experiments: set[str]  # not in the catalog: read the definitions to their end, then run again


Catalog = Mapping[str, ExperimentRecord]
LoadMany = Callable[[Sequence[bytes]], Sequence[bytes | None]]
