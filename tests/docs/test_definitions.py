"""The pages for producers and experiment owners: complete, and as the code has it."""

import asyncio
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from bandit_core.policies import POLICIES
from streams.config import Settings, load_settings
from streams.embedded import Broker
from streams.errors import DeadLetterReason
from streams.events import Conversion, Exposure, decode_conversion, decode_exposure
from streams.experiments.changes import apply_definition
from streams.experiments.definition import (
    ArmStatus,
    Counting,
    Delay,
    ExperimentRecord,
    ExperimentStatus,
    Policy,
    RewardKind,
    Touch,
    TrialWindow,
)
from streams.experiments.reader import Reader
from streams.experiments.validation import algorithms, parse_definition
from streams.partitioning import murmur2, partition_of
from streams.schemas import field_table
from streams.topics import create_topics

DOCS = Path(__file__).parents[2] / "docs"
PRODUCERS = (DOCS / "producers.md").read_text(encoding="utf-8")
EXPERIMENTS = (DOCS / "experiments.md").read_text(encoding="utf-8")
CONFIGURATION = (DOCS / "configuration.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("event", [Exposure, Conversion])
def test_field_tables_are_generated_from_the_types(event: type[msgspec.Struct]) -> None:
    begin, end = (f"<!-- fields of {event.__name__}: {mark} -->" for mark in ("begin", "end"))
    found = PRODUCERS.split(f"{begin}\n")[1].split(end)[0]
    assert found == field_table(event), "paste what streams.schemas.field_table returns"


def test_every_reason_of_a_dead_letter_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| .+ \| .+ \|$", PRODUCERS, re.MULTILINE)) >= set(
        get_args(DeadLetterReason)
    )


def test_hashes_on_the_page_are_right() -> None:
    found = re.findall(r"`([\w-]+)` → (-?\d+)", PRODUCERS)
    assert len(found) == 4
    for key, value in found:
        assert murmur2(key.encode()) == int(value) & 0xFFFFFFFF


@pytest.mark.integration
async def test_the_example_writes_events_that_are_taken(broker: Broker, topic_prefix: str) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=topic_prefix,
        partitions=7,
        replication_factor=1,
        min_insync_replicas=1,
    )
    await create_topics(settings)
    (example,) = blocks(PRODUCERS, "python")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        example.replace("localhost:9092", broker.bootstrap_servers),
        env={"BANDIT_TOPIC_PREFIX": topic_prefix},
        stderr=asyncio.subprocess.PIPE,
    )
    _, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    async with AIOKafkaConsumer(**settings.kafka_options(), auto_offset_reset="earliest") as consumer:
        partition = partition_of(b"visitor-17", 7)
        consumer.assign(
            [TopicPartition(settings.topic(name), partition) for name in ("exposures", "conversions")]
        )
        async with asyncio.timeout(30):
            records = {record.topic: record for record in [await consumer.getone(), await consumer.getone()]}
    exposure = records[settings.topic("exposures")]
    assert (exposure.key, decode_exposure(exposure.value).arm_id) == (b"visitor-17", "green")
    conversion = records[settings.topic("conversions")]
    assert (conversion.key, decode_conversion(conversion.value).metric) == (b"visitor-17", "purchase")


@pytest.mark.parametrize("text", blocks(EXPERIMENTS, "yaml"), ids=lambda text: text.split()[1])
def test_definitions_on_the_page_can_be_applied(text: str) -> None:
    definition = parse_definition(text)
    change = apply_definition(definition, None, now_ms=2 * 10**12, lead_ms=60_000)
    assert change.record.status == "live"


def test_there_are_definitions_on_the_page() -> None:
    assert len(blocks(EXPERIMENTS, "yaml")) >= 3
    factorial = parse_definition(blocks(EXPERIMENTS, "yaml")[2])
    for arm in factorial.arms:
        assert f"`{arm.arm_id}`" in EXPERIMENTS


