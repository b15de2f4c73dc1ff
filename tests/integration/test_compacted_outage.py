"""A view while its broker freezes, dies and comes back: its age tells, and it goes on by itself."""

import asyncio
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaProducer

from streams.compacted import CompactedView
from streams.config import Settings
from streams.embedded import EmbeddedKafka
from streams.errors import BrokerUnavailable, DeadlineExceeded
from streams.topics import create_topics

pytestmark = [pytest.mark.integration, pytest.mark.slow]


async def until(condition: Callable[[], bool], deadline_s: float = 60) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - ages have no event
            await asyncio.sleep(0.05)


async def put(settings: Settings, key: bytes, value: bytes) -> None:
    async with AIOKafkaProducer(**settings.kafka_options()) as producer:
        await producer.send_and_wait(settings.topic("experiments"), value, key=key)


async def test_age_grows_without_a_broker_and_falls_when_it_is_back() -> None:
    kafka = await asyncio.to_thread(EmbeddedKafka().start)
    try:
        settings = Settings(
            bootstrap_servers=kafka.bootstrap_servers,
            partitions=1,
            counts_partitions=1,
            replication_factor=1,
            min_insync_replicas=1,
        )
        await create_topics(settings)
        await put(settings, b"a", b"1")
        view: CompactedView[bytes, bytes] = CompactedView(
            settings, "experiments", decode_key=bytes, decode_value=lambda _, value: value
        )
        await view.start()
        try:
            await until(lambda: view.age_ms() < 1500)

            kafka.pause()
            await until(lambda: view.age_ms() > 3000)
            with pytest.raises((DeadlineExceeded, BrokerUnavailable)):
                await view.catch_up(deadline_ms=500)
            assert view.get(b"a") == b"1"
            kafka.resume()
            await until(lambda: view.age_ms() < 1500)

            await asyncio.to_thread(kafka.kill)
            await until(lambda: view.age_ms() > 3000)
            await asyncio.to_thread(kafka.start)
            await put(settings, b"a", b"2")
            await until(lambda: view.get(b"a") == b"2" and view.age_ms() < 1500)
        finally:
            await view.stop()
        assert view.get(b"a") == b"2"
    finally:
        await asyncio.to_thread(kafka.close)
