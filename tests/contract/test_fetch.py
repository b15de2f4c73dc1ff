"""Our unpacking of fetched records beside aiokafka's own."""

from collections.abc import Iterator

import pytest
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from streams.transport import _Fetches, source_record

TP = TopicPartition("exposures", 3)


def batch(first: int, n: int, *, codec: int = 0, headers: bool = False) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    for i in range(n):
        extra = [("bandit-rerouted", b"1")] if headers and i % 2 else []
        builder.append(i, 1_000 + i, b"key-%d" % i if i % 3 else None, b"value-%d" % i, extra)
    raw = builder.build()
    raw[0:8] = first.to_bytes(8, "big")
    return bytes(raw)


def unread(raw: bytes, position: int) -> PartitionRecords:
    return PartitionRecords(TP, MemoryRecords(raw), [], position, None, None, True, 0)


def lean(raw: bytes, position: int) -> PartitionRecords:
    fetches = _Fetches(lambda _: False)
    fetches[TP] = FetchResult(TP, assignment=None, partition_records=unread(raw, position), backoff=0)
    records: PartitionRecords = fetches[TP]._partition_records
    assert type(records) is not PartitionRecords
    return records


def raws() -> Iterator[tuple[bytes, int]]:
    for codec in (0, 3, 4):
        yield batch(100, 20, codec=codec, headers=True) + batch(130, 7, codec=codec), 100
    yield batch(100, 20), 113  # the position is inside the batch
    yield b"", 5


@pytest.mark.parametrize(("raw", "position"), list(raws()))
def test_same_records_and_position_as_aiokafka(raw: bytes, position: int) -> None:
    theirs = unread(raw, position)
    ours = lean(raw, position)
    assert list(ours) == [source_record(record) for record in theirs]
    assert ours.next_fetch_offset == theirs.next_fetch_offset


def test_damage_is_refused() -> None:
    raw = bytearray(batch(0, 5))
    raw[-1] ^= 1
    with pytest.raises(CorruptRecordException):
        list(lean(bytes(raw), 0))


def test_journal_is_left_alone() -> None:
    fetches = _Fetches(lambda tp: tp == TP)
    fetches[TP] = FetchResult(TP, assignment=None, partition_records=unread(b"", 0), backoff=0)
    assert type(fetches[TP]._partition_records) is PartitionRecords
