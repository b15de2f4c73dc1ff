"""Partition of a key as Kafka's Java client chooses it: murmur2 of the key's bytes, sign bit cleared, modulo.

Producers in any language that use the same rule put all events of a unit into one partition number of
exposures and of conversions; the join depends on it and checks it. Python's own ``hash`` is salted per
process and never used.

``partition_of`` is O(bytes) in Python, some microseconds a key; ``partitions_of`` hashes a batch in numpy,
one pass over all keys for each four bytes of the longest, and is ten times faster from a hundred keys on.

Source: Apache Kafka, ``org.apache.kafka.common.utils.Utils.murmur2`` and
``BuiltInPartitioner.partitionForKey``.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF
_BATCH_MIN_KEYS = 32
_VECTOR_MAX_BYTES = 64


def murmur2(data: bytes) -> int:
    """Hash of ``data`` as an unsigned 32-bit integer (Java's is the same bits, signed)."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _M & _MASK
        h = (h * _M ^ (k ^ k >> 24) * _M) & _MASK
    if whole != length:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, n_partitions: int) -> int:
    """Partition in ``[0, n_partitions)`` that Java's default partitioner gives to ``key``."""
    return (murmur2(key) & 0x7FFFFFFF) % n_partitions


def partitions_of(keys: Sequence[bytes], n_partitions: int) -> npt.NDArray[np.int64]:
    """Partitions of many keys at once; equal to ``[partition_of(key, n_partitions) for key in keys]``.

    Parameters
    ----------
    keys
        Keys; those longer than 64 bytes are hashed one by one, so that a single long one does not widen the
        rest.
    n_partitions
        Number of partitions of the topic, at least 1.

    Returns
    -------
    ndarray of int64, shape (n_keys,)
    """
    if len(keys) < _BATCH_MIN_KEYS:
        return np.fromiter((partition_of(key, n_partitions) for key in keys), np.int64, len(keys))
    lengths = np.fromiter(map(len, keys), np.uint32, len(keys))
    width = min(int(lengths.max()), _VECTOR_MAX_BYTES)
    width += -width % 4
    padded = b"".join([key[:width].ljust(width, b"\0") for key in keys])
    hashes = _murmur2_rows(np.frombuffer(padded, "<u4").reshape(len(keys), width // 4), lengths)
    for row in np.flatnonzero(lengths > _VECTOR_MAX_BYTES).tolist():
        hashes[row] = murmur2(keys[row])
    return (hashes & np.uint32(0x7FFFFFFF)).astype(np.int64) % n_partitions


def _murmur2_rows(words: npt.NDArray[np.uint32], lengths: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Hash zero-padded rows, shape (n_keys, n_words); what rows cut off by it get means nothing."""
    m, r13, r15, r24 = np.array([_M, 13, 15, 24], np.uint32)
    h: npt.NDArray[np.uint32] = np.uint32(_SEED) ^ lengths
    whole_words = lengths // np.uint32(4)
    has_tail = lengths % np.uint32(4) != 0
    for i in range(words.shape[1]):
        word = words[:, i]
        k = word * m
        mixed = (h * m) ^ ((k ^ (k >> r24)) * m)
        tail = (h ^ word) * m
        h = np.where(i < whole_words, mixed, np.where(has_tail & (i == whole_words), tail, h))
    h = (h ^ (h >> r13)) * m
    h ^= h >> r15
    return h
