"""Apache Kafka's official image in a container, where a Docker engine answers."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from streams.embedded.jars import KAFKA_VERSION
from streams.embedded.node import ONE_NODE_SETTINGS
from streams.embedded.probe import await_answer, free_port

__all__ = ["DOCKER_IMAGE", "docker_kafka", "engine_answers"]

log = logging.getLogger(__name__)

DOCKER_IMAGE: Final = f"apache/kafka:{KAFKA_VERSION}"


@contextmanager
def docker_kafka(report: Callable[[str], None]) -> Iterator[str | None]:
    """Yield the address of a Kafka in a container; None where no engine answers or it cannot run one."""
    if not engine_answers():
        yield None
        return
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415  (optional, and slow to import)

    port = free_port()
    container = DockerContainer(DOCKER_IMAGE).with_bind_ports(9092, port)
    host = container.get_docker_client().host()
    for key, value in {
        **ONE_NODE_SETTINGS,
        "listeners": "PLAINTEXT://0.0.0.0:9092,CONTROLLER://localhost:9093",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "controller.quorum.voters": "1@localhost:9093",
    }.items():
        container.with_env("KAFKA_" + key.upper().replace(".", "_"), value)
    report(f"starting {DOCKER_IMAGE} in Docker")
    try:
        container.start()
        await_answer(host, port, lambda: None)
    except Exception as error:  # noqa: BLE001  (pull, quota, network, policy: each engine has its own errors)
        log.warning(
            "Docker answers but could not run %s (%s); taking the embedded Kafka", DOCKER_IMAGE, error
        )
        with suppress(Exception):
            container.stop()
        yield None
        return
    try:
        yield f"{host}:{port}"
    finally:
        container.stop()


def engine_answers() -> bool:
    """Whether testcontainers is installed and a Docker engine takes commands."""
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if address.startswith("unix://") and not _takes_connections(address.removeprefix("unix://")):
        return False  # without loading the libraries: the usual case, and they leave the failed socket open
    try:
        import docker  # noqa: PLC0415  (optional, and slow to import)
        import testcontainers.core  # noqa: F401, PLC0415
    except ImportError:
        return False
    try:
        client = docker.from_env(timeout=3)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except (docker.errors.DockerException, OSError):
        return False
    finally:
        client.close()


def _takes_connections(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(3)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
