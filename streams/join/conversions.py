"""Conversions of one unit: from its state before a batch to the one after, and what that adds to cells.

A conversion changes no trial, only what trials earn; so it is counted as the difference of the lags of those
blocks whose experiment names its metric. The usual unit has no other open conversion: then nothing is taken
away.

Cost: about 3 us for the only conversion of a unit with one trial; O(n log n) for the n events of the unit.
"""

from collections.abc import Sequence

from streams.join.attribution import MissingDefinition, count_lags
from streams.join.eviction import SLACK_MS, settle
from streams.join.ledger import Scope
from streams.join.reading import ConversionItem
from streams.join.unit import (
    OpenConversion,
    Unit,
    decode_block,
    decode_conversions,
    decode_unit,
    encode_unit,
    n_pending,
    new_unit,
    store_conversions,
)


def apply_conversions(raw: bytes | None, items: Sequence[ConversionItem], scope: Scope) -> bytes | None:
    """State of a unit after its conversions of one batch; None if it is as it was.

    Parameters
    ----------
    raw
        State before; None for a unit that has none.
    items
        Conversions in offset order.
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
    before = decode_conversions(unit.conversions)
    n_pending_before = n_pending(before)
    fresh = _accept(unit, before, items, scope)
    if fresh:
        ledger.count("accepted", len(fresh))
        after = [*before, *fresh]
        if len(after) > 1:
            after.sort(key=OpenConversion.order)
        _count(unit, before, after, fresh, scope)
        ledger.n_pending += len(fresh)
        ledger.attribute(n_pending_before + len(fresh) - n_pending(after))
        unit.n_events += len(fresh)
        unit.due_ms = min(unit.due_ms, after[0].timestamp_ms)
        store_conversions(unit, after)
    elif not is_settled:
        return None
    return encode_unit(unit)


def _accept(
    unit: Unit, before: Sequence[OpenConversion], items: Sequence[ConversionItem], scope: Scope
) -> list[OpenConversion]:
    """Conversions that are neither duplicates nor beyond the unit's limit."""
    newest_ms: dict[str, int] = {}
    for conversion in before:
        known_ms = newest_ms.get(conversion.conversion_id, -1)
        newest_ms[conversion.conversion_id] = max(known_ms, conversion.timestamp_ms)
    fresh: list[OpenConversion] = []
    for offset, floor_ms, conversion in items:
        known_ms = newest_ms.get(conversion.conversion_id, -1)
        if 0 <= known_ms >= floor_ms:
            scope.ledger.count("duplicate")
        elif unit.n_events + len(fresh) >= scope.limits.unit_max_events:
            scope.ledger.refuse_unit(offset, unit.n_events + len(fresh))
        else:
            newest_ms[conversion.conversion_id] = max(known_ms, conversion.timestamp_ms)
            fresh.append(conversion)
    return fresh


def _count(
    unit: Unit,
    before: Sequence[OpenConversion],
    after: Sequence[OpenConversion],
    fresh: Sequence[OpenConversion],
    scope: Scope,
) -> None:
    """Add the difference that fresh conversions make to the blocks that may be credited with one."""
    tally = scope.ledger.tally
    for experiment_id, raw in unit.blocks.items():
        plan = scope.definitions.plans.get(experiment_id)
        if plan is None:
            if not scope.final:
                raise MissingDefinition(experiment_id)
            continue
        if plan.is_archived or not any(
            c.metric in plan.metrics and c.experiment_id in (None, experiment_id) for c in fresh
        ):
            continue
        block = decode_block(raw)
        count_lags(tally, plan, block, before, -1)
        count_lags(tally, plan, block, after, 1)
