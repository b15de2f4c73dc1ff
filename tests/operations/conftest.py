"""What the tests of operations share: settings for the test's own topics, and a producer."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from streams.config import Settings
from streams.embedded import Broker
from streams.topics import create_topics


@pytest.fixture
async def settings(broker: Broker, topic_prefix: str) -> Settings:
    """Settings whose topics exist, with four source partitions."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=topic_prefix,
        partitions=4,
        counts_partitions=2,
        replication_factor=1,
        min_insync_replicas=1,
    )
    await create_topics(settings)
    return settings


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[Any]:
    """A started producer."""
    producer = AIOKafkaProducer(**settings.kafka_options())
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same settings for commands, as environment variables."""
    for name in ("bootstrap_servers", "topic_prefix", "partitions", "counts_partitions"):
        monkeypatch.setenv(f"BANDIT_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("BANDIT_REPLICATION_FACTOR", "1")
    monkeypatch.setenv("BANDIT_MIN_INSYNC_REPLICAS", "1")
