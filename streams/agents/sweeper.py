"""What the rolling sweep may drop: evicted events of units, and cells of archived experiments."""

from streams.join.cells import decode_key
from streams.join.definitions import Definitions
from streams.join.step import Limits, sweep_unit
from streams.state.sweep import SweptUnit

__all__ = ["JoinSweeper"]


class JoinSweeper:
    """The join's side of a sweep.

    Parameters
    ----------
    definitions
        Compiled definitions, kept up to date by the batches.
    limits
        Grace, for the cut-off.
    """

    def __init__(self, definitions: Definitions, limits: Limits) -> None:
        self._definitions = definitions
        self._limits = limits

    def unit(self, unit_id: bytes, state: bytes, watermark_ms: int | None) -> SweptUnit:  # noqa: ARG002
        """Evict from a unit what no event at or after the cut-off can change."""
        swept = sweep_unit(state, watermark_ms, self._definitions, self._limits)
        return SweptUnit(swept.state, swept.pending, swept.totals)

    def cell(self, key: bytes, value: bytes) -> bytes | None:
        """Drop the cells of archived experiments."""
        plan = self._definitions.plans.get(decode_key(key).experiment_id)
        return None if plan is not None and plan.is_archived else value
