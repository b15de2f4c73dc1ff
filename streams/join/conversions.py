"""Conversions of one unit: from its state before a batch to the one after, and what that adds to cells.

A conversion changes no trial, only what trials earn, and only in blocks whose experiment names its metric.
The usual conversion is later than the others of its unit: then it adds to what its trial has earned, and that
is all. Any other one is counted as the difference of all that open conversions earn after and before. Tests
hold the first way to the second.

Cost: some 5 us for each block that a conversion is counted in; O(n log n) for the n events of the unit.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from streams.join.attribution import count_lags, count_newest
from streams.join.definitions import MissingDefinition
from streams.join.eviction import settle
from streams.join.ledger import Scope
from streams.join.reading import ConversionItem
from streams.join.unit import (
    OpenConversion,
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


def apply_all_conversions(
    groups: Mapping[bytes, Sequence[ConversionItem]], stored: Mapping[bytes, bytes | None], scope: Scope
) -> dict[bytes, bytes | None]:
    """Give the new states of the units that conversions change."""
    if scope.kernel is not None:
        return scope.kernel.apply_conversions(groups, stored, scope, apply_conversions)
    units = ((key, apply_conversions(stored[key], items, scope)) for key, items in groups.items())
    return {key: changed for key, changed in units if changed is not None}


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
    is_settled = unit.due_ms <= scope.evict_due_ms
    if is_settled:
        ledger.expire(settle(unit, scope.horizon_ms, scope.definitions, final=scope.final))
    before = decode_conversions(unit.conversions)
    n_pending_before = n_pending(before)
    fresh = _accept(unit, before, items, scope)
    if fresh:
        ledger.n_accepted += len(fresh)
        if len(fresh) > 1:
            fresh.sort(key=OpenConversion.order)
        after = [*before, *fresh]
        if before:
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
        elif scope.oversize_bytes:
            scope.ledger.refuse_oversize(offset, scope.oversize_bytes)
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
    times = [unit.last_conversion_ms, *[c.timestamp_ms for c in fresh]]
    is_newest = all(a < b for a, b in pairwise(times))
    for experiment_id, raw in unit.blocks.items():
        plan = scope.definitions.plans.get(experiment_id)
        if plan is None:
            if not scope.final:
                raise MissingDefinition(experiment_id)
            continue
        if plan.is_archived:
            continue
        concerned = [
            c for c in fresh if c.metric in plan.metrics and c.experiment_id in (None, experiment_id)
        ]
        if concerned:
            block = decode_block(raw)
            n_counted = 0
            while is_newest and n_counted < len(concerned):
                if not count_newest(tally, plan, block, concerned[n_counted]):
                    break
                n_counted += 1
            if n_counted < len(concerned):
                count_lags(tally, plan, block, [*before, *concerned[:n_counted]], -1)
                count_lags(tally, plan, block, after, 1)
            unit.blocks[experiment_id] = encode_block(block)
