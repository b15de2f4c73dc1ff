"""A real Apache Kafka for demo, tests and development, found or started.

`kafka` yields the first that can be had: the address given, a container where a Docker engine answers, or
`EmbeddedKafka`, which runs the official jars in a Java process of our own. Nothing here is a fake: code that
passes against it has met the broker it will meet in production, in the one-node form.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal, NamedTuple

from streams.embedded.docker import docker_kafka
from streams.embedded.node import EmbeddedKafka
from streams.embedded.probe import require_reachable

__all__ = ["Broker", "BrokerKind", "EmbeddedKafka", "kafka", "run_foreground"]

BrokerKind = Literal["given", "docker", "embedded"]


class Broker(NamedTuple):
    """A Kafka that answers.

    Parameters
    ----------
    bootstrap_servers
        Addresses as clients take them, ``host:port[,host:port]``.
    kind
        Where it came from.
    """

    bootstrap_servers: str
    kind: BrokerKind


@contextmanager
def kafka(bootstrap: str | None = None, *, report: Callable[[str], None] | None = None) -> Iterator[Broker]:
    """Yield a Kafka that answers, and end it afterwards if it was started here.

    Order: `bootstrap`, else the environment's ``KAFKA_BOOTSTRAP_SERVERS``; a container if a Docker engine
    answers and can start it; else `EmbeddedKafka`.

    Parameters
    ----------
    bootstrap
        Address of a running Kafka, ``host:port[,host:port]``.
    report
        Called with a line for people when there is something to wait for.

    Yields
    ------
    Broker
        Address and kind.

    Raises
    ------
    BrokerUnavailable
        The given address does not answer, or nothing can be started here.
    """
    given = bootstrap or os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        require_reachable(given)
        yield Broker(given, "given")
        return
    with docker_kafka(report or (lambda _: None)) as address:
        if address is not None:
            yield Broker(address, "docker")
            return
    with EmbeddedKafka(report=report) as embedded:
        yield Broker(embedded.bootstrap_servers, "embedded")


def run_foreground(port: int | None = None, folder: Path | None = None) -> int:
    """Run an embedded Kafka until Ctrl-C or SIGTERM: the command ``bandit-streams kafka``.

    Parameters
    ----------
    port
        Port of the clients' listener; a free one if not given.
    folder
        Where the data stays; a temporary folder, removed at the end, if not given.

    Returns
    -------
    int
        0 after a signal, 1 if the broker ended by itself.
    """
    ended = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with EmbeddedKafka(folder, port=port, report=lambda line: print(line, flush=True)) as broker:
            print(f"Kafka answers at {broker.bootstrap_servers}; log: {broker.log_path}", flush=True)
            print(f"export KAFKA_BOOTSTRAP_SERVERS={broker.bootstrap_servers}", flush=True)
            while not ended.wait(0.2):
                if not broker.is_running():
                    print(f"Kafka ended by itself; the end of its log:\n{broker.log_tail()}", flush=True)
                    return 1
            print("stopping Kafka", flush=True)
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
