"""Exposures of one unit: from the unit's state before a batch to the one after, and what that adds to cells.

The usual exposure is later than every conversion of its unit and than the first exposures that it could
displace. Then it changes no conversion's credit, and what it adds can be said at once: a trial, or a
crossover, in each view. Any other one is counted as the difference of the block's whole contribution after
and before. Tests hold the first way to the second.

Cost: about 2 us for an exposure in the usual case, its block's decoding and encoding included; O(n log n) for
the n events of the block in the other.
"""

from collections.abc import Sequence

from streams.join.attribution import (
    BoundExposure,
    Stub,
    Tally,
    count_block,
    earliest,
    insert_exposure,
    stub_of,
    trial_of,
    version_of,
)
from streams.join.cells import HOUR_MS
from streams.join.definitions import ExperimentPlan, VersionPlan
from streams.join.eviction import SLACK_MS, settle
from streams.join.ledger import Scope
from streams.join.reading import ExposureItem
from streams.join.unit import (
    Block,
    Mark,
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

_Exposure = tuple[str, VersionPlan, int, str, str, str, int, int]
"""Fields of a BoundExposure."""


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
    ledger = scope.ledger
    unit = new_unit() if raw is None else decode_unit(raw)
    is_settled = scope.horizon_ms >= unit.due_ms + SLACK_MS
    if is_settled:
        ledger.expire(settle(unit, scope.horizon_ms, scope.definitions, final=scope.final))
    blocks: dict[str, Block] = {}
    recount: _Recount | None = None
    n_accepted = 0
    for offset, floor_ms, plan, version, ms, exposure_id, arm, segment, group, allocation in items:
        experiment_id = plan.experiment_id
        block = blocks.get(experiment_id)
        if block is None:
            raw_block = unit.blocks.get(experiment_id)
            block = blocks[experiment_id] = Block([]) if raw_block is None else decode_block(raw_block)
        if block.trials and is_duplicate(block, exposure_id, floor_ms):
            ledger.count("duplicate")
            continue
        if unit.n_events >= scope.limits.unit_max_events:
            ledger.refuse_unit(offset, unit.n_events)
            continue
        n_accepted += 1
        unit.n_events += 1
        unit.due_ms = min(unit.due_ms, ms + version.window_ms)
        exposure = (experiment_id, version, ms, exposure_id, arm, segment, group, allocation)
        if recount is None or experiment_id not in recount.plans:
            if ms > unit.last_conversion_ms and count_usual(ledger.tally, plan, block, exposure):
                continue
            recount = recount or _Recount(unit, scope)
            recount.begin(plan, block)
        insert_exposure(block, BoundExposure(*exposure))
    if not n_accepted and not is_settled:
        return None
    ledger.count("accepted", n_accepted)
    if recount is not None:
        recount.end(blocks)
    for experiment_id, block in blocks.items():
        if block.trials or block.is_closed or block.mark is not None:
            unit.blocks[experiment_id] = encode_block(block)
    return encode_unit(unit)


def is_duplicate(block: Block, exposure_id: str, floor_ms: int) -> bool:
    """Whether a block has an exposure of this id that is not forgotten, i.e. not older than ``floor_ms``."""
    for trial in block.trials:
        if trial.first_id == exposure_id and trial.first_ms >= floor_ms:
            return True
        if trial.others:
            for ms, other_id, _ in trial.others:
                if other_id == exposure_id and ms >= floor_ms:
                    return True
    return False


def count_usual(tally: Tally, plan: ExperimentPlan, block: Block, exposure: _Exposure) -> bool:
    """Insert an exposure that is later than every conversion of its unit, and count what it adds.

    Returns
    -------
    bool
        False, and nothing is changed, if it displaces a trial's first exposure or the unit's: then only the
        whole contribution tells.
    """
    experiment_id, version, ms, exposure_id, arm, segment, group, allocation = exposure
    trials = block.trials
    trial = trial_of(block, version, ms) if trials else None
    if trial is not None and (ms, exposure_id) < (trial.first_ms, trial.first_id):
        return False
    if not block.is_closed:
        first: Trial | Mark | None = block.mark
        if first is None and trials:
            first = trials[0] if len(trials) == 1 else earliest(block)
            if (ms, exposure_id) < (first.first_ms, first.first_id):
                return False
        if first is None:
            hour = ms // HOUR_MS
            stub: Stub = (experiment_id, version.version, "reporting", arm, segment, group, allocation, hour)
            tally.trials[stub] = tally.trials.get(stub, 0) + 1
        elif arm != first.arm and ms - first.first_ms < version_of(plan, first.version).window_ms:
            stub = stub_of(experiment_id, "reporting", first)
            tally.crossovers[stub] = tally.crossovers.get(stub, 0) + 1
    if trial is None:
        stub = (experiment_id, version.version, "steering", arm, segment, group, allocation, ms // HOUR_MS)
        tally.trials[stub] = tally.trials.get(stub, 0) + 1
        trials.append(Trial(version.version, ms, exposure_id, arm, segment, group, allocation, [], None))
    else:
        trial.others.append((ms, exposure_id, arm))
        if arm != trial.arm:
            stub = stub_of(experiment_id, "steering", trial)
            tally.crossovers[stub] = tally.crossovers.get(stub, 0) + 1
    return True


class _Recount:
    """Counts blocks as the difference of their whole contributions after and before the batch."""

    __slots__ = ("_conversions", "_n_pending", "_scope", "_unit", "plans")

    def __init__(self, unit: Unit, scope: Scope) -> None:
        self._unit = unit
        self._scope = scope
        self._conversions = decode_conversions(unit.conversions)
        self._n_pending = n_pending(self._conversions)
        self.plans: dict[str, ExperimentPlan] = {}

    def begin(self, plan: ExperimentPlan, block: Block) -> None:
        """Take away what a block contributes so far."""
        self.plans[plan.experiment_id] = plan
        tally = self._scope.ledger.tally
        count_block(tally, plan, block, self._conversions, self._unit.settled_ms, -1)

    def end(self, blocks: dict[str, Block]) -> None:
        """Add what the blocks contribute now."""
        ledger = self._scope.ledger
        for experiment_id, plan in self.plans.items():
            block = blocks[experiment_id]
            count_block(ledger.tally, plan, block, self._conversions, self._unit.settled_ms, 1)
        ledger.attribute(self._n_pending - n_pending(self._conversions))
        store_conversions(self._unit, self._conversions)
