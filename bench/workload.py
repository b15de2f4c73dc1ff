"""The work that every contestant gets: events from a seed, and what they must count to.

Exposures of about 130 bytes over a number of units, experiments and arms, in order of time; a share of them
converts within the window. The rules are the product's defaults: a trial is the first exposure of
(experiment, unit, hour), its arm's exposures are touches, a conversion is credited to the last touch before
it within the window, once in every experiment, and a trial succeeds with its first conversion. Counted by
(experiment, arm, hour of the trial).

:func:`expected` is the oracle: it sees all events of a unit at once, in order of time, and shares no code
with any contestant.
"""

import asyncio
import heapq
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Self

from aiokafka import AIOKafkaProducer

from streams.partitioning import partition_of

HOUR_MS = 3_600_000
BATCH_BYTES = 16_384
"""What producers put into a batch by default."""
MAX_BATCHES_IN_FLIGHT = 256

Counts = dict[tuple[str, str, int], list[int]]
"""(experiment, arm, hour) -> [trials, successes]."""


class Workload(NamedTuple):
    """Sizes and seed of the work; ``hot_share`` of the exposures go to the first ``hot_units`` units."""

    exposures: int = 1_000_000
    units: int = 100_000
    experiments: int = 10
    arms: int = 4
    converting: float = 0.1
    window_ms: int = HOUR_MS
    span_hours: int = 24
    partitions: int = 8
    seed: int = 1
    end_ms: int = 0
    hot_share: float = 0.0
    hot_units: int = 1

    @property
    def start_ms(self) -> int:
        """Time of the first event, a full hour: the last window has closed an hour before the end."""
        window_hours = -(-self.window_ms // HOUR_MS)
        return (self.end_ms // HOUR_MS - self.span_hours - window_hours - 1) * HOUR_MS


class Exposed(NamedTuple):
    """One exposure."""

    at_ms: int
    number: int
    unit: int
    experiment: int
    arm: int


class Converted(NamedTuple):
    """One conversion."""

    at_ms: int
    number: int
    unit: int


def events(work: Workload) -> Iterator[Exposed | Converted]:
    """Yield the events of both topics, merged by time; the same for the same workload."""
    rng = random.Random(work.seed)
    waiting: list[Converted] = []
    span_ms = work.span_hours * HOUR_MS
    for number in range(work.exposures):
        at_ms = work.start_ms + number * span_ms // work.exposures
        while waiting and waiting[0].at_ms <= at_ms:
            yield heapq.heappop(waiting)
        unit = rng.randrange(work.units)
        if work.hot_share and rng.random() < work.hot_share:
            unit %= work.hot_units
        yield Exposed(at_ms, number, unit, rng.randrange(work.experiments), rng.randrange(work.arms))
        if rng.random() < work.converting:
            heapq.heappush(waiting, Converted(at_ms + rng.randrange(1, work.window_ms), number, unit))
    while waiting:
        yield heapq.heappop(waiting)


def expected(work: Workload) -> tuple[int, Counts]:
    """Count without any stream: the number of events, and what they come to."""
    return counted(events(work), work.window_ms)


def counted(found: Iterable[Exposed | Converted], window_ms: int) -> tuple[int, Counts]:
    """Count events in any order: their number, and what they come to."""
    by_unit: dict[int, list[Exposed | Converted]] = defaultdict(list)
    n_events = 0
    for event in found:
        by_unit[event.unit].append(event)
        n_events += 1
    counts: Counts = defaultdict(lambda: [0, 0])
    for own in by_unit.values():
        _count_unit(own, window_ms, counts)
    return n_events, dict(counts)


def difference(found: Counts, wanted: Counts) -> str | None:
    """Say how counts differ from the oracle's; None if they do not."""
    wrong = [key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)]
    if not wrong:
        return None
    key = min(wrong)
    return f"{len(wrong)} cells are wrong, e.g. {key}: {found.get(key)} instead of {wanted.get(key)}"


def _count_unit(own: list[Exposed | Converted], window_ms: int, counts: Counts) -> None:
    arms: dict[tuple[int, int], int] = {}  # trial -> its arm
    touched: dict[int, tuple[int, int]] = {}  # experiment -> time and trial hour of its last touch
    successes: set[tuple[int, int]] = set()
    # An exposure of the same millisecond comes before a conversion, two of them in the order of their ids.
    for event in sorted(own, key=lambda e: (e.at_ms, isinstance(e, Converted), e.number)):
        if isinstance(event, Exposed):
            trial = (event.experiment, event.at_ms // HOUR_MS)
            if trial not in arms:
                arms[trial] = event.arm
                counts[_key(event.experiment, event.arm, trial[1])][0] += 1
            if arms[trial] == event.arm:
                touched[event.experiment] = (event.at_ms, trial[1])
            continue
        for experiment, (at_ms, hour) in touched.items():
            trial = (experiment, hour)
            if event.at_ms - at_ms < window_ms and trial not in successes:
                successes.add(trial)
                counts[_key(experiment, arms[trial], hour)][1] += 1


def _key(experiment: int, arm: int, hour: int) -> tuple[str, str, int]:
    return f"experiment-{experiment}", f"arm-{arm}", hour


class Batcher:
    """Sends events as JSON keyed by unit, in batches of each partition; an async context manager.

    aiokafka's ``send`` costs more for an event than its contents do, which would make the work's production
    longer than most runs; batches are made here instead.

    Parameters
    ----------
    bootstrap
        The broker.
    topics
        ``exposures`` and ``conversions``: full names.
    partitions
        Of both.
    """

    def __init__(self, bootstrap: str, topics: dict[str, str], partitions: int) -> None:
        self._topics = topics
        self._partition_of = lru_cache(1 << 20)(lambda key: partition_of(key, partitions))
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, enable_idempotence=True, max_batch_size=BATCH_BYTES
        )
        self._open: dict[tuple[str, int], Any] = {}
        self._in_flight: deque[asyncio.Future[Any]] = deque()

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._producer.stop()

    async def add(self, event: Exposed | Converted) -> int:
        """Add one event; waits where too many batches are on their way. Returns its partition."""
        topic, key, value = record(event)
        partition = self._partition_of(key)
        place = (topic, partition)
        batch = self._open.get(place)
        if batch is None:
            batch = self._open[place] = self._producer.create_batch()
        if batch.append(key=key, value=value, timestamp=None) is None:
            await self._send(place)
            batch = self._open[place] = self._producer.create_batch()
            batch.append(key=key, value=value, timestamp=None)
        return partition

    async def flush(self, *, wait: bool = True) -> None:
        """Send what is open; wait until all is acknowledged, unless told not to."""
        for place in list(self._open):
            await self._send(place)
        while self._in_flight and (wait or self._in_flight[0].done()):
            await self._in_flight.popleft()

    async def _send(self, place: tuple[str, int]) -> None:
        topic, partition = place
        batch = self._open.pop(place)
        batch.close()
        while len(self._in_flight) >= MAX_BATCHES_IN_FLIGHT:
            await self._in_flight.popleft()
        sent = await self._producer.send_batch(batch, self._topics[topic], partition=partition)
        self._in_flight.append(sent)


async def produce(work: Workload, bootstrap: str, topics: dict[str, str]) -> int:
    """Produce all events in order of time; returns their number."""
    n_events = 0
    async with Batcher(bootstrap, topics, work.partitions) as batcher:
        for event in events(work):
            await batcher.add(event)
            n_events += 1
        await batcher.flush()
    return n_events


def record(event: Exposed | Converted) -> tuple[str, bytes, bytes]:
    """Topic, key and value of an event."""
    unit = b"unit-%07d" % event.unit
    if isinstance(event, Converted):
        value = b'{"conversion_id":"c%09d","unit_id":"%s","metric":"order","timestamp":%d}'
        return "conversions", unit, value % (event.number, unit, event.at_ms)
    value = (
        b'{"exposure_id":"e%09d","experiment_id":"experiment-%d","arm_id":"arm-%d","unit_id":"%s",'
        b'"timestamp":%d,"allocation_version":1}'
    )
    return (
        "exposures",
        unit,
        value % (event.number, event.experiment, event.arm, unit, event.at_ms),
    )
