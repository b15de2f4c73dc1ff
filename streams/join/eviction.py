"""Eviction: what a unit may forget, without any count changing.

The horizon of a partition is ``T = watermark - grace``, the watermark being the lesser of its two topics'
maxima. A record is accepted only if its timestamp is not below its own topic's maximum less grace, so every
event accepted from now on, exposure or conversion, has a timestamp ``>= T``. Therefore, of what lies before
T:

- An exposure before T keeps its trial, and its trial's first exposure is final: a later one is not earlier.
- A conversion before T keeps its credits: a new exposure at ``e >= T > t`` is no candidate for it, and its
  candidates' arms and versions are final, and so are the clicks at or before ``t`` that it may need. This
  holds for every touch rule, for explicit ids and for versions with different windows, since a candidate is
  never later than the conversion. So its amounts are folded into its trials (``base``), and it is dropped;
  what no trial is credited with is expired. Nothing can credit it twice, because it is no longer there.
- A touch with ``e + window <= T`` is in reach of no conversion at or after T; it is dropped, and so is a
  crossover before T, which is counted and is no touch.
- A trial without touches is dropped when no exposure can join it: always for trial window ``exposure``, after
  its hour for ``hour``, never for ``experiment`` (then it stays as the marker of its version).
- The reporting trial becomes a :class:`~streams.join.unit.Mark` when its exposure is before T, and a single
  flag when its window has closed. The flag stays while the experiment does.

What stays counts from its base on, with the same conversions in the same order; so the increments of every
later event are those that a unit that forgets nothing would have. A test holds eviction to that at every
point.

Cost: O(n log n) for the n events of the unit; some 50 us for ten. The step does it once the unit is due for a
quarter of the grace, the rolling sweep for every unit that is due.
"""

from collections.abc import Mapping
from typing import NamedTuple

from streams.join.attribution import (
    Earned,
    attribute,
    reporting_earned,
    reporting_trial,
)
from streams.join.cells import NEVER_MS
from streams.join.definitions import Definitions, ExperimentPlan, MissingDefinition, VersionPlan
from streams.join.ledger import Limits
from streams.join.unit import (
    Base,
    Block,
    OpenConversion,
    Trial,
    Unit,
    decode_block,
    decode_conversions,
    decode_unit,
    encode_block,
    encode_unit,
    store_conversions,
)

_TOPICS = ("exposures", "conversions")


class SweptUnit(NamedTuple):
    """Result of :func:`sweep_unit`.

    Attributes
    ----------
    state : bytes or None
        New state, None if nothing is left; the very same bytes if nothing changed.
    pending : int
        Change of the number of pending conversions, <= 0.
    totals : Mapping
        Changes of the head's totals: conversions that expired.
    """

    state: bytes | None
    pending: int
    totals: Mapping[str, int]


def horizon_ms(maxima: Mapping[str, int], grace_ms: int) -> int:
    """No event older than this can be accepted any more; 0 while a topic has no maximum."""
    known = [maxima[topic] for topic in _TOPICS if topic in maxima]
    return max(0, min(known) - grace_ms) if len(known) == len(_TOPICS) else 0


def settle(unit: Unit, horizon: int, definitions: Definitions, *, final: bool) -> int:
    """Freeze and drop everything of a unit that no event at or after ``horizon`` can change.

    Blocks of archived and of removed experiments are dropped whole: their cells are gone.

    Parameters
    ----------
    unit
        Changed in place.
    horizon
        Horizon in ms; one that is not past ``unit.settled_ms`` changes nothing but those blocks.
    definitions
        Definitions that hold every version bound by a live experiment's trial.
    final
        Whether ``definitions`` were read to their end, so that an experiment not among them was removed.

    Returns
    -------
    int
        Number of conversions that expired.

    Raises
    ------
    MissingDefinition
        If a trial's version is not among the definitions, or its experiment is not and ``final`` is false;
        the unit is then as it was.
    """
    horizon = max(horizon, unit.settled_ms)
    conversions = decode_conversions(unit.conversions)
    past = [c for c in conversions if c.timestamp_ms < horizon]
    blocks: dict[str, bytes] = {}
    due_ms = NEVER_MS
    n_events = 0
    for experiment_id, raw in unit.blocks.items():
        plan = definitions.plans.get(experiment_id)
        if plan is None and not final:
            raise MissingDefinition(experiment_id)
        if plan is None or plan.is_archived:
            continue
        block = decode_block(raw)
        _freeze(block, plan, past, horizon)
        if len(past) == len(conversions):
            _forget_open(block)
        block_due_ms = _prune(block, plan, horizon)
        due_ms = min(due_ms, block_due_ms)
        n_events += sum(1 + len(trial.others) for trial in block.trials)
        blocks[experiment_id] = encode_block(block)
    unit.settled_ms = horizon
    unit.blocks = blocks
    if past:
        store_conversions(unit, conversions[len(past) :])
    if len(past) < len(conversions):
        due_ms = min(due_ms, conversions[len(past)].timestamp_ms)
    unit.due_ms = due_ms
    unit.n_events = n_events + len(conversions) - len(past)
    return sum(1 for c in past if not c.n_credits)


