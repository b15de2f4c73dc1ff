"""What tests of commands share: the command line in this process, on topics of the test's own."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from streams.cli import main
from streams.embedded import Broker


class Outcome(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `bandit-streams` with arguments, without the shell's own settings."""
    for name in [name for name in os.environ if name.startswith("BANDIT_")]:
        monkeypatch.delenv(name)

    def run_command(*arguments: str) -> Outcome:
        capfd.readouterr()
        status = main(list(arguments))
        return Outcome(status, *capfd.readouterr())

    return run_command


@pytest.fixture
def cluster(run: Run, broker: Broker, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same, with settings for the tests' broker; no topics yet."""
    values: Sequence[tuple[str, str]] = [
        ("BOOTSTRAP_SERVERS", broker.bootstrap_servers),
        ("TOPIC_PREFIX", topic_prefix),
        ("PARTITIONS", "2"),
        ("COUNTS_PARTITIONS", "1"),
        ("REPLICATION_FACTOR", "1"),
        ("MIN_INSYNC_REPLICAS", "1"),
    ]
    for name, value in values:
        monkeypatch.setenv(f"BANDIT_{name}", value)
    return run
