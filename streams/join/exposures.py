"""Exposures of one unit: from its state before a batch to the one after, and what that adds to cells.

The usual exposure has no open conversion in reach and is not earlier than the first exposures of its trial
and of its unit. Then it changes no conversion's credit, and what it adds can be said at once: a trial, or a
crossover, in each view. If it has a conversion in reach, what the block's conversions earn is counted as a
difference, after less before; if it displaces a first exposure, so is all that the block contributes. Tests
hold the shorter ways to the pure function.

Cost: some 5 us for an exposure in the usual case, its unit's decoding and encoding included; O(n log n) for
the n events of the block in the others.
"""

from collections.abc import Iterable, Mapping

from streams.join.attribution import (
    BoundExposure,
    count_lags,
    count_trials,
    insert_exposure,
    stub_of,
)
from streams.join.cells import HOUR_MS
from streams.join.definitions import ExperimentPlan
from streams.join.eviction import settle
from streams.join.ledger import Scope
from streams.join.reading import ExposureItem, ExposureItems
from streams.join.tally import Stub, Tally
from streams.join.unit import (
    Block,
    Mark,
    OpenConversion,
    Trial,
    Unit,
    decode_block,
    decode_conversions,
    decode_unit,
    encode_block,
    encode_unit,
    n_pending,
    new_unit,
    store_conversions,
)

_HOT_EVENTS = 64
"""A unit of more events looks ids up in an index made for the batch, instead of looking at each event."""


def apply_all_exposures(
    groups: Mapping[bytes, ExposureItems], stored: Mapping[bytes, bytes | None], scope: Scope
) -> dict[bytes, bytes | None]:
    """Give the new states of the units that exposures change."""
    if scope.kernel is not None:
        return scope.kernel.apply_exposures(groups, stored, scope, apply_exposures)
    units = ((key, apply_exposures(stored[key], items, scope)) for key, items in groups.items())
    return {key: changed for key, changed in units if changed is not None}


def apply_exposures(raw: bytes | None, items: Iterable[ExposureItem], scope: Scope) -> bytes | None:
    """State of a unit after its exposures of one batch; None if it is as it was.

    Parameters
    ----------
    raw
        State before; None for a unit that has none.
    items
        Exposures in offset order.
    scope
        What the batch is judged by, and the ledger that takes what comes of it.

    Raises
    ------
    MissingDefinition
        If the unit's state is bound to a version that the definitions lack.
    """
    ledger = scope.ledger
    unit = new_unit() if raw is None else decode_unit(raw)
    is_settled = unit.due_ms <= scope.evict_due_ms
    if is_settled:
        ledger.expire(settle(unit, scope.horizon_ms, scope.definitions, final=scope.final))
    blocks: dict[str, Block] = {}
    recount: _Recount | None = None
    is_hot = unit.n_events > _HOT_EVENTS
    n_accepted = 0
    for item in items:
        offset, floor_ms, plan, version, ms, exposure_id = item[:6]
        experiment_id = plan.experiment_id
        block = blocks.get(experiment_id)
        if block is None:
            raw_block = unit.blocks.get(experiment_id)
            block = blocks[experiment_id] = Block([]) if raw_block is None else decode_block(raw_block)
        if is_hot or recount is not None:
            recount = recount or _Recount(unit, scope)
            is_duplicate = recount.has(experiment_id, block, exposure_id, floor_ms)
        else:
            is_duplicate = _has(block, exposure_id, floor_ms)
        if is_duplicate:
            ledger.count("duplicate")
        elif unit.n_events >= scope.limits.unit_max_events:
            ledger.refuse_unit(offset, unit.n_events)
        elif scope.oversize_bytes:
            ledger.refuse_oversize(offset, scope.oversize_bytes)
        else:
            n_accepted += 1
            unit.n_events += 1
            if ms + version.window_ms < unit.due_ms:
                unit.due_ms = ms + version.window_ms
            is_usual = ms > unit.last_conversion_ms and (recount is None or not recount.holds(plan))
            if not (is_usual and _insert_usual(block, item, ledger.tally)):
                recount = recount or _Recount(unit, scope)
                recount.insert(block, item)
            if recount is not None:
                recount.note(experiment_id, exposure_id, ms)
    if n_accepted:
        ledger.n_accepted += n_accepted
        if recount is not None:
            recount.end()
        for experiment_id, block in blocks.items():
            if block.trials or block.mark is not None or block.is_closed:
                unit.blocks[experiment_id] = encode_block(block)
    elif not is_settled:
        return None
    return encode_unit(unit)


def _has(block: Block, exposure_id: str, floor_ms: int) -> bool:
    """Whether a block has an exposure of this id that is not forgotten, i.e. not older than ``floor_ms``."""
    for trial in block.trials:
        if trial.first_id == exposure_id and trial.first_ms >= floor_ms:
            return True
        if trial.others:
            for ms, other_id, _ in trial.others:
                if other_id == exposure_id and ms >= floor_ms:
                    return True
    return False


