"""Topics: specifications, what a check finds, and both against a real cluster."""

import dataclasses

import pytest
from aiokafka.admin import NewTopic

from streams.config import DAY_MS, TOPIC_NAMES, Settings, TopicName
from streams.embedded import Broker
from streams.errors import BrokerUnavailable, TopicsMismatch
from streams.topics import (
    TopicState,
    admin_client,
    check_topics,
    compare_topics,
    create_topics,
    describe_topics,
    require_topics,
    topic_specs,
)

SETTINGS = Settings(topic_prefix="t-", partitions=6, counts_partitions=3)


def matching_states(settings: Settings = SETTINGS) -> dict[TopicName, TopicState]:
    """Return what a cluster has right after creation."""
    return {
        spec.role: TopicState(spec.partitions, spec.replication_factor, dict(spec.configs))
        for spec in topic_specs(settings)
    }


def test_every_topic_is_specified_once_and_fully() -> None:
    specs = topic_specs(SETTINGS)
    assert [spec.role for spec in specs] == list(TOPIC_NAMES)
    assert [spec.name for spec in specs] == [f"t-{name}" for name in TOPIC_NAMES]
    partitions = {spec.role: spec.partitions for spec in specs}
    assert partitions["exposures"] == partitions["conversions"] == partitions["journal"] == 6
    assert partitions["counts"] == partitions["allocation-log"] == partitions["allocations"] == 3
    assert partitions["results"] == 3
    for spec in specs:
        assert spec.configs["unclean.leader.election.enable"] == "false"
        assert spec.configs["min.insync.replicas"] == "2"
        assert "max.message.bytes" in spec.configs
        assert ("retention.ms" in spec.configs) == (spec.configs["cleanup.policy"] == "delete")


def test_what_the_join_and_the_edges_rely_on() -> None:
    configs = {spec.role: spec.configs for spec in topic_specs(SETTINGS)}
    assert configs["exposures"]["message.timestamp.type"] == "LogAppendTime"
    assert configs["conversions"]["message.timestamp.type"] == "LogAppendTime"
    assert configs["journal"]["retention.ms"] == "-1"
    assert configs["journal"]["max.message.bytes"] == str(SETTINGS.journal_max_message_bytes)
    assert {role for role in configs if configs[role]["cleanup.policy"] == "compact"} == {
        "experiments",
        "counts",
        "allocations",
        "results",
    }
    assert int(configs["allocations"]["delete.retention.ms"]) >= 7 * DAY_MS


def test_a_fresh_cluster_has_no_findings() -> None:
    assert compare_topics(SETTINGS, matching_states()) == []


def test_missing_topics_name_the_command() -> None:
    findings = compare_topics(SETTINGS, {})
    assert [finding.topic for finding in findings] == [f"t-{name}" for name in TOPIC_NAMES]
    assert all("bandit-streams topics create" in finding.action for finding in findings)


def test_unequal_counts_are_one_finding_that_names_all_three() -> None:
    states = matching_states()
    states["conversions"] = dataclasses.replace(states["conversions"], partitions=5)
    (finding,) = compare_topics(SETTINGS, states)
    assert finding.severity == "error"
    assert "t-exposures has 6, t-conversions has 5, t-journal has 6" in finding.problem


def test_equal_counts_that_differ_from_the_setting_say_which_setting() -> None:
    states = matching_states()
    for role in ("counts", "allocation-log", "allocations", "results"):
        states[role] = dataclasses.replace(states[role], partitions=12)
    (finding,) = compare_topics(SETTINGS, states)
    assert "12 partitions each, but counts_partitions is 3" in finding.problem
    assert "BANDIT_COUNTS_PARTITIONS" in finding.action


@pytest.mark.parametrize(
    ("role", "key", "value", "severity"),
    [
        ("exposures", "message.timestamp.type", "CreateTime", "error"),
        ("exposures", "retention.ms", "60000", "error"),
        ("exposures", "retention.ms", "-1", None),
        ("journal", "retention.ms", "604800000", "error"),
        ("journal", "cleanup.policy", "compact", "error"),
        ("journal", "max.message.bytes", "1048588", "error"),
        ("journal", "max.message.bytes", "99999999", None),
        ("allocations", "delete.retention.ms", "86400000", "error"),
        ("allocations", "delete.retention.ms", "864000000", None),
        ("allocations", "segment.ms", "604800000", "warning"),
        ("allocations", "max.compaction.lag.ms", "9223372036854775807", "warning"),
        ("counts", "min.insync.replicas", "1", "error"),
        ("counts", "min.insync.replicas", "3", None),
        ("counts", "unclean.leader.election.enable", "true", "error"),
    ],
)
def test_properties(role: TopicName, key: str, value: str, severity: str | None) -> None:
    states = matching_states()
    states[role] = dataclasses.replace(states[role], configs={**states[role].configs, key: value})
    findings = compare_topics(SETTINGS, states)
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    for finding in findings:
        assert finding.topic == f"t-{role}"
        assert f"{key} is {value}" in finding.problem
        assert f"--add-config {key}=" in finding.action


def test_fewer_replicas_are_an_error() -> None:
    states = matching_states()
    states["journal"] = dataclasses.replace(states["journal"], replication_factor=1)
    (finding,) = compare_topics(SETTINGS, states)
    assert finding.severity == "error"
    assert "1 replicas; replication_factor is 3" in finding.problem


@pytest.mark.integration
async def test_created_topics_pass_the_check(broker: Broker, topic_prefix: str) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=topic_prefix,
        partitions=3,
        counts_partitions=2,
        replication_factor=1,
        min_insync_replicas=1,
    )
    with pytest.raises(TopicsMismatch, match="bandit-streams topics create"):
        await require_topics(settings)
    assert await create_topics(settings) == [f"{topic_prefix}{name}" for name in TOPIC_NAMES]
    assert await check_topics(settings) == []
    assert await require_topics(settings) == []
    states = await describe_topics(settings)
    assert states["exposures"].partitions == 3
    assert states["allocations"].partitions == 2
    assert await create_topics(settings) == []
    with pytest.raises(TopicsMismatch, match="BANDIT_PARTITIONS"):
        await require_topics(settings.model_copy(update={"partitions": 4}))


@pytest.mark.integration
async def test_a_topic_made_by_hand_is_left_alone_and_found(broker: Broker, topic_prefix: str) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=topic_prefix,
        partitions=2,
        counts_partitions=1,
        replication_factor=1,
        min_insync_replicas=1,
    )
    async with admin_client(settings) as admin:
        await admin.create_topics([NewTopic(f"{topic_prefix}allocations", 1, 1)])
    assert f"{topic_prefix}allocations" not in await create_topics(settings)
    problems = {finding.problem for finding in await check_topics(settings)}
    assert "cleanup.policy is delete, should be compact" in problems


@pytest.mark.integration
async def test_a_cluster_that_refuses_says_why(broker: Broker, topic_prefix: str) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=topic_prefix,
        replication_factor=32,
        min_insync_replicas=2,
    )
    with pytest.raises(TopicsMismatch, match="BANDIT_REPLICATION_FACTOR"):
        await create_topics(settings)


async def test_no_broker_says_what_to_check(unused_tcp_port: int) -> None:
    settings = Settings(bootstrap_servers=f"127.0.0.1:{unused_tcp_port}")
    with pytest.raises(BrokerUnavailable, match="BANDIT_BOOTSTRAP_SERVERS"):
        await check_topics(settings)
