"""What transport and table take for granted of faust-streaming and aiokafka.

An upgrade must fail here first.
"""

import inspect
from importlib.metadata import version
from typing import Any

import aiokafka
import pytest
from aiokafka.consumer.fetcher import Fetcher, FetchResult
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import TopicPartitionState
from faust.app.base import App, BootStrategy
from faust.assignor.partition_assignor import PartitionAssignor
from faust.tables.base import Collection
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport import base
from faust.transport.conductor import ConductorCompiler
from faust.transport.consumer import Consumer
from faust.transport.drivers import aiokafka as driver
from faust.transport.utils import DefaultSchedulingStrategy
from faust.types import TP

from streams.transport import Chunk, ChunkConsumer, ChunkConsumerThread, ChunkTransport


def parameters(function: object) -> list[str]:
    """Names of a callable's parameters."""
    assert callable(function)
    return list(inspect.signature(function).parameters)


def source(function: object) -> str:
    """Source text of a function or class, white space folded."""
    return " ".join(inspect.getsource(function).split())  # type: ignore[arg-type]  # any function will do


def module_source(of: type) -> str:
    """Source text of a class's module: tasks are wrapped by decorators that hide their function."""
    return source(inspect.getmodule(of))


def test_versions_are_those_that_the_internals_were_read_in() -> None:
    assert version("faust-streaming") == "0.15.3"
    assert version("aiokafka").startswith("0.14.")


class TestConsumerThread:
    def test_hooks_that_we_override_exist_with_these_signatures(self) -> None:
        thread = driver.AIOKafkaConsumerThread
        assert parameters(thread._create_worker_consumer) == ["self", "transport"]
        assert parameters(thread._fetch_records) == [
            "self",
            "consumer",
            "active_partitions",
            "timeout",
            "max_records",
        ]
        assert parameters(thread.on_partitions_revoked) == ["self", "revoked"]

    def test_getmany_runs_fetch_records_in_the_thread(self) -> None:
        assert "self.call_thread( self._fetch_records," in source(driver.AIOKafkaConsumerThread.getmany)

    def test_no_other_seek_of_source_partitions_is_left(self) -> None:
        """perform_seek is the only caller of seek_to_committed; we make it do nothing."""
        assert "self.seek_to_committed()" in source(Consumer.perform_seek)
        assert ChunkConsumer.perform_seek is not Consumer.perform_seek

    def test_the_revocation_reaches_the_thread_before_the_app(self) -> None:
        text = source(driver.ConsumerRebalanceListener.on_partitions_revoked)
        assert "thread.on_partitions_revoked(" in text

    def test_the_generation_is_the_coordinator_s(self) -> None:
        text = source(driver.ConsumerRebalanceListener.on_partitions_assigned)
        assert "_coordinator.generation" in text
        assert "consumer_generation_id = generation" in text


class TestConsumer:
    def test_hooks_that_we_override_exist_with_these_signatures(self) -> None:
        assert parameters(Consumer._getmany) == ["self", "active_partitions", "timeout"]
        assert parameters(driver.Consumer._to_message) == ["self", "tp", "record"]
        assert parameters(driver.Consumer._new_consumer_thread) == ["self"]
        assert driver.Consumer._getmany is not ChunkConsumer._getmany
        assert issubclass(ChunkConsumerThread, driver.AIOKafkaConsumerThread)

    def test_one_fetch_is_handed_over_before_the_next_begins(self) -> None:
        text = source(Consumer._drain_messages)
        assert text.index("getmany(timeout=1.0)") < text.index("async for tp, message in ait:")
        assert "await self._wait_next_records(timeout)" in source(Consumer.getmany)

    def test_the_scheduler_hands_on_any_objects_by_partition(self) -> None:
        scheduler: Any = DefaultSchedulingStrategy  # abstract in its annotations only
        tp_a, tp_b = TP("a", 0), TP("b", 1)
        chunk = Chunk("a", 0, 5, 9, 1, (), 9, 1)
        handed = list(scheduler().iterate({tp_a: [chunk], tp_b: []}))
        assert handed == [(tp_a, chunk)]

    def test_a_message_is_dropped_only_below_the_read_offset(self) -> None:
        text = source(Consumer._drain_messages)
        assert "if r_offset is None or offset >= r_offset:" in text

    def test_topics_without_acks_are_neither_tracked_nor_committed(self) -> None:
        assert "if self.app.topics.acks_enabled_for(message.topic):" in source(Consumer.ack)
        assert "acks_enabled_for(message.topic)" in source(Consumer._drain_messages)

    def test_the_conductor_waits_for_the_producer_buffer_only(self) -> None:
        text = source(ConductorCompiler.build)
        assert "app.producer.buffer.wait_until_ebb" in text
        assert "chan.decode(message, propagate=True)" in text


