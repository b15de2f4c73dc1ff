"""Unit cache: what it holds is what the database holds, within its bytes."""

import random
from collections.abc import Sequence

import pytest

from streams.errors import BanditError
from streams.state.unit_cache import ENTRY_BYTES, CacheBudget, UnitCache


class Database:
    """What a cache is in front of, and what was asked of it."""

    def __init__(self) -> None:
        self.units: dict[bytes, bytes] = {}
        self.asked: list[bytes] = []

    def load(self, unit_ids: Sequence[bytes]) -> list[bytes | None]:
        self.asked += unit_ids
        return [self.units.get(unit_id) for unit_id in unit_ids]

    def write(self, units: dict[bytes, bytes | None]) -> None:
        for unit_id, state in units.items():
            if state is None:
                self.units.pop(unit_id, None)
            else:
                self.units[unit_id] = state


@pytest.mark.parametrize("max_bytes", [0, 3 * (ENTRY_BYTES + 20), 40 * (ENTRY_BYTES + 20)])
def test_it_answers_as_the_database_does(max_bytes: int) -> None:
    pick = random.Random(max_bytes)
    database, cache = Database(), UnitCache(CacheBudget(max_bytes))
    names = [b"unit-%d" % n for n in range(30)]
    for step in range(2_000):
        wanted = pick.sample(names, pick.randrange(1, 6))
        assert list(cache.get(wanted, database.load)) == [database.units.get(name) for name in wanted]
        changed = {name: None if pick.random() < 0.2 else b"state-%d" % step for name in wanted[:3]}
        database.write(changed)
        cache.put(changed, sum(len(name) + len(state or b"") for name, state in changed.items()))
        limit = 2 * (max_bytes // (2 * (ENTRY_BYTES + 1)) + 3)  # a generation may be passed by one batch
        assert len(cache) <= (limit if max_bytes else 0)


def test_what_was_changed_is_not_read_again() -> None:
    database, cache = Database(), UnitCache(CacheBudget(2**20))
    cache.get([b"a", b"b"], database.load)
    cache.put({b"a": b"1"}, 2)
    database.asked.clear()
    assert cache.get([b"b", b"a", b"c"], database.load) == [None, b"1", None]
    assert database.asked == [b"b", b"c"]


def test_nothing_is_kept_before_the_first_read_and_shares_are_equal() -> None:
    budget = CacheBudget(1000)
    owned, standby = UnitCache(budget), UnitCache(budget)
    standby.put({b"a": b"1"}, 2)
    assert len(standby) == 0
    owned.get([b"a"], Database().load)
    assert budget.generation_bytes == 500
    standby.get([b"a"], Database().load)
    assert budget.generation_bytes == 250
    owned.clear()
    owned.clear()
    assert budget.generation_bytes == 500


def test_a_closed_database_is_not_answered_for() -> None:
    cache = UnitCache(CacheBudget(2**20))
    cache.get([b"a"], Database().load)
    cache.put({b"a": b"1"}, 2)
    cache.clear()

    def closed(_: Sequence[bytes]) -> list[bytes | None]:
        raise BanditError("closed")

    with pytest.raises(BanditError):
        cache.get([b"a"], closed)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        CacheBudget(-1)
