"""Fixtures for every test: one real Kafka for the whole session, a topic prefix of its own for each test."""

import re
import secrets
from collections.abc import Iterator

import pytest

from streams.embedded import Broker, kafka


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """Yield the Kafka that was found or started; it is shared: name topics and groups with `topic_prefix`."""
    with kafka() as found:
        yield found


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """Return a prefix that no other test has, fit for topic names, group names and folders."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40]
    return f"{name}-{secrets.token_hex(4)}-"
