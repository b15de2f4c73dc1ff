"""The view of a compacted topic: content, changes, freshness, and what it does with bad records."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
from aiokafka import AIOKafkaProducer

from streams.compacted import CompactedView
from streams.config import Settings
from streams.embedded import Broker
from streams.errors import BrokerUnavailable, DeadlineExceeded, RecordError
from streams.read_progress import FetchAnswer, ReadProgress
from streams.topics import admin_client, create_topics


def answer(timestamp_ms: int, end: int) -> FetchAnswer:
    return FetchAnswer(timestamp_ms, end)


def test_fresh_from_the_round_before_the_answer_was_seen() -> None:
    progress = ReadProgress(0, now_s=10.0)
    progress.observe(position=5, answer=answer(1, 5), had_records=True, now_s=11.0)
    assert (progress.complete, progress.fresh_s) == (5, 10.0)
    progress.observe(position=5, answer=answer(2, 5), had_records=False, now_s=12.0)
    assert progress.fresh_s == 11.0


def test_polling_without_an_answer_does_not_refresh() -> None:
    progress = ReadProgress(0, now_s=10.0)
    progress.observe(position=5, answer=answer(1, 5), had_records=True, now_s=11.0)
    for now_s in (20.0, 30.0, 40.0):
        progress.observe(position=5, answer=answer(1, 5), had_records=False, now_s=now_s)
    assert progress.fresh_s == 10.0


def test_lag_is_not_fresh() -> None:
    progress = ReadProgress(0, now_s=10.0)
    progress.observe(position=5, answer=answer(1, 9), had_records=True, now_s=11.0)
    assert (progress.complete, progress.fresh_s) == (5, None)
    # The answer that reported 9 still held records for this round: it proves nothing by itself.
    progress.observe(position=9, answer=answer(2, 12), had_records=True, now_s=12.0)
    assert (progress.complete, progress.fresh_s) == (9, None)


def test_records_removed_at_the_end_of_the_log_do_not_hold_it_up() -> None:
    progress = ReadProgress(5, now_s=10.0)
    progress.observe(position=5, answer=answer(1, 9), had_records=False, now_s=11.0)
    assert progress.complete == 5
    progress.observe(position=5, answer=answer(2, 9), had_records=False, now_s=12.0)
    assert (progress.complete, progress.fresh_s) == (9, 11.0)


def decode_key(key: bytes) -> str:
    return key.decode()


def decode_value(key: str, value: bytes) -> int:
    if value == b"bad":
        raise RecordError("not a number", where=key)
    return int(value)


class Topic:
    """A small cluster of topics, and a producer to fill `experiments` with."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self.settings = settings
        self.producer = producer
        self.views: list[CompactedView[str, int]] = []

    async def put(self, key: str, value: str | None) -> None:
        await self.producer.send_and_wait(
            self.settings.topic("experiments"),
            value.encode() if value is not None else None,
            key=key.encode(),
        )

    def view(self, supersedes: Callable[[int, int], bool] | None = None) -> CompactedView[str, int]:
        view = CompactedView(
            self.settings,
            "experiments",
            decode_key=decode_key,
            decode_value=decode_value,
            supersedes=supersedes,
        )
        self.views.append(view)
        return view


@pytest.fixture
async def topic(broker: Broker, topic_prefix: str) -> AsyncIterator[Topic]:
    settings = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=topic_prefix,
        partitions=2,
        counts_partitions=2,
        replication_factor=1,
        min_insync_replicas=1,
    )
    await create_topics(settings)
    async with AIOKafkaProducer(**settings.kafka_options()) as producer:
        made = Topic(settings, producer)
        yield made
        for view in made.views:
            await view.stop()


@pytest.mark.integration
async def test_reads_to_the_end_then_follows(topic: Topic) -> None:
    for key, value in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("c", None)]:
        await topic.put(key, value)
    view = topic.view()
    changes: list[Mapping[str, int | None]] = []
    view.on_change(changes.append)
    assert view.age_ms() == float("inf")
    await view.start()
    assert dict(view.items()) == {"a": 3, "b": 2}
    assert (view.get("a"), view.get("c"), len(view), view.revision) == (3, None, 2, 5)
    assert changes == []
    before = view.snapshot()
    await topic.put("b", "7")
    await topic.put("a", None)
    await view.catch_up()
    assert dict(view.items()) == {"b": 7}
    assert before == {"a": 3, "b": 2}
    assert view.snapshot() == {"b": 7}
    assert {key: value for change in changes for key, value in change.items()} == {"b": 7, "a": None}
    await view.catch_up()
    assert view.age_ms() < 5_000