def _freeze(block: Block, plan: ExperimentPlan, past: list[OpenConversion], horizon: int) -> None:
    """Fold what is credited before the horizon into the block's trials and its reporting trial."""
    mark = reporting_trial(block)
    if past:
        earned, _ = attribute(plan, block.trials, past)
        for trial, own in zip(block.trials, earned, strict=True):
            if own:
                trial.base = trial.base or {}
                _fold(trial.base, plan.by_number[trial.version], own)
        if mark is not None and mark.first_ms < horizon:
            _fold(mark.base, plan.by_number[mark.version], reporting_earned(plan, mark, past))
    if mark is not None and mark.first_ms < horizon:
        block.is_closed = mark.first_ms + plan.by_number[mark.version].window_ms <= horizon
        block.mark = None if block.is_closed else mark
        if block.is_closed:
            block.earned = None


def _forget_open(block: Block) -> None:
    """No conversion is open any more: all that was earned is in the bases."""
    block.earned = None
    for trial in block.trials:
        trial.earned = None


def _fold(base: Base, version: VersionPlan, earned: Earned) -> None:
    for metric, conversions in earned.items():
        cap = version.caps.get(metric)
        total = sum(conversion.value_micros for conversion in conversions)
        base[metric] = 0 if cap is None else min(cap, base.get(metric, 0) + total)


def _prune(block: Block, plan: ExperimentPlan, horizon: int) -> int:
    """Drop touches, crossovers and trials that are over; returns when the next of them will be."""
    due_ms = NEVER_MS
    kept: list[Trial] = []
    for trial in block.trials:
        version = plan.by_number[trial.version]
        window_ms = version.window_ms
        if trial.others:
            trial.others = [
                (ms, exposure_id, arm)
                for ms, exposure_id, arm in trial.others
                if ms >= horizon or (arm == trial.arm and ms + window_ms > horizon)
            ]
        reach_ends_ms = [ms + window_ms if arm == trial.arm else ms for ms, _, arm in trial.others]
        first_ends_ms = trial.first_ms + window_ms
        if first_ends_ms > horizon:
            reach_ends_ms.append(first_ends_ms)
        else:
            trial.first_id = ""
        joins_until_ms = version.trial_span_ms(trial.first_ms)[1]
        if reach_ends_ms or joins_until_ms > horizon:
            kept.append(trial)
            due_ms = min(due_ms, *reach_ends_ms, joins_until_ms if joins_until_ms > horizon else NEVER_MS)
    block.trials = kept
    if block.mark is not None:
        due_ms = min(due_ms, block.mark.first_ms + plan.by_number[block.mark.version].window_ms)
    return due_ms


def is_empty(unit: Unit) -> bool:
    """Whether a unit has neither events nor markers left."""
    return not unit.blocks and not unit.conversions


def sweep_unit(
    raw: bytes, watermark_ms: int | None, definitions: Definitions, limits: Limits, *, final: bool = False
) -> SweptUnit:
    """State of a unit as the rolling sweep writes it again.

    A unit whose definitions are not all known is left as it is.

    Parameters
    ----------
    raw
        State as stored.
    watermark_ms
        Watermark of the head before the sweep record; None if it has none yet.
    definitions, limits
        All experiments, and the settings.
    final
        Whether ``definitions`` were read to their end just now; only then is the block of an experiment that
        is not among them dropped.
    """
    unit = decode_unit(raw)
    horizon = 0 if watermark_ms is None else max(0, watermark_ms - limits.grace_ms)
    plans = definitions.plans
    is_dead = any(
        (plan := plans.get(experiment_id)) is None or plan.is_archived for experiment_id in unit.blocks
    )
    if horizon < unit.due_ms and not is_dead:
        return SweptUnit(raw, 0, {})
    try:
        n_expired = settle(unit, horizon, definitions, final=final)
    except MissingDefinition:
        return SweptUnit(raw, 0, {})
    state = None if is_empty(unit) else encode_unit(unit)
    return SweptUnit(state, -n_expired, {"conversions/expired": n_expired} if n_expired else {})
