"""Proposing as a service beside the allocator: when an arm is dropped, propose another.

What: :class:`Proposer` looks, every few seconds, at the newest allocations that this worker's allocator owns.
For each arm that is dropped there, of an experiment whose definition wants it (``proposals.on_drop``), and
that no proposal refers to yet, it proposes a combination of factors, and, where an endpoint is set and the
definition wants that, too (``proposals.generate``), generated content.

Why it looks instead of being told: what it acts on is in the topics, so a restart, another owner or a failure
needs nothing remembered; a drop is dealt with when there is a proposal for it. It is a task of its own: the
allocator never waits for it. Two workers that look at the same time write one proposal between them, because
the record's revisions decide.

Cost: O(experiments that want it) a look; a fit in another process for each drop. What failed is tried again
with the experiment's next allocation; the budget bounds that.
"""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import NamedTuple

import msgspec
from mode import Service

from streams.allocations import Allocation, decode_allocation
from streams.allocator.service import AllocatorService
from streams.config import Settings
from streams.errors import BanditError, BudgetExhausted
from streams.experiments.definition import ExperimentRecord, ProposalSource
from streams.experiments.store import ExperimentStore
from streams.experiments.view import ExperimentsView
from streams.metrics import Metrics
from streams.proposals.endpoint import Endpoint
from streams.proposals.factors import propose_combination_of, untested
from streams.proposals.generating import add_proposals, generate

__all__ = ["Proposer"]

LOOK_S = 5.0

log = logging.getLogger(__name__)


class _Seen(NamedTuple):
    """What was looked at of an experiment."""

    version: int
    on_drop: bool
    generate: bool


class Proposer(Service):
    """Proposes arms for those that are dropped.

    Parameters
    ----------
    settings
        Topics, and the endpoint.
    experiments
        The definitions; started by the caller.
    allocator
        Whose allocations are looked at.
    metrics
        Counters of the worker.
    now_ms
        Wall clock, epoch ms.
    look_s
        Seconds between two looks.
    """

    def __init__(
        self,
        settings: Settings,
        experiments: ExperimentsView,
        allocator: AllocatorService,
        metrics: Metrics,
        *,
        now_ms: Callable[[], int],
        look_s: float = LOOK_S,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._experiments = experiments
        self._allocator = allocator
        self._metrics = metrics
        self._now_ms = now_ms
        self._look_s = look_s
        self._seen: dict[str, _Seen] = {}

    @Service.task
    async def _look_again_and_again(self) -> None:
        while not self.should_stop:
            for experiment_id, record in list(self._experiments.items()):
                if record.proposing.on_drop and record.status in ("live", "paused"):
                    await self._look_at(experiment_id, record)
            await self.sleep(self._look_s)

    async def _look_at(self, experiment_id: str, record: ExperimentRecord) -> None:
        published = self._allocator.newest(experiment_id)
        if published is None:
            return
        seen = _Seen(published.version, record.proposing.on_drop, record.proposing.generate)
        if self._seen.get(experiment_id) == seen:
            return
        self._seen[experiment_id] = seen
        allocation = decode_allocation(published.raw)
        for arm in allocation.arms:
            if arm.status != "dropped":
                continue
            for source in ("factors", "generated"):
                if _is_open(record, arm.arm_id, source):
                    await self._propose(experiment_id, allocation, arm.arm_id, source)

    async def _propose(
        self, experiment_id: str, allocation: Allocation, dropped: str, source: ProposalSource
    ) -> None:
        """Propose from one source; whatever goes wrong is said and counted, and other experiments go on."""
        try:
            async with AsyncExitStack() as stack:
                store = await stack.enter_async_context(ExperimentStore(self._settings))
                record = store.get(experiment_id)
                if not _is_open(record, dropped, source):
                    return
                if source == "factors":
                    n_added = await self._from_factors(store, record, allocation, dropped)
                elif self._settings.generate.url is not None:
                    endpoint = await stack.enter_async_context(Endpoint(self._settings.generate))
                    n_added = await self._from_endpoint(store, record, allocation, dropped, endpoint)
                else:
                    return
            self._metrics.proposals_total.labels(source=source, outcome="proposed").inc(n_added)
        except BudgetExhausted as error:
            self._metrics.proposals_total.labels(source=source, outcome="no_budget").inc()
            log.warning("proposals for experiment %r, arm %r: %s", experiment_id, dropped, error)
        except Exception as error:
            self._metrics.proposals_total.labels(source=source, outcome="failed").inc()
            log.warning(
                "proposals for experiment %r, arm %r: none from %s, tried again with its next allocation: %s",
                experiment_id,
                dropped,
                source,
                error,
                exc_info=None if isinstance(error, BanditError) else error,
            )

    async def _from_factors(
        self, store: ExperimentStore, record: ExperimentRecord, allocation: Allocation, dropped: str
    ) -> int:
        if not untested(record):
            return 0
        found = await self._allocator.pool.run(propose_combination_of, record, allocation, dropped)
        if found is None:
            return 0
        added = await add_proposals(
            store,
            record.experiment_id,
            [msgspec.structs.replace(found, on_drop=True)],
            approve_them=record.proposing.auto_approve,
            now_ms=self._now_ms,
        )
        for each in added:
            log.info(
                "experiment %r: arm %s proposed in the place of %s, %s: P(best) %.3f, P(better) %.3f",
                record.experiment_id,
                each.arm_id,
                dropped,
                each.status,
                each.probability_best or 0.0,
                each.probability_better or 0.0,
            )
        return len(added)

    async def _from_endpoint(
        self,
        store: ExperimentStore,
        record: ExperimentRecord,
        allocation: Allocation,
        dropped: str,
        endpoint: Endpoint,
    ) -> int:
        outcome = await generate(
            store,
            record.experiment_id,
            allocation,
            endpoint,
            endpoint if self._settings.generate.moderation == "endpoint" else None,
            dropped=dropped,
            on_drop=True,
            max_attempts=self._settings.generate.max_attempts,
            now_ms=self._now_ms,
        )
        if outcome.refused:
            refused = self._metrics.proposals_total.labels(source="generated", outcome="refused")
            refused.inc(len(outcome.refused))
            log.warning(
                "experiment %r: generated content was refused: %s",
                record.experiment_id,
                "; ".join(outcome.refused),
            )
        return len(outcome.added)


def _is_open(record: ExperimentRecord, dropped: str, source: ProposalSource) -> bool:
    """Whether a drop is still to be dealt with from a source."""
    if source == "generated" and not record.proposing.generate:
        return False
    return not any(
        each.on_drop and each.dropped == dropped and each.source == source for each in record.proposals
    )
