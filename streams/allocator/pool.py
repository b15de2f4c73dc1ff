"""Where allocations are computed: small batches at once, large ones in other processes.

What: `ComputePool.compute` is :func:`streams.allocator.compute.compute_encoded` that never holds up the
event loop for long: up to `DIRECT_MAX_ARMS` arms (some ten milliseconds) are computed in place, more go to a
process pool, which is started when it is first needed. If the pool breaks (a child was killed), the work is
done in a new one.

Why processes: the maths is NumPy on small arrays, most of it under Python's lock, so threads would not
help. Spawned and not forked, because the parent has threads and open connections. A child ends itself when
its parent is gone, also by SIGKILL: a killed worker must not leave processes behind.

Cost: about a second for the first large batch and 75 MiB for each process; an allocation of ten arms takes
some 1.1 ms of one core.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, TypeVar

from streams.allocator.compute import Computed, Failure, Job, compute_encoded

__all__ = ["ComputePool"]

DIRECT_MAX_ARMS = 100
CHUNK_MAX_JOBS = 128
HISTORY_COST = 4  # of an arm whose hours are told apart, against one whose are not

R = TypeVar("R")
log = logging.getLogger(__name__)


def _initialise(niceness: int) -> None:
    """Leave signals to the parent, end when it does, and give way to others."""
    os.nice(niceness)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _cost_arms(job: Job) -> int:
    """Arms of an experiment without history that cost as much."""
    if job.inputs.context is not None:
        return DIRECT_MAX_ARMS + 1  # a model is fitted: never in the event loop
    return len(job.inputs.arms) * (1 if job.inputs.history is None else HISTORY_COST)


class ComputePool:
    """Computes allocations without holding up the event loop.

    Parameters
    ----------
    max_workers
        Processes; by default one for each core but one, at least one, at most four.
    niceness
        By how much they give way to the worker's other processes where cores are short, 0 to 19.
    """

    def __init__(self, max_workers: int | None = None, *, niceness: int = 0) -> None:
        self._max_workers = max_workers or max(1, min(4, (os.cpu_count() or 2) - 1))
        self._niceness = niceness
        self._executor: ProcessPoolExecutor | None = None

    @property
    def started(self) -> bool:
        """Whether there are processes."""
        return self._executor is not None

    async def compute(self, jobs: Sequence[Job]) -> list[Computed | Failure]:
        """Compute allocations, in the order of the jobs.

        Raises
        ------
        BrokenProcessPool
            If the processes are killed again and again.
        """
        if sum(map(_cost_arms, jobs)) <= DIRECT_MAX_ARMS:
            return compute_encoded(jobs)
        try:
            return await self._elsewhere(jobs)
        except BrokenProcessPool:
            log.warning("a process that computes allocations was killed; computing %d again", len(jobs))
            return await self._elsewhere(jobs)

    async def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call a function of a module in one of the processes; what it takes and gives is pickled.

        Raises
        ------
        BrokenProcessPool
            If the process is killed.
        """
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._max_workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_initialise,
                initargs=(self._niceness,),
            )
        executor = self._executor
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
        except BrokenProcessPool:
            if self._executor is executor:
                self.close()  # the next call gets new processes
            raise

    async def _elsewhere(self, jobs: Sequence[Job]) -> list[Computed | Failure]:
        chunks = [jobs[start : start + CHUNK_MAX_JOBS] for start in range(0, len(jobs), CHUNK_MAX_JOBS)]
        parts = await asyncio.gather(*(self.run(compute_encoded, chunk) for chunk in chunks))
        return [result for part in parts for result in part]

    def close(self) -> None:
        """End the processes without waiting for what they compute."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)
