"""Sweep: a partition's state written again, one range of keys at a time, so that its journal stays short.

A round goes once over all cells, units and verdicts in the order of their raw keys, beside the batches. An
entry that a batch changes behind the cursor is in that batch's record, so a database that starts at the
round's first record has everything by its last one; then all records before the first can be deleted.

As it passes, it lets the join evict what can no longer change a count. What a range evicts is in the same
record as the rest of that range, so a replay sees both or neither.

Cost: O(state) reads and journal bytes a round; at most ``max_bytes`` of them between two batches.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from streams.state.partition import CELL, UNIT, Partition

END_KEY = b"\xff"
"""Above every raw key: the end of the last range of a round."""

_ENTRY_OVERHEAD_BYTES = 10  # msgpack headers of key and value


class SweptUnit(NamedTuple):
    """A unit after the sweep has passed it.

    Parameters
    ----------
    state
        New state; None removes the unit.
    pending
        Change of the number of waiting conversions, <= 0.
    totals
        Changes, added to the totals of the same keys.
    """

    state: bytes | None
    pending: int = 0
    totals: Mapping[str, int] = {}


class Sweeper(Protocol):
    """What the join knows and the sweep does not: which parts of the state are over."""

    def unit(self, unit_id: bytes, state: bytes, watermark_ms: int | None) -> SweptUnit:
        """Evict from a unit what no event at or after the watermark can change."""
        ...

    def cell(self, key: bytes, value: bytes) -> bytes | None:
        """Return the cell, changed or not; None drops it (its experiment is archived)."""
        ...


class Unchanged:
    """A sweeper that evicts nothing."""

    def unit(self, unit_id: bytes, state: bytes, watermark_ms: int | None) -> SweptUnit:  # noqa: ARG002 - protocol
        """Return the unit as it is."""
        return SweptUnit(state)

    def cell(self, key: bytes, value: bytes) -> bytes | None:  # noqa: ARG002 - protocol
        """Return the cell as it is."""
        return value


KEEP: Sweeper = Unchanged()


class KeyRange(NamedTuple):
    """One range of a round, before it is a record; entries by raw key."""

    from_key: bytes
    to_key: bytes
    last: bool
    restated: dict[bytes, bytes]
    changed: dict[bytes, bytes | None]
    pending: int
    totals: dict[str, int]

    @property
    def n_entries(self) -> int:
        """Entries that the range went over."""
        return len(self.restated) + len(self.changed)

    def cells(self) -> list[tuple[bytes, bytes]]:
        """Cells of the range as they are after it, by cell key, ascending."""
        changed = {key: value for key, value in self.changed.items() if value is not None}
        return sorted((k[1:], v) for k, v in (self.restated | changed).items() if k.startswith(CELL))

    def dropped_cells(self) -> list[bytes]:
        """Keys of the cells that the range removes, ascending."""
        return sorted(k[1:] for k, v in self.changed.items() if v is None and k.startswith(CELL))


def sweep_range(partition: Partition, sweeper: Sweeper, *, max_bytes: int) -> KeyRange:
    """Read the next range of the round in progress, or the first of a new one, and evict from it.

    Parameters
    ----------
    max_bytes
        Bound on the entries read; a single greater entry still makes a range of its own.
    """
    head = partition.head
    from_key = head.sweep.cursor if head.sweep.start >= 0 else b""
    watermark_ms = head.watermark_ms()
    restated: dict[bytes, bytes] = {}
    changed: dict[bytes, bytes | None] = {}
    totals: dict[str, int] = {}
    pending = size_bytes = 0
    to_key, last = from_key, True
    for key, value in partition.scan_from(from_key):
        size_bytes += len(key) + len(value) + _ENTRY_OVERHEAD_BYTES
        if size_bytes > max_bytes and to_key != from_key:
            last = False
            break
        to_key = key + b"\0"
        after: bytes | None = value
        if key.startswith(UNIT):
            swept = sweeper.unit(key[1:], value, watermark_ms)
            after = swept.state
            pending += swept.pending
            for outcome, change in swept.totals.items():
                totals[outcome] = totals.get(outcome, 0) + change
        elif key.startswith(CELL):
            after = sweeper.cell(key[1:], value)
        if after == value:
            restated[key] = value
        else:
            changed[key] = after
    return KeyRange(from_key, END_KEY if last else to_key, last, restated, changed, pending, totals)
