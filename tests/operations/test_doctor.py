"""Doctor, on a real broker: each thing that can be wrong is made wrong, and found."""

import asyncio
import json
import time
import zlib
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from streams import cli
from streams.allocations import Allocation, ArmAllocation, encode_allocation
from streams.commands.doctor import to_text
from streams.config import TOPIC_NAMES, Settings
from streams.connection import Offer
from streams.counts import CountsKey, Order, ProgressRecord, encode_key, encode_progress
from streams.deadletters import DeadLetter, DeadLetterProducer
from streams.doctor import Context, Finding, Level, _run, diagnose
from streams.doctor.broker import _missing_apis
from streams.doctor.producers import _fnv1a
from streams.doctor.publishing import REASON_ACTIONS
from streams.errors import BrokerUnavailable
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.join.step import REROUTED_HEADER
from streams.log_reader import LogReader
from streams.metrics import DEAD_LETTER_REASONS
from streams.partitioning import partition_of
from streams.state.journal import BatchRecord, Claim, Head, SweepRecord, encode, pack
from streams.topics import create_topics

pytestmark = pytest.mark.integration
HOUR_MS = 3_600_000


def now_ms() -> int:
    return int(time.time() * 1000)


async def findings(settings: Settings, check: str, at_ms: int | None = None) -> list[Finding]:
    name = {"clocks": "producers", "address": "topics"}.get(check, check)
    found = [f async for f in diagnose(settings, lambda: at_ms if at_ms is not None else now_ms(), [name])]
    return [finding for finding in found if finding.check == check]


async def only(settings: Settings, check: str, at_ms: int | None = None) -> Finding:
    (finding,) = await findings(settings, check, at_ms)
    return finding


async def put_event(
    settings: Settings, producer: Any, unit: str, *, partition: int | None = None, **more: Any
) -> None:
    await producer.send_and_wait(
        settings.topic("exposures"),
        json.dumps({"unit_id": unit, "timestamp": now_ms()}).encode(),
        key=unit.encode(),
        partition=partition_of(unit.encode(), settings.partitions) if partition is None else partition,
        **more,
    )


async def put_journal(
    settings: Settings, producer: Any, partition: int, *, exposures: int, at_ms: int
) -> None:
    topic = settings.topic("journal")
    claim = Claim(owner="worker-a", generation=1, written_at_ms=at_ms, journal_id=at_ms)
    at = await producer.send_and_wait(topic, pack(encode(claim)), partition=partition, timestamp_ms=at_ms)
    for seq, (source, position) in enumerate({"exposures": exposures, "conversions": 0}.items(), 1):
        batch = BatchRecord(
            journal_id=at_ms, claim=at.offset, seq=seq, flag="normal", topic=source, start=0, next=position,
            maxima={source: at_ms}, pending=0, dead_letters_through=0,
        )  # fmt: skip
        await producer.send_and_wait(topic, pack(encode(batch)), partition=partition, timestamp_ms=at_ms)


def experiment(experiment_id: str, status: Any = "live") -> ExperimentRecord:
    return ExperimentRecord(
        experiment_id=experiment_id,
        revision=1,
        status=status,
        arms=(Arm(arm_id="a"), Arm(arm_id="b")),
        control="a",
        versions=(Counting(version=1, effective_from_ms=0, reward=Reward(metric="click")),),
    )


def allocation(experiment_id: str, computed_at_ms: int) -> Allocation:
    arms = tuple(
        ArmAllocation(
            arm_id=arm_id, status="active", weight=0.5, assignment_weight=0.5, selection_probability=0.5,
            probability_best=0.5, mean=0.5, interval=(0.0, 1.0), trials=0, successes=0,
        )
        for arm_id in ("a", "b")
    )  # fmt: skip
    return Allocation(
        experiment_id=experiment_id, version=1, claim=0, trigger="interval", interval_id=1, boundary_ms=0,
        computed_at_ms=computed_at_ms, algorithm="uniform", seed=1, definition_version=1,
        definition_revision=1, status="live", sticky="unit", control="a", default_arm="a", comparison=0.0,
        holdout=0.0, arms=arms,
    )  # fmt: skip


