"""Dead letters: format, display, listing and replay; on a real broker where one is needed."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from streams import cli
from streams.commands.deadletters import newest, shown, to_json
from streams.config import Settings
from streams.deadletters import (
    DeadLetter,
    DeadLetterProducer,
    Filter,
    StoredLetter,
    decode,
    marker_headers,
    to_headers,
)
from streams.errors import BrokerUnavailable, DeadLetterReason, RecordError
from streams.log_reader import LogReader
from streams.metrics import DEAD_LETTER_REASONS
from streams.partitioning import partition_of
from streams.replay import Fate, Replay, event_time_ms, unit_key
from streams.state.journal import BatchRecord, Claim, encode, pack
from streams.topics import DEAD_LETTER_MAX_BYTES

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


class Record(NamedTuple):
    topic: str = "dead-letters"
    partition: int = 0
    offset: int = 7
    timestamp: int = NOW_MS
    key: bytes | None = b"u1"
    value: bytes | None = b"{}"
    headers: tuple[tuple[str, bytes], ...] = ()


def letter(**changes: Any) -> DeadLetter:
    fields: dict[str, Any] = {
        "topic": "exposures", "partition": 3, "offset": 41, "key": b"u1", "value": b'{"unit_id":"u1"}',
        "reason": "unknown_arm", "field": "$.arm_id", "message": "arm 'z' is not in 'e'; name one of a, b",
    }  # fmt: skip
    return DeadLetter(**fields | changes)


def stored(**changes: Any) -> StoredLetter:
    return StoredLetter(letter=letter(**changes), written_at_ms=NOW_MS)


# ---- format


def test_headers_are_connects_where_connect_has_them() -> None:
    assert dict(to_headers(letter())) == {
        "__connect.errors.topic": b"exposures",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"41",
        "__connect.errors.stage": b"TASK_PUT",
        "__connect.errors.exception.class.name": b"unknown_arm",
        "__connect.errors.exception.message": b"arm 'z' is not in 'e'; name one of a, b",
        "bandit-field": b"$.arm_id",
    }


@pytest.mark.parametrize("reason", DEAD_LETTER_REASONS)
def test_a_letter_comes_back_as_it_was_written(reason: DeadLetterReason) -> None:
    original = letter(reason=reason, value=b"\xff\x00 not json", key=None)
    record = Record(key=None, value=original.value, headers=tuple(to_headers(original)))
    assert decode(record) == StoredLetter(letter=original, written_at_ms=NOW_MS)
    stage = dict(to_headers(original))["__connect.errors.stage"]
    assert stage in (b"KEY_CONVERTER", b"VALUE_CONVERTER", b"TASK_PUT")


def test_a_marker_comes_back_as_identity_and_time() -> None:
    record = Record(value=None, headers=tuple(marker_headers(("exposures", 3, 41), NOW_MS)))
    assert decode(record) == (("exposures", 3, 41), NOW_MS)


@pytest.mark.parametrize("missing", [name for name, _ in to_headers(letter()) if "stage" not in name])
def test_a_record_without_a_header_is_no_letter_and_says_which(missing: str) -> None:
    headers = tuple(header for header in to_headers(letter()) if header[0] != missing)
    with pytest.raises(RecordError, match=missing) as raised:
        decode(Record(headers=headers))
    assert raised.value.where == "dead-letters[0] offset 7"


@pytest.mark.parametrize("bad", [b"three", b"", b"\xff"])
def test_a_header_that_is_no_number_is_no_letter(bad: bytes) -> None:
    headers = {**dict(to_headers(letter())), "__connect.errors.offset": bad}
    with pytest.raises(RecordError):
        decode(Record(headers=tuple(headers.items())))


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        ({}, True),
        ({"reasons": frozenset({"late", "unknown_arm"})}, True),
        ({"reasons": frozenset({"late"})}, False),
        ({"topic": "exposures"}, True),
        ({"topic": "conversions"}, False),
        ({"since_ms": NOW_MS}, True),
        ({"since_ms": NOW_MS + 1}, False),
        ({"until_ms": NOW_MS + 1}, True),
        ({"until_ms": NOW_MS}, False),
    ],
)
def test_filter_conditions_must_all_hold(conditions: dict[str, Any], wanted: bool) -> None:
    assert Filter(**conditions).wants(stored()) is wanted


# ---- display


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, "-"),
        (b"", ""),
        (b'{"a":1}', '{"a":1}'),
        ("Füße".encode(), "Füße"),
        (b"\x1b[31mred\x07", r"\x1b[31mred\x07"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"line\nline\ttab", r"line\nline\ttab"),
        ("\u202egnp".encode(), r"\u202egnp"),
        (b"x" * 200, "x" * 160 + "… (200 bytes)"),
    ],
)
def test_originals_are_shown_without_control_over_the_terminal(data: bytes | None, text: str) -> None:
    assert shown(data) == text


def test_json_has_text_where_it_is_text_and_base64_where_not() -> None:
    row = to_json(stored(key=b"u1", value=b"\xff"))
    assert row["key"] == "u1"
    assert row["value_base64"] == "/w=="
    assert "value" not in row
    assert json.loads(json.dumps(row))["offset"] == 41


# ---- what a replay reads of an event


@pytest.mark.parametrize(
    ("value", "at_ms"),
    [
        (b'{"timestamp": 1700000000123}', 1_700_000_000_123),
        (b'{"timestamp": "2023-11-14T22:13:20.123Z"}', 1_700_000_000_123),
        (b'{"timestamp": "2023-11-14T23:13:20.123+01:00"}', 1_700_000_000_123),
        (b'{"timestamp": "2023-11-14T22:13:20"}', None),
        (b'{"timestamp": "yesterday"}', None),
        (b'{"timestamp": true}', None),
        (b'{"timestamp": 1.5}', None),
        (b"{}", None),
        (b"[]", None),
        (b"\xff", None),
    ],
)
def test_event_time_of_an_original(value: bytes, at_ms: int | None) -> None:
    assert event_time_ms(value) == at_ms


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (b"u1", b'{"unit_id":"u1"}', b"u1"),
        (b"wrong", b'{"unit_id":"u1"}', b"u1"),
        (None, b'{"unit_id":"u1"}', b"u1"),
        (b"u1", b"\xff", b"u1"),
        (b"u1", b'{"unit_id":7}', b"u1"),
        (b"u1", b'{"unit_id":""}', b"u1"),
        (None, b"\xff", None),
        (b"", b"\xff", None),
    ],
)
def test_an_event_is_replayed_under_its_unit(key: bytes | None, value: bytes, expected: bytes | None) -> None:
    assert unit_key(letter(key=key, value=value)) == expected


# ---- on a broker


async def write(settings: Settings, letters: Sequence[DeadLetter]) -> None:
    async with DeadLetterProducer(settings) as producer:
        await producer.emit_all(letters)


async def source_records(settings: Settings, topic: str = "exposures") -> list[Any]:
    async with LogReader(settings) as reader:
        return [record async for record in reader.read(topic)]


async def write_maximum(settings: Settings, producer: Any, topic: str, maximum_ms: int) -> None:
    """Journal a claim and a batch in every partition, so that the running maximum is known."""
    for partition in range(settings.partitions):
        claim = Claim(owner="w", generation=1, written_at_ms=NOW_MS, journal_id=NOW_MS)
        at = await producer.send_and_wait(settings.topic("journal"), pack(encode(claim)), partition=partition)
        batch = BatchRecord(
            journal_id=NOW_MS, claim=at.offset, seq=1, flag="normal", topic=topic, start=0, next=1,
            maxima={topic: maximum_ms}, pending=0, dead_letters_through=0,
        )  # fmt: skip
        await producer.send_and_wait(settings.topic("journal"), pack(encode(batch)), partition=partition)


async def replay(settings: Settings, wanted: Filter | None = None, *, again: bool = False) -> dict[Fate, int]:
    async with LogReader(settings) as reader:
        opened = await Replay.open(settings, reader, wanted or Filter(), again=again)
        planned = await opened.summarise()
        done = await opened.run(lambda: NOW_MS)
    assert planned == done
    return dict(done.fates)


@pytest.mark.integration
async def test_letters_are_listed_once_each_with_their_original_bytes(settings: Settings) -> None:
    exposures = settings.topic("exposures")
    letters = [
        letter(topic=exposures, offset=n, value=bytes([n, 0xFF]), reason="late" if n % 2 else "future")
        for n in range(20)
    ]
    await write(settings, [*letters, *letters[:5]])  # written again, as after a crash
    found, total, problems = await newest(settings, Filter(), 50)
    assert sorted((s.letter for s in found), key=lambda each: each.offset) == letters
    assert (total, problems) == (20, [])
    found, total, _ = await newest(settings, Filter(reasons=frozenset({"late"})), 4)
    assert (len(found), total) == (4, 10)
    assert {s.letter.reason for s in found} == {"late"}


@pytest.mark.integration
async def test_emit_takes_everything_a_source_can_hold(settings: Settings) -> None:
    async with DeadLetterProducer(settings) as producer:
        await producer.emit("exposures", 0, 1, None, None, "undecodable", "$", "no value")
        await producer.emit("exposures", 0, 2, b"k", b"x" * 1_048_000, "oversize", "$", "large")
        await producer.emit("exposures", 0, 3, b"k", b"y" * DEAD_LETTER_MAX_BYTES, "oversize", "$", "huge")
    found, _, _ = await newest(settings, Filter(), 50)
    by_offset = {s.letter.offset: s for s in found}
    assert by_offset[1].letter.value is None
    assert len(by_offset[2].letter.value or b"") == 1_048_000
    assert by_offset[3].truncated_bytes == DEAD_LETTER_MAX_BYTES
    assert set(by_offset[3].letter.value or b"") == {ord("y")}


@pytest.mark.integration
async def test_a_letter_larger_than_the_topic_allows_is_cut_not_lost(
    settings: Settings, producer: Any
) -> None:
    small = settings.model_copy(update={"topic_prefix": settings.topic_prefix + "small-"})
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    await admin.create_topics(
        [NewTopic(small.topic("dead-letters"), 1, 1, topic_configs={"max.message.bytes": "20000"})]
    )
    await admin.close()
    await write(small, [letter(value=b"z" * 50_000), letter(offset=42)])
    found, _, _ = await newest(small, Filter(), 50)
    assert {(s.letter.offset, s.truncated_bytes) for s in found} == {(41, 50_000), (42, None)}


@pytest.mark.integration
async def test_strangers_in_the_topic_are_reported_and_left_alone(settings: Settings, producer: Any) -> None:
    await producer.send_and_wait(settings.topic("dead-letters"), b"hello", key=b"k")
    await write(settings, [letter()])
    found, total, problems = await newest(settings, Filter(), 50)
    assert (len(found), total) == (1, 1)
    assert "header __connect.errors.topic is missing" in str(problems[0])


@pytest.mark.integration
async def test_replay_goes_to_the_units_partition_with_original_bytes_and_origin(settings: Settings) -> None:
    exposures = settings.topic("exposures")
    originals = [b'{"unit_id": "u%d", "timestamp": %d}' % (n, NOW_MS) for n in range(30)]
    await write(
        settings,
        [letter(topic=exposures, partition=0, offset=n, key=None, value=v) for n, v in enumerate(originals)],
    )
    assert await replay(settings) == {Fate.REPLAY: 30}
    records = await source_records(settings, exposures)
    assert sorted(r.value for r in records) == sorted(originals)
    for record in records:
        n = originals.index(record.value)
        assert record.key == b"u%d" % n
        assert record.partition == partition_of(record.key, settings.partitions)
        assert dict(record.headers)["bandit-replayed"] == f"{exposures}/0/{n}".encode()


@pytest.mark.integration
async def test_what_was_replayed_is_remembered_and_left_out(settings: Settings) -> None:
    exposures = settings.topic("exposures")
    await write(settings, [letter(topic=exposures, offset=n) for n in range(3)])
    assert await replay(settings) == {Fate.REPLAY: 3}
    assert await replay(settings) == {Fate.REPLAYED_BEFORE: 3}
    await write(settings, [letter(topic=exposures, offset=3)])
    assert await replay(settings) == {Fate.REPLAYED_BEFORE: 3, Fate.REPLAY: 1}
    assert await replay(settings, again=True) == {Fate.REPLAY: 4}
    assert len(await source_records(settings, exposures)) == 8
    found, _, _ = await newest(settings, Filter(), 50)
    assert [s.replayed_at_ms for s in found] == [NOW_MS] * 4


@pytest.mark.integration
async def test_late_partial_and_foreign_letters_are_left_out(settings: Settings, producer: Any) -> None:
    exposures = settings.topic("exposures")
    await write_maximum(settings, producer, "exposures", NOW_MS)
    edge_ms = NOW_MS - settings.grace_ms
    values = {0: edge_ms - 1, 1: edge_ms, 2: NOW_MS}
    await write(
        settings,
        [
            *(
                letter(topic=exposures, offset=n, value=b'{"unit_id":"u","timestamp":%d}' % ms)
                for n, ms in values.items()
            ),
            letter(topic=exposures, offset=3, value=None),
            letter(topic=exposures, offset=4, key=None, value=b"\xff"),
            letter(topic="elsewhere", offset=5),
            letter(topic=settings.topic("conversions"), offset=6, value=b'{"unit_id":"u","timestamp":1}'),
        ],
    )
    assert await replay(settings) == {
        Fate.LATE: 1, Fate.REPLAY: 3, Fate.INCOMPLETE: 1, Fate.NO_UNIT: 1, Fate.OTHER_TOPIC: 1,
    }  # fmt: skip


@pytest.mark.integration
async def test_a_replay_of_more_than_a_chunk_reports_progress(settings: Settings) -> None:
    exposures = settings.topic("exposures")
    await write(settings, [letter(topic=exposures, offset=n) for n in range(1_100)])
    steps: list[int] = []
    async with LogReader(settings) as reader:
        opened = await Replay.open(settings, reader, Filter())
        await opened.run(lambda: NOW_MS, steps.append)
    assert steps == [500, 1_000, 1_100]
    assert len(await source_records(settings, exposures)) == 1_100


@pytest.mark.integration
def test_commands_list_dry_run_and_replay(
    settings: Settings, environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    exposures = settings.topic("exposures")
    letters = [
        letter(topic=exposures, offset=n, reason="late" if n == 0 else "unknown_arm") for n in range(3)
    ]
    asyncio.run(write(settings, letters))

    assert cli.main(["dead-letters", "list"]) == 0
    out = capsys.readouterr().out
    assert "unknown_arm" in out
    assert "3 of 3 shown" in out

    assert cli.main(["dead-letters", "list", "--json", "--reason", "late", "--since", "5m"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["value"] == '{"unit_id":"u1"}'

    assert cli.main(["dead-letters", "list", "--until", "2001-01-01T00:00:00Z"]) == 0
    assert "no dead letters" in capsys.readouterr().out

    args = ["dead-letters", "replay", "--reason", "unknown_arm", "--topic", "exposures"]
    assert cli.main([*args, "--dry-run"]) == 0
    assert capsys.readouterr().out == "to replay: 2 (unknown_arm 2)\n"
    assert asyncio.run(source_records(settings, exposures)) == []

    assert cli.main([*args, "--yes"]) == 0
    assert "replayed 2 events" in capsys.readouterr().out
    assert len(asyncio.run(source_records(settings, exposures))) == 2

    assert cli.main([*args, "--yes"]) == 0
    assert "replayed before: 2" in capsys.readouterr().out
    assert len(asyncio.run(source_records(settings, exposures))) == 2


async def test_no_broker_is_a_clear_error_for_reader_and_producer() -> None:
    nowhere = Settings(bootstrap_servers="localhost:1")
    with pytest.raises(BrokerUnavailable):
        await DeadLetterProducer(nowhere).start()
    with pytest.raises(BrokerUnavailable):
        await LogReader(nowhere).__aenter__()


def test_a_time_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dead-letters", "list", "--since", "tuesday"]) == 2
    assert "90m" in capsys.readouterr().err


@pytest.mark.integration
def test_missing_topics_are_a_clear_error_and_are_not_created(
    settings: Settings, environment: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BANDIT_TOPIC_PREFIX", settings.topic_prefix + "none-")
    for _ in range(2):  # the second time would find the topic if the first had created it
        assert cli.main(["dead-letters", "list"]) == 78
        assert "topics create" in capsys.readouterr().err
