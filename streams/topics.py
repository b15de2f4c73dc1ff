"""The nine topics: what each must be, creating them, and checking what a cluster has.

Every property that the product relies on is written into the topic when it is created and compared when a
worker starts; nothing is left to the broker's defaults, and no topic is ever created by being mentioned
(metadata is asked for all topics, never for one by name, because asking by name may create it). Partition
counts must be equal where two topics are read together: exposures, conversions and journal; counts,
allocation-log, allocations and results.

Creating leaves existing topics as they are. Checking costs two requests to the cluster.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from streams.config import DAY_MS, HOUR_MS, MIB, MINUTE_MS, TOPIC_NAMES, Settings, TopicName
from streams.connection import explain
from streams.errors import BrokerUnavailable, DeadlineExceeded, Stop, TopicsMismatch

EVENT_MAX_BYTES = MIB
DEAD_LETTER_MAX_BYTES = 2 * MIB
CREATE_DEADLINE_S = 60.0

CREATE_COMMAND = "bandit-streams topics create"
CHECK_COMMAND = "bandit-streams topics check"

CO_PARTITIONED: tuple[tuple[Literal["partitions", "counts_partitions"], tuple[TopicName, ...]], ...] = (
    ("partitions", ("exposures", "conversions", "journal")),
    ("counts_partitions", ("counts", "allocation-log", "allocations", "results")),
)

Rule = Literal["equal", "at_least", "at_most"]
Severity = Literal["error", "warning"]

# How each property is compared, and whether a difference stops a worker. Those that decide whether records
# are lost, misread or refused are errors; those that only cost time or disk are warnings. For a retention, -1
# is for ever.
_RULES: Mapping[str, tuple[Rule, Severity]] = {
    "cleanup.policy": ("equal", "error"),
    "message.timestamp.type": ("equal", "error"),
    "unclean.leader.election.enable": ("equal", "error"),
    "min.insync.replicas": ("at_least", "error"),
    "max.message.bytes": ("at_least", "error"),
    "retention.ms": ("at_least", "error"),
    "retention.bytes": ("at_least", "error"),
    "delete.retention.ms": ("at_least", "error"),
    "segment.ms": ("at_most", "warning"),
    "segment.bytes": ("at_most", "warning"),
    "max.compaction.lag.ms": ("at_most", "warning"),
    "min.cleanable.dirty.ratio": ("at_most", "warning"),
}


@dataclass(frozen=True)
class TopicSpec:
    """What one topic must be.

    ``name`` is the full name, ``role`` the name without prefix; ``configs`` are the broker's topic
    properties.
    """

    role: TopicName
    name: str
    partitions: int
    replication_factor: int
    configs: Mapping[str, str]


@dataclass(frozen=True)
class TopicState:
    """What a cluster has: partition count, least number of replicas of any partition, properties."""

    partitions: int
    replication_factor: int
    configs: Mapping[str, str]


@dataclass(frozen=True)
class Finding:
    """One difference between a topic and its specification, and what to do about it."""

    topic: str
    severity: Severity
    problem: str
    action: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.problem}; {self.action}"


def topic_specs(settings: Settings) -> tuple[TopicSpec, ...]:
    """Specification of every topic under these settings, in the order of ``TOPIC_NAMES``."""
    return tuple(
        TopicSpec(
            role=role,
            name=settings.topic(role),
            partitions=_partition_count(role, settings),
            replication_factor=settings.replication_factor,
            configs={
                "min.insync.replicas": str(settings.min_insync_replicas),
                "unclean.leader.election.enable": "false",
                **_role_configs(role, settings),
            },
        )
        for role in TOPIC_NAMES
    )


def _partition_count(role: TopicName, settings: Settings) -> int:
    for setting, roles in CO_PARTITIONED:
        if role in roles:
            return int(getattr(settings, setting))
    # Definitions are few and read whole by everyone; one partition gives all writers one order. Dead letters
    # keep the source's keys, so its parallelism serves them too.
    return 1 if role == "experiments" else settings.partitions


def _role_configs(role: TopicName, settings: Settings) -> dict[str, str]:
    internal_max_bytes = str(settings.journal_max_message_bytes)
    if role in ("exposures", "conversions"):
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(settings.source_retention_ms),
            # "Future" is judged against this time, so it must be the broker's and not the producer's.
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(EVENT_MAX_BYTES),
        }
    if role == "journal":
        return {
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "max.message.bytes": internal_max_bytes,
            # DeleteRecords frees whole segments only.
            "segment.bytes": str(max(64 * MIB, 2 * settings.journal_max_message_bytes)),
            "segment.ms": str(DAY_MS),
        }
    if role == "dead-letters":
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(settings.dead_letters_retention_ms),
            "max.message.bytes": str(DEAD_LETTER_MAX_BYTES),
        }
    if role == "allocation-log":
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(settings.allocation_log_retention_ms),
            "retention.bytes": "-1",
            "max.message.bytes": internal_max_bytes,
        }
    return {
        "cleanup.policy": "compact",
        "max.message.bytes": internal_max_bytes,
        # Small segments, because the active one is never compacted and every reader reads the whole topic.
        "segment.ms": str(10 * MINUTE_MS),
        "max.compaction.lag.ms": str(HOUR_MS),
        "min.cleanable.dirty.ratio": "0.1",
        "delete.retention.ms": str(settings.allocations_delete_retention_ms),
    }


@asynccontextmanager
async def admin_client(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Connect an admin client, closed at the end.

    Raises
    ------
    BrokerUnavailable
        If no broker answers, or Kafka reports a failure that may pass.
    Stop
        If it reports one that will not pass, with what to do.
    """
    client = AIOKafkaAdminClient(**settings.kafka_options())
    try:
        await client.start()
        yield client
    except (KafkaError, OSError) as error:
        explained = explain(error, where=settings.bootstrap_servers)
        if isinstance(explained, Stop):  # access rules, TLS, passwords: trying again would not help
            raise explained from error
        raise BrokerUnavailable(
            f"no usable answer from Kafka: {error!r}",
            where=settings.bootstrap_servers,
            action="check that the brokers run, and BANDIT_BOOTSTRAP_SERVERS and BANDIT_SECURITY__*;"
            " `bandit-streams doctor` tells which step fails",
        ) from error
    finally:
        await client.close()