# ---- the way to the cluster


async def test_no_broker_is_one_finding_and_no_repetition() -> None:
    found = [f async for f in diagnose(Settings(bootstrap_servers="localhost:1,localhost:2"), now_ms)]
    assert [(f.level, f.check) for f in found] == [(Level.FAIL, "address")] * 2


async def test_one_of_two_addresses_is_enough_to_go_on(settings: Settings) -> None:
    both = settings.model_copy(update={"bootstrap_servers": f"localhost:1,{settings.bootstrap_servers}"})
    assert [f.level for f in await findings(both, "address")] == [Level.WARN, Level.OK]
    assert (await only(both, "topics")).level is Level.OK


async def test_an_address_that_is_none() -> None:
    found = [f async for f in diagnose(Settings(bootstrap_servers="kafka"), now_ms)]
    assert [(f.level, f.check) for f in found] == [(Level.FAIL, "address")]


async def test_a_fresh_installation(settings: Settings) -> None:
    found = [f async for f in diagnose(settings, now_ms)]
    by_check = {f.check: f for f in found}
    assert by_check["brokers"].level is Level.OK
    assert by_check["topics"].level is Level.OK
    assert by_check["workers"].level is Level.FAIL
    assert "bandit-streams worker" in by_check["workers"].action
    assert by_check["definitions"].level is Level.WARN
    assert by_check["producers"].what == "no event yet"
    assert by_check["counting"].level is Level.OK
    assert by_check["dead-letters"].level is Level.OK
    for finding in found:
        assert (finding.action == "") is (finding.level is Level.OK), finding


async def test_missing_and_wrong_topics_and_no_check_breaks_on_them(settings: Settings) -> None:
    other = settings.model_copy(update={"topic_prefix": settings.topic_prefix + "other-"})
    found = [f async for f in diagnose(other, now_ms)]
    topics = [f for f in found if f.check == "topics"]
    assert [(f.level, f.what) for f in topics] == [(Level.FAIL, "missing")] * len(TOPIC_NAMES)
    await create_topics(other.model_copy(update={"partitions": 3}))
    found += [f async for f in diagnose(other, now_ms)]
    assert any("3 partitions" in f.what and f.action for f in found if f.check == "topics")
    assert not [f for f in found if "check itself failed" in f.what]


# ---- producers


async def test_producers_that_do_it_right(settings: Settings, producer: Any) -> None:
    for n in range(30):
        await put_event(settings, producer, f"u{n}")
    exposures, conversions = await findings(settings, "producers")
    assert (exposures.level, conversions.level) == (Level.OK, Level.WARN)
    assert "30 sampled" in exposures.what


@pytest.mark.parametrize("name", ["CRC32", "FNV-1a"])
async def test_a_foreign_partitioner_is_named(settings: Settings, producer: Any, name: str) -> None:
    for n in range(30):
        unit = f"u{n}"
        place = {"CRC32": zlib.crc32(unit.encode()) % 4, "FNV-1a": _fnv1a(unit.encode(), 4)}[name]
        await put_event(settings, producer, unit, partition=place)
    finding = (await findings(settings, "producers"))[0]
    assert finding.level is Level.WARN
    assert f"where {name} puts them" in finding.action


async def test_partitions_chosen_by_hand_are_not_blamed_on_a_partitioner(
    settings: Settings, producer: Any
) -> None:
    for n in range(30):
        await put_event(settings, producer, f"u{n}", partition=n % 4)
    finding = (await findings(settings, "producers"))[0]
    assert finding.level is Level.WARN
    assert "by hand" in finding.action


async def test_records_without_key(settings: Settings, producer: Any) -> None:
    await producer.send_and_wait(settings.topic("exposures"), b"{}")
    finding = (await findings(settings, "producers"))[0]
    assert "1 of 1 sampled records have no key" in finding.what


async def test_our_own_reroutes_are_not_the_producers(settings: Settings, producer: Any) -> None:
    await put_event(settings, producer, "u1")
    wrong = (partition_of(b"u1", 4) + 1) % 4
    await put_event(settings, producer, "u1", partition=wrong, headers=[(REROUTED_HEADER, b"1")])
    assert (await findings(settings, "producers"))[0].level is Level.OK


