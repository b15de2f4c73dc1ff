"""What the owners of a worker's counts partitions share."""

from collections.abc import Callable
from typing import NamedTuple

from streams.allocator.pool import ComputePool
from streams.compacted import CompactedView
from streams.config import Settings
from streams.experiments.definition import ExperimentRecord
from streams.metrics import Metrics

__all__ = ["AllocatorContext"]


class AllocatorContext(NamedTuple):
    """Shared by all owners.

    ``settings``: addresses, topics, clock; ``experiments``: the definitions, started; ``pool``: where
    allocations are computed; ``results_pool``: where results are, which give way; ``metrics``: counters and
    gauges of the worker; ``clock``: epoch ms.
    """

    settings: Settings
    experiments: CompactedView[str, ExperimentRecord]
    pool: ComputePool
    results_pool: ComputePool
    metrics: Metrics
    clock: Callable[[], int]
