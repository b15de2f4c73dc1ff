"""What goes on at the shop while workers suffer: producers of events, and an edge that decides all the time.

Simulated time runs at ``HOUR_S`` seconds an hour, in the past, so that windows, grace and eviction matter
within a minute.
"""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict, deque
from typing import Any

from aiokafka.errors import KafkaError

from streams.config import Settings
from streams.edge import EdgeClient
from streams.partitioning import partition_of
from tests.harness.installation import Installation
from tests.harness.traffic import HOUR_MS, Sent, Traffic

HOUR_S = 3.0
TICK_S = 0.25
EVENTS_PER_S = 450
DECIDE_S = 0.02
EXPERIMENTS = ("display", "clicks", "revenue", "clicked")
OVERSIZE_BYTES = 900_000


class Shop:
    """Produces seeded traffic until told to stop.

    Attributes
    ----------
    held
        Topics whose records are kept back for now.
    repeats
        Whether every record is sent again, out of order.
    """

    def __init__(self, installation: Installation, *, seed: int, start_ms: int) -> None:
        self.installation = installation
        self.start_ms = start_ms
        self.held: set[str] = set()
        self.repeats = False
        self.sent: Counter[str] = Counter()
        self._settings = installation.settings
        self._random = random.Random(seed)
        self._traffic = Traffic(
            seed=seed, start_ms=start_ms, n_partitions=self._settings.partitions, n_units=1500
        )
        self._back: list[Sent] = []
        self._recent: deque[Sent] = deque(maxlen=400)
        self._pending: set[asyncio.Future[Any]] = set()
        self._stopping = asyncio.Event()
        self.now_ms = start_ms
        self.failed = 0

    def stop(self) -> None:
        """Ask `run` to end after what was held back is out."""
        self._stopping.set()

    async def run(self) -> None:
        """Produce until `stop`; may be run again."""
        self._stopping.clear()
        due_s = time.monotonic()
        while not self._stopping.is_set():
            n = int(EVENTS_PER_S * TICK_S)
            records = list(self._traffic.records(n, hours=TICK_S / HOUR_S))
            self.now_ms += int(TICK_S / HOUR_S * HOUR_MS)
            if self.repeats:
                again = list(self._recent)
                self._random.shuffle(again)
                records += again[:n]
                self._random.shuffle(records)
            await self._produce(records)
            due_s = max(due_s + TICK_S, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        self.held.clear()
        await self._produce([])
        while self._pending:
            await asyncio.wait(self._pending)

    async def _produce(self, records: list[Sent]) -> None:
        ready = [record for record in [*self._back, *records] if record.topic not in self.held]
        self._back = [record for record in [*self._back, *records] if record.topic in self.held]
        for record in ready:
            self._recent.append(record)
            await self.send(record)

    async def send(self, record: Sent) -> None:
        """Hand one record to the producer; waits while it is full, which it is while the broker is away."""
        topic = self._settings.topic("exposures" if record.topic == "exposures" else "conversions")
        while not self._stopping.is_set():
            try:
                future = await self.installation.producer.send(
                    topic, record.value, record.key, partition=record.partition
                )
            except KafkaError:
                await asyncio.sleep(0.2)
                continue
            self._pending.add(future)
            future.add_done_callback(self._acknowledged)
            return

    def _acknowledged(self, future: "asyncio.Future[Any]") -> None:
        self._pending.discard(future)
        if future.cancelled() or future.exception() is not None:
            self.failed += 1  # whether it was written is unknown: the topics say
        else:
            self.sent["records"] += 1

    async def poison(self, pick: random.Random, n: int) -> None:
        """Send a burst of records that must all become dead letters."""
        for _ in range(n):
            await self.send(self._bad(pick))
            self.sent["poison"] += 1

    def _bad(self, pick: random.Random) -> Sent:
        topic = pick.choice(("exposures", "conversions"))
        partition = pick.randrange(self._settings.partitions)
        unit = f"u{pick.randrange(1500)}".encode()
        kind = pick.randrange(6)
        if kind == 0:
            return Sent(topic, partition, unit, pick.randbytes(pick.randrange(1, 200)))
        if kind == 1:
            return Sent(topic, partition, unit, None)
        if kind == 2 and pick.random() < 0.1:
            return Sent(topic, partition, unit, b"x" * OVERSIZE_BYTES)
        event: dict[str, Any] = {
            "exposure_id" if topic == "exposures" else "conversion_id": f"bad-{pick.randrange(2**40)}",
            "unit_id": unit.decode(),
            "timestamp": self.now_ms,
            "experiment_id": "nobody",
        }
        event |= {"arm_id": "a"} if topic == "exposures" else {"metric": "order"}
        if kind == 3:
            event |= {"experiment_id": "display", "timestamp": (time.time_ns() // 10**6) + 9 * HOUR_MS}
        elif kind == 4:
            event |= {"experiment_id": "display", "timestamp": "yesterday"}
        value = json.dumps(event).encode()
        return Sent(topic, partition_of(unit, self._settings.partitions), unit, value)


class Edge:
    """An edge service: decides without end, reports some of what it decided, and notes every version."""

    def __init__(self, settings: Settings, shop: Shop, seed: int) -> None:
        self.client = EdgeClient(settings)
        self.versions: dict[str, list[int]] = defaultdict(list)
        self.n_decisions = 0
        self.slowest_s = 0.0
        self._shop = shop
        self._random = random.Random(seed)

    async def run(self) -> None:
        """Decide until cancelled."""
        async with self.client:
            while True:
                for experiment_id in EXPERIMENTS:
                    self._decide(experiment_id)
                await asyncio.sleep(DECIDE_S)

    def _decide(self, experiment_id: str) -> None:
        unit = f"edge-{self._random.randrange(3000)}"
        began_s = time.perf_counter()
        decision = self.client.decide(experiment_id, unit)
        self.slowest_s = max(self.slowest_s, time.perf_counter() - began_s)
        self.n_decisions += 1
        seen = self.versions[experiment_id]
        if decision.allocation_version is not None and (not seen or seen[-1] != decision.allocation_version):
            seen.append(decision.allocation_version)
        if self._random.random() < 0.05:
            at_ms = self._shop.now_ms
            self.client.expose(decision, at_ms)
            if self._random.random() < 0.3:
                self.client.convert(unit, "order", timestamp=at_ms + 60_000)