def test_every_key_of_a_definition_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch which keys the reader knows while it reads the full definition and the factorial one."""
    known: set[str] = set()
    finish = Reader.finish

    def note(reader: Reader) -> None:
        known.update(reader.at(key) for key in reader._keys)
        finish(reader)

    monkeypatch.setattr(Reader, "finish", note)
    _, full, factorial, *_ = blocks(EXPERIMENTS, "yaml")
    parse_definition(full)
    parse_definition(factorial)
    # A guardrail has the fields of a reward; where two levels are written, the upper one is implied.
    keys = {re.sub(r"\[\d+\]", "[]", key) for key in known}
    keys = {key for key in keys if not key.startswith("guardrails[].") or key.endswith("margin")}
    table = set(
        re.findall(r"^\| `([\w.\[\]]+)` \| [^|]+ \|(?: counting)? \| .+ \|$", EXPERIMENTS, re.MULTILINE)
    )
    upper = {"reward", "policy", "policy.prior", "policy.learning", "policy.lifecycle", "proposals"}
    assert table == keys - upper


def test_what_makes_a_version_is_marked() -> None:
    marked = set(re.findall(r"^\| `([\w.\[\]]+)` \| [^|]+ \| counting \|", EXPERIMENTS, re.MULTILINE))
    fields = {name.removesuffix("_ms") for name in Counting.__struct_fields__}
    assert {key.split(".")[0].removesuffix("[]") for key in marked} == fields - {"version", "effective_from"}


@pytest.mark.parametrize(
    "options",
    [get_args(kind) for kind in (RewardKind, TrialWindow, Touch, ExperimentStatus, ArmStatus, Delay)]
    + [algorithms()],
    ids=lambda options: options[0],
)
def test_every_choice_is_named(options: tuple[str, ...]) -> None:
    assert not [option for option in options if f"`{option}`" not in EXPERIMENTS]


def test_algorithms_with_their_parameters_and_floors() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| ([\d.]+) \|$", EXPERIMENTS, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(POLICIES)
    for name, parameters, floor in rows:
        fields = {field.name: field.default for field in dataclasses.fields(cast("Any", POLICIES[name]))}
        documented = dict(re.findall(r"`(\w+)` `?([\w.]+)", parameters))
        defaults = {key: "none" if value is None else f"{value}" for key, value in fields.items()}
        assert {key: value.removesuffix(".0") for key, value in defaults.items()} == documented, name
        assert float(floor) == POLICIES[name].default_floor


def test_defaults_in_the_table_are_the_code() -> None:
    defaults = dict(re.findall(r"^\| `([\w.\[\]]+)` \| `?([^|`]+)`? \|", EXPERIMENTS, re.MULTILINE))
    record = apply_definition(
        parse_definition(blocks(EXPERIMENTS, "yaml")[0]), None, now_ms=1, lead_ms=60_000
    ).record
    assert isinstance(record, ExperimentRecord)
    counting, policy = record.versions[0], record.policy
    assert policy == Policy()
    assert (defaults["conversion_window"], counting.conversion_window_ms) == ("24h", 24 * 3_600_000)
    assert defaults["trial_window"] == counting.trial_window
    assert defaults["touch"] == counting.touch
    assert defaults["reward.kind"] == counting.reward.kind
    assert defaults["status"] == record.status
    assert defaults["sticky"] == record.sticky
    assert defaults["policy.algorithm"] == policy.algorithm
    assert (defaults["policy.interval"], policy.interval_ms) == ("1h", 3_600_000)


@pytest.mark.parametrize("text", blocks(CONFIGURATION, "toml"))
def test_settings_on_the_page_are_taken(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    if "SASL" in text:
        monkeypatch.setenv("BANDIT_SECURITY__SASL_PASSWORD", "from the environment")
    settings = load_settings(path)
    assert ("bootstrap_servers" not in text) or settings.bootstrap_servers in text
