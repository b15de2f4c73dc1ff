"""Ledger of one batch: outcomes, verdicts, and what is added to cells and totals."""

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from streams.errors import DeadLetterReason
from streams.join.definitions import Definitions
from streams.join.kernel import Kernel
from streams.join.tally import Tally


class Limits(Struct, frozen=True, kw_only=True):
    """Settings that the verdicts depend on."""

    n_partitions: int
    grace_ms: int
    max_ahead_ms: int
    unit_max_events: int


class Verdict(NamedTuple):
    """A rejected record: kept in the journal with the batch, then dead-lettered."""

    offset: int
    reason: DeadLetterReason
    field: str
    message: str


class Ledger:
    """Collects what the records of one batch came to.

    Attributes
    ----------
    topic
        The batch's source topic.
    outcomes
        Records by outcome, but for the accepted: ``duplicate``, ``rerouted``, ``marker``, ``test``,
        ``archived``, ``dead_letter/<reason>``.
    verdicts, reroutes
        Rejected records and offsets of misplaced ones, in no order.
    tally
        Increments of cells.
    n_accepted
        Accepted records.
    n_attributed, n_pending, n_expired
        Increments of accepted conversions by what became of them.
    """

    __slots__ = (
        "n_accepted",
        "n_attributed",
        "n_expired",
        "n_pending",
        "outcomes",
        "reroutes",
        "tally",
        "topic",
        "verdicts",
    )

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.outcomes: dict[str, int] = {}
        self.verdicts: list[Verdict] = []
        self.reroutes: list[int] = []
        self.tally = Tally()
        self.n_accepted = 0
        self.n_attributed = 0
        self.n_pending = 0
        self.n_expired = 0

    def count(self, outcome: str, n: int = 1) -> None:
        """Count records of one outcome."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + n

    def reject(self, offset: int, reason: DeadLetterReason, field: str, message: str) -> None:
        """Record the verdict on one record."""
        self.verdicts.append(Verdict(offset, reason, field, message))
        self.count(f"dead_letter/{reason}")

    def reroute(self, offset: int) -> None:
        """Have a record produced again, to its right partition."""
        self.reroutes.append(offset)
        self.count("rerouted")

    def refuse_oversize(self, offset: int, n_bytes: int) -> None:
        """Reject an event that does not fit into a journal record with what is kept of its unit."""
        self.reject(
            offset,
            "oversize",
            "$.unit_id",
            f"with what is kept of its unit the event makes a journal record of {n_bytes} bytes, more than "
            "journal_max_message_bytes: give units fewer events or shorter ids, or raise it",
        )

    def refuse_unit(self, offset: int, n_events: int) -> None:
        """Reject an event of a unit that has all the events it may have."""
        self.reject(
            offset,
            "unit_limit",
            "$.unit_id",
            f"the unit has {n_events} events that may still count, and no more are taken; it looks like a "
            "bot, or the setting unit_max_events is too low",
        )

    def attribute(self, n_conversions: int) -> None:
        """Turn pending conversions into attributed ones; a negative number turns some back."""
        self.n_attributed += n_conversions
        self.n_pending -= n_conversions

    def expire(self, n_conversions: int) -> None:
        """Turn pending conversions into expired ones."""
        self.n_expired += n_conversions
        self.n_pending -= n_conversions

    def totals(self, before: Mapping[str, int]) -> dict[str, int]:
        """Absolute totals after the batch; keys are ``topic/outcome`` or ``topic/outcome/reason``."""
        totals = dict(before)
        changes = {f"{self.topic}/{outcome}": n for outcome, n in self.outcomes.items()}
        changes[f"{self.topic}/accepted"] = self.n_accepted
        changes["conversions/attributed"] = self.n_attributed
        changes["conversions/expired"] = self.n_expired
        for name, n in changes.items():
            if n:
                totals[name] = totals.get(name, 0) + n
        return totals


class Scope:
    """What the units of one batch are judged by, and the ledger for what comes of it.

    Attributes
    ----------
    definitions, limits, ledger
        Of the batch.
    horizon_ms
        Horizon of the head before the batch; see ``streams.join.eviction``.
    evict_due_ms
        Units due up to here are evicted. It lags the horizon by a quarter of the grace, so that a unit is not
        evicted for each of its events; the state is at most that much longer for it.
    final
        Whether the definitions were read to their end.
    kernel
        Compiled short ways, None for Python alone.
    oversize_bytes
        Journal bytes that the batch's one event makes, which are too many; 0 if it was not tried.
    """

    __slots__ = (
        "definitions",
        "evict_due_ms",
        "final",
        "horizon_ms",
        "kernel",
        "ledger",
        "limits",
        "oversize_bytes",
    )

    def __init__(
        self,
        definitions: Definitions,
        limits: Limits,
        ledger: Ledger,
        horizon_ms: int,
        *,
        final: bool,
        kernel: Kernel | None = None,
        oversize_bytes: int = 0,
    ) -> None:
        self.definitions = definitions
        self.limits = limits
        self.ledger = ledger
        self.horizon_ms = horizon_ms
        self.evict_due_ms = horizon_ms - limits.grace_ms // 4
        self.final = final
        self.kernel = kernel
        self.oversize_bytes = oversize_bytes
