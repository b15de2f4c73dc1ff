"""Partitions in a folder of the test, closed at its end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from streams.state.partition import Partition
from streams.state.store import StoreOptions


class Open(Protocol):
    """Opens a partition by its folder's name."""

    def __call__(
        self,
        name: str = "p",
        *,
        on_reset: Callable[[str], None] | None = None,
        options: StoreOptions | None = None,
    ) -> Partition: ...


@pytest.fixture
def open_partition(tmp_path: Path) -> Iterator[Open]:
    opened: list[Partition] = []
    shared = StoreOptions(block_cache_bytes=2**20, write_buffer_bytes=2**20)

    def open_one(
        name: str = "p", *, on_reset: Callable[[str], None] | None = None, options: StoreOptions | None = None
    ) -> Partition:
        partition = Partition.open(
            tmp_path / name, name="journal[0]", options=options or shared, on_reset=on_reset
        )
        opened.append(partition)
        return partition

    yield open_one
    for partition in opened:
        partition.close()
