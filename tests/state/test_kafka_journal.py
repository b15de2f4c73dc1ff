"""The same protocol on a real Kafka: offsets, reads, deletions, claims and late writes are the broker's."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import RequestTimedOutError

from streams.embedded import Broker
from streams.state.errors import JournalAppendError, JournalGap, JournalReadError, JournalRefused
from streams.state.journal import JournalLog
from streams.state.kafka_journal import KafkaJournal
from streams.state.owner import Fenced, Owner, Redo, Swept
from streams.state.recovery import recover
from tests.state.conftest import Open
from tests.state.doubles import (
    Source,
    always_fresh,
    check,
    commit_next,
    content,
    make_owner,
    run_to_end,
    take,
)

pytestmark = pytest.mark.integration


@pytest.fixture
async def journal(broker: Broker, topic_prefix: str) -> AsyncIterator[KafkaJournal]:
    topic = f"{topic_prefix}journal"
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics(
            [
                NewTopic(
                    name=topic,
                    num_partitions=3,
                    replication_factor=1,
                    topic_configs={"retention.ms": "-1", "max.message.bytes": str(4 * 2**20)},
                )
            ]
        )
    finally:
        await admin.close()
    clients = KafkaJournal(
        topic=topic,
        kafka_options={"bootstrap_servers": broker.bootstrap_servers},
        max_record_bytes=4 * 2**20,
        request_timeout_ms=10_000,
    )
    yield clients
    await clients.stop()


async def records(log: JournalLog, start: int = 0) -> list[tuple[int, bytes]]:
    return [entry async for entry in log.read(start, await log.end_offset())]


async def test_append_read_and_delete(journal: KafkaJournal) -> None:
    log = journal.log(1)
    assert journal.log(1) is log
    assert log.name.endswith("journal[1]")
    assert (await log.start_offset(), await log.end_offset()) == (0, 0)
    assert await records(log) == []
    assert [await log.append(b"record %d" % i, timeout_s=30) for i in range(6)] == list(range(6))
    assert await log.end_offset() == 6
    assert await records(log) == [(i, b"record %d" % i) for i in range(6)]
    assert [offset async for offset, _ in log.read(2, 4)] == [2, 3]
    await log.delete_before(4)
    assert await log.start_offset() == 4
    assert await records(log, 4) == [(4, b"record 4"), (5, b"record 5")]
    with pytest.raises(JournalGap, match="offset 2"):
        await anext(log.read(2, 6))
    await log.delete_before(3)  # below the start: nothing to do
    assert await log.start_offset() == 4
    assert await records(log, 4) == [(4, b"record 4"), (5, b"record 5")]
    assert await records(journal.log(0)) == []


async def test_a_read_beyond_the_end_ends_with_an_error(broker: Broker, journal: KafkaJournal) -> None:
    quick = KafkaJournal(
        topic=journal.topic,
        kafka_options={"bootstrap_servers": broker.bootstrap_servers},
        request_timeout_ms=1_000,
    )
    try:
        await quick.log(0).append(b"only", timeout_s=30)
        with pytest.raises(JournalReadError, match="reading offset 1"):
            _ = [entry async for entry in quick.log(0).read(0, 2)]
    finally:
        await quick.stop()


async def test_big_records_pass_and_bigger_ones_are_refused_for_good(journal: KafkaJournal) -> None:
    log = journal.log(0)
    big = bytes(range(256)) * 14_000
    assert await log.append(big, timeout_s=30) == 0
    assert await records(log) == [(0, big)]
    with pytest.raises(JournalRefused, match=r"MessageSizeTooLarge.* Operator action"):
        await log.append(random.Random(1).randbytes(5 * 2**20), timeout_s=30)
    assert await log.append(b"next", timeout_s=30) == 1


async def test_reads_of_many_partitions_at_once_do_not_mix(journal: KafkaJournal) -> None:
    for i in range(3):
        for j in range(5):
            await journal.log(i).append(b"%d-%d" % (i, j), timeout_s=30)
    found = await asyncio.gather(*(records(journal.log(i % 3)) for i in range(9)))
    for i, entries in enumerate(found):
        assert entries == [(j, b"%d-%d" % (i % 3, j)) for j in range(5)]


async def test_no_broker_is_an_unknown_outcome_not_a_hang() -> None:
    clients = KafkaJournal(
        topic="journal", kafka_options={"bootstrap_servers": "127.0.0.1:1"}, request_timeout_ms=1_000
    )
    with pytest.raises(JournalAppendError, match=r"journal\[0\]"):
        await clients.log(0).append(b"x", timeout_s=5)
    with pytest.raises(JournalReadError, match=r"journal\[0\]"):
        await clients.log(0).end_offset()
    with pytest.raises(JournalReadError, match="DeleteRecords before 3"):
        await clients.log(0).delete_before(3)
    await clients.stop()


async def test_an_append_that_gets_no_answer_is_given_up_and_the_next_one_works(
    journal: KafkaJournal,
) -> None:
    """The producer keeps the record and retries for ever; its successor must not wait behind it."""
    log = journal.log(0)
    await log.append(b"first", timeout_s=30)
    stuck = log._producer
    assert stuck is not None
    answer = asyncio.Event()
    send = stuck.client.send

    async def silent(*args: object, **kwargs: object) -> object:
        await answer.wait()
        return await send(*args, **kwargs)

    stuck.client.send = silent
    with pytest.raises(JournalAppendError, match=r"no acknowledgement within 0\.3 s"):
        await log.append(b"late", timeout_s=0.3)
    assert await log.append(b"second", timeout_s=30) == 1
    answer.set()  # the paused producer wakes up and writes after all
    async with asyncio.timeout(30):
        while await log.end_offset() < 3:  # noqa: ASYNC110 - the broker has no event for it
            await asyncio.sleep(0.05)
    assert [data for _, data in await records(log)] == [b"first", b"second", b"late"]


async def test_a_producer_that_never_gets_through_does_not_hold_up_the_stop(journal: KafkaJournal) -> None:
    log = journal.log(0)
    await log.append(b"first", timeout_s=30)
    stuck = log._producer
    assert stuck is not None

    async def silent(*_args: object, **_kwargs: object) -> object:
        await asyncio.sleep(0.05)
        raise RequestTimedOutError

    stuck.client.send = silent
    with pytest.raises(JournalAppendError):
        await log.append(b"never", timeout_s=0.3)
    async with asyncio.timeout(30):
        await journal.stop()
    assert stuck._closed


def on_kafka(partition_name: str, open_partition: Open, log: JournalLog, **options: object) -> Owner:
    return make_owner(open_partition(partition_name), log, name=partition_name, **options)


async def test_an_owner_counts_everything_once_and_a_copy_is_rebuilt_after_the_trim(
    journal: KafkaJournal, open_partition: Open
) -> None:
    source, log = Source(), journal.log(2)
    owner = on_kafka("owner", open_partition, log)
    await take(owner, source)
    await run_to_end(owner, source)
    assert owner.statistics.redos == 0
    check(owner.partition, source)
    full = open_partition("full")
    assert await recover(full, log) == len(await records(log))
    assert content(full) == content(owner.partition)
    while not isinstance(step := await owner.sweep_step(max_bytes=80), Swept) or not step.completed:
        pass
    assert await log.start_offset() == owner.partition.head.sweep.completed > 0
    rebuilt = open_partition("rebuilt")
    await recover(rebuilt, log)
    assert rebuilt.base == await log.start_offset()
    assert content(rebuilt) == content(owner.partition)
    assert await full.verify(log) == "trimmed"
    await recover(full, log)
    assert content(full) == content(owner.partition)


async def test_a_paused_owner_is_fenced_on_kafka_too(
    broker: Broker, journal: KafkaJournal, open_partition: Open
) -> None:
    source = Source()
    member = {"a": True}

    async def a_is_member() -> bool:
        return member["a"]

    other_worker = KafkaJournal(
        topic=journal.topic, kafka_options={"bootstrap_servers": broker.bootstrap_servers}
    )
    try:
        a = on_kafka("a", open_partition, journal.log(0), heartbeat_fresh=a_is_member)
        await take(a, source, generation=1)
        await commit_next(a, source, "exposures")
        member["a"] = False
        b = on_kafka("b", open_partition, other_worker.log(0), heartbeat_fresh=always_fresh)
        await take(b, source, generation=2)
        await commit_next(b, source, "exposures", 3)
        assert isinstance(await commit_next(a, source, "exposures"), Fenced)
        assert isinstance(await commit_next(b, source, "exposures"), Redo)
        await run_to_end(b, source)
        check(b.partition, source)
        await recover(a.partition, journal.log(0))
        assert content(a.partition) == content(b.partition)
    finally:
        await other_worker.stop()


async def test_a_record_written_twice_and_foreign_ones_count_once(
    broker: Broker, journal: KafkaJournal, open_partition: Open
) -> None:
    source, log = Source(), journal.log(1)
    owner = on_kafka("owner", open_partition, log)
    await take(owner, source)
    await commit_next(owner, source, "exposures")
    (_, last) = (await records(log))[-1]
    stranger = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    await stranger.start()
    try:
        for data in (last, b"foreign", None):
            await stranger.send_and_wait(journal.topic, data, key=b"k", partition=1)
    finally:
        await stranger.stop()
    assert isinstance(await commit_next(owner, source, "conversions"), Redo)
    await run_to_end(owner, source)
    check(owner.partition, source)
    copy = open_partition("copy")
    await recover(copy, log)
    assert content(copy) == content(owner.partition)


async def test_released_partitions_can_be_taken_again(journal: KafkaJournal, open_partition: Open) -> None:
    source = Source()
    owner = on_kafka("owner", open_partition, journal.log(0))
    await take(owner, source)
    await commit_next(owner, source, "exposures")
    await journal.release(0)
    await journal.release(2)
    await take(owner, source, generation=2)
    await run_to_end(owner, source)
    check(owner.partition, source)
