"""What the counts of one partition of the topic ``counts`` say as of a boundary. No I/O, no clock.

What: `CountsState` absorbs records in any order, keeps the newest of each key by (journal id, claim,
offset), and answers "what had arm A of this experiment got from everything dated before hour H". Trials
count at the hour of the exposure, successes and values at the hour of the conversion (bucket + lag): a
table for an old boundary is therefore the one that would have been computed then.

Why this way: counts are absolute, so a new record replaces what an older one of the same key said, and what
it said has to be known. It is kept packed (some 300 bytes for ten arms). Buckets are summed up only when a
boundary passes them: absorbing a record of an open hour is storing it, and the sums as of the newest
boundary exist once, as running totals. A record of an hour already summed is corrected in place by what it
said before.

Cost, for a records of an experiment and k arms: absorb O(k); moving the boundary forward O(k) for each
record that it passes, once; an earlier boundary than before O(a k), from the packed records.
"""

from typing import NamedTuple

from streams.allocator.experiment_counts import LAG_MAX_HOURS, ExperimentCounts, Slot
from streams.allocator.packing import (
    HourSums,
    Packed,
    Period,
    Row,
    lags_of_lump,
    last_hour_of,
    pack,
    shortened,
    sum_of_rows,
    unpack,
)
from streams.counts import CellRow, CountsKey, ProgressRecord, decode_key, decode_progress, decode_rows
from streams.join.cells import Group, View

__all__ = ["LAG_MAX_HOURS", "ArmCounts", "CountsState", "Period"]

DAY_HOURS = 24


class ArmCounts(NamedTuple):
    """What an arm got; values in micro-units, their squares in micro-units squared. Exact, without bound."""

    trials: int
    successes: int
    value_micros: int
    value_sq_micros2: int