async def test_clocks(settings: Settings, producer: Any) -> None:
    ahead_ms = now_ms() + settings.max_ahead_ms + 60_000
    value = json.dumps({"unit_id": "u", "timestamp": ahead_ms}).encode()
    await producer.send_and_wait(
        settings.topic("exposures"), value, key=b"u", partition=partition_of(b"u", 4)
    )
    (finding,) = await findings(settings, "clocks")
    assert "later than the broker received it" in finding.what
    broker_ahead, _ = await findings(settings, "clocks", at_ms=now_ms() - 60_000)
    assert "the broker's clock is at least" in broker_ahead.what


def test_fnv1a_is_saramas() -> None:
    # 32-bit FNV-1a of "a" and "foobar" as its authors publish them.
    assert _fnv1a(b"", 2**31) == abs(0x811C9DC5 - 2**32)
    assert _fnv1a(b"a", 2**31) == abs(0xE40C292C - 2**32)
    assert _fnv1a(b"foobar", 2**31) == abs(0xBF9CF968 - 2**32)


# ---- counting


async def test_records_that_nobody_ever_counted(settings: Settings, producer: Any) -> None:
    await put_event(settings, producer, "u1")
    finding = await only(settings, "counting")
    assert (finding.level, finding.what) == (Level.FAIL, "never counted; 1 records wait")


async def test_a_partition_that_is_up_to_date_and_one_that_lags(settings: Settings, producer: Any) -> None:
    partition = partition_of(b"u1", 4)
    await put_event(settings, producer, "u1")
    await put_event(settings, producer, "u1")
    await put_journal(settings, producer, partition, exposures=2, at_ms=now_ms())
    assert "0 records still to count" in (await only(settings, "counting")).what
    await put_event(settings, producer, "u1")
    assert "1 records still to count" in (await only(settings, "counting")).what
    later_ms = now_ms() + settings.stall_deadline_ms + 1_000
    stalled = await only(settings, "counting", at_ms=later_ms)
    assert stalled.level is Level.FAIL
    assert stalled.where == f"partition {partition}, last owner worker-a"


async def test_records_lost_to_retention(settings: Settings, producer: Any) -> None:
    partition = partition_of(b"u1", 4)
    for _ in range(5):
        await put_event(settings, producer, "u1")
    await put_journal(settings, producer, partition, exposures=2, at_ms=now_ms())
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    await admin.delete_records(
        {TopicPartition(settings.topic("exposures"), partition): RecordsToDelete(before_offset=4)}
    )
    await admin.close()
    finding = (await findings(settings, "counting"))[0]
    assert finding.level is Level.FAIL
    assert finding.what.startswith("2 records were deleted by retention")


async def test_a_source_that_ends_before_its_position(settings: Settings, producer: Any) -> None:
    await put_journal(settings, producer, 0, exposures=9, at_ms=now_ms())
    finding = (await findings(settings, "counting"))[0]
    assert "the journal is at offset 9, but the topic ends at 0" in finding.what


async def test_a_fenced_owners_late_write_does_not_move_the_position(
    settings: Settings, producer: Any
) -> None:
    partition = partition_of(b"u1", 4)
    for _ in range(3):
        await put_event(settings, producer, "u1")
    at_ms = now_ms()
    await put_journal(settings, producer, partition, exposures=1, at_ms=at_ms)
    topic = settings.topic("journal")
    claim = Claim(owner="worker-b", generation=2, written_at_ms=at_ms)
    await producer.send_and_wait(topic, pack(encode(claim)), partition=partition, timestamp_ms=at_ms)
    late = BatchRecord(
        journal_id=at_ms, claim=0, seq=3, flag="normal", topic="exposures", start=1, next=3,
        pending=0, dead_letters_through=0,
    )  # fmt: skip
    await producer.send_and_wait(topic, pack(encode(late)), partition=partition, timestamp_ms=at_ms)
    await producer.send_and_wait(topic, b"somebody else's bytes", partition=partition, timestamp_ms=at_ms)
    assert "2 records still to count" in (await only(settings, "counting")).what


