"""What each policy would have earned on a replayed log, from the allocations that the pipeline made of it.

What: a log of impressions with known propensities is replayed into one experiment for each policy. The
allocation of an hour was made of what is dated before it, so the clicks of that hour judge it: the
estimate is the self-normalised one of :func:`bandit_core.inference.off_policy` over the log's own rows,
with the logged propensity and the hour as cluster.

Cost: O(rows) for each policy.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from bandit_core.inference import NoOverlap, OffPolicyEstimate, off_policy
from streams.allocations import Allocation
from streams.demo.openbandit import LoggedEvents
from streams.errors import EventError
from streams.events import Exposure, decode_exposure
from streams.experiments.definition import ExperimentRecord
from streams.join.segments import Segmenter

__all__ = ["Replayed", "policies_table", "replayed_values"]

HOUR_MS = 3_600_000


class Replayed(NamedTuple):
    """One policy: its last allocation, and what it would have earned an impression; None without overlap."""

    policy: str
    last: Allocation
    value: OffPolicyEstimate | None


def replayed_values(
    events: LoggedEvents, records: Sequence[ExperimentRecord], histories: Mapping[str, Sequence[Allocation]]
) -> list[Replayed]:
    """Estimate the policies' values.

    Parameters
    ----------
    events
        The log.
    records
        An experiment for each policy.
    histories
        Allocations of each experiment, oldest first.
    """
    rows = _rows(events)
    clicked = {event.key.decode() for event in events.conversions}
    rewards = np.array([float(row.unit_id in clicked) for row in rows])
    logged = np.array([row.propensity or 0.0 for row in rows])
    hours = np.array([_time_ms(row) // HOUR_MS for row in rows])
    found = []
    for record in records:
        history = sorted(histories.get(record.experiment_id, ()), key=lambda each: each.boundary_ms)
        if not history:
            continue
        target = _target(rows, record, history)
        try:
            value = off_policy(rewards, logged, target, hours)
        except NoOverlap:
            value = None
        found.append(Replayed(record.policy.algorithm, history[-1], value))
    return found


def _rows(events: LoggedEvents) -> list[Exposure]:
    rows = []
    for event in events.exposures:
        try:
            rows.append(decode_exposure(event.value))
        except EventError:
            continue  # the pipeline has it among its dead letters
    return rows


def _time_ms(row: Exposure) -> int:
    if not isinstance(row.timestamp, int):
        raise TypeError(f"timestamp {row.timestamp!r}: the demo's own events have milliseconds")
    return row.timestamp


def _target(rows: Sequence[Exposure], record: ExperimentRecord, history: Sequence[Allocation]) -> np.ndarray:
    """Chance of each row's arm under the allocation in force in its hour."""
    boundaries = [each.boundary_ms for each in history]
    segmenter = Segmenter(record.versions[-1].features)
    weights = [{arm.arm_id: arm.selection_probability for arm in each.arms} for each in history]
    place = {arm.arm_id: i for i, arm in enumerate(record.arms)}
    target = np.zeros(len(rows))
    for i, row in enumerate(rows):
        at = max(bisect_right(boundaries, _time_ms(row) // HOUR_MS * HOUR_MS) - 1, 0)
        by_segment = history[at].segments.get(segmenter.segment(row.context)[0])
        arm_id = str(row.arm_id)
        target[i] = weights[at][arm_id] if by_segment is None else by_segment[place[arm_id]]
    return target


def policies_table(found: Sequence[Replayed]) -> Table:
    """Make the table of the policies."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("policy", no_wrap=True)
    for name in ("clicks", "95% interval", "worth rows", "top arm", "weight"):
        table.add_column(name, justify="right", no_wrap=True)
    for policy, last, value in found:
        top = max(last.arms, key=lambda arm: arm.weight)
        figures = ("none", "", "")
        if value is not None:
            low, high = 100 * value.low, 100 * value.high
            figures = (f"{value.estimate:.2%}", f"{low:.2f} to {high:.2f}%", f"{value.effective_rows:,.0f}")
        table.add_row(policy, *figures, top.arm_id, f"{top.weight:.3f}")
    return table