class CountsState:
    """Newest counts of the experiments in one partition of the topic.

    Parameters
    ----------
    views
        ``steering`` for policies, ``reporting`` for guardrails and results.
    group
        Whose trials count: ``bandit`` for learning; units in the comparison group and those that got a
        default are never learned from.
    """

    def __init__(self, *, views: tuple[View, ...] = ("steering",), group: Group = "bandit") -> None:
        self._views = views
        self._group = group
        self._experiments: dict[str, ExperimentCounts] = {}
        self._progress: dict[int, ProgressRecord] = {}
        self.ignored_records = 0

    def __len__(self) -> int:
        """Return the number of experiments with counts."""
        return len(self._experiments)

    def absorb(self, raw_key: bytes, raw_value: bytes | None) -> CountsKey | None:
        """Take in one record; its order decides, not when it is read.

        Returns
        -------
        CountsKey or None
            Key of what changed; None if a record as new or newer is known already.

        Raises
        ------
        RecordError
            If it does not decode; what was known stays.
        """
        key = decode_key(raw_key)
        if key.experiment_id == "":
            changed = self._absorb_progress(key.source_partition, raw_value)
        elif raw_value is None:
            changed = self._remove(key)
        else:
            changed = self._absorb_counts(key, raw_value)
        if not changed:
            self.ignored_records += 1
            return None
        return key

    def _absorb_progress(self, source_partition: int, raw: bytes | None) -> bool:
        if raw is None:
            return self._progress.pop(source_partition, None) is not None
        record = decode_progress(raw)
        known = self._progress.get(source_partition)
        if known is not None and record.order <= known.order:
            return False
        self._progress[source_partition] = record
        return True

    def _absorb_counts(self, key: CountsKey, raw: bytes) -> bool:
        order, rows = decode_rows(raw)
        experiment = self._experiments.get(key.experiment_id)
        if experiment is None:
            experiment = self._experiments[key.experiment_id] = ExperimentCounts()
        place = (key.bucket, key.source_partition)
        known = experiment.records.get(place)
        if known is not None and order <= unpack(known).order:
            return False
        packed = Packed(order, last_hour_of(key.bucket, rows), self._packed_rows(experiment, rows))
        experiment.replace(place, pack(packed))
        return True

    def _packed_rows(self, experiment: ExperimentCounts, rows: tuple[CellRow, ...]) -> tuple[Row, ...]:
        """Rows of the views and group that count, summed over allocation versions."""
        merged: dict[int, CellRow] = {}
        for row in rows:
            if row.view not in self._views or row.group != self._group:
                continue
            name = (row.view, row.version, row.metric, row.arm_id, row.segment)
            slot = experiment.slots.get(name)
            if slot is None:
                slot = experiment.new_slot(Slot(*name))
            known = merged.get(slot)
            merged[slot] = row if known is None else sum_of_rows(known, row)
        return tuple([Row(slot, row.trials, tuple(map(shortened, row.lags))) for slot, row in merged.items()])

    def _remove(self, key: CountsKey) -> bool:
        experiment = self._experiments.get(key.experiment_id)
        place = (key.bucket, key.source_partition)
        if experiment is None or place not in experiment.records:
            return False
        experiment.replace(place, None)
        if not experiment.records:
            del self._experiments[key.experiment_id]
        return True

    def watermark_ms(self, n_source_partitions: int) -> int | None:
        """Everything dated before it is counted: the least watermark of all source partitions.

        Parameters
        ----------
        n_source_partitions
            Partitions of the source topics; one without a progress record holds everything up.

        Returns
        -------
        int or None
            Epoch ms; None while a partition's watermark is unknown.
        """
        if any(partition not in self._progress for partition in range(n_source_partitions)):
            return None
        return min(self._progress[partition].watermark_ms for partition in range(n_source_partitions))

    def as_of(
        self, experiment_id: str, version: int, metric: str, hour: int, *, view: View | None = None
    ) -> dict[str, ArmCounts]:
        """Sum up per arm everything dated before the start of ``hour``.

        Parameters
        ----------
        experiment_id, version, metric
            Experiment, version of its definition, and metric.
        hour
            Hours since the epoch; buckets and conversion hours below it count, others do not.
        view
            By default the first of the views kept.

        Returns
        -------
        dict of str to ArmCounts
            Arms that were ever counted; others got nothing.
        """
        found: dict[str, ArmCounts] = {}
        for name, total in self._slots_as_of(experiment_id, version, metric, hour, view):
            found[name.arm_id] = _plus(found.get(name.arm_id), total)
        return {arm_id: total for arm_id, total in found.items() if any(total)}

    def by_segment(
        self, experiment_id: str, version: int, metric: str, hour: int
    ) -> dict[str, dict[str, ArmCounts]]:
        """Tell :meth:`as_of` apart by segment, then arm."""
        found: dict[str, dict[str, ArmCounts]] = {}
        for name, total in self._slots_as_of(experiment_id, version, metric, hour, None):
            if any(total):
                found.setdefault(name.segment, {})[name.arm_id] = total
        return found

    def by_segment_and_day(
        self, experiment_id: str, version: int, metric: str, hour: int, *, n_days: int
    ) -> list[dict[str, dict[str, ArmCounts]]]:
        """Tell :meth:`by_segment` apart by the day of the exposure.

        Returns
        -------
        list of dict
            ``n_days + 1`` of them: the last 24 hours before ``hour``, those before them, and so on; what is
            older than all of them stands in the last one.
        """
        older = self.by_segment(experiment_id, version, metric, hour)
        experiment = self._experiments.get(experiment_id)
        if experiment is None:
            return [{} for _ in range(n_days + 1)]
        wanted = (self._views[0], version, metric)
        slots = {slot: name for slot, name in enumerate(experiment.names) if name[:3] == wanted}
        days: list[dict[str, dict[str, ArmCounts]]] = []
        for day in range(n_days):
            sums: dict[Slot, HourSums] = {}
            for bucket in range(hour - DAY_HOURS * (day + 1), hour - DAY_HOURS * day):
                for row in experiment.rows_of(bucket):
                    if row.slot in slots:
                        sums.setdefault(slots[row.slot], HourSums()).add(row, bucket, hour)
            days.append({})
            for name, found in sums.items():
                counts = ArmCounts(found.trials, *found.total())
                days[day].setdefault(name.segment, {})[name.arm_id] = counts
                arms = older.setdefault(name.segment, {})
                arms[name.arm_id] = _less(arms.get(name.arm_id), counts)
        return [*days, older]

    def _slots_as_of(
        self, experiment_id: str, version: int, metric: str, hour: int, view: View | None
    ) -> list[tuple[Slot, ArmCounts]]:
        experiment = self._experiments.get(experiment_id)
        if experiment is None:
            return []
        if hour >= experiment.folded_hour:
            experiment.fold(hour)
            totals = experiment.totals
        else:
            totals = experiment.recount(hour)
        wanted = (view or self._views[0], version, metric)
        return [
            (name, ArmCounts(*total))
            for name, total in zip(experiment.names, totals, strict=True)
            if name[:3] == wanted
        ]

    def periods(
        self,
        experiment_id: str,
        version: int,
        metric: str,
        hour: int,
        *,
        n_hours: int,
        older: bool,
        view: View | None = None,
    ) -> dict[int, dict[str, Period]]:
        """Tell :meth:`as_of` apart by the hour of the exposure.

        Parameters
        ----------
        experiment_id, version, metric, hour, view
            As there.
        n_hours
            So many hours before ``hour`` one by one.
        older
            Whether all hours before these are to be given, too, summed up.

        Returns
        -------
        dict of int to dict of str to Period
            Age in hours (0 is the last one before ``hour``), then arm; ``older`` has the age ``n_hours``.
            There lags below ``n_hours`` and :data:`LAG_MAX_HOURS` are exact and all later ones count as the
            last of them; values and squares are summed up at the first lag with any.
        """
        experiment = self._experiments.get(experiment_id)
        if experiment is None:
            return {}
        names = {
            slot: name.arm_id
            for slot, name in enumerate(experiment.names)
            if name[:3] == (view or self._views[0], version, metric)
        }
        found: dict[int, dict[str, HourSums]] = {}
        for bucket in range(hour - n_hours, hour):
            for row in experiment.rows_of(bucket):
                if row.slot in names:
                    arms = found.setdefault(hour - 1 - bucket, {})
                    arms.setdefault(names[row.slot], HourSums()).add(row, bucket, hour)
        periods = {
            age: {arm_id: sums.period() for arm_id, sums in arms.items()} for age, arms in found.items()
        }
        if older:
            totals = self.as_of(experiment_id, version, metric, hour, view=view)
            rest = _older(experiment, names, totals, found, hour, n_hours)
            if rest:
                periods[n_hours] = rest
        return periods

    def first_hour(self, experiment_id: str) -> int | None:
        """First bucket with a record of the experiment; None if there is none. O(its records)."""
        experiment = self._experiments.get(experiment_id)
        if experiment is None:
            return None
        return min(bucket for bucket, _ in experiment.records)

    def last_hour(self, experiment_id: str) -> int | None:
        """Hour of the newest thing counted for the experiment, in any view and group; None if there is none.

        O(records of the experiment): meant for the end of a replayed stream.
        """
        experiment = self._experiments.get(experiment_id)
        if experiment is None:
            return None
        last = max((unpack(raw).last_hour for raw in experiment.records.values()), default=-1)
        return last if last >= 0 else None


