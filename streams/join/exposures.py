"""Exposures of one unit: from its state before a batch to the one after, and what that adds to cells.

The usual exposure is the only one of its unit in the batch, later than every conversion of its unit and than
the first exposures that it could displace. Then it changes no conversion's credit, and what it adds can be
said at once: a trial, or a crossover, in each view. Any other one is counted as the difference of the block's
whole contribution after and before. Tests hold the first way to the second.

Cost: about 4 us for an exposure in the usual case, its unit's decoding and encoding included; O(n log n) for
the n events of the block in the other.
"""

from collections.abc import Sequence

from streams.join.attribution import BoundExposure, count_block, insert_exposure, stub_of
from streams.join.cells import HOUR_MS
from streams.join.definitions import ExperimentPlan
from streams.join.eviction import settle
from streams.join.ledger import Scope
from streams.join.reading import ExposureItem
from streams.join.tally import Stub
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


def apply_exposures(raw: bytes | None, items: Sequence[ExposureItem], scope: Scope) -> bytes | None:
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
    if len(items) == 1:
        usual = _apply_usual(raw, items[0], scope)
        if usual is not None:
            return usual
    ledger = scope.ledger
    unit = new_unit() if raw is None else decode_unit(raw)
    is_settled = unit.due_ms <= scope.evict_due_ms
    if is_settled:
        ledger.expire(settle(unit, scope.horizon_ms, scope.definitions, final=scope.final))
    recount = _Recount(unit, scope)
    n_accepted = 0
    for offset, floor_ms, plan, version, ms, exposure_id, arm, segment, group, allocation in items:
        if recount.has(plan, exposure_id, floor_ms):
            ledger.count("duplicate")
        elif unit.n_events >= scope.limits.unit_max_events:
            ledger.refuse_unit(offset, unit.n_events)
        else:
            n_accepted += 1
            unit.n_events += 1
            unit.due_ms = min(unit.due_ms, ms + version.window_ms)
            place = (plan.experiment_id, version, ms, exposure_id)
            recount.add(plan, BoundExposure(*place, arm, segment, group, allocation))
    if not n_accepted and not is_settled:
        return None
    ledger.n_accepted += n_accepted
    recount.end()
    return encode_unit(unit)


def _apply_usual(raw: bytes | None, item: ExposureItem, scope: Scope) -> bytes | None:
    """Apply the only exposure of a unit if it is a usual one; None, and nothing is changed, if it is not."""
    _, floor_ms, plan, version, ms, exposure_id, arm, segment, group, allocation = item
    experiment_id = plan.experiment_id
    unit = new_unit() if raw is None else decode_unit(raw)
    if (
        ms <= unit.last_conversion_ms
        or unit.due_ms <= scope.evict_due_ms
        or unit.n_events >= scope.limits.unit_max_events
    ):
        return None
    raw_block = unit.blocks.get(experiment_id)
    block = Block([]) if raw_block is None else decode_block(raw_block)
    trials = block.trials
    number = version.version
    start_ms, end_ms = version.trial_span_ms(ms)
    joined: Trial | None = None
    for trial in trials:
        if trial.first_id == exposure_id and trial.first_ms >= floor_ms:
            return None
        if trial.others and _has_other(trial, exposure_id, floor_ms):
            return None
        if start_ms <= trial.first_ms < end_ms and trial.version == number:
            joined = trial
    first: Trial | Mark | None = block.mark
    if first is None and trials and not block.is_closed:
        first = trials[0]
        if (ms, exposure_id) < (first.first_ms, trials[0].first_id):
            return None
    ledger = scope.ledger
    tally = ledger.tally
    if joined is None:
        stub: Stub = (experiment_id, number, "steering", arm, segment, group, allocation, ms // HOUR_MS)
        tally.at(stub).trials += 1
        trials.append(Trial(number, ms, exposure_id, arm, segment, group, allocation, []))
    elif (ms, exposure_id) < (joined.first_ms, joined.first_id):
        return None
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
    ledger.n_accepted += 1
    unit.n_events += 1
    if ms + version.window_ms < unit.due_ms:
        unit.due_ms = ms + version.window_ms
    unit.blocks[experiment_id] = encode_block(block)
    return encode_unit(unit)


def _has_other(trial: Trial, exposure_id: str, floor_ms: int) -> bool:
    """Whether an exposure of this id, not older than ``floor_ms``, follows a trial's first."""
    return any(other_id == exposure_id and ms >= floor_ms for ms, other_id, _ in trial.others)


class _Recount:
    """Counts a unit's blocks as the difference of their whole contributions after and before a batch.

    Parameters
    ----------
    unit
        Changed in place by :meth:`end`.
    scope
        Of the batch.
    """

    __slots__ = ("_blocks", "_conversions", "_ids", "_n_pending", "_scope", "_unit")

    def __init__(self, unit: Unit, scope: Scope) -> None:
        self._unit = unit
        self._scope = scope
        self._conversions: list[OpenConversion] = decode_conversions(unit.conversions)
        self._n_pending = n_pending(self._conversions)
        self._blocks: dict[str, tuple[ExperimentPlan, Block]] = {}
        self._ids: dict[str, dict[str, int]] = {}

    def has(self, plan: ExperimentPlan, exposure_id: str, floor_ms: int) -> bool:
        """Whether the experiment has an exposure of this id that is not older than ``floor_ms``."""
        ids = self._ids.get(plan.experiment_id)
        if ids is None:
            ids = self._ids[plan.experiment_id] = {}
            raw = self._unit.blocks.get(plan.experiment_id)
            if raw is not None:
                for trial in decode_block(raw).trials:
                    for ms, known_id, _ in ((trial.first_ms, trial.first_id, ""), *trial.others):
                        ids[known_id] = max(ms, ids.get(known_id, 0))
        known_ms = ids.get(exposure_id)
        return known_ms is not None and known_ms >= floor_ms

    def add(self, plan: ExperimentPlan, exposure: BoundExposure) -> None:
        """Insert an accepted exposure; before a block's first one, take away what it contributes so far."""
        held = self._blocks.get(plan.experiment_id)
        if held is None:
            raw = self._unit.blocks.get(plan.experiment_id)
            held = self._blocks[plan.experiment_id] = (plan, Block([]) if raw is None else decode_block(raw))
            tally, settled_ms = self._scope.ledger.tally, self._unit.settled_ms
            count_block(tally, plan, held[1], self._conversions, settled_ms, -1)
        insert_exposure(held[1], exposure)
        ids = self._ids[plan.experiment_id]
        ids[exposure.exposure_id] = max(exposure.timestamp_ms, ids.get(exposure.exposure_id, 0))

    def end(self) -> None:
        """Add what the blocks contribute now, and store them."""
        ledger, unit = self._scope.ledger, self._unit
        for experiment_id, (plan, block) in self._blocks.items():
            count_block(ledger.tally, plan, block, self._conversions, unit.settled_ms, 1)
            unit.blocks[experiment_id] = encode_block(block)
        ledger.attribute(self._n_pending - n_pending(self._conversions))
        store_conversions(unit, self._conversions)