async def test_a_topic_quiet_for_long_is_found_further_back_in_the_journal(
    settings: Settings, producer: Any
) -> None:
    await put_event(settings, producer, "u1")
    partition = partition_of(b"u1", 4)
    at_ms = now_ms()
    await put_journal(settings, producer, partition, exposures=1, at_ms=at_ms)
    for seq in range(3, 60):
        batch = BatchRecord(
            journal_id=at_ms, claim=0, seq=seq, flag="normal", topic="conversions", start=0, next=0,
            pending=0, dead_letters_through=0,
        )  # fmt: skip
        await producer.send_and_wait(settings.topic("journal"), pack(encode(batch)), partition=partition)
    assert "0 records still to count" in (await only(settings, "counting")).what


async def test_a_sweep_says_where_a_partition_stands(settings: Settings, producer: Any) -> None:
    await put_event(settings, producer, "u1")
    partition, at_ms = partition_of(b"u1", 4), now_ms()
    topic = settings.topic("journal")
    claim = Claim(owner="worker-a", generation=1, written_at_ms=at_ms, journal_id=at_ms)
    at = await producer.send_and_wait(topic, pack(encode(claim)), partition=partition)
    head = Head(owner="worker-a", positions={"exposures": 1, "conversions": 0}, maxima={"exposures": at_ms})
    for seq, cursor in enumerate((b"", b"m"), 1):
        sweep = SweepRecord(
            journal_id=at_ms, claim=at.offset, seq=seq, head=head if seq == 1 else None, last=seq == 2,
            from_key=cursor, to_key=b"m", pending=0, dead_letters_through=0, written_at_ms=at_ms,
        )  # fmt: skip
        await producer.send_and_wait(topic, pack(encode(sweep)), partition=partition)
    finding = await only(settings, "counting")  # 0 records wait: the position is that of the sweep's head
    assert (finding.level, finding.where) == (Level.WARN, f"partition {partition}")
    assert finding.what.startswith("conversions has no record yet")


async def test_counts_that_are_not_published(settings: Settings, producer: Any) -> None:
    at_ms = now_ms()
    await put_journal(settings, producer, 0, exposures=0, at_ms=at_ms)
    finding = await only(settings, "counts")
    assert (finding.level, "[0]" in finding.what) == (Level.WARN, True)
    await producer.send_and_wait(
        settings.topic("counts"),
        encode_progress(ProgressRecord(Order(at_ms, 0, 1), at_ms)),
        key=encode_key(CountsKey("", 0, 0)),
    )
    assert (await only(settings, "counts")).level is Level.OK


async def test_a_running_group(settings: Settings) -> None:
    grouped = settings.model_copy(update={"group": settings.topic_prefix + "group"})
    consumer = AIOKafkaConsumer(
        settings.topic("exposures"),
        group_id=grouped.group,
        session_timeout_ms=6_000,
        **settings.kafka_options(),
    )
    await consumer.start()
    try:
        deadline_s = time.monotonic() + 30
        while (finding := await only(grouped, "workers")).level is not Level.OK:
            assert time.monotonic() < deadline_s, finding
            await consumer.getmany(timeout_ms=100)
    finally:
        await consumer.stop()
    assert finding.what == "1 running"


# ---- what goes in and comes out


async def test_definitions_that_can_and_cannot_be_read(settings: Settings, producer: Any) -> None:
    topic = settings.topic("experiments")
    for record in (experiment("e1"), experiment("e2"), experiment("e3", "draft")):
        await producer.send_and_wait(topic, msgspec.json.encode(record), key=record.experiment_id.encode())
    assert (await only(settings, "definitions")).what == "1 draft, 2 live"
    await producer.send_and_wait(topic, b"{broken", key=b"e2")
    broken, rest = await findings(settings, "definitions")
    assert broken.level is Level.FAIL
    assert "e2" in broken.what
    assert rest.what == "1 draft, 1 live"
    await producer.send_and_wait(topic, None, key=b"e2")
    assert (await only(settings, "definitions")).what == "1 draft, 1 live"