def _older(
    experiment: ExperimentCounts,
    names: dict[int, str],
    totals: dict[str, ArmCounts],
    recent: dict[int, dict[str, HourSums]],
    hour: int,
    n_hours: int,
) -> dict[str, Period]:
    """Everything of the totals that is not in the recent hours, per arm."""
    known = {arm_id: [0] * min(n_hours, LAG_MAX_HOURS) for arm_id in names.values()}
    for slot, arm_id in names.items():
        for lag, successes in enumerate(experiment.lag_successes[slot][: len(known[arm_id])]):
            known[arm_id][lag] += successes
    later: dict[str, HourSums] = {}  # of an earlier boundary than the newest
    for bucket in range(hour, experiment.folded_hour):
        for row in experiment.rows_of(bucket):
            if row.slot in names:
                later.setdefault(names[row.slot], HourSums()).add(row, bucket, hour)
    result = {}
    for arm_id, total in totals.items():
        trials, *sums = total
        for arms in recent.values():
            if arm_id in arms:
                trials -= arms[arm_id].trials
                for i, value in enumerate(arms[arm_id].total()):
                    sums[i] -= value
        for hours in (*recent.values(), later):
            if arm_id in hours:
                for lag, increments in hours[arm_id].all_lags.items():
                    if lag < len(known[arm_id]):
                        known[arm_id][lag] -= increments
        if trials or any(sums):
            result[arm_id] = Period(trials, lags_of_lump(known[arm_id], sums))
    return result


def _less(one: ArmCounts | None, other: ArmCounts) -> ArmCounts:
    return ArmCounts(*(a - b for a, b in zip(one or (0, 0, 0, 0), other, strict=True)))


def _plus(one: ArmCounts | None, other: ArmCounts) -> ArmCounts:
    return other if one is None else ArmCounts(*(a + b for a, b in zip(one, other, strict=True)))
