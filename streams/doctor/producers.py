"""Checks of what producers write: partitioner, keys, clocks; from the last records of the source topics."""

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from streams.doctor.findings import Context, Finding, Level, ok
from streams.join.step import REROUTED_HEADER, WATERMARK_HEADER
from streams.log_reader import Record
from streams.partitioning import partition_of
from streams.replay import event_time_ms

__all__ = ["check_producers"]

SAMPLED = 200
"""Records looked at in each partition."""

SKEW_WARN_MS = 2_000


def _crc32(key: bytes, n_partitions: int) -> int:
    """Partition that librdkafka's default partitioner (consistent_random) gives."""
    return zlib.crc32(key) % n_partitions


def _fnv1a(key: bytes, n_partitions: int) -> int:
    """Partition that Sarama's default hash partitioner gives: signed 32-bit remainder, made positive."""
    h = 0x811C9DC5
    for byte in key:
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    signed = h - (1 << 32) if h & 0x80000000 else h
    return abs(signed) % n_partitions


_OTHERS: Mapping[str, tuple[Callable[[bytes, int], int], str]] = {
    "CRC32": (
        _crc32,
        "this is the default of librdkafka and the clients built on it: set partitioner=murmur2_random",
    ),
    "FNV-1a": (
        _fnv1a,
        "this is the default of Go's Sarama: use a partitioner with murmur2 and the sign bit cleared",
    ),
}


class _Sample(NamedTuple):
    """Counts over the sampled records of one topic."""

    n_records: int
    n_null_keys: int
    n_misplaced: int
    n_rerouted: int
    hypotheses: Counter[str]
    newest_append_ms: int
    greatest_lead_ms: int


async def check_producers(context: Context) -> Sequence[Finding]:
    """Sample both source topics."""
    findings: list[Finding] = []
    for name in ("exposures", "conversions"):
        topic = context.settings.topic(name)
        if topic not in context.topics:
            continue
        records = [record async for record in context.reader.read(topic, last=SAMPLED)]
        sample = _sample(records, context.topics[topic])
        if sample.n_records == 0:
            findings.append(
                Finding(
                    Level.WARN,
                    "producers",
                    "no event yet",
                    topic,
                    "point a producer at it; see docs/producers.md",
                )
            )
            continue
        findings += _judge(sample, topic)
        findings += _clocks(sample, topic, context)
    return findings


def _sample(records: Sequence[Record], n_partitions: int) -> _Sample:
    hypotheses: Counter[str] = Counter()
    n_records = n_null = n_misplaced = n_rerouted = newest_ms = 0
    lead_ms = -(2**62)
    for record in records:
        headers = {name for name, _ in record.headers}
        if WATERMARK_HEADER in headers:
            continue
        if REROUTED_HEADER in headers:
            n_rerouted += 1  # our own copy, of a record that is in the sample or was
            continue
        n_records += 1
        newest_ms = max(newest_ms, record.timestamp)
        at_ms = event_time_ms(record.value or b"")
        if at_ms is not None:
            lead_ms = max(lead_ms, at_ms - record.timestamp)
        if not record.key:
            n_null += 1
        elif partition_of(record.key, n_partitions) != record.partition:
            n_misplaced += 1
            hypotheses.update(
                name
                for name, (partition, _) in _OTHERS.items()
                if partition(record.key, n_partitions) == record.partition
            )
    return _Sample(n_records, n_null, n_misplaced, n_rerouted, hypotheses, newest_ms, lead_ms)


def _judge(sample: _Sample, topic: str) -> list[Finding]:
    findings = []
    if sample.n_null_keys:
        findings.append(
            Finding(
                Level.WARN,
                "producers",
                f"{sample.n_null_keys} of {sample.n_records} sampled records have no key",
                topic,
                "set the record's key to the unit_id; until then each is produced again under it",
            )
        )
    if sample.n_misplaced:
        findings.append(
            Finding(
                Level.WARN,
                "producers",
                f"{sample.n_misplaced} of {sample.n_records} sampled records are not on the partition that"
                " murmur2 of their key gives",
                topic,
                _partitioner_advice(sample),
            )
        )
    if not findings:
        findings.append(
            ok("producers", f"{sample.n_records} sampled records, all on the partition of their key", topic)
        )
    return findings


def _partitioner_advice(sample: _Sample) -> str:
    costs = "until then the worker produces each again to the right partition, which costs twice the traffic"
    for name, (_, advice) in _OTHERS.items():
        # A wrong hypothesis holds by chance for one record in n; the right one holds for all from one
        # producer.
        if sample.hypotheses[name] >= 0.9 * sample.n_misplaced:
            return f"they are where {name} puts them: {advice}; {costs}"
    return (
        "use the Java client's partitioner (murmur2 of the key, sign bit cleared), and do not choose"
        f" partitions by hand; {costs}"
    )


def _clocks(sample: _Sample, topic: str, context: Context) -> list[Finding]:
    findings = []
    ahead_ms = sample.newest_append_ms - context.now_ms()
    if ahead_ms > SKEW_WARN_MS:
        findings.append(
            Finding(
                Level.WARN,
                "clocks",
                f"the broker's clock is at least {ahead_ms / 1000:.1f} s ahead of this machine's",
                topic,
                "synchronise both by NTP: what is too far in the future is judged by the broker's clock",
            )
        )
    limit_ms = context.settings.max_ahead_ms
    if sample.greatest_lead_ms > limit_ms:
        findings.append(
            Finding(
                Level.WARN,
                "clocks",
                f"an event is dated {sample.greatest_lead_ms / 1000:.0f} s later than the broker received it",
                topic,
                f"correct the producer's clock or its unit (epoch milliseconds): beyond {limit_ms / 1000:g} s"
                " events become dead letters `future`",
            )
        )
    return findings
