"""Brokers of a run, and a proxy between each worker and each of them.

Every broker has a listener for the harness and one for each worker, advertised at that worker's proxy: so the
harness sees what is there whatever happens to a worker's connections. The first broker is the controller and
coordinates all groups; a second one leads what a run wants to be slow.
"""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from streams.config import Settings, TopicName
from streams.embedded import EmbeddedKafka
from streams.embedded.probe import HOST, START_TIMEOUT_S, free_port
from streams.topics import topic_specs
from tests.chaos.proxy import Mode, Proxy
from tests.harness.workers import until

Placement = Callable[[TopicName, int], list[int]]
"""Replicas of a partition of a topic (without prefix), by broker id; the first one leads."""


class Broker(EmbeddedKafka):
    """One broker of a run; the first is the controller.

    Parameters
    ----------
    number
        Its id, from 1.
    controller_port
        Port of the first broker's controller listener.
    inner_ports, outer_ports
        By worker: what its listener listens on, and what it says (the proxy's).
    first
        The first broker, started before; None for itself.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        *,
        controller_port: int,
        inner_ports: list[int],
        outer_ports: list[int],
        first: "Broker | None" = None,
    ) -> None:
        port, between = free_port(), free_port()
        own = {"PLAINTEXT": port, "BETWEEN": between} | ({} if first else {"CONTROLLER": controller_port})
        inner = own | {f"W{n}": worker_port for n, worker_port in enumerate(inner_ports)}
        outer = own | {f"W{n}": worker_port for n, worker_port in enumerate(outer_ports)}
        names = {*inner, "CONTROLLER"}
        super().__init__(
            folder,
            port=port,
            heap_mb=512 if first is None else 320,
            settings={
                "node.id": str(number),
                "process.roles": "broker" if first else "broker,controller",
                "listeners": _listeners(inner),
                "advertised.listeners": _listeners(outer),
                "inter.broker.listener.name": "BETWEEN",
                "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in sorted(names)),
                "controller.quorum.bootstrap.servers": f"{HOST}:{controller_port}",
                "replica.lag.time.max.ms": "4000",
                "replica.fetch.wait.max.ms": "200",
            },
        )
        self.number = number
        self._first = first

    @property
    def _cluster_id(self) -> str:
        text = (self.folder / "data" / "meta.properties").read_text(encoding="utf-8")
        (line,) = (line for line in text.splitlines() if line.startswith("cluster.id="))
        return line.removeprefix("cluster.id=")

    def _format(self, java: Path, classpath: str) -> None:
        if self._first is None:
            super()._format(java, classpath)
        elif not (self.folder / "data" / "meta.properties").exists():
            settings = str(self.folder / "server.properties")
            tool = ("kafka.tools.StorageTool", "format", "-t", self._first._cluster_id, "-c", settings)
            command = self._command(java, classpath, *tool)
            subprocess.run(command, check=True, capture_output=True, timeout=START_TIMEOUT_S)


def _listeners(ports: dict[str, int]) -> str:
    return ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items())


class Link:
    """One worker's connections: a proxy to each broker."""

    def __init__(self, proxies: list[Proxy]) -> None:
        self.proxies = proxies

    @property
    def address(self) -> str:
        """Where the worker finds the first broker."""
        return f"{HOST}:{self.proxies[0].port}"

    def set(self, mode: Mode, *, delay_s: float = 0.0) -> None:
        """Change the mode of all connections."""
        for proxy in self.proxies:
            proxy.set(mode, delay_s=delay_s)


