"""`bandit-streams topics`, on a real cluster."""

import json
from typing import Any

import pytest

from streams.config import TOPIC_NAMES

pytestmark = pytest.mark.integration


def test_create_check_list(cluster: Any, topic_prefix: str) -> None:
    status, out, _ = cluster("topics", "check")
    assert status == 78
    assert out.count("missing") == len(TOPIC_NAMES)
    assert "run `bandit-streams topics create`" in out
    status, out, _ = cluster("topics", "list")
    assert (status, out.count("missing")) == (0, len(TOPIC_NAMES))

    status, out, _ = cluster("topics", "create")
    assert status == 0
    created = [line.removeprefix("created ") for line in out.splitlines() if line.startswith("created")]
    assert created == [f"{topic_prefix}{name}" for name in TOPIC_NAMES]
    assert out.endswith("topics are as they should be\n")
    assert cluster("topics", "create").out == "nothing to create\ntopics are as they should be\n"

    status, out, _ = cluster("topics", "check")
    assert (status, out) == (0, "topics are as they should be\n")
    status, out, _ = cluster("topics", "list", "--json")
    listed = {line["role"]: line for line in map(json.loads, out.splitlines())}
    assert list(listed) == list(TOPIC_NAMES)
    assert all(topic["present"] for topic in listed.values())
    assert listed["exposures"]["partitions"] == 2
    assert listed["exposures"]["configs"] == listed["exposures"]["specified"]["configs"]
    assert " 2 x 1 " in cluster("topics", "list").out


def test_a_mismatch_ends_with_the_status_for_configuration(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster("topics", "create")
    monkeypatch.setenv("BANDIT_PARTITIONS", "3")
    status, out, _ = cluster("topics", "check", "--json")
    assert status == 78
    (finding,) = [found for found in map(json.loads, out.splitlines()) if "partitions" in found["problem"]]
    assert finding["severity"] == "error"
    assert "BANDIT_PARTITIONS" in finding["action"]


def test_no_broker_ends_with_the_status_for_trying_again(
    run: Any, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setenv("BANDIT_BOOTSTRAP_SERVERS", f"127.0.0.1:{unused_tcp_port}")
    status, _, err = run("topics", "check")
    assert status == 75
    assert "bandit-streams doctor" in err
