"""Partition of a key: equal to Java's, for single keys and for batches."""

import numpy as np
import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.partitioning import murmur2, partition_of, partitions_of

# Published in Apache Kafka's own test of org.apache.kafka.common.utils.Utils.murmur2 (signed, as Java has
# them).
JAVA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "expected"), JAVA_VECTORS.items())
def test_murmur2_is_javas(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected & 0xFFFFFFFF


@pytest.mark.parametrize(("key", "partition"), [(b"21", 4), (b"foobar", 6), (b"abc", 3)])
def test_partition_of_worked_on_paper(key: bytes, partition: int) -> None:
    # (hash & 0x7fffffff) % 8 is the hash's last three bits, because 8 is a power of two.
    assert JAVA_VECTORS[key] & 7 == partition
    assert partition_of(key, 8) == partition


@settings(deadline=None)
@given(st.lists(st.binary(max_size=90), max_size=80), st.integers(1, 50))
def test_batch_equals_one_by_one_equals_aiokafka(keys: list[bytes], n_partitions: int) -> None:
    partitions = list(range(n_partitions))
    expected = [DefaultPartitioner()(key, partitions, partitions) for key in keys]
    assert [partition_of(key, n_partitions) for key in keys] == expected
    batch = partitions_of(keys, n_partitions)
    assert batch.dtype == np.int64
    assert batch.tolist() == expected


def test_batch_handles_every_length_and_tail() -> None:
    keys = [bytes(range(128, 128 + n)) for n in range(100)]
    assert partitions_of(keys, 1000).tolist() == [partition_of(key, 1000) for key in keys]