class Network:
    """Brokers and proxies; an async context manager that starts them and ends them.

    Parameters
    ----------
    folder
        Data of the brokers.
    n_workers, n_brokers
        How many of each.
    """

    def __init__(self, folder: Path, n_workers: int, n_brokers: int = 1) -> None:
        self.brokers: list[Broker] = []
        self._proxies: list[list[Proxy]] = []  # by broker, by worker
        controller_port = free_port()
        for number in range(1, n_brokers + 1):
            inner_ports = [free_port() for _ in range(n_workers)]
            proxies = [Proxy(port) for port in inner_ports]
            self._proxies.append(proxies)
            self.brokers.append(
                Broker(
                    folder if number == 1 else folder.with_name(f"{folder.name}-{number}"),
                    number,
                    controller_port=controller_port,
                    inner_ports=inner_ports,
                    outer_ports=[proxy.port for proxy in proxies],
                    first=self.brokers[0] if self.brokers else None,
                )
            )
        self.links = [Link([proxies[n] for proxies in self._proxies]) for n in range(n_workers)]

    @property
    def first(self) -> Broker:
        """The controller, at which the harness starts."""
        return self.brokers[0]

    @property
    def bootstrap_servers(self) -> str:
        """Address for the harness."""
        return self.first.bootstrap_servers

    def slow(self, number: int, mode: Mode, *, delay_s: float = 0.0) -> None:
        """Change the mode of every worker's connections to one broker."""
        for proxy in self._proxies[number - 1]:
            proxy.set(mode, delay_s=delay_s)

    async def __aenter__(self) -> "Network":
        try:
            for proxies in self._proxies:
                for proxy in proxies:
                    await proxy.start()
            for broker in self.brokers:
                await asyncio.to_thread(broker.start)
                if broker is self.first and len(self.brokers) > 1:
                    await self._make_coordinator()
            await self._all_there()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for broker in reversed(self.brokers):
            broker.resume()
            await asyncio.to_thread(broker.kill)
        for proxies in self._proxies:
            for proxy in proxies:
                await proxy.stop()

    async def _make_coordinator(self) -> None:
        """Have the topic of groups on the first broker: it is no part of what is slowed down."""

        async def condition(admin: AIOKafkaAdminClient) -> bool:
            return bool(await admin.find_coordinator("first") == self.first.number)

        await self._until_answered(condition, "groups have a coordinator")

    async def _all_there(self) -> None:
        async def condition(admin: AIOKafkaAdminClient) -> bool:
            return len((await admin.describe_cluster())["brokers"]) == len(self.brokers)

        await self._until_answered(condition, "all brokers are in the cluster")

    async def _until_answered(self, ask: Callable[[AIOKafkaAdminClient], Awaitable[bool]], what: str) -> None:
        """Ask until it is so; brokers that are away do not answer."""

        async def condition() -> bool:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers, request_timeout_ms=5_000)
            try:
                await admin.start()
                return await ask(admin)
            except KafkaError:
                return False
            finally:
                await admin.close()

        await until(condition, deadline_s=60, what=what, poll_s=0.3)

    async def in_sync(self, topic: str, n_replicas: int) -> None:
        """Wait until every partition of a topic has so many replicas in sync."""

        async def condition(admin: AIOKafkaAdminClient) -> bool:
            (found,) = await admin.describe_topics([topic])
            return all(len(each["isr"]) == n_replicas for each in found["partitions"])

        await self._until_answered(condition, f"{topic}: {n_replicas} in sync")

    async def led_by(self, topic: str, number: int) -> None:
        """Wait until one broker leads every partition of a topic."""

        async def condition(admin: AIOKafkaAdminClient) -> bool:
            (found,) = await admin.describe_topics([topic])
            return all(each["leader"] == number for each in found["partitions"])

        await self._until_answered(condition, f"{topic} is led by {number}")

    async def configure(self, settings: Settings, role: TopicName, changes: dict[str, str]) -> None:
        """Have a topic as the product makes it, but for these properties."""
        (spec,) = (spec for spec in topic_specs(settings) if spec.role == role)
        resource = ConfigResource(ConfigResourceType.TOPIC, spec.name, dict(spec.configs) | changes)

        async def condition(admin: AIOKafkaAdminClient) -> bool:
            (response,) = await admin.alter_configs([resource])
            return not any(each[0] for each in response.resources)

        await self._until_answered(condition, f"{spec.name} has {changes}")

    async def create_topics(self, settings: Settings, place: Placement) -> None:
        """Create the product's topics with chosen replicas."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        await admin.start()
        try:
            topics = [
                NewTopic(
                    spec.name,
                    -1,
                    -1,
                    replica_assignments={n: place(spec.role, n) for n in range(spec.partitions)},
                    topic_configs=dict(spec.configs),
                )
                for spec in topic_specs(settings)
            ]
            response = await admin.create_topics(topics)
            assert not any(topic["error_code"] for topic in response.to_object()["topic_errors"]), response
        finally:
            await admin.close()
