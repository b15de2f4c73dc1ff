"""Single records of the source topics by offset, from a real Kafka."""

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.structs import TopicPartition

from streams.agents.source import SourceTopics
from streams.embedded import Broker

pytestmark = pytest.mark.integration


async def test_records_that_retention_has_deleted_do_not_end_the_reader(
    broker: Broker, topic_prefix: str
) -> None:
    options = {"bootstrap_servers": broker.bootstrap_servers}
    topic = f"{topic_prefix}exposures"
    tp = TopicPartition(topic, 0)
    producer = AIOKafkaProducer(acks="all", enable_idempotence=True, **options)
    admin = AIOKafkaAdminClient(**options)
    source = SourceTopics(producer, options, n_partitions=1)
    await producer.start()
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name=topic, num_partitions=1, replication_factor=1)])
        for number in range(4):
            await producer.send_and_wait(topic, b"%d" % number, b"u", partition=0)
        await admin.delete_records({tp: RecordsToDelete(before_offset=2)})
        assert await source.bounds(topic, 0) == (2, 4)
        assert await source.fetch(topic, 0, [0, 1]) == {}
        found = await source.fetch(topic, 0, [1, 3, 2, 7])
        assert {offset: record.value for offset, record in found.items()} == {2: b"2", 3: b"3"}
        assert (await source.fetch(topic, 0, [2]))[2].value == b"2"
    finally:
        await source.stop()
        await producer.stop()
        await admin.close()
