"""The join as the Python contestants do it: all events of a unit in its state, counts by difference.

It is written for events in any order, since plain engines give none between two topics: an event changes its
unit's events, and what the unit counts to, after less before, goes to the counts. A unit forgets nothing.
"""

from bisect import bisect_right
from typing import Any

HOUR_MS = 3_600_000

Event = list[Any]
"""Exposure: [timestamp, exposure_id, experiment, arm]; conversion: [timestamp, conversion_id]."""

State = dict[str, list[Event]]
"""``e``: exposures, ``c``: conversions, each sorted."""


def counted(state: State, window_ms: int) -> dict[tuple[str, str, int], tuple[int, int]]:
    """(experiment, arm, hour) -> (trials, successes) of one unit."""
    arms: dict[tuple[str, int], str] = {}
    touches: dict[str, list[tuple[int, int]]] = {}
    for at_ms, _, experiment, arm in state["e"]:
        hour = at_ms // HOUR_MS
        if arms.setdefault((experiment, hour), arm) == arm:
            touches.setdefault(experiment, []).append((at_ms, hour))
    successes: set[tuple[str, int]] = set()
    for at_ms, _ in state["c"]:
        for experiment, own in touches.items():
            found = bisect_right(own, (at_ms, HOUR_MS)) - 1
            if found >= 0 and at_ms - own[found][0] < window_ms:
                successes.add((experiment, own[found][1]))
    return {
        (experiment, arm, hour): (1, int((experiment, hour) in successes))
        for (experiment, hour), arm in arms.items()
    }


def change(state: State, kind: str, event: Event, window_ms: int) -> dict[tuple[str, str, int], list[int]]:
    """Add an event to a unit's state; returns what the counts change by. A known id changes nothing."""
    own = state[kind]
    if any(known[1] == event[1] for known in own):
        return {}
    before = counted(state, window_ms)
    own.append(event)
    own.sort()
    after = counted(state, window_ms)
    changes = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key, (0, 0)), after.get(key, (0, 0))
        if old != new:
            changes[key] = [new[0] - old[0], new[1] - old[1]]
    return changes