def _insert_usual(block: Block, item: ExposureItem, tally: Tally) -> bool:
    """Insert an exposure that is later than every conversion of its unit, and count what it adds.

    Returns
    -------
    bool
        False, and nothing is changed, if it displaces a trial's first exposure or the unit's.
    """
    _, _, plan, version, ms, exposure_id, arm, segment, group, allocation = item
    experiment_id = plan.experiment_id
    number = version.version
    trials = block.trials
    first: Trial | Mark | None = block.mark
    joined: Trial | None = None
    if trials:
        if first is None and not block.is_closed:
            first = trials[0]
            if (ms, exposure_id) < (first.first_ms, trials[0].first_id):
                return False
        start_ms, end_ms = version.trial_span_ms(ms)
        for trial in trials:
            if start_ms <= trial.first_ms < end_ms and trial.version == number:
                joined = trial
    if joined is None:
        stub: Stub = (experiment_id, number, "steering", arm, segment, group, allocation, ms // HOUR_MS)
        tally.at(stub).trials += 1
        trials.append(Trial(number, ms, exposure_id, arm, segment, group, allocation, []))
    elif (ms, exposure_id) < (joined.first_ms, joined.first_id):
        return False
    else:
        joined.others.append((ms, exposure_id, arm))
        if arm != joined.arm:
            tally.at(stub_of(experiment_id, "steering", joined)).crossovers += 1
    if first is not None:
        if arm != first.arm and ms - first.first_ms < plan.by_number[first.version].window_ms:
            tally.at(stub_of(experiment_id, "reporting", first)).crossovers += 1
    elif not block.is_closed:
        stub = (experiment_id, number, "reporting", arm, segment, group, allocation, ms // HOUR_MS)
        tally.at(stub).trials += 1
    return True


class _Recount:
    """Counts a unit's blocks as the difference of their whole contributions after and before a batch.

    It also keeps an index of exposure ids, for units of many events.

    Parameters
    ----------
    unit
        Its conversions are changed by :meth:`end`.
    scope
        Of the batch.
    """

    __slots__ = ("_conversions", "_held", "_ids", "_n_pending", "_scope", "_unit")

    def __init__(self, unit: Unit, scope: Scope) -> None:
        self._unit = unit
        self._scope = scope
        self._conversions: list[OpenConversion] = decode_conversions(unit.conversions)
        self._n_pending = n_pending(self._conversions)
        self._held: dict[str, _Held] = {}
        self._ids: dict[str, dict[str, int]] = {}

    def has(self, experiment_id: str, block: Block, exposure_id: str, floor_ms: int) -> bool:
        """Whether a block has an exposure of this id that is not older than ``floor_ms``."""
        ids = self._ids.get(experiment_id)
        if ids is None:
            self._ids[experiment_id] = ids = {}
            for trial in block.trials:
                for ms, known_id, _ in ((trial.first_ms, trial.first_id, ""), *trial.others):
                    ids[known_id] = max(ms, ids.get(known_id, 0))
        known_ms = ids.get(exposure_id)
        return known_ms is not None and known_ms >= floor_ms

    def note(self, experiment_id: str, exposure_id: str, timestamp_ms: int) -> None:
        """Add an accepted exposure to the index, if there is one of its experiment."""
        ids = self._ids.get(experiment_id)
        if ids is not None:
            ids[exposure_id] = max(timestamp_ms, ids.get(exposure_id, 0))

    def holds(self, plan: ExperimentPlan) -> bool:
        """Whether what the experiment's block contributed has been taken away."""
        return plan.experiment_id in self._held

    def insert(self, block: Block, item: ExposureItem) -> None:
        """Insert an accepted exposure that is not usual; what it may change is taken away first."""
        _, _, plan, version, ms, exposure_id, arm, segment, group, allocation = item
        experiment_id = plan.experiment_id
        tally = self._scope.ledger.tally
        held = self._held.get(experiment_id)
        if held is None:
            if not self._may_be_touched(item) and _insert_usual(block, item, tally):
                return
            held = self._held[experiment_id] = _Held(plan, block)
            count_lags(tally, plan, block, self._conversions, -1)
        if not held.is_whole:
            if _insert_usual(block, item, tally):
                return
            held.is_whole = True
            count_trials(tally, plan, block, self._unit.settled_ms, -1)
        exposure = (experiment_id, version, ms, exposure_id, arm, segment, group, allocation)
        insert_exposure(block, BoundExposure(*exposure))

    def _may_be_touched(self, item: ExposureItem) -> bool:
        """Whether any open conversion is in reach of an exposure; only then can it change a credit."""
        _, _, plan, version, ms, *_ = item
        end_ms = ms + version.window_ms
        return any(
            ms <= conversion.timestamp_ms < end_ms
            and conversion.metric in version.roles
            and conversion.experiment_id in (None, plan.experiment_id)
            for conversion in self._conversions
        )

    def end(self) -> None:
        """Add what the blocks contribute now."""
        ledger, unit = self._scope.ledger, self._unit
        for held in self._held.values():
            count_lags(ledger.tally, held.plan, held.block, self._conversions, 1)
            if held.is_whole:
                count_trials(ledger.tally, held.plan, held.block, unit.settled_ms, 1)
        if self._held:
            ledger.attribute(self._n_pending - n_pending(self._conversions))
            store_conversions(unit, self._conversions)


class _Held:
    """A block whose contribution has been taken away: that of its conversions, or the whole."""

    __slots__ = ("block", "is_whole", "plan")

    def __init__(self, plan: ExperimentPlan, block: Block) -> None:
        self.plan = plan
        self.block = block
        self.is_whole = False
