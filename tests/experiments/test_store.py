"""The store on a real cluster: what is written is read, and of two writers exactly one wins."""

import asyncio
import pickle
from collections.abc import AsyncIterator

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from streams.config import Settings
from streams.embedded import Broker
from streams.errors import BrokerUnavailable, RevisionConflict, UnknownExperiment
from streams.experiments import lifecycle
from streams.experiments.definition import (
    Arm,
    Counting,
    ExperimentRecord,
    Proposal,
    Reward,
    decode_record,
    encode_record,
)
from streams.experiments.store import ExperimentStore
from streams.experiments.view import ExperimentsView
from streams.topics import create_topics

pytestmark = pytest.mark.integration

RECORD = ExperimentRecord(
    experiment_id="e",
    revision=1,
    status="live",
    arms=(Arm(arm_id="a"), Arm(arm_id="b")),
    control="a",
    versions=(Counting(version=1, effective_from_ms=0, reward=Reward(metric="buy")),),
)


@pytest.fixture
async def settings(broker: Broker, topic_prefix: str) -> Settings:
    settings = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=topic_prefix,
        partitions=1,
        counts_partitions=1,
        replication_factor=1,
        min_insync_replicas=1,
    )
    await create_topics(settings)
    return settings


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[ExperimentStore]:
    async with ExperimentStore(settings) as opened:
        yield opened


async def test_written_records_are_read_by_others(settings: Settings, store: ExperimentStore) -> None:
    with pytest.raises(UnknownExperiment, match="experiments list --all"):
        store.get("e")
    await store.write(RECORD)
    paused = await store.change("e", lambda record: lifecycle.pause(record, now_ms=9))
    assert (paused.status, paused.revision) == ("paused", 2)
    async with ExperimentStore(settings) as other:
        assert other.all() == [paused]
        assert other.find("x") is None


async def test_what_comes_from_another_process_is_written_as_well(store: ExperimentStore) -> None:
    made = pickle.loads(pickle.dumps(Proposal(source="factors", levels={"text": "x"})))
    record = msgspec.structs.replace(RECORD, proposals=(made,))
    assert encode_record(record) != encode_record(decode_record("e", encode_record(record)))
    assert await store.write(record) == record


async def test_a_stale_revision_is_refused(settings: Settings, store: ExperimentStore) -> None:
    await store.write(RECORD)
    for revision in (1, 3):
        with pytest.raises(RevisionConflict, match="its newest revision is 1"):
            await store.write(msgspec.structs.replace(RECORD, revision=revision))
    async with ExperimentStore(settings) as other:
        await other.change("e", lambda record: lifecycle.pause(record, now_ms=1))
    with pytest.raises(RevisionConflict, match="its newest revision is 2"):
        await store.write(msgspec.structs.replace(RECORD, revision=2))


async def test_of_many_writers_at_once_exactly_one_wins_and_stays(settings: Settings) -> None:
    stores = [ExperimentStore(settings) for _ in range(4)]
    for store in stores:
        await store.__aenter__()
    try:
        outcomes = await asyncio.gather(
            *(
                store.write(msgspec.structs.replace(RECORD, description=f"writer {index}"))
                for index, store in enumerate(stores)
            ),
            return_exceptions=True,
        )
        winners = [outcome for outcome in outcomes if isinstance(outcome, ExperimentRecord)]
        losers = [outcome for outcome in outcomes if isinstance(outcome, RevisionConflict)]
        assert (len(winners), len(losers)) == (1, 3)
        for store in stores:
            await store.view.catch_up()
            assert store.get("e") == winners[0]
    finally:
        for store in stores:
            await store.__aexit__(None, None, None)


async def test_a_loser_puts_the_winner_back_behind_its_own(
    settings: Settings, store: ExperimentStore
) -> None:
    """A writer that checked before another wrote, and wrote after it: compaction must keep the other's."""
    winner = msgspec.structs.replace(RECORD, description="winner")
    topic = settings.topic("experiments")

    class Late(ExperimentStore):
        async def _produce(self, record: ExperimentRecord) -> None:
            if record != winner:
                await store.write(winner)
            await super()._produce(record)

    async with Late(settings) as late:
        with pytest.raises(RevisionConflict):
            await late.write(RECORD)
    last: list[ExperimentRecord] = []
    view = ExperimentsView(settings)

    def keep(new: ExperimentRecord, _: ExperimentRecord) -> bool:
        last.append(new)
        return True

    view._supersedes = keep  # what a reader without history would keep
    await view.start()
    await view.stop()
    assert last[-1] == winner
    assert RECORD in last
    assert topic == view.topic


async def test_bad_records_do_not_hide_good_ones(settings: Settings, store: ExperimentStore) -> None:
    async with AIOKafkaProducer(**settings.kafka_options()) as producer:
        await producer.send_and_wait(settings.topic("experiments"), encode_record(RECORD), key=b"e")
        await producer.send_and_wait(settings.topic("experiments"), b"{}", key=b"e")
        await producer.send_and_wait(settings.topic("experiments"), b"", key=b"\xff")
    await store.view.catch_up()
    assert store.get("e") == RECORD
    assert len(store.view.problems()) == 2


async def test_a_record_that_cannot_be_written_is_said(settings: Settings, store: ExperimentStore) -> None:
    large = msgspec.structs.replace(RECORD, description="x" * (settings.journal_max_message_bytes + 1))
    with pytest.raises(BrokerUnavailable, match="experiment e may not have been written"):
        await store.write(large)
    assert store.find("e") is None
