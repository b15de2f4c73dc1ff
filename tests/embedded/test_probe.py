"""Ports and answers, on real sockets."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.embedded import kafka
from streams.embedded.docker import docker_kafka, engine_answers
from streams.embedded.probe import (
    HOST,
    AddressInUse,
    await_answer,
    free_port,
    require_free,
    require_reachable,
)
from streams.errors import BrokerUnavailable


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as server:
        yield server


def test_free_port_is_outside_the_ephemeral_range_and_free() -> None:
    port = free_port()
    assert 20_000 <= port < 30_000
    require_free(port)


def test_taken_port_is_named(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(AddressInUse, match=rf"port {port} .* Operator action: choose another port"):
        require_free(port)


def test_await_answer_takes_kafkas_answer_only(listener: socket.socket) -> None:
    """A stranger that talks something else on the port is not taken for a broker."""
    replies = iter([b"HTTP/1.1", b"", bytes([0, 0, 0, 10, 0, 0, 0, 1])])
    asked: list[bytes] = []

    def serve() -> None:
        for reply in replies:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(64))
                connection.sendall(reply)

    server = threading.Thread(target=serve)
    server.start()
    looks: list[None] = []
    await_answer(HOST, listener.getsockname()[1], lambda: looks.append(None))
    server.join()
    assert len(looks) == 2
    assert asked == [bytes([0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 255, 255])] * 3


def test_await_answer_ends_when_the_check_raises() -> None:
    def check() -> None:
        raise BrokerUnavailable("it died")

    with pytest.raises(BrokerUnavailable, match="it died"):
        await_answer(HOST, free_port(), check)


def test_one_reachable_address_is_enough(listener: socket.socket) -> None:
    require_reachable(f"{HOST}:{free_port()}, {HOST}:{listener.getsockname()[1]}")


@pytest.mark.parametrize("address", ["localhost", ":9092", "host:", "host:port"])
def test_malformed_address_is_quoted(address: str) -> None:
    with pytest.raises(BrokerUnavailable, match=f"'{address}' is not host:port"):
        require_reachable(address)


def test_given_address_that_does_not_answer_is_an_error_and_no_other_broker_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = f"{HOST}:{free_port()}"
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", address)
    with pytest.raises(BrokerUnavailable, match=f"no Kafka at the given address .{address}"), kafka():
        pytest.fail("nothing to yield")


def test_argument_goes_before_the_environment(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"{HOST}:{free_port()}")
    address = f"{HOST}:{listener.getsockname()[1]}"
    with kafka(address) as broker:
        assert broker == (address, "given")


def test_no_docker_engine_at_a_socket_that_nobody_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    assert not engine_answers()
    with docker_kafka(pytest.fail) as address:
        assert address is None


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # docker leaves the refused connection open
def test_no_docker_engine_at_a_port_that_nobody_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://{HOST}:{free_port()}")
    assert not engine_answers()
