"""The edge client against a real Kafka: what arrives, what is sent, and what is not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from msgspec.structs import replace
from prometheus_client import generate_latest

from streams.allocations import Allocation, encode_allocation
from streams.config import Settings
from streams.edge import Decision, EdgeClient, EmitterOptions
from streams.embedded import Broker
from streams.errors import BrokerUnavailable
from streams.events import decode_conversion, decode_exposure
from streams.experiments.definition import ExperimentRecord
from streams.experiments.lifecycle import pause, resume, stop_arm
from streams.experiments.store import ExperimentStore
from streams.experiments.view import ExperimentsView
from streams.log_reader import LogReader
from streams.metrics import EdgeMetrics
from streams.partitioning import partition_of
from streams.topics import create_topics

pytestmark = pytest.mark.integration

EXPERIMENT = "checkout"
DEADLINE_S = 20.0

MakeAllocation = Callable[..., Allocation]
MakeRecord = Callable[..., ExperimentRecord]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
async def settings(broker: Broker, topic_prefix: str) -> Settings:
    made = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=topic_prefix,
        partitions=3,
        counts_partitions=2,
        replication_factor=1,
        min_insync_replicas=1,
    )
    await create_topics(made)
    return made


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    made = AIOKafkaProducer(**settings.kafka_options())
    await made.start()
    yield made
    await made.stop()


async def publish(producer: AIOKafkaProducer, settings: Settings, allocation: Allocation) -> None:
    current = replace(allocation, computed_at_ms=now_ms())
    key = allocation.experiment_id.encode()
    await producer.send_and_wait(settings.topic("allocations"), encode_allocation(current), key=key)


async def until(condition: Callable[[], bool]) -> float:
    """Seconds until the condition holds; fails after the deadline."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < DEADLINE_S, "the condition did not come true in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


async def records(settings: Settings, topic: Any) -> list[Any]:
    async with LogReader(settings) as reader:
        return [record async for record in reader.read(settings.topic(topic))]


async def test_what_is_in_the_topics_at_start_and_what_comes_later_decides(
    settings: Settings,
    producer: AIOKafkaProducer,
    make_allocation: MakeAllocation,
    make_record: MakeRecord,
) -> None:
    await publish(producer, settings, make_allocation({"a": 0, "b": 1}, version=7))
    async with ExperimentStore(settings) as store, EdgeClient(settings) as edge:
        assert edge.decide(EXPERIMENT, "u").allocation_version == 7
        assert edge.decide(EXPERIMENT, "u").arm_id == "b"
        await store.write(make_record(["a", "b"]))

        await publish(producer, settings, make_allocation({"a": 1, "b": 0}, version=8))
        await until(lambda: edge.decide(EXPERIMENT, "u").allocation_version == 8)
        await publish(producer, settings, make_allocation({"a": 0, "b": 1}, version=6))
        await until(lambda: edge.statistics().ignored_allocations == 1)
        assert edge.decide(EXPERIMENT, "u").arm_id == "a"

        await store.change(EXPERIMENT, lambda r: pause(r, now_ms=now_ms()))
        took_s = await until(lambda: edge.decide(EXPERIMENT, "u").reason == "default:paused")
        assert took_s < 5.0
        await store.change(EXPERIMENT, lambda r: resume(r, now_ms=now_ms()))
        await until(lambda: edge.decide(EXPERIMENT, "u").reason == "allocation")

        await publish(producer, settings, make_allocation({"a": 0, "b": 1}, version=9))
        await until(lambda: edge.decide(EXPERIMENT, "u").arm_id == "b")
        await store.change(EXPERIMENT, lambda r: stop_arm(r, "b", now_ms=now_ms()))
        took_s = await until(lambda: edge.decide(EXPERIMENT, "u").reason == "default:stopped_arm")
        assert took_s < 5.0
        assert edge.decide(EXPERIMENT, "u").arm_id == "a"

        await producer.send_and_wait(settings.topic("allocations"), None, key=EXPERIMENT.encode())
        await until(lambda: edge.decide(EXPERIMENT, "u").reason == "default:missing_allocation")


async def test_events_arrive_whole_in_their_units_partition(
    settings: Settings, producer: AIOKafkaProducer, make_allocation: MakeAllocation
) -> None:
    await publish(producer, settings, make_allocation({"a": 0.5, "b": 0.5}, version=3, comparison=0.3))
    shown: dict[str, Decision] = {}
    async with EdgeClient(settings) as edge:
        for i in range(300):
            decision = edge.decide(EXPERIMENT, f"unit-{i}", {"country": "ch"})
            exposure_id = edge.expose(decision, 1_700_000_000_000 + i)
            assert exposure_id is not None
            shown[exposure_id] = decision
        at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        sold = edge.convert("unit-1", "order", value=12.5, timestamp=at, conversion_id="sale-1", test=True)
        assert sold == "sale-1"
        assert await edge.flush()
        events = edge.statistics().events
        assert (events.offered, events.sent, events.dropped, events.failed) == (301, 301, 0, 0)
    found = await records(settings, "exposures")
    assert len(found) == 300
    for record in found:
        exposure = decode_exposure(record.value)
        decision = shown.pop(exposure.exposure_id)
        assert record.partition == partition_of(exposure.unit_id.encode(), settings.partitions)
        assert record.key == exposure.unit_id.encode()
        assert (exposure.arm_id, exposure.group) == (decision.arm_id, decision.group)
        assert exposure.propensity == (None if exposure.group == "comparison" else decision.propensity)
        assert (exposure.allocation_version, exposure.reason) == (3, decision.reason)
        assert exposure.context == {"country": "ch"}
    assert shown == {}
    (sale,) = await records(settings, "conversions")
    conversion = decode_conversion(sale.value)
    assert (conversion.unit_id, conversion.metric, conversion.value) == ("unit-1", "order", 12.5)
    assert (conversion.test, conversion.timestamp) == (True, at)


