"""Prometheus metrics of the worker and of the edge client.

What: every metric is declared once, here, with its unit, its labels and a help text; the attribute's name is
the metric's name without the prefix ``bandit_``. ``described`` is the same list as data, from which the tests
check docs/operators.md, the alert rules and the dashboard.

Why this way: a registry of our own, because two workers in one process (tests, the demo) must not share the
library's global one. Every label has a bounded set of values: topics, outcomes, reasons and states are closed
sets; partitions are bounded by the topic; experiments and arms go through a guard.

Cost: an increment is about a microsecond and takes a lock. Count per batch, never per event.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from streams.allocations import AllocationState
from streams.errors import DeadLetterReason
from streams.labels import OTHER, AgeGauge, LabelGuard

__all__ = [
    "ALLOCATION_STATES",
    "DEAD_LETTER_REASONS",
    "JOURNAL_KINDS",
    "OUTCOMES",
    "PREFIX",
    "SOURCE_TOPICS",
    "TRIGGERS",
    "EdgeMetrics",
    "MetricInfo",
    "Metrics",
    "PartitionState",
]

PREFIX = "bandit_"
SOURCE_TOPICS = ("exposures", "conversions")
OUTCOMES = ("accepted", "duplicate", "dead_letter", "rerouted", "marker", "test", "archived", "skipped")
DEAD_LETTER_REASONS: tuple[str, ...] = get_args(DeadLetterReason)
JOURNAL_KINDS = ("claim", "batch", "sweep")
TRIGGERS = ("interval", "change", "owner")
ALLOCATION_STATES: tuple[AllocationState, ...] = get_args(AllocationState)
STAGES = ("step", "journal")
PROPOSAL_SOURCES = ("factors", "generated")
PROPOSAL_OUTCOMES = ("proposed", "refused", "failed", "no_budget")

_BATCH_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZE_BUCKETS = (1, 3, 10, 30, 100, 300, 1_000, 2_000, 4_000, 10_000)
_RECOVERY_BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3_600.0)
_RECOMPUTE_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class PartitionState(StrEnum):
    """What a worker is doing with a partition; exactly one of them is 1 in ``bandit_partition_state``."""

    RECOVERING = "recovering"
    STANDBY = "standby"
    CLAIMING = "claiming"
    ACTIVE = "active"
    STOPPED = "stopped"


class MetricInfo(NamedTuple):
    """One metric as it is documented; ``kind`` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class _Registered:
    """A registry, and the list of what was declared in it."""

    def __init__(self, max_experiments: int, clock: Callable[[], float]) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.described: list[MetricInfo] = []
        self._experiments = LabelGuard(max_experiments)
        self._clock = clock

    def experiment_label(self, experiment_id: str) -> str:
        """Return the bounded label value of an experiment: its id, or ``other``."""
        return self._experiments.label(experiment_id)

    def _counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        self._describe(name, "counter", labels, documentation)
        return Counter(PREFIX + name, documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        self._describe(name, "gauge", labels, documentation)
        return Gauge(PREFIX + name, documentation, labels, registry=self.registry)

    def _histogram(
        self, name: str, documentation: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        self._describe(name, "histogram", labels, documentation)
        return Histogram(PREFIX + name, documentation, labels, buckets=buckets, registry=self.registry)

    def _age(self, name: str, documentation: str) -> AgeGauge:
        self._describe(name, "gauge", ("experiment",), documentation)
        gauge = AgeGauge(PREFIX + name, documentation, self._experiments, self._clock)
        self.registry.register(gauge)
        return gauge

    def _describe(self, name: str, kind: str, labels: Sequence[str], documentation: str) -> None:
        self.described.append(MetricInfo(PREFIX + name, kind, tuple(labels), documentation))


class Metrics(_Registered):
    """All metrics of a worker (join and allocator).

    Parameters
    ----------
    max_experiments
        Experiments told apart in labels; the rest are ``other``.
    max_arms
        Arms told apart per experiment; the rest are left out.
    clock
        Seconds since the epoch, for ages.
    version
        The product's version, for ``bandit_build_info``; left out when empty.
    """

    def __init__(
        self,
        *,
        max_experiments: int = 200,
        max_arms: int = 50,
        clock: Callable[[], float] = time.time,
        version: str = "",
    ) -> None:
        super().__init__(max_experiments, clock)
        self._max_arms = max_arms
        self._arms: dict[str, set[str]] = {}
        self._define_events()
        self._define_batches()
        self._define_journal()
        self._define_recovery()
        self._define_allocator()
        self._define_process(version)
        self._start_at_zero()

    def _define_events(self) -> None:
        self.events_total = self._counter(
            "events_total",
            "Records read from the source topics; every record is in exactly one outcome.",
            ("topic", "outcome"),
        )
        self.dead_letters_total = self._counter(
            "dead_letters_total", "Records rejected and dead-lettered, by reason.", ("reason",)
        )
        self.rerouted_total = self._counter(
            "rerouted_total",
            "Records found on a wrong partition and produced again to the right one.",
            ("topic",),
        )
        self.conversions_attributed_total = self._counter(
            "conversions_attributed_total", "Conversions attributed to at least one exposure."
        )
        self.conversions_expired_total = self._counter(
            "conversions_expired_total", "Conversions evicted without ever having been attributed."
        )
        self.pending_conversions = self._gauge(
            "pending_conversions", "Accepted conversions that wait for their exposure.", ("partition",)
        )
        self.lag_records = self._gauge(
            "lag_records",
            "Records in the source topic that have not been counted yet.",
            ("topic", "partition"),
        )
        self.lag_event_time_seconds = self._gauge(
            "lag_event_time_seconds",
            "Seconds between the newest event counted and now; 0 when nothing is left to read.",
            ("topic", "partition"),
        )
        self.watermark_timestamp_seconds = self._gauge(
            "watermark_timestamp_seconds",
            "Event time up to which the partition is complete, in seconds since the epoch.",
            ("partition",),
        )
        self.context_levels_other_total = self._counter(
            "context_levels_other_total",
            "Exposures with a context level that the definition does not know, counted as 'other'.",
            ("experiment",),
        )

    def _define_batches(self) -> None:
        self.batch_duration_seconds = self._histogram(
            "batch_duration_seconds",
            "Time of a batch in the join (step), and until it is journalled and applied (journal).",
            _BATCH_BUCKETS_S,
            ("stage",),
        )
        self.batch_records = self._histogram("batch_records", "Source records in a batch.", _SIZE_BUCKETS)
        self.units_loaded_total = self._counter("units_loaded_total", "Unit states read from RocksDB.")
        self.counts_published_total = self._counter(
            "counts_published_total", "Records written to the topic counts."
        )
        self.counts_written_over_total = self._counter(
            "counts_written_over_total",
            "Records of earlier owners that came into the topic counts late, and were written over.",
        )
        self.counts_dirty_cells = self._gauge(
            "counts_dirty_cells", "Changed cells that are not in the topic counts yet.", ("partition",)
        )
        self.definitions_age_seconds = self._gauge(
            "definitions_age_seconds",
            "Seconds since the topic experiments was last known to be read to its end.",
        )
        self.definitions_problems = self._gauge(
            "definitions_problems", "Records of the topic experiments that cannot be used."
        )

    def _define_journal(self) -> None:
        self.journal_records_total = self._counter(
            "journal_records_total", "Journal records written by this worker and accepted.", ("kind",)
        )
        self.journal_bytes_total = self._counter("journal_bytes_total", "Bytes of those journal records.")
        self.journal_size_records = self._gauge(
            "journal_size_records",
            "Records in the partition's journal: what a rebuild reads.",
            ("partition",),
        )
        self.sweep_progress_ratio = self._gauge(
            "sweep_progress_ratio",
            "Share of the state that the running sweep has written again, 0 to 1.",
            ("partition",),
        )
        self.sweeps_completed_total = self._counter(
            "sweeps_completed_total", "Sweeps completed; each lets the journal be trimmed."
        )
        self.sweep_bytes_total = self._counter("sweep_bytes_total", "Bytes of journal records of sweeps.")
        self.claims_total = self._counter("claims_total", "Claims of a partition written to its journal.")
        self.fenced_batches_total = self._counter(
            "fenced_batches_total", "Batches ignored because a newer claim stood before them."
        )
        self.rewinds_total = self._counter(
            "rewinds_total", "Times the consumer was sought back to the journal's position."
        )
        self.skipped_records_total = self._counter(
            "skipped_records_total", "Source records read again below the journal's position, and ignored."
        )
        self.log_start_skips_total = self._counter(
            "log_start_skips_total", "Source records deleted by retention before they were read: data loss."
        )
        self.journal_resets_total = self._counter(
            "journal_resets_total", "Local databases set aside because they did not match the journal."
        )

    def _define_recovery(self) -> None:
        self.partition_state = self._gauge(
            "partition_state", "1 for the state the partition is in on this worker.", ("partition", "state")
        )
        self.recovery_records_remaining = self._gauge(
            "recovery_records_remaining",
            "Journal records still to be read before processing.",
            ("partition",),
        )
        self.recovery_seconds = self._histogram(
            "recovery_seconds", "Time from assignment of a partition to its first batch.", _RECOVERY_BUCKETS_S
        )
        self.watchdog_stalls_total = self._counter(
            "watchdog_stalls_total", "Times a partition made no progress within the stall deadline."
        )

    def _define_allocator(self) -> None:
        self.allocations_published_total = self._counter(
            "allocations_published_total", "Allocation tables published, by what caused them.", ("trigger",)
        )
        self.allocation_age_seconds = self._age(
            "allocation_age_seconds", "Seconds since this worker last published the experiment's allocation."
        )
        self.allocation_weight = self._gauge(
            "allocation_weight", "Realised share of all units that see the arm.", ("experiment", "arm")
        )
        self.allocation_model_state = self._gauge(
            "allocation_model_state",
            "1 for the state of the experiment's model: created (no counts yet), training, trained.",
            ("experiment", "state"),
        )
        self.exploration_share = self._gauge(
            "exploration_share",
            "Share of units that do not see the arm with the greatest weight.",
            ("experiment",),
        )
        self.recompute_duration_seconds = self._histogram(
            "recompute_duration_seconds", "Time to compute one allocation.", _RECOMPUTE_BUCKETS_S
        )
        self.allocator_claims_total = self._counter(
            "allocator_claims_total", "Claims written to the allocation log."
        )
        self.allocator_fenced_total = self._counter(
            "allocator_fenced_total", "Allocations ignored because a newer claim stood before them."
        )
        self.allocator_skipped_intervals_total = self._counter(
            "allocator_skipped_intervals_total", "Intervals that closed without an allocation being computed."
        )
        self.results_published_total = self._counter(
            "results_published_total", "Results written to the topic results."
        )
        self.results_failures_total = self._counter(
            "results_failures_total", "Results that could not be made; the last ones stay."
        )
        self.results_duration_seconds = self._histogram(
            "results_duration_seconds",
            "Time to make the results of up to 32 experiments, waiting for a process included.",
            _RECOMPUTE_BUCKETS_S,
        )
        self.allocator_failures_total = self._counter(
            "allocator_failures_total", "Allocations that could not be computed; the last one stays in force."
        )

        self.proposals_total = self._counter(
            "proposals_total",
            "Arms proposed after drops, by source, and attempts that gave none, by why.",
            ("source", "outcome"),
        )

    def _define_process(self, version: str) -> None:
        self.event_loop_lag_seconds = self._gauge(
            "event_loop_lag_seconds", "How late the event loop ran its last timer."
        )
        self.build_info = self._gauge(
            "build_info", "Always 1; the label is the product's version.", ("version",)
        )
        if version:
            self.build_info.labels(version=version).set(1)
        ProcessCollector(registry=self.registry)

    def _start_at_zero(self) -> None:
        """Create the series of all closed label sets, so that rate() sees the first increment of each."""
        for topic in SOURCE_TOPICS:
            self.rerouted_total.labels(topic=topic)
            for outcome in OUTCOMES:
                self.events_total.labels(topic=topic, outcome=outcome)
        for reason in DEAD_LETTER_REASONS:
            self.dead_letters_total.labels(reason=reason)
        for kind in JOURNAL_KINDS:
            self.journal_records_total.labels(kind=kind)
        for trigger in TRIGGERS:
            self.allocations_published_total.labels(trigger=trigger)
        for source in PROPOSAL_SOURCES:
            for outcome in PROPOSAL_OUTCOMES:
                self.proposals_total.labels(source=source, outcome=outcome)
        for stage in STAGES:
            self.batch_duration_seconds.labels(stage=stage)

    def count_events(self, topic: str, outcome: str, n: int) -> None:
        """Count ``n`` records of one source topic (without prefix) that ended in one outcome."""
        self.events_total.labels(
            topic=topic if topic in SOURCE_TOPICS else OTHER,
            outcome=outcome if outcome in OUTCOMES else OTHER,
        ).inc(n)

    def count_dead_letters(self, reason: str, n: int) -> None:
        """Count ``n`` rejected records of one reason."""
        self.dead_letters_total.labels(reason=reason if reason in DEAD_LETTER_REASONS else OTHER).inc(n)

    def set_partition_state(self, partition: int, state: PartitionState) -> None:
        """Say what this worker does with the partition: 1 for ``state``, 0 for every other."""
        for each in PartitionState:
            self.partition_state.labels(partition=str(partition), state=each.value).set(each is state)

    def forget_partition(self, partition: int) -> None:
        """Drop every series of a partition that this worker no longer holds."""
        label = str(partition)
        for gauge in (
            self.pending_conversions,
            self.watermark_timestamp_seconds,
            self.counts_dirty_cells,
            self.journal_size_records,
            self.sweep_progress_ratio,
            self.recovery_records_remaining,
        ):
            gauge.remove(label)
        for topic in SOURCE_TOPICS:
            self.lag_records.remove(topic, label)
            self.lag_event_time_seconds.remove(topic, label)
        for state in PartitionState:
            self.partition_state.remove(label, state.value)

    def allocation_published(
        self,
        experiment_id: str,
        *,
        trigger: str,
        weights: Mapping[str, float],
        at_s: float | None = None,
    ) -> None:
        """Record a published allocation.

        Parameters
        ----------
        experiment_id
            The experiment.
        trigger
            interval, change or owner.
        weights
            Realised share of every arm, each in [0, 1].
        at_s
            Wall clock of the publication, seconds since the epoch; now by default.
        """
        self.allocations_published_total.labels(trigger=trigger if trigger in TRIGGERS else OTHER).inc()
        self.allocation_age_seconds.mark(experiment_id, at_s)
        if not self._experiments.knows(experiment_id):
            return  # weights of unlike experiments under one label 'other' would mean nothing
        known = self._arms.setdefault(experiment_id, set())
        for arm_id in known - weights.keys():
            self.allocation_weight.remove(experiment_id, arm_id)
        known.intersection_update(weights)
        for arm_id, weight in weights.items():
            if arm_id in known or len(known) < self._max_arms:
                known.add(arm_id)
                self.allocation_weight.labels(experiment=experiment_id, arm=arm_id).set(weight)
        total = sum(weights.values())
        share = 1.0 - max(weights.values()) / total if total > 0 else 0.0
        self.exploration_share.labels(experiment=experiment_id).set(share)

    def allocation_state(self, experiment_id: str, state: AllocationState) -> None:
        """Say how far an experiment's model is: 1 for ``state``, 0 for every other."""
        if self._experiments.knows(experiment_id):
            for each in ALLOCATION_STATES:
                self.allocation_model_state.labels(experiment=experiment_id, state=each).set(each == state)

    def forget_experiment(self, experiment_id: str) -> None:
        """Drop the series of an experiment that is archived, or whose allocator moved to another worker."""
        self.allocation_age_seconds.forget(experiment_id)
        for arm_id in self._arms.pop(experiment_id, ()):
            self.allocation_weight.remove(experiment_id, arm_id)
        self.exploration_share.remove(experiment_id)
        for state in ALLOCATION_STATES:
            self.allocation_model_state.remove(experiment_id, state)
        self._experiments.forget(experiment_id)


class EdgeMetrics(_Registered):
    """Metrics of an edge client, exported by the service that embeds it.

    Parameters
    ----------
    max_experiments
        Experiments told apart in labels; the rest are ``other``.
    clock
        Seconds since the epoch, for ages.
    """

    def __init__(self, *, max_experiments: int = 200, clock: Callable[[], float] = time.time) -> None:
        super().__init__(max_experiments, clock)
        self.edge_decisions_total = self._counter(
            "edge_decisions_total", "Decisions made by the edge client, by reason.", ("reason",)
        )
        self.edge_events_total = self._counter(
            "edge_events_total",
            "Events offered to the edge client, by what became of them: sent, dropped, failed.",
            ("outcome",),
        )
        self.edge_allocation_age_seconds = self._age(
            "edge_allocation_age_seconds", "Seconds since the allocation the edge serves was computed."
        )
