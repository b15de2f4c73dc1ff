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

import heapq
from typing import NamedTuple

import msgspec

from streams.counts import CellRow, CountsKey, Order, ProgressRecord, decode_key, decode_progress, decode_rows
from streams.join.cells import Group, View

__all__ = ["ArmCounts", "CountsState"]


class ArmCounts(NamedTuple):
    """What an arm got; values in micro-units, their squares in micro-units squared. Exact, without bound."""

    trials: int
    successes: int
    value_micros: int
    value_sq_micros2: int


class _Slot(NamedTuple):
    version: int
    metric: str
    arm_id: str


class _Row(NamedTuple):
    slot: int
    trials: int
    lags: tuple[
        tuple[int, ...], ...
    ]  # lag, successes, value, value_sq; the last two left out for unit rewards


class _Packed(NamedTuple):
    order: Order
    last_hour: int  # of anything in it, whatever the group; -1 if there is nothing
    rows: tuple[_Row, ...]


_pack_encoder = msgspec.msgpack.Encoder()
_pack_decoder = msgspec.msgpack.Decoder(_Packed)
_json_encoder = msgspec.json.Encoder()
_json_decoder = msgspec.json.Decoder(_Packed)
_JSON_START = ord("[")  # a three-element msgpack array starts with 0x93
_MICROS = 10**6
_MICROS2 = 10**12


def _pack(packed: _Packed) -> bytes:
    try:
        return _pack_encoder.encode(packed)
    except OverflowError:  # sums of squares beyond 64 bits, which msgpack has not
        return _json_encoder.encode(packed)


def _unpack(raw: bytes) -> _Packed:
    return (_json_decoder if raw[0] == _JSON_START else _pack_decoder).decode(raw)