async def test_allocations_missing_fresh_old_and_broken(settings: Settings, producer: Any) -> None:
    await producer.send_and_wait(
        settings.topic("experiments"), msgspec.json.encode(experiment("e1")), key=b"e1"
    )
    assert (await only(settings, "allocations")).what == "live, but has no allocation"
    topic = settings.topic("allocations")
    await producer.send_and_wait(topic, encode_allocation(allocation("e1", now_ms())), key=b"e1")
    assert (await only(settings, "allocations")).level is Level.OK
    old = await only(settings, "allocations", at_ms=now_ms() + 3 * HOUR_MS)
    assert old.level is Level.FAIL
    assert "180 min old; the interval is 60 min" in old.what
    stream = settings.model_copy(update={"clock": "stream"})
    assert (await only(stream, "allocations", at_ms=now_ms() + 3 * HOUR_MS)).level is Level.OK
    await producer.send_and_wait(topic, b"{broken", key=b"e1")
    assert "cannot be read" in (await findings(settings, "allocations"))[0].what


async def test_dead_letters_of_the_last_hour_by_reason(settings: Settings) -> None:
    letters = [
        DeadLetter(
            topic=settings.topic("exposures"), partition=0, offset=n, key=b"u", value=b"{}",
            reason="unknown_arm" if n else "late", field="$", message="m",
        )
        for n in range(4)
    ]  # fmt: skip
    async with DeadLetterProducer(settings) as dead_letters:
        await dead_letters.emit_all(letters)
        arms, late = await findings(settings, "dead-letters")
        assert arms.what == "3 in the last hour: unknown_arm"
        assert "dead-letters list --reason unknown_arm" in arms.action
        assert late.what == "1 in the last hour: late"
        await dead_letters.mark_replayed(letters, now_ms())
    assert (await only(settings, "dead-letters")).level is Level.OK
    assert (await only(settings, "dead-letters", at_ms=now_ms() + 2 * HOUR_MS)).level is Level.OK


async def test_a_check_that_fails_is_a_finding_and_not_the_end() -> None:
    async def away(_context: Context) -> list[Finding]:
        raise BrokerUnavailable("no answer", where="broker a:1", action="start it")

    async def broken(_context: Context) -> list[Finding]:
        raise OSError("disk on fire")

    context = Context(Settings(), LogReader(Settings()), now_ms, {})
    assert await _run("topics", away, context) == [
        Finding(Level.FAIL, "topics", "no answer", "broker a:1", "start it")
    ]
    (finding,) = await _run("topics", broken, context)
    assert "the check itself failed" in finding.what
    assert "disk on fire" in finding.what


def test_a_broker_that_cannot_do_what_is_needed() -> None:
    complete = {0: (3, 11), 1: (4, 16), 11: (2, 9), 19: (1, 7), 21: (0, 2), 22: (0, 5), 32: (1, 4)}
    assert _missing_apis(Offer("a", 1, complete), "broker a:1") == []
    old = {**complete, 0: (0, 2)}
    del old[21]
    (finding,) = _missing_apis(Offer("a", 1, old), "broker a:1")
    assert finding.what == "does not offer Produce, DeleteRecords in the version needed"


def test_every_reason_has_an_advice() -> None:
    assert set(REASON_ACTIONS) == set(DEAD_LETTER_REASONS)


# ---- the command


def test_the_command_prints_findings_and_fails_when_something_is_broken(
    settings: Settings, environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "ok    topics" in out
    assert "what to do: start one: `bandit-streams worker`" in out
    assert out.splitlines()[-1] == "1 failed, 3 to look at"
    assert cli.main(["doctor", "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"level", "check", "what", "where", "action"} == set(rows[0])
    assert cli.main(["doctor", "--check", "topics"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_text_of_a_finding() -> None:
    finding = Finding(Level.WARN, "producers", "no event yet", "exposures", "point a producer at it")
    lines = (
        to_text(finding).replace("\x1b[33m", "").replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    )
    assert lines == [
        "warn  producers     exposures: no event yet",
        "                    what to do: point a producer at it",
    ]


def test_diagnose_runs_outside_pytests_loop(settings: Settings) -> None:
    async def count() -> int:
        return len([f async for f in diagnose(settings, now_ms)])

    assert asyncio.run(count()) > 5