async def test_default_decisions_are_exposed_as_such_and_no_arm_is_not_exposed(
    settings: Settings, make_record: MakeRecord
) -> None:
    async with ExperimentStore(settings) as store:
        await store.write(make_record(["a", "b"]))
    async with EdgeClient(settings) as edge:
        assert edge.expose(edge.decide(EXPERIMENT, "u"), exposure_id="shown-1", test=True) == "shown-1"
        assert edge.expose(edge.decide("no-such", "u")) is None
        assert edge.statistics().not_exposable == 1
    (record,) = await records(settings, "exposures")
    exposure = decode_exposure(record.value)
    assert (exposure.arm_id, exposure.reason) == ("a", "default:missing_allocation")
    assert (exposure.propensity, exposure.allocation_version, exposure.test) == (None, None, True)


async def test_stop_sends_what_is_queued_and_a_full_queue_drops_and_counts(settings: Settings) -> None:
    edge = EdgeClient(settings, options=EmitterOptions(queue_events=50))
    assert edge.convert("u", "order") is None, "nothing may be taken before the start"
    await edge.start()
    taken = [edge.convert("u", "order", conversion_id=f"c-{i}") for i in range(80)]  # no await in between
    assert taken == [f"c-{i}" for i in range(50)] + [None] * 30
    await edge.stop()
    assert edge.convert("u", "order") is None
    events = edge.statistics().events
    assert (events.offered, events.sent, events.dropped) == (82, 50, 32)
    ids = {decode_conversion(r.value).conversion_id for r in await records(settings, "conversions")}
    assert ids == {f"c-{i}" for i in range(50)}


async def test_events_may_come_from_any_thread(settings: Settings) -> None:
    async with EdgeClient(settings) as edge:

        def serve(thread: int) -> int:
            return sum(
                edge.convert(f"u-{thread}-{i}", "order", conversion_id=f"c-{thread}-{i}") is not None
                for i in range(500)
            )

        assert await asyncio.gather(*(asyncio.to_thread(serve, n) for n in range(4))) == [500] * 4
        assert await edge.flush()
    ids = [decode_conversion(r.value).conversion_id for r in await records(settings, "conversions")]
    assert len(ids) == len(set(ids)) == 2_000


async def test_an_event_that_kafka_refuses_is_counted_and_does_not_hold_up_others(settings: Settings) -> None:
    async with EdgeClient(settings) as edge:
        edge.convert("u", "x" * 2_000_000, conversion_id="huge")
        edge.convert("u", "order", conversion_id="fine")
        assert await edge.flush()
        events = edge.statistics().events
        assert (events.sent, events.failed, events.queued) == (1, 1, 0)


async def test_a_shared_view_of_the_definitions_is_neither_started_nor_stopped(
    settings: Settings, make_record: MakeRecord
) -> None:
    view = ExperimentsView(settings)
    await view.start()
    try:
        async with EdgeClient(settings, experiments=view) as edge:
            async with ExperimentStore(settings) as store:
                await store.write(make_record(["a", "b"]))
            await until(lambda: edge.decide(EXPERIMENT, "u").arm_id == "a")
        await view.catch_up()
    finally:
        await view.stop()


async def test_metrics_are_exported(
    settings: Settings, producer: AIOKafkaProducer, make_allocation: MakeAllocation
) -> None:
    await publish(producer, settings, make_allocation({"a": 0.5, "b": 0.5}))
    metrics = EdgeMetrics()
    async with EdgeClient(settings, metrics=metrics) as edge:
        for i in range(5):
            edge.expose(edge.decide(EXPERIMENT, f"u-{i}"))
        edge.decide("no-such", "u")
        await edge.flush()
    text = generate_latest(metrics.registry).decode()
    assert 'bandit_edge_decisions_total{reason="allocation"} 5.0' in text
    assert 'bandit_edge_decisions_total{reason="default:unknown_experiment"} 1.0' in text
    assert 'bandit_edge_allocation_age_seconds{experiment="checkout"}' in text
    assert 'bandit_edge_events_total{outcome="sent"} 5.0' in text


async def test_without_a_broker_start_says_so() -> None:
    edge = EdgeClient(Settings(bootstrap_servers="127.0.0.1:9"))
    with pytest.raises(BrokerUnavailable):
        await edge.start()
    assert edge.decide(EXPERIMENT, "u", default_arm="plain").arm_id == "plain"
    assert msgspec.to_builtins(edge.statistics())["events"]["offered"] == 0
