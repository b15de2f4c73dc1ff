"""Ports and answers: whether a port is free, and whether a Kafka answers there."""

import secrets
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from streams.errors import BrokerUnavailable

__all__ = ["HOST", "AddressInUse", "await_answer", "free_port", "require_free", "require_reachable"]

HOST: Final = "127.0.0.1"  # not localhost: that may be ::1 first, where nobody listens
START_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.05


class AddressInUse(BrokerUnavailable):
    """Another process listens on a port that the broker was to have."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"port {port} (or the controller's beside it) on {HOST} is taken by another process",
            action="choose another port, or end the process that listens there",
        )


def free_port(but: int = 0) -> int:
    """Return a port nobody listens on, outside the range that the system gives to outgoing connections.

    Inside that range a client that tries again and again to reach a broker that is down can be given the
    broker's own port, connect to itself, and keep the broker from coming back.
    """
    for _ in range(100):
        port = 20_000 + secrets.randbelow(10_000)
        if port != but and not _is_taken(port):
            return port
    raise BrokerUnavailable(
        f"100 ports between 20000 and 29999 on {HOST} are taken", action="end what listens there"
    )


def _is_taken(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: TIME_WAIT is no obstacle
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def require_free(port: int) -> None:
    """Raise `AddressInUse` if somebody listens on `port`."""
    if _is_taken(port):
        raise AddressInUse(port)


def _answers(host: str, port: int) -> bool:
    """Whether a Kafka answers an ApiVersions request (version 0, the one that every broker knows)."""
    request = struct.pack(">ihhih", 10, 18, 0, 1, -1)  # size, api key, version, correlation id, no client id
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            connection.sendall(request)
            header = connection.recv(8, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(header) == 8 and struct.unpack(">ii", header)[1] == 1


def await_answer(host: str, port: int, check: Callable[[], None]) -> None:
    """Wait until a Kafka answers; `check` is called between looks and raises to end the wait early."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(host, port):
        check()
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"Kafka at {host}:{port} did not answer within {START_TIMEOUT_S:.0f} s",
                action="is the machine overloaded? The broker's log says how far it came",
            )
        time.sleep(_POLL_S)


def require_reachable(bootstrap: str) -> None:
    """Check that one of the given addresses takes connections; TLS and SASL are the clients' business."""
    problems = []
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        if not host or not port.isdigit():
            raise BrokerUnavailable(
                f"{address.strip()!r} is not host:port", action="correct KAFKA_BOOTSTRAP_SERVERS"
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            problems.append(f"{address.strip()}: {error}")
        else:
            return
    raise BrokerUnavailable(
        f"no Kafka at the given address ({'; '.join(problems)})",
        action="start it, correct KAFKA_BOOTSTRAP_SERVERS, or unset it to have one started here",
    )
