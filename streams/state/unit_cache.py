"""Unit cache: states of the units that were changed last, so that they are not read from RocksDB again.

A unit that has just been shown something is the likeliest to be shown something next. Entries go into a
young generation; when that has its share of bytes, it becomes the old one, and what was the old one is
forgotten. So a unit stays at least for one generation after its last change, at the cost of a dictionary
access.

The cache holds only what is in the database: it is changed after each write, by the same entries. It is used
by owners alone: nothing is kept until the first read, since standbys and recoveries do not read.

Memory: ``CacheBudget.max_bytes`` for all partitions of the process that have an owner here, Python's overhead
for an entry included.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

__all__ = ["CacheBudget", "UnitCache"]

ENTRY_BYTES = 200  # two bytes objects and a place in a dictionary, beside the bytes themselves
_GENERATIONS = 2


class CacheBudget:
    """Bytes that all unit caches of a process may take together, in equal shares.

    Parameters
    ----------
    max_bytes
        For all; 0 for no caches.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self.max_bytes = max_bytes
        self.n_caches = 0

    @property
    def generation_bytes(self) -> int:
        """Bytes of one generation of one cache."""
        return self.max_bytes // (_GENERATIONS * max(1, self.n_caches))


class UnitCache:
    """Cache of one partition.

    Parameters
    ----------
    budget
        Shared with the other partitions.
    """

    __slots__ = ("_budget", "_n_put", "_old", "_put_bytes", "_young", "used")

    def __init__(self, budget: CacheBudget) -> None:
        self._budget = budget
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._n_put = 0
        self._put_bytes = 0
        self.used = False

    def __len__(self) -> int:
        """Return the number of units in it."""
        return len(self._young.keys() | self._old.keys())

    def get(
        self, unit_ids: Sequence[bytes], load: Callable[[list[bytes]], Sequence[bytes | None]]
    ) -> Sequence[bytes | None]:
        """States of units in the order asked for; those that are not here are loaded, all at once."""
        if not self.used and self._budget.max_bytes:
            self.used = True
            self._budget.n_caches += 1
        young, old = self._young, self._old
        found: list[bytes | None] = [young.get(unit_id) or old.get(unit_id) for unit_id in unit_ids]
        missing = [unit_id for unit_id, state in zip(unit_ids, found, strict=True) if state is None]
        if not missing:
            return found
        loaded = load(missing)
        if len(missing) == len(found):
            return loaded
        rest = iter(loaded)
        return [next(rest) if state is None else state for state in found]

    def put(self, units: Mapping[bytes, bytes | None], n_bytes: int) -> None:
        """Take what was written to the database.

        Parameters
        ----------
        units
            State by unit id; None for a unit that was removed.
        n_bytes
            At least the bytes of all ids and states together, such as those of the record they came in.
        """
        if not self.used:
            return
        if None in units.values():
            for unit_id in [unit_id for unit_id, state in units.items() if state is None]:
                self._young.pop(unit_id, None)
                self._old.pop(unit_id, None)
            units = {unit_id: state for unit_id, state in units.items() if state is not None}
        self._young.update(cast("Mapping[bytes, bytes]", units))
        self._n_put += len(units)
        self._put_bytes += n_bytes
        # What is put again counts once: the generation's bytes are its entries times the mean of all puts.
        mean_bytes = ENTRY_BYTES + self._put_bytes / max(1, self._n_put)
        if len(self._young) * mean_bytes > self._budget.generation_bytes:
            self._old, self._young, self._n_put, self._put_bytes = self._young, {}, 0, 0

    def clear(self) -> None:
        """Forget everything: the database is closed, or another one takes its place."""
        if self.used:
            self._budget.n_caches -= 1
        self._young, self._old, self._n_put, self._put_bytes, self.used = {}, {}, 0, 0, False
