"""The embedded Kafka through its whole life: a real broker, killed, frozen, restarted, orphaned."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from streams.embedded import Broker, EmbeddedKafka
from streams.embedded import node as node_module
from streams.embedded.docker import docker_kafka, engine_answers
from streams.embedded.probe import HOST, AddressInUse, free_port
from streams.errors import BrokerUnavailable

pytestmark = pytest.mark.integration

POLL_S = 0.05


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {timeout_s:.0f} s still not: {what}")
        time.sleep(POLL_S)  # between two looks, never instead of one


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (ProcessLookupError, FileNotFoundError):
        return False


async def create_topic(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        created = await admin.create_topics([NewTopic(topic, 1, 1)])
        assert [error[1] for error in created.topic_errors] == [0]
    finally:
        await admin.close()


async def produce(bootstrap: str, topic: str, value: bytes) -> int:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", request_timeout_ms=5000)
    await producer.start()
    try:
        return int((await producer.send_and_wait(topic, value, partition=0)).offset)
    finally:
        await producer.stop()


async def read_all(bootstrap: str, topic: str) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        await consumer.seek_to_beginning(partition)
        found: list[bytes] = []
        while len(found) < end:
            found += [record.value for record in (await consumer.getmany(timeout_ms=1000)).get(partition, [])]
        return found
    finally:
        await consumer.stop()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """Yield a broker of our own in a folder that stays: these tests ill-treat it."""
    with EmbeddedKafka(tmp_path_factory.mktemp("kafka")) as running:
        yield running


async def test_shared_broker_answers(broker: Broker, topic_prefix: str) -> None:
    await create_topic(broker.bootstrap_servers, topic_prefix + "t")
    assert await produce(broker.bootstrap_servers, topic_prefix + "t", b"x") == 0
    assert await read_all(broker.bootstrap_servers, topic_prefix + "t") == [b"x"]


async def test_unknown_topic_is_not_created(node: EmbeddedKafka) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=node.bootstrap_servers, request_timeout_ms=1000)
    await producer.start()
    try:
        with pytest.raises(KafkaError):
            await producer.send_and_wait("never-created", b"x")
        assert "never-created" not in (await producer.client.fetch_all_metadata()).topics()
    finally:
        await producer.stop()


async def test_data_and_address_survive_stop_kill_and_restart(node: EmbeddedKafka) -> None:
    address, topic = node.bootstrap_servers, "survives"
    await create_topic(address, topic)
    written: list[bytes] = []
    for end in (node.stop, node.kill):
        written.append(f"before {end.__name__} {len(written)}".encode())
        assert await produce(address, topic, written[-1]) == len(written) - 1
        end()
        assert not node.is_running()
        assert node.pid is None
        node.start()
        assert node.bootstrap_servers == address
        assert await read_all(address, topic) == written
    old = node.pid
    node.restart()
    assert node.pid != old
    assert await read_all(address, topic) == written


async def test_paused_broker_holds_its_connections_and_goes_on_when_resumed(node: EmbeddedKafka) -> None:
    await create_topic(node.bootstrap_servers, "paused")
    producer = AIOKafkaProducer(bootstrap_servers=node.bootstrap_servers, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait("paused", b"before")
        node.pause()
        sent = await producer.send("paused", b"during")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(sent), timeout=2)
        assert node.is_running()
        node.resume()
        assert (await sent).offset == 1
    finally:
        node.resume()
        await producer.stop()


def test_second_start_is_refused(node: EmbeddedKafka) -> None:
    with pytest.raises(BrokerUnavailable, match="runs already"):
        node.start()


def test_folder_is_read_again_by_another_instance_on_another_port(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path) as first:
        asyncio.run(create_topic(first.bootstrap_servers, "kept"))
        asyncio.run(produce(first.bootstrap_servers, "kept", b"x"))
    with EmbeddedKafka(tmp_path, port=free_port()) as second:
        assert asyncio.run(read_all(second.bootstrap_servers, "kept")) == [b"x"]
        identity = tmp_path / "data" / "meta.properties"
    identity.write_text("version=1\nnode.id=7\n", encoding="utf-8")
    with (
        pytest.raises(BrokerUnavailable, match=r"(?s)ended while starting .*cluster\.id was not found"),
        EmbeddedKafka(tmp_path),
    ):
        pytest.fail("a broker started on another node's data")


def test_bad_setting_is_shown_with_the_brokers_own_words(tmp_path: Path) -> None:
    node = EmbeddedKafka(tmp_path, settings={"log.cleaner.threads": "many"})
    with pytest.raises(BrokerUnavailable, match=r"(?s)could not be formatted.*many.*log\.cleaner\.threads"):
        node.start()
    assert not node.is_running()


def test_taken_port_is_named_and_nothing_is_left() -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        node = EmbeddedKafka(port=port)
        with pytest.raises(AddressInUse, match=f"port {port} "), node:
            pytest.fail("started on a taken port")
    assert not node.folder.exists()


def test_port_taken_between_look_and_start_is_chosen_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken, free_port(), free_port(), taken])  # clients' and controller's, in turn
        monkeypatch.setattr(node_module, "free_port", lambda but=0: next(ports, None) or free_port(but))
        with EmbeddedKafka(tmp_path) as node:
            assert node.bootstrap_servers != f"{HOST}:{taken}"
            asyncio.run(create_topic(node.bootstrap_servers, "works"))
        assert next(ports, None) is None


def test_broker_that_ended_by_itself_is_started_again() -> None:
    with EmbeddedKafka() as node:
        asyncio.run(create_topic(node.bootstrap_servers, "kept"))
        assert node.pid is not None
        os.kill(node.pid, signal.SIGKILL)
        wait_for(lambda: not node.is_running(), "the broker's end is noticed")
        node.start()
        asyncio.run(produce(node.bootstrap_servers, "kept", b"x"))
        folder = node.folder
        assert folder.exists()
    assert not folder.exists()


ORPHAN = """
import os, signal
from streams.embedded import EmbeddedKafka
node = EmbeddedKafka().start()
print(node.pid, node.folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_broker_dies_with_a_parent_that_was_killed() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, folder = done.stdout.split()
    wait_for(lambda: not is_alive(int(pid)), f"broker {pid} is gone")
    wait_for(lambda: not Path(folder).exists(), f"{folder} is removed")


FOREGROUND = """
import sys
from streams.embedded import run_foreground
sys.exit(run_foreground())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground_prints_the_address_and_cleans_up(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", FOREGROUND], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        line = next(line for line in lines if line.startswith("Kafka answers at"))
        address, log_path = line.removeprefix("Kafka answers at ").strip().split("; log: ")
        assert next(lines).strip() == f"export KAFKA_BOOTSTRAP_SERVERS={address}"
        socket.create_connection((HOST, int(address.rpartition(":")[2]))).close()
        process.send_signal(number)
        assert process.wait(60) == 0
    assert not Path(log_path).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, int(address.rpartition(":")[2])))


FOREGROUND_BROKER_DIES = """
import os, signal, sys, threading
from streams.embedded import node, run_foreground
start = node.EmbeddedKafka.start
def start_then_die(self):
    started = start(self)
    threading.Timer(0.5, os.kill, (self.pid, signal.SIGKILL)).start()
    return started
node.EmbeddedKafka.start = start_then_die
sys.exit(run_foreground())
"""


def test_foreground_says_so_when_the_broker_ends_by_itself() -> None:
    command = [sys.executable, "-c", FOREGROUND_BROKER_DIES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Kafka ended by itself" in done.stdout


def test_docker_broker_answers() -> None:
    if not engine_answers():
        pytest.skip("no Docker engine answers on this machine")
    with docker_kafka(print) as address:
        assert address is not None
        asyncio.run(create_topic(address, "in-docker"))
