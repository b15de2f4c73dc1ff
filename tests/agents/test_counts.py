"""Publishing counts: what an owner has in hand at its end goes out before the end, in order."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from streams.agents.counts import PAUSE_MOST_S, PAUSE_TO_SPENT, CountsPublisher, pause_s
from streams.counts import decode_counts, decode_key
from streams.join.cells import Cell, CellKey, encode_cell, encode_key
from streams.metrics import Metrics
from streams.state.journal import Head

KEY = CellKey("e", 1, "steering", "order", "a", "", "bandit", -1, 480_000)


class Database:
    """One cell, and the head that goes with it."""

    def __init__(self) -> None:
        self.head = Head(journal_id=1, claim=0, journal_offset=1)
        self.trials = 1

    def cells(self) -> Iterator[tuple[bytes, bytes]]:
        yield encode_key(KEY), encode_cell(Cell(self.trials, 0, {}))

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return ((b"c" + key, value) for key, value in self.cells() if (b"c" + key).startswith(prefix))


class Producer:
    """Acknowledges what it was given once it may."""

    def __init__(self) -> None:
        self.was_given = asyncio.Event()
        self.may_acknowledge = asyncio.Event()
        self.trials: list[int] = []

    async def send(self, _topic: str, value: bytes, key: bytes, **_: int) -> asyncio.Task[None]:
        self.was_given.set()
        return asyncio.get_running_loop().create_task(self._acknowledge(key, value))

    async def _acknowledge(self, key: bytes, value: bytes) -> None:
        await self.may_acknowledge.wait()
        self.trials += [cell.trials for cell in decode_counts(decode_key(key), value).cells.values()]


async def test_the_last_counts_wait_for_those_that_are_on_their_way() -> None:
    database, producer = Database(), Producer()
    parts: Any = SimpleNamespace(database=database, producer=producer)
    publisher = CountsPublisher(
        0, parts.database, parts.producer, topic="counts", n_partitions=1, metrics=Metrics()
    )
    publisher.mark_all()
    running = asyncio.create_task(publisher.run(0.0))
    await producer.was_given.wait()
    database.trials, database.head = 2, Head(journal_id=1, claim=0, journal_offset=2)
    publisher.mark_all()
    last = asyncio.create_task(publisher.flush_last())
    await asyncio.sleep(0)
    assert not last.done()
    producer.may_acknowledge.set()
    await last
    running.cancel()
    assert producer.trials == [1, 2]


@pytest.mark.parametrize(
    ("spent_s", "n_publishers", "pause"),
    [(0.0, 8, 0.5), (0.002, 8, 0.5), (0.01, 8, 8 * PAUSE_TO_SPENT * 0.01), (2.0, 1, PAUSE_MOST_S)],
)
def test_publishers_take_a_share_of_the_time(spent_s: float, n_publishers: int, pause: float) -> None:
    assert pause_s(0.5, spent_s, n_publishers) == pytest.approx(pause)


def test_an_interval_above_the_longest_pause_holds() -> None:
    assert pause_s(30.0, 10.0, 8) == 30.0
