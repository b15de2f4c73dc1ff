"""Records of the compacted topic ``counts``: absolute cells, from the join to the allocator."""

from typing import NamedTuple

from streams.join.cells import Cell, CellKey


class Order(NamedTuple):
    """Where in a partition's history a counts record stands; a smaller one never replaces a greater one."""

    journal_id: int
    claim: int
    offset: int


class CountsKey(NamedTuple):
    """Compaction key; ``experiment_id == ""`` is the progress record of a source partition."""

    experiment_id: str
    source_partition: int
    bucket: int


class CountsRecord(NamedTuple):
    """All cells of one experiment, source partition and bucket."""

    order: Order
    cells: dict[CellKey, Cell]


class ProgressRecord(NamedTuple):
    """Everything dated before ``watermark_ms`` in this source partition has been counted and published before it."""

    order: Order
    watermark_ms: int