def _short(lag: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Leave out what follows from the successes when every reward is 1: a third of the memory."""
    _, successes, value, value_sq = lag
    return lag[:2] if value == successes * _MICROS and value_sq == successes * _MICROS2 else lag


def _increments(lag: tuple[int, ...]) -> tuple[int, int, int]:
    """Successes, value and squares of a lag as it is packed."""
    if len(lag) == 2:
        return lag[1], lag[1] * _MICROS, lag[1] * _MICROS2
    return lag[1], lag[2], lag[3]


class _Experiment:
    """Records of one experiment, and the running totals of all hours below ``folded_hour``."""

    __slots__ = (
        "folded_hour",
        "names",
        "open_hours",
        "records",
        "slots",
        "tail_hours",
        "tails",
        "totals",
        "waiting",
    )

    def __init__(self) -> None:
        self.slots: dict[tuple[int, str, str], int] = {}
        self.names: list[_Slot] = []
        self.records: dict[tuple[int, int], bytes] = {}  # (bucket, source partition)
        self.waiting: dict[int, list[int]] = {}  # bucket >= folded_hour -> source partitions
        self.open_hours: list[int] = []  # heap of the keys of `waiting`
        self.folded_hour = -1
        self.totals: list[list[int]] = []  # by slot: trials, successes, value_micros, value_sq_micros2
        self.tails: dict[
            int, dict[int, list[int]]
        ] = {}  # hour >= folded_hour -> slot -> what folded buckets add
        self.tail_hours: list[int] = []  # heap of the keys of `tails`

    def new_slot(self, name: tuple[int, str, str]) -> int:
        index = self.slots[name] = len(self.names)
        self.names.append(_Slot(*name))
        self.totals.append([0, 0, 0, 0])
        return index

    def replace(self, place: tuple[int, int], raw: bytes | None) -> None:
        """Put a packed record, or nothing, at (bucket, source partition)."""
        bucket, source_partition = place
        before = self.records.pop(place, None)
        if bucket >= self.folded_hour:
            if before is None and raw is not None:
                if bucket not in self.waiting:
                    self.waiting[bucket] = []
                    heapq.heappush(self.open_hours, bucket)
                self.waiting[bucket].append(source_partition)
            elif before is not None and raw is None:
                self.waiting[bucket].remove(source_partition)
        else:
            if before is not None:
                self._add(bucket, _unpack(before), -1)
            if raw is not None:
                self._add(bucket, _unpack(raw), 1)
        if raw is not None:
            self.records[place] = raw

    def fold(self, hour: int) -> None:
        """Move everything dated before ``hour`` into the totals; ``hour`` is not below ``folded_hour``."""
        self.folded_hour = hour
        while self.open_hours and self.open_hours[0] < hour:
            bucket = heapq.heappop(self.open_hours)
            for source_partition in self.waiting.pop(bucket):
                self._add(bucket, _unpack(self.records[bucket, source_partition]), 1)
        while self.tail_hours and self.tail_hours[0] < hour:
            for slot, increments in self.tails.pop(heapq.heappop(self.tail_hours)).items():
                _add_to(self.totals[slot], 0, *increments)

    def _add(self, bucket: int, packed: _Packed, sign: int) -> None:
        for slot, trials, lags in packed.rows:
            total = self.totals[slot]
            total[0] += sign * trials
            for lag in lags:
                hour = bucket + lag[0]
                successes, value, value_sq = _increments(lag)
                if hour < self.folded_hour:
                    _add_to(total, 0, sign * successes, sign * value, sign * value_sq)
                    continue
                if hour not in self.tails:
                    self.tails[hour] = {}
                    heapq.heappush(self.tail_hours, hour)
                increments = self.tails[hour].setdefault(slot, [0, 0, 0])
                increments[0] += sign * successes
                increments[1] += sign * value
                increments[2] += sign * value_sq

    def recount(self, hour: int) -> list[list[int]]:
        """Totals as of ``hour`` from the records alone."""
        totals = [[0, 0, 0, 0] for _ in self.names]
        for (bucket, _), raw in self.records.items():
            if bucket >= hour:
                continue
            for slot, trials, lags in _unpack(raw).rows:
                totals[slot][0] += trials
                for lag in lags:
                    if bucket + lag[0] < hour:
                        _add_to(totals[slot], 0, *_increments(lag))
        return totals


def _add_to(total: list[int], trials: int, successes: int, value: int, value_sq: int) -> None:
    total[0] += trials
    total[1] += successes
    total[2] += value
    total[3] += value_sq


class CountsState:
    """Newest counts of the experiments in one partition of the topic.

    Parameters
    ----------
    view
        ``steering`` for policies, ``reporting`` for results.
    group
        Whose trials count: ``bandit`` for learning; units in the comparison group and those that got a
        default are never learned from.
    """

    def __init__(self, *, view: View = "steering", group: Group = "bandit") -> None:
        self._view = view
        self._group = group
        self._experiments: dict[str, _Experiment] = {}
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
            experiment = self._experiments[key.experiment_id] = _Experiment()
        place = (key.bucket, key.source_partition)
        known = experiment.records.get(place)
        if known is not None and order <= _unpack(known).order:
            return False
        packed = _Packed(order, _last_hour(key.bucket, rows), self._packed_rows(experiment, rows))
        experiment.replace(place, _pack(packed))
        return True

    def _packed_rows(self, experiment: _Experiment, rows: tuple[CellRow, ...]) -> tuple[_Row, ...]:
        """Rows of the view and group that count, summed over segments and allocation versions."""
        merged: dict[int, CellRow] = {}
        for row in rows:
            if row.view != self._view or row.group != self._group:
                continue
            name = (row.version, row.metric, row.arm_id)
            slot = experiment.slots.get(name)
            if slot is None:
                slot = experiment.new_slot(name)
            known = merged.get(slot)
            merged[slot] = row if known is None else _sum(known, row)
        return tuple([_Row(slot, row.trials, tuple(map(_short, row.lags))) for slot, row in merged.items()])

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

    def as_of(self, experiment_id: str, version: int, metric: str, hour: int) -> dict[str, ArmCounts]:
        """Sum up per arm everything dated before the start of ``hour``.

        Parameters
        ----------
        experiment_id, version, metric
            Experiment, version of its definition, and metric.
        hour
            Hours since the epoch; buckets and conversion hours below it count, others do not.

        Returns
        -------
        dict of str to ArmCounts
            Arms that were ever counted; others got nothing.
        """
        experiment = self._experiments.get(experiment_id)
        if experiment is None:
            return {}
        if hour >= experiment.folded_hour:
            experiment.fold(hour)
            totals = experiment.totals
        else:
            totals = experiment.recount(hour)
        return {
            name.arm_id: ArmCounts(*total)
            for name, total in zip(experiment.names, totals, strict=True)
            if name.version == version and name.metric == metric and any(total)
        }

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
        last = max((_unpack(raw).last_hour for raw in experiment.records.values()), default=-1)
        return last if last >= 0 else None


def _sum(one: CellRow, other: CellRow) -> CellRow:
    """Cell of both; of their keys only what is common to them means anything."""
    lags = {lag[0]: lag for lag in one.lags}
    for lag, successes, value, value_sq in other.lags:
        _, *before = lags.get(lag, (lag, 0, 0, 0))
        lags[lag] = (lag, before[0] + successes, before[1] + value, before[2] + value_sq)
    return one._replace(trials=one.trials + other.trials, lags=tuple(lags.values()))


def _last_hour(bucket: int, rows: tuple[CellRow, ...]) -> int:
    if not rows:
        return -1
    return bucket + max([lag[0] for row in rows for lag in row.lags[-1:]], default=0)  # lags are sorted
