"""The edge client: decides in the process that serves the page, and reports what was shown.

What: :class:`EdgeClient` reads the compacted topics ``allocations`` and ``experiments`` whole, follows them,
and decides from memory; exposures and conversions leave through a bounded queue in the background.

Why this way: a page must never wait for Kafka, and must come out the same when Kafka is away. So ``decide``,
``expose`` and ``convert`` neither await nor block, every decision without a usable allocation falls back to
the definition's default arm with a reason that says so, and what cannot be sent is dropped and counted.

Cost: memory for one plan an experiment and for the queue; a decision takes some microseconds
(bench/edge_decide.py).
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Struct

from streams.allocations import Allocation, decode_allocation
from streams.compacted import CompactedView
from streams.config import Settings
from streams.connection import explain
from streams.edge.decision import Decision
from streams.edge.emitter import EmitterOptions, EmitterStatistics, EventEmitter
from streams.edge.table import DecisionTable
from streams.events import Conversion, Exposure
from streams.experiments.definition import ExperimentRecord
from streams.experiments.view import ExperimentsView
from streams.metrics import EdgeMetrics

__all__ = ["EdgeClient", "EdgeStatistics"]

_METRICS_INTERVAL_S: Final = 1.0
_encode = msgspec.json.Encoder().encode


class EdgeStatistics(Struct, frozen=True, kw_only=True):
    """Figures of an edge client.

    Attributes
    ----------
    decisions
        Number of decisions by reason.
    experiments
        Experiments with a definition or an allocation.
    ignored_allocations
        Allocations that came with a version not greater than the one held.
    not_exposable
        Calls of ``expose`` with a decision that has no arm to report.
    allocation_age_ms
        By experiment, milliseconds since the allocation in force was computed.
    definitions_age_ms, allocations_age_ms
        Milliseconds since a broker last said that nothing is newer in the topic.
    undecodable
        Keys of the two topics whose newest record does not decode.
    events
        What became of the events offered.
    """

    decisions: dict[str, int]
    experiments: int
    ignored_allocations: int
    not_exposable: int
    allocation_age_ms: dict[str, int]
    definitions_age_ms: float
    allocations_age_ms: float
    undecodable: int
    events: EmitterStatistics


def _wall_clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class EdgeClient:
    """Decides, and reports exposures and conversions.

    ``decide``, ``expose`` and ``convert`` may be called from any thread; ``start`` and ``stop`` belong to one
    event loop. An asynchronous context manager that starts and stops.

    Parameters
    ----------
    settings
        Addresses, security, topic names, ``allocation_max_age_ms``.
    experiments
        A running view of the definitions to share; by default the client has its own.
    options
        Bounds of the event queue.
    metrics
        Where to export decisions and ages; none by default.
    clock_ms
        Milliseconds since the epoch: for events without a timestamp and for the age of allocations.
    client_id
        Name shown in the broker's logs and quotas.

    Examples
    --------
    >>> async def page(edge: EdgeClient) -> str | None:
    ...     decision = edge.decide("checkout-button", "visitor-17", {"country": "ch"})
    ...     edge.expose(decision)
    ...     return decision.arm_id
    """

    def __init__(
        self,
        settings: Settings,
        *,
        experiments: ExperimentsView | None = None,
        options: EmitterOptions | None = None,
        metrics: EdgeMetrics | None = None,
        clock_ms: Callable[[], int] = _wall_clock_ms,
        client_id: str = "bandit-edge",
    ) -> None:
        self._clock_ms = clock_ms
        self._metrics = metrics
        self._exposures = settings.topic("exposures")
        self._conversions = settings.topic("conversions")
        self._table = DecisionTable(max_age_ms=settings.allocation_max_age_ms, clock_ms=clock_ms)
        self._allocations: CompactedView[str, Allocation] = CompactedView(
            settings,
            "allocations",
            decode_key=lambda key: key.decode(),
            decode_value=lambda key, value: decode_allocation(value, where=f"allocations, key {key!r}"),
        )
        self._owns_experiments = experiments is None
        self._experiments = ExperimentsView(settings) if experiments is None else experiments
        self._emitter = EventEmitter(
            settings.kafka_options(), client_id=client_id, options=options or EmitterOptions()
        )
        self._bootstrap_servers = settings.bootstrap_servers
        self._not_exposable = 0
        self._exported: dict[str, int] = {}
        self._exporter: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "EdgeClient":
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Read definitions and allocations to their ends, follow them, and connect the event producer.

        Raises
        ------
        BrokerUnavailable
            No broker answers.
        DeadlineExceeded
            A topic was not read to its end in time.
        """
        try:
            if self._owns_experiments:
                await self._experiments.start()
            await self._allocations.start()
            for experiment_id, record in self._experiments.items():
                self._table.set_experiment(experiment_id, record)
            self._take_allocations(dict(self._allocations.items()))
            # No await between the snapshot and the callback: nothing can arrive in between and be missed.
            self._experiments.on_change(self._take_experiments)
            self._allocations.on_change(self._take_allocations)
            await self._emitter.start()
        except BaseException as error:
            await self.stop()
            explained = explain(error) if isinstance(error, Exception) else None
            if explained is not None and explained is not error:
                raise explained from error
            raise
        if self._metrics is not None:
            self._exporter = asyncio.create_task(self._export_regularly(), name="edge-metrics")

    async def stop(self) -> None:
        """Send what is queued (for at most ``flush_deadline_ms``), then close. May be called twice."""
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            exporter.cancel()
            with suppress(asyncio.CancelledError):
                await exporter
        await self._emitter.stop()
        self._export()
        await self._allocations.stop()
        if self._owns_experiments:
            await self._experiments.stop()

    async def flush(self, deadline_ms: int = 10_000) -> bool:
        """Wait until every event is acknowledged or given up; False if ``deadline_ms`` passed first."""
        return await self._emitter.flush(deadline_ms)

    def decide(
        self,
        experiment_id: str,
        unit_id: str,
        context: dict[str, str] | None = None,
        default_arm: str | None = None,
    ) -> Decision:
        """Decide which arm a unit sees; no I/O, nothing awaited.

        The same unit gets the same arm as long as the allocation stays the same, on every edge and in every
        language (docs/edge.md has the recipe).

        Parameters
        ----------
        experiment_id
            As in the definition.
        unit_id
            Who is to see it, 1 to 256 characters: a visitor, a customer, a session.
        context
            Values of context features; they choose the segment and go into the exposure.
        default_arm
            For an experiment that is not known at all; a known one has its default in the definition.

        Returns
        -------
        Decision
            Always; ``reason`` says where the arm comes from.
        """
        return self._table.decide(experiment_id, unit_id, context, default_arm)

    def decide_many(
        self, experiment_ids: Sequence[str], unit_id: str, context: dict[str, str] | None = None
    ) -> dict[str, Decision]:
        """Decide on every experiment of a page for one unit; by experiment id."""
        return self._table.decide_many(experiment_ids, unit_id, context)

    def expose(
        self,
        decision: Decision,
        timestamp: int | datetime | None = None,
        *,
        exposure_id: str | None = None,
        test: bool = False,
    ) -> str | None:
        """Report that the unit was shown the decided arm; queued, never blocks.

        Parameters
        ----------
        decision
            From ``decide``. One that names no arm outside the comparison group has nothing to report.
        timestamp
            When it was shown: milliseconds since the epoch or an aware ``datetime``; now by default.
        exposure_id
            The caller's own id, the same for a retry of the same exposure; random by default.
        test
            Whether the event is a test: counted only where the definition says so.

        Returns
        -------
        str or None
            The exposure's id; None where nothing was queued (see :meth:`statistics`).
        """
        is_comparison = decision.group == "comparison"
        if decision.arm_id is None and not is_comparison:
            self._not_exposable += 1
            return None
        exposure_id = os.urandom(16).hex() if exposure_id is None else exposure_id
        exposure = Exposure(
            exposure_id=exposure_id,
            experiment_id=decision.experiment_id,
            unit_id=decision.unit_id,
            timestamp=self._clock_ms() if timestamp is None else timestamp,
            arm_id=decision.arm_id,
            propensity=None if decision.is_default or is_comparison else decision.propensity,
            allocation_version=decision.allocation_version,
            context=decision.context,
            group=decision.group,
            reason=decision.reason,
            test=test,
        )
        queued = self._emitter.offer(self._exposures, decision.unit_id.encode(), _encode(exposure))
        return exposure_id if queued else None

    def convert(
        self,
        unit_id: str,
        metric: str,
        *,
        value: float = 1.0,
        timestamp: int | datetime | None = None,
        experiment_id: str | None = None,
        exposure_id: str | None = None,
        conversion_id: str | None = None,
        test: bool = False,
    ) -> str | None:
        """Report that a unit did what a metric counts; queued, never blocks.

        Parameters
        ----------
        unit_id
            The same unit that was decided for.
        metric
            As in the definitions; it counts for every experiment that has it, unless ``experiment_id`` says
            which.
        value
            What it is worth; 1 for a plain conversion.
        timestamp, conversion_id, test
            As for :meth:`expose`.
        experiment_id, exposure_id
            Restrict the conversion to one experiment, or to one exposure of the unit.

        Returns
        -------
        str or None
            The conversion's id; None where it was dropped.
        """
        conversion_id = os.urandom(16).hex() if conversion_id is None else conversion_id
        conversion = Conversion(
            conversion_id=conversion_id,
            unit_id=unit_id,
            metric=metric,
            timestamp=self._clock_ms() if timestamp is None else timestamp,
            value=value,
            experiment_id=experiment_id,
            exposure_id=exposure_id,
            test=test,
        )
        queued = self._emitter.offer(self._conversions, unit_id.encode(), _encode(conversion))
        return conversion_id if queued else None

    def allocation(self, experiment_id: str) -> Allocation | None:
        """Return the allocation in force, to read; decisions come from ``decide``."""
        return self._table.allocation(experiment_id)

    def content(self, decision: Decision) -> str | None:
        """Return what the definition says that the decided arm shows; None where it says nothing."""
        return (
            None if decision.arm_id is None else self._table.content(decision.experiment_id, decision.arm_id)
        )

    def statistics(self) -> EdgeStatistics:
        """Return the figures so far."""
        now_ms = self._clock_ms()
        published = self._table.published_ms()
        return EdgeStatistics(
            decisions=dict(self._table.decided),
            experiments=len(self._table.experiments()),
            ignored_allocations=self._table.ignored_allocations,
            not_exposable=self._not_exposable,
            allocation_age_ms={name: max(0, now_ms - at_ms) for name, at_ms in published.items()},
            definitions_age_ms=self._experiments.age_ms(),
            allocations_age_ms=self._allocations.age_ms(),
            undecodable=len(self._experiments.problems()) + len(self._allocations.problems()),
            events=self._emitter.statistics(),
        )

    def _take_experiments(self, changes: Mapping[str, ExperimentRecord | None]) -> None:
        for experiment_id, record in changes.items():
            self._table.set_experiment(experiment_id, record)

    def _take_allocations(self, changes: Mapping[str, Allocation | None]) -> None:
        for experiment_id, allocation in changes.items():
            published_ms = 0 if allocation is None else allocation.computed_at_ms
            self._table.set_allocation(experiment_id, allocation, published_ms)

    async def _export_regularly(self) -> None:
        while True:
            self._export()
            await asyncio.sleep(_METRICS_INTERVAL_S)

    def _export(self) -> None:
        """Add what is new to the metrics: once a second, because an increment costs as much as a decision."""
        metrics = self._metrics
        if metrics is None:
            return
        for reason, count in list(self._table.decided.items()):
            metrics.edge_decisions_total.labels(reason=reason).inc(count - self._exported.get(reason, 0))
            self._exported[reason] = count
        events = self._emitter.statistics()
        for outcome, count in (("sent", events.sent), ("dropped", events.dropped), ("failed", events.failed)):
            metrics.edge_events_total.labels(outcome=outcome).inc(count - self._exported.get(outcome, 0))
            self._exported[outcome] = count
        for experiment_id, at_ms in self._table.published_ms().items():
            metrics.edge_allocation_age_seconds.mark(experiment_id, at_ms / 1000)