@pytest.mark.integration
async def test_bad_records_are_problems_until_replaced(topic: Topic) -> None:
    await topic.put("a", "1")
    await topic.put("a", "bad")
    view = topic.view()
    await view.start()
    assert view.get("a") == 1
    ((where, text),) = view.problems().items()
    assert where.endswith("experiments/0 b'a'")
    assert "offset 1" in text
    assert "not a number" in text
    await topic.put("a", "2")
    await view.catch_up()
    assert (view.get("a"), view.problems()) == (2, {})
    assert view.statistics()[:3] == (1, 3, 0)


@pytest.mark.integration
async def test_supersedes_keeps_the_greater(topic: Topic) -> None:
    await topic.put("a", "5")
    await topic.put("a", "4")
    view = topic.view(supersedes=lambda new, old: new >= old)
    await view.start()
    assert view.get("a") == 5
    await topic.put("a", "6")
    await view.catch_up()
    assert view.get("a") == 6


@pytest.mark.integration
async def test_a_failing_callback_does_not_stop_the_view(topic: Topic) -> None:
    view = topic.view()
    seen: list[Mapping[str, int | None]] = []

    def fail(changes: Mapping[str, int | None]) -> None:
        seen.append(changes)
        raise ValueError("no")

    view.on_change(fail)
    await view.start()
    for value in ("1", "2"):
        await topic.put("a", value)
        await view.catch_up()
    assert view.get("a") == 2
    assert len(seen) == 2


@pytest.mark.integration
async def test_a_topic_made_anew_is_read_anew(topic: Topic) -> None:
    for key in "abcd":
        await topic.put(key, "1")
    view = topic.view()
    await view.start()
    name = topic.settings.topic("experiments")
    async with admin_client(topic.settings) as admin:
        await admin.delete_topics([name])
    async with asyncio.timeout(30):
        while not await create_topics(topic.settings):  # noqa: ASYNC110 - deletion has no event to wait for
            await asyncio.sleep(0.05)
        await topic.put("z", "2")
        while dict(view.items()) != {"z": 2}:  # noqa: ASYNC110 - changes come in more than one callback
            await asyncio.sleep(0.05)


@pytest.mark.integration
async def test_a_missing_topic_has_a_deadline_and_an_action(broker: Broker, topic_prefix: str) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=topic_prefix,
        replication_factor=1,
        min_insync_replicas=1,
    )
    view = CompactedView(settings, "experiments", decode_key=decode_key, decode_value=decode_value)
    with pytest.raises(DeadlineExceeded, match="bandit-streams topics check"):
        await view.start(deadline_ms=1500)
    with pytest.raises(BrokerUnavailable):
        await view.catch_up()


async def test_no_broker_is_said(unused_tcp_port: int) -> None:
    settings = Settings(bootstrap_servers=f"127.0.0.1:{unused_tcp_port}")
    view = CompactedView(settings, "experiments", decode_key=decode_key, decode_value=decode_value)
    with pytest.raises(BrokerUnavailable, match="doctor"):
        await view.start()


class TestProgress:
    """When a partition counts as read to an end; answers are (broker time, end of the log)."""

    def test_an_answer_that_lands_after_the_records_were_taken_proves_nothing(self) -> None:
        progress = ReadProgress(0, 0.0)
        progress.observe(
            position=6, answer=FetchAnswer(1, 10), had_records=True, now_s=1.0
        )  # a part of the log
        progress.observe(
            position=6, answer=FetchAnswer(2, 10), had_records=False, now_s=2.0
        )  # the rest has just come
        assert progress.complete == 6
        progress.observe(position=10, answer=FetchAnswer(3, 10), had_records=True, now_s=3.0)
        assert progress.complete == 10

    def test_an_end_without_records_is_reached_after_two_rounds_without_any(self) -> None:
        progress = ReadProgress(6, 0.0)
        progress.observe(position=6, answer=FetchAnswer(1, 10), had_records=False, now_s=1.0)
        assert progress.complete == 6
        progress.observe(position=6, answer=FetchAnswer(2, 10), had_records=False, now_s=2.0)
        assert progress.complete == 10
        assert progress.fresh_s == 1.0
