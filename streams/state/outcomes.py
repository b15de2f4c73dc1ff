"""What an owner may do and what comes of it: results, counters, bounds."""

from dataclasses import dataclass
from typing import NamedTuple

HEAD_ROOM_BYTES = 64 * 1024
"""Part of a sweep record for its head, totals and field names."""


class Claimed(NamedTuple):
    """The partition is ours; ``reset`` says why the database was set aside and rebuilt, if it was."""

    offset: int
    reset: str | None


class Committed(NamedTuple):
    """The record is in the journal and in the database."""

    offset: int
    size_bytes: int


class Redo(NamedTuple):
    """Claimed again: drop what was fetched, check the sources, seek to the head's positions, step again."""

    reason: str


class Fenced(NamedTuple):
    """No longer the owner: stop; claim again only when assigned again."""

    reason: str


class TooLarge(NamedTuple):
    """Nothing was written: split the batch and step again."""

    size_bytes: int
    limit_bytes: int


class Swept(NamedTuple):
    """One range of a round is in the journal; publish its cells again, the dropped ones as tombstones."""

    offset: int
    size_bytes: int
    cells: list[tuple[bytes, bytes]]
    dropped_cells: list[bytes]
    completed: bool
    n_entries: int


@dataclass(slots=True)
class OwnerStatistics:
    """Counters since the owner was made; ``bytes`` and ``sweep_bytes`` are of encoded records."""

    records: int = 0
    bytes: int = 0
    claims: int = 0
    fenced: int = 0
    redos: int = 0
    too_large: int = 0
    skips: int = 0
    sweep_records: int = 0
    sweep_bytes: int = 0
    sweeps_completed: int = 0
    trims: int = 0
    trim_errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerLimits:
    """Bounds of an owner.

    Parameters
    ----------
    max_record_bytes
        Greatest record, encoded and not compressed; below the topic's max.message.bytes.
    append_timeout_s
        After it the outcome of an append counts as unknown.
    claim_deadline_s
        Bound on writing a claim and reading it back, attempts included.
    claim_backoff_s
        Pause between two attempts.
    recovery_deadline_s
        Bound on the replay before the first claim.
    """

    max_record_bytes: int = 8 * 2**20 - 64 * 2**10
    append_timeout_s: float = 10.0
    claim_deadline_s: float = 60.0
    claim_backoff_s: float = 0.2
    recovery_deadline_s: float = 1800.0

    def __post_init__(self) -> None:
        if self.max_record_bytes <= 2 * HEAD_ROOM_BYTES:
            raise ValueError(
                f"max_record_bytes must be above {2 * HEAD_ROOM_BYTES}: a sweep's head needs room"
            )
        if min(self.append_timeout_s, self.claim_deadline_s, self.recovery_deadline_s) <= 0:
            raise ValueError("timeouts must be positive")