class TestRecovery:
    def test_the_table_is_asked_for_its_offset_after_on_rebalance(self) -> None:
        text = source(TableManager.on_rebalance)
        assert text.index("table.on_rebalance") < text.index("self.recovery.on_rebalance")
        assert "table.persisted_offset(tp)" in source(Recovery._add)

    def test_replay_starts_after_the_persisted_offset(self) -> None:
        assert "offset > seen_offset" in module_source(Recovery)

    def test_sources_resume_only_after_the_tables_are_told(self) -> None:
        text = source(Recovery.on_recovery_completed)
        assert text.index("table.on_recovery_completed(") < text.index("consumer.resume_partitions(")
        assert "self.actives_for_table[table]" in text

    def test_a_recovery_buffer_of_1_would_read_active_changelogs_again(self) -> None:
        assert "recovery_buffer_size == 1" in module_source(Recovery)

    def test_a_table_delegates_to_its_store(self) -> None:
        assert "self.data.apply_changelog_batch( batch," in source(Collection.apply_changelog_batch)
        assert "self.data.on_rebalance(assigned, revoked, newly_assigned, generation_id)" in source(
            Collection.on_rebalance
        )
        assert "self.data.on_recovery_completed(active_tps, standby_tps)" in source(
            Collection.on_recovery_completed
        )
        assert "self.data.persisted_offset(tp)" in source(Collection.persisted_offset)

    def test_the_assignor_tells_actives_from_standbys(self) -> None:
        assert parameters(PartitionAssignor.assigned_actives) == ["self"]
        assert parameters(PartitionAssignor.assigned_standbys) == ["self"]


class TestApp:
    def test_faust_s_own_topics_come_from_the_boot_strategy_we_replace(self) -> None:
        text = source(BootStrategy.kafka_consumer)
        assert "app._leader_assignor" in text
        assert "app._reply_consumer" in text

    def test_a_rebalance_stops_the_flow_before_the_revocation_is_over(self) -> None:
        text = source(App._on_partitions_revoked)
        assert "consumer.stop_flow" in text
        assert "self._consumer_wait_empty" in text

    def test_the_transport_names_its_classes(self) -> None:
        assert "self.Consumer(" in source(base.Transport.create_consumer)
        assert ChunkTransport.Consumer is ChunkConsumer


class TestAiokafka:
    def test_position_moves_when_records_are_taken(self) -> None:
        assert "self._update_position()" in source(FetchResult.getall)
        assert "consumed_to(self._partition_records.next_fetch_offset)" in source(
            FetchResult._update_position
        )

    def test_nothing_is_awaited_between_taking_records_and_returning_them(self) -> None:
        text = source(Fetcher.fetched_records)
        assert "if drained or not timeout: return drained" in text

    def test_a_seek_forgets_what_was_fetched(self) -> None:
        text = source(Fetcher.seek_to)
        assert "del self._records[tp]" in text

    def test_a_partition_state_has_position_and_highwater(self) -> None:
        assert "self.highwater = None" in source(TopicPartitionState.__init__)
        assert isinstance(inspect.getattr_static(TopicPartitionState, "position"), property)

    def test_the_consumer_keeps_its_subscription_here(self) -> None:
        assert "self._subscription = SubscriptionState(" in source(aiokafka.AIOKafkaConsumer.__init__)

    @pytest.mark.parametrize("error", ["IllegalGenerationError", "UnknownMemberIdError"])
    def test_a_refused_heartbeat_resets_the_generation(self, error: str) -> None:
        text = source(GroupCoordinator._do_heartbeat)
        assert "self.reset_generation()" in text[text.index(error) :]

    def test_an_unanswered_heartbeat_does_not(self) -> None:
        text = source(GroupCoordinator._do_heartbeat)
        unanswered = text[text.index("except Errors.KafkaError") : text.index("error_type = ")]
        assert "reset_generation" not in unanswered
        assert "return False" in unanswered