async def create_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing; leave the others as they are.

    Returns
    -------
    list of str
        Full names of the topics created, in the order of ``TOPIC_NAMES``; empty if there was nothing to do.

    Raises
    ------
    TopicsMismatch
        If the cluster refuses one of them; its reason is in the message.
    BrokerUnavailable, DeadlineExceeded
        If the cluster does not answer, or does not elect leaders for the new topics in time.
    """
    async with admin_client(settings) as admin:
        present = set(await admin.list_topics())
        missing = [spec for spec in topic_specs(settings) if spec.name not in present]
        if not missing:
            return []
        response = await admin.create_topics(
            [
                NewTopic(
                    spec.name, spec.partitions, spec.replication_factor, topic_configs=dict(spec.configs)
                )
                for spec in missing
            ]
        )
        errors = {
            topic["topic"]: (for_code(topic["error_code"]), topic.get("error_message"))
            for topic in response.to_object()["topic_errors"]
            if topic["error_code"]
        }
        refused = [
            f"{name}: {message or error.message}"
            for name, (error, message) in errors.items()
            if error is not TopicAlreadyExistsError
        ]
        if refused:
            raise TopicsMismatch(
                refused,
                action="on a cluster with fewer brokers set BANDIT_REPLICATION_FACTOR and"
                f" BANDIT_MIN_INSYNC_REPLICAS to match, then run `{CREATE_COMMAND}` again",
            )
        await _wait_until_led(admin, {spec.name: spec.partitions for spec in missing})
    return [spec.name for spec in missing if spec.name not in errors]


async def _wait_until_led(admin: AIOKafkaAdminClient, partitions: Mapping[str, int]) -> None:
    deadline = time.monotonic() + CREATE_DEADLINE_S
    while True:
        led = {
            topic["topic"]: sum(1 for partition in topic["partitions"] if partition["leader"] >= 0)
            for topic in await admin.describe_topics()
        }
        waiting = sorted(name for name, count in partitions.items() if led.get(name, 0) < count)
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"no leaders {CREATE_DEADLINE_S:.0f} s after creation",
                where=", ".join(waiting),
                action="look at the brokers' logs, then run `bandit-streams topics check`",
            )
        await asyncio.sleep(0.05)


async def describe_topics(settings: Settings) -> dict[TopicName, TopicState]:
    """State of those of our topics that exist."""
    names = {settings.topic(role): role for role in TOPIC_NAMES}
    async with admin_client(settings) as admin:
        found = {topic["topic"]: topic["partitions"] for topic in await admin.describe_topics()}
        present = [name for name in names if name in found]
        if not present:
            return {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in present]
        configs: dict[str, dict[str, str]] = {}
        for response in await admin.describe_configs(resources):
            for resource in response.to_object()["resources"]:
                if resource["error_code"]:
                    raise for_code(resource["error_code"])(resource["error_message"])
                configs[resource["resource_name"]] = {
                    entry["config_names"]: entry["config_value"] for entry in resource["config_entries"]
                }
    return {
        names[name]: TopicState(
            partitions=len(found[name]),
            replication_factor=min(len(partition["replicas"]) for partition in found[name]),
            configs=configs[name],
        )
        for name in present
    }


async def check_topics(settings: Settings) -> list[Finding]:
    """Compare the cluster's topics with what the settings say; empty if all is well.

    Raises
    ------
    BrokerUnavailable
        If the cluster does not answer.
    """
    return compare_topics(settings, await describe_topics(settings))


async def require_topics(settings: Settings) -> list[Finding]:
    """Check the topics and refuse to go on if one has an error; returns the warnings.

    Raises
    ------
    TopicsMismatch
        With every error and the command to run.
    """
    findings = await check_topics(settings)
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors:
        raise TopicsMismatch(errors, action=f"correct these; `{CHECK_COMMAND}` shows what is left")
    return findings


def compare_topics(settings: Settings, states: Mapping[TopicName, TopicState]) -> list[Finding]:
    """Differences between specifications and states; missing topics first, then counts, then properties."""
    specs = topic_specs(settings)
    findings = [
        Finding(spec.name, "error", "missing", f"run `{CREATE_COMMAND}`")
        for spec in specs
        if spec.role not in states
    ]
    for setting, roles in CO_PARTITIONED:
        findings += _count_findings(
            settings, setting, {role: states[role] for role in roles if role in states}
        )
    for spec in specs:
        if spec.role in states:
            findings += _property_findings(spec, states[spec.role])
    return findings


def _count_findings(
    settings: Settings, setting: str, states: Mapping[TopicName, TopicState]
) -> list[Finding]:
    wanted = int(getattr(settings, setting))
    counts = {settings.topic(role): state.partitions for role, state in states.items()}
    found = set(counts.values())
    if not found or found == {wanted}:
        return []
    shown = ", ".join(f"{name} has {count}" for name, count in counts.items())
    if len(found) == 1:
        return [
            Finding(
                ", ".join(counts),
                "error",
                f"{found.pop()} partitions each, but {setting} is {wanted}",
                f"set BANDIT_{setting.upper()} to the topics' number, or migrate to new topics and replay",
            )
        ]
    return [
        Finding(
            ", ".join(counts),
            "error",
            f"partition counts must be equal: {shown}; {setting} is {wanted}",
            f"delete the wrong ones if they are empty and run `{CREATE_COMMAND}`; never add partitions to one"
            " in use: its keys would move",
        )
    ]


def _property_findings(spec: TopicSpec, state: TopicState) -> list[Finding]:
    findings = []
    if state.replication_factor < spec.replication_factor:
        findings.append(
            Finding(
                spec.name,
                "error",
                f"{state.replication_factor} replicas; replication_factor is {spec.replication_factor}",
                "raise it with kafka-reassign-partitions, or set BANDIT_REPLICATION_FACTOR",
            )
        )
    for key, wanted in spec.configs.items():
        found = state.configs.get(key)
        rule, severity = _RULES[key]
        if found is None or not _holds(key, rule, found, wanted):
            relation = {"equal": "", "at_least": "at least ", "at_most": "at most "}[rule]
            findings.append(
                Finding(
                    spec.name,
                    severity,
                    f"{key} is {found if found is not None else 'not set'}, should be {relation}{wanted}",
                    f"run `kafka-configs --alter --topic {spec.name} --add-config {key}={wanted}`",
                )
            )
    return findings


def _holds(key: str, rule: Rule, found: str, wanted: str) -> bool:
    if rule == "equal":
        return found == wanted
    unlimited = key.startswith("retention.")
    found_number, wanted_number = (
        float("inf") if unlimited and value == "-1" else float(value) for value in (found, wanted)
    )
    return found_number >= wanted_number if rule == "at_least" else found_number <= wanted_number
