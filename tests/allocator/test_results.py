"""When the results of a partition are made: after allocations, and not never."""

import time
from typing import Any

import pytest

from streams.allocator.context import AllocatorContext
from streams.allocator.pool import ComputePool
from streams.allocator.results import HELD_UP_MOST_S, PartitionResults
from streams.config import Settings
from streams.metrics import Metrics


def test_results_wait_while_allocations_are_due_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    behind: set[int] = set()
    experiments: Any = None
    context = AllocatorContext(
        Settings(), experiments, ComputePool(), Metrics(max_experiments=1), lambda: 0, behind
    )
    own = PartitionResults(0, context, lambda: True)
    assert not own._waits()
    behind.update((0, 3))
    assert own._waits()
    behind.discard(0)
    now_s[0] += HELD_UP_MOST_S - 1
    assert own._waits(), "another partition's allocations take the same cores"
    now_s[0] += 1
    assert not own._waits()
    behind.clear()
    assert not own._waits()
    behind.add(3)
    assert own._waits(), "a new boundary has its own time"
