"""How far a partition has got: metrics, heartbeats, idleness. Looks, never changes state."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from streams.agents.context import SOURCES, JoinContext
from streams.join.step import END_MS, StepResult
from streams.state.journal import Head
from streams.state.owner import Owner, OwnerStatistics, Swept
from streams.state.partition import Partition

__all__ = ["Progress"]


class Progress:
    """Watches one owned partition.

    Parameters
    ----------
    number
        The source partition.
    partition
        Its database.
    context
        What all owner tasks of the worker share.
    """

    def __init__(self, number: int, partition: Partition, context: JoinContext) -> None:
        self._number = str(number)
        self._name = f"partition-{number}"
        self._partition = partition
        self._context = context
        self._ends: dict[str, int] = {}
        self._moved_s = dict.fromkeys(SOURCES, time.monotonic())
        self._beaten = (-1, -1, -1)
        self._reported = OwnerStatistics()
        self._n_swept = 0

    def describe(self) -> str:
        """Say where the partition stands, for the log."""
        head = self._partition.head
        positions = ", ".join(f"{topic} from {offset}" for topic, offset in sorted(head.positions.items()))
        return f"journal offset {head.journal_offset}, claim {head.claim}, {positions}"

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Observe how long a stage of a batch takes."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._context.metrics.batch_duration_seconds.labels(stage=stage).observe(
                time.perf_counter() - began_s
            )

    def observe_end(self, topic: str, end: int) -> None:
        """Note the end offset of a source topic, as the brokers say it."""
        self._ends[topic] = max(end, self._ends.get(topic, 0))

    def lag_records(self, topic: str) -> int:
        """Return the records of a source topic that are not counted yet."""
        return max(0, self._ends.get(topic, 0) - self._partition.head.positions.get(topic, 0))

    def committed(self, before: Head, result: StepResult, n_records: int) -> None:
        """Count a committed batch."""
        metrics = self._context.metrics
        now_s = time.monotonic()
        for topic, position in self._partition.head.positions.items():
            if position != before.positions.get(topic):
                self._moved_s[topic] = now_s
        self._count_totals(before.totals, result.totals)
        for experiment_id, n in result.other_levels.items():
            label = metrics.experiment_label(experiment_id)
            metrics.context_levels_other_total.labels(experiment=label).inc(n)
        metrics.batch_records.observe(n_records)
        metrics.units_loaded_total.inc(len(result.units))

    def swept(self, before: Head, swept: Swept) -> None:
        """Count a step of a sweep."""
        self._count_totals(before.totals, self._partition.head.totals)
        metrics = self._context.metrics
        metrics.sweep_bytes_total.inc(swept.size_bytes)
        metrics.sweeps_completed_total.inc(int(swept.completed))
        self._n_swept = 0 if swept.completed else self._n_swept + swept.n_entries
        n_entries = max(self._partition.estimated_entries(), self._n_swept, 1)
        metrics.sweep_progress_ratio.labels(self._number).set(self._n_swept / n_entries)

    def _count_totals(self, before: dict[str, int], after: dict[str, int]) -> None:
        metrics = self._context.metrics
        for name, total in after.items():
            n = total - before.get(name, 0)
            if n <= 0:
                continue
            topic, outcome, *reason = name.split("/")
            if outcome == "dead_letter" and reason:
                metrics.count_events(topic, outcome, n)
                metrics.count_dead_letters(reason[0], n)
            elif outcome == "attributed":
                metrics.conversions_attributed_total.inc(n)
            elif outcome == "expired":
                metrics.conversions_expired_total.inc(n)
            else:
                metrics.count_events(topic, outcome, n)

    def count_skipped(self, topic: str, n: int) -> None:
        """Count records read again below the journal's position."""
        if n:
            self._context.metrics.skipped_records_total.inc(n)
            self._context.metrics.count_events(topic, "skipped", n)

    def count_log_start_skips(self, topic: str, before: int) -> None:
        """Count records that retention deleted before they were read."""
        self._context.metrics.log_start_skips_total.inc(
            self._partition.head.log_start_skips.get(topic, 0) - before
        )

    def idle_maximum_ms(self, topic: str) -> int | None:
        """Maximum to give an idle source topic, epoch ms; None where it is not idle or may not be raised.

        Idle: no record for ``idle_after_ms`` and nothing left to read. It is raised to then, never on the
        stream clock: there only records move time.
        """
        settings = self._context.settings
        if settings.clock == "stream" or settings.idle_after_ms == 0 or self.lag_records(topic):
            return None
        if (
            topic not in self._ends
            or (time.monotonic() - self._moved_s[topic]) * 1000 < settings.idle_after_ms
        ):
            return None
        raised_ms = self._context.clock_ms() - settings.idle_after_ms
        known_ms = self._partition.head.maxima.get(topic, 0)
        # Raised in steps, so that an idle partition does not fill its journal.
        return raised_ms if raised_ms - known_ms >= settings.idle_after_ms else None

    def report(self, owner: Owner, *, waiting: bool) -> None:
        """Set the gauges, and beat while the partition moves or has nothing to do."""
        metrics, head = self._context.metrics, self._partition.head
        lag = {topic: self.lag_records(topic) for topic in SOURCES}
        mark = (head.journal_offset, sum(head.positions.values()), head.claim)
        if mark != self._beaten or not (waiting or any(lag.values())):
            self._beaten = mark
            self._context.health.beat(self._name)
        metrics.pending_conversions.labels(self._number).set(head.pending)
        metrics.journal_size_records.labels(self._number).set(
            head.journal_offset - max(0, head.sweep.completed)
        )
        now_ms = self._context.clock_ms()
        for topic in SOURCES:
            metrics.lag_records.labels(topic, self._number).set(lag[topic])
            newest_ms = head.maxima.get(topic)
            behind_ms = now_ms - newest_ms if lag[topic] and newest_ms is not None else 0
            metrics.lag_event_time_seconds.labels(topic, self._number).set(max(0, behind_ms) / 1000)
        watermark_ms = head.watermark_ms()
        if watermark_ms is not None and watermark_ms < END_MS:
            metrics.watermark_timestamp_seconds.labels(self._number).set(watermark_ms / 1000)
        self.report_statistics(owner)

    def report_statistics(self, owner: Owner) -> None:
        """Add what the owner has counted since the last report."""
        metrics, now, then = self._context.metrics, owner.statistics, self._reported
        metrics.journal_records_total.labels(kind="batch").inc(
            now.records - then.records - (now.sweep_records - then.sweep_records)
        )
        metrics.journal_records_total.labels(kind="sweep").inc(now.sweep_records - then.sweep_records)
        metrics.journal_records_total.labels(kind="claim").inc(now.claims - then.claims)
        metrics.journal_bytes_total.inc(now.bytes - then.bytes)
        metrics.claims_total.inc(now.claims - then.claims)
        metrics.fenced_batches_total.inc(now.fenced - then.fenced)
        self._reported = replace(now)
