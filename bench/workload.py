"""The work that every contestant gets: events from a seed, and what they must count to.

Exposures of about 130 bytes over a number of units, experiments and arms, in order of time; a share of them
converts within the window. The rules are the product's defaults: a trial is the first exposure of
(experiment, unit, hour), its arm's exposures are touches, a conversion is credited to the last touch before
it within the window, once in every experiment, and a trial succeeds with its first conversion. Counted by
(experiment, arm, hour of the trial).

:func:`expected` is the oracle: it sees all events of a unit at once, in order of time, and shares no code
with any contestant.
"""

import heapq
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from aiokafka import AIOKafkaProducer

from streams.partitioning import partition_of

HOUR_MS = 3_600_000

Counts = dict[tuple[str, str, int], list[int]]
"""(experiment, arm, hour) -> [trials, successes]."""


class Workload(NamedTuple):
    """Sizes and seed of the work."""

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

    @property
    def start_ms(self) -> int:
        """Time of the first event; full hours before the end."""
        return (self.end_ms // HOUR_MS - self.span_hours - 2) * HOUR_MS


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
        yield Exposed(at_ms, number, unit, rng.randrange(work.experiments), rng.randrange(work.arms))
        if rng.random() < work.converting:
            heapq.heappush(waiting, Converted(at_ms + rng.randrange(1, work.window_ms), number, unit))
    while waiting:
        yield heapq.heappop(waiting)


def expected(work: Workload) -> tuple[int, Counts]:
    """Count without any stream: the number of events, and what they come to."""
    by_unit: dict[int, list[Exposed | Converted]] = defaultdict(list)
    n_events = 0
    for event in events(work):
        by_unit[event.unit].append(event)
        n_events += 1
    counts: Counts = defaultdict(lambda: [0, 0])
    for own in by_unit.values():
        _count_unit(own, work.window_ms, counts)
    return n_events, dict(counts)


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


async def produce(work: Workload, bootstrap: str, topics: dict[str, str]) -> int:
    """Produce all events, as JSON keyed by unit, in order of time; returns their number."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, linger_ms=20, max_batch_size=1 << 17, enable_idempotence=True
    )
    units = [f"unit-{number:07}" for number in range(work.units)]
    keys = [unit.encode() for unit in units]
    partitions = [partition_of(key, work.partitions) for key in keys]
    await producer.start()
    try:
        sent = []
        for event in events(work):
            topic, value = _record(event, units)
            sent.append(
                await producer.send(topics[topic], value, keys[event.unit], partition=partitions[event.unit])
            )
        await producer.flush()
        for future in sent:
            await future
        return len(sent)
    finally:
        await producer.stop()


def _record(event: Exposed | Converted, units: list[str]) -> tuple[str, bytes]:
    if isinstance(event, Converted):
        return "conversions", json.dumps(
            {
                "conversion_id": f"c{event.number:09}",
                "unit_id": units[event.unit],
                "metric": "order",
                "timestamp": event.at_ms,
            },
            separators=(",", ":"),
        ).encode()
    return "exposures", json.dumps(
        {
            "exposure_id": f"e{event.number:09}",
            "experiment_id": f"experiment-{event.experiment}",
            "arm_id": f"arm-{event.arm}",
            "unit_id": units[event.unit],
            "timestamp": event.at_ms,
            "allocation_version": 1,
        },
        separators=(",", ":"),
    ).encode()
