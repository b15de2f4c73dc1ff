"""What the owner of a partition takes in hand at once of the results that are due."""

from typing import Any

from streams.allocations import Allocation
from streams.allocator.compute import Job, Stamp, compute, inputs_of
from streams.allocator.context import AllocatorContext
from streams.allocator.pool import ComputePool
from streams.allocator.results import AT_ONCE, AT_ONCE_BYTES, PartitionResults
from streams.config import Settings
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.join.cells import Cell, CellKey
from streams.metrics import Metrics


def allocation(experiment_id: str) -> Allocation:
    record = ExperimentRecord(
        experiment_id=experiment_id,
        revision=1,
        status="live",
        arms=(Arm(arm_id="a"), Arm(arm_id="b")),
        control="a",
        versions=(Counting(version=1, effective_from_ms=0, reward=Reward(metric="click")),),
    )
    (found,) = compute([Job(inputs_of(record, 0, {}, None), Stamp(0, "interval", 1))])
    assert isinstance(found, Allocation)
    return found


def owner() -> PartitionResults:
    experiments: Any = None
    pool, metrics = ComputePool(), Metrics(max_experiments=1)
    context = AllocatorContext(Settings(), experiments, pool, pool, metrics, lambda: 0)
    return PartitionResults(0, context, lambda: True)


def test_many_small_ones_are_taken_together_and_each_once() -> None:
    own = owner()
    names = [f"e{n:03}" for n in range(AT_ONCE + 5)]
    for name in reversed(names):
        own.published(allocation(name))
    assert list(own._take()) == names[:AT_ONCE]
    assert list(own._take()) == names[AT_ONCE:]
    assert own._take() == {}


def test_large_ones_are_taken_one_by_one() -> None:
    own = owner()
    arm = "a" * (AT_ONCE_BYTES // 2)
    for name in ("large-1", "large-2", "small"):
        own.published(allocation(name))
        if name == "small":
            continue
        for bucket in (1, 2):
            key, place = (
                CellKey(name, 1, "reporting", "click", arm, "", "bandit", 0, bucket),
                CountsKey(name, 0, bucket),
            )
            record = CountsRecord(Order(1, 1, bucket), {key: Cell(1, 0, {})})
            own.counted(encode_key(place), encode_counts(place, record))
    assert list(own._take()) == ["large-1"]
    assert list(own._take()) == ["large-2"]
    assert list(own._take()) == ["small"]
