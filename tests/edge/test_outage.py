"""What an edge does while its broker is away: decide, keep, count, and deliver when it is back."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from streams.allocations import Allocation
from streams.config import Settings
from streams.edge import EdgeClient, EmitterOptions
from streams.embedded import EmbeddedKafka
from streams.events import decode_conversion
from streams.log_reader import LogReader
from streams.topics import create_topics

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MakeAllocation = Callable[..., Allocation]
OPTIONS = EmitterOptions(queue_events=100, request_timeout_ms=2_000, flush_deadline_ms=2_000)


async def test_events_wait_for_the_broker_and_a_stop_does_not(
    tmp_path: Path, make_allocation: MakeAllocation
) -> None:
    from aiokafka import AIOKafkaProducer

    from streams.allocations import encode_allocation

    kafka = EmbeddedKafka(tmp_path / "kafka")
    await asyncio.to_thread(kafka.start)
    try:
        settings = Settings(
            bootstrap_servers=kafka.bootstrap_servers,
            partitions=2,
            counts_partitions=1,
            replication_factor=1,
            min_insync_replicas=1,
        )
        await create_topics(settings)
        allocation = replace(
            make_allocation({"a": 0, "b": 1}, version=5), computed_at_ms=time.time_ns() // 1_000_000
        )
        async with AIOKafkaProducer(**settings.kafka_options()) as producer:
            await producer.send_and_wait(
                settings.topic("allocations"), encode_allocation(allocation), key=b"checkout"
            )
        edge = EdgeClient(settings, options=OPTIONS)
        await edge.start()
        await asyncio.to_thread(kafka.kill)

        assert edge.decide("checkout", "u").arm_id == "b", "decisions go on"
        taken = [edge.convert("u", "order", conversion_id=f"c-{i}") for i in range(150)]
        assert taken.count(None) == 50
        assert not await edge.flush(3_000)
        events = edge.statistics().events
        assert (events.sent, events.dropped, events.offered) == (0, 50, 150)
        assert events.queued + events.in_flight + events.failed == 100

        await asyncio.to_thread(kafka.start)
        assert await edge.flush(60_000), edge.statistics()
        events = edge.statistics().events
        assert (events.sent, events.failed, events.dropped) == (100, 0, 50)
        async with LogReader(settings) as reader:
            found = [
                decode_conversion(r.value or b"") async for r in reader.read(settings.topic("conversions"))
            ]
        assert {conversion.conversion_id for conversion in found} == {f"c-{i}" for i in range(100)}

        await asyncio.to_thread(kafka.kill)
        edge.convert("u", "order")
        started = time.monotonic()
        await edge.stop()
        assert time.monotonic() - started < 20.0
        events = edge.statistics().events
        assert (events.queued, events.sent, events.failed) == (0, 100, 1)
        assert edge.decide("checkout", "u").arm_id == "b", "a stopped client still answers"
    finally:
        await asyncio.to_thread(kafka.stop)
