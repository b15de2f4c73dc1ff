"""The join as the Python contestants do it: incremental, as a good implementer writes it for these engines.

An exposure adds a trial or a touch; a conversion looks up the last touch of every experiment of its unit.
Plain engines give no order between two topics, so an exposure may come after conversions that it should have
had: only then the trials of its experiment are worked out again, and the counts changed by the difference.
Ids are kept, so that an event that comes twice counts once, as in the product; a unit forgets nothing.
``bench/kafka_streams`` does the same in Java.
"""

from bisect import insort
from typing import Any

HOUR_MS = 3_600_000

Changes = dict[tuple[str, str, int], list[int]]
"""(experiment, arm, hour) -> what trials and successes change by."""

State = dict[str, Any]
"""``x``: experiment -> [exposures, trials], ``c``: conversions.

An exposure is [timestamp, id, arm], a conversion [timestamp, id], a trial [hour, arm, 1 if it has succeeded];
all sorted.
"""


def empty() -> State:
    """State of a unit that is not known yet."""
    return {"x": {}, "c": []}


def apply(state: State, event: dict[str, Any], window_ms: int) -> Changes:
    """Add an event as it was decoded to a unit's state; a known id changes nothing."""
    if "exposure_id" in event:
        own = [event["timestamp"], event["exposure_id"], event["arm_id"]]
        return _expose(state, event["experiment_id"], own, window_ms)
    return _convert(state, [event["timestamp"], event["conversion_id"]], window_ms)


def _expose(state: State, experiment: str, exposure: list[Any], window_ms: int) -> Changes:
    exposures, trials = state["x"].setdefault(experiment, [[], []])
    at_ms, own_id, arm = exposure
    if any(known[1] == own_id for known in exposures):
        return {}
    conversions = state["c"]
    is_last = not exposures or exposures[-1][:2] < exposure[:2]
    if is_last and not (conversions and conversions[-1][0] >= at_ms):
        exposures.append(exposure)
        hour = at_ms // HOUR_MS
        if trials and trials[-1][0] == hour:
            return {}
        trials.append([hour, arm, 0])
        return {(experiment, arm, hour): [1, 0]}
    insort(exposures, exposure)
    after = _trials(exposures, conversions, window_ms)
    changes: Changes = {}
    for sign, found in ((-1, trials), (1, after)):
        for hour, its_arm, succeeded in found:
            change = changes.setdefault((experiment, its_arm, hour), [0, 0])
            change[0] += sign
            change[1] += sign * succeeded
    state["x"][experiment][1] = after
    return {key: change for key, change in changes.items() if change != [0, 0]}


def _convert(state: State, conversion: list[Any], window_ms: int) -> Changes:
    conversions = state["c"]
    if any(known[1] == conversion[1] for known in conversions):
        return {}
    insort(conversions, conversion)
    changes: Changes = {}
    for experiment, (exposures, trials) in state["x"].items():
        trial = _credited(exposures, trials, conversion[0], window_ms)
        if trial is not None and not trial[2]:
            trial[2] = 1
            changes[experiment, trial[1], trial[0]] = [0, 1]
    return changes


def _credited(exposures: list[Any], trials: list[Any], at_ms: int, window_ms: int) -> list[Any] | None:
    """Trial of the last touch before a conversion, within the window."""
    for exposed_ms, _, arm in reversed(exposures):
        if exposed_ms > at_ms:
            continue
        if at_ms - exposed_ms >= window_ms:
            return None
        hour = exposed_ms // HOUR_MS
        found: list[Any] = next(trial for trial in reversed(trials) if trial[0] == hour)
        if found[1] == arm:
            return found
    return None


def _trials(exposures: list[Any], conversions: list[Any], window_ms: int) -> list[Any]:
    """All trials of one experiment from nothing."""
    trials: list[Any] = []
    for at_ms, _, arm in exposures:
        if not trials or trials[-1][0] != at_ms // HOUR_MS:
            trials.append([at_ms // HOUR_MS, arm, 0])
    for at_ms, _ in conversions:
        trial = _credited(exposures, trials, at_ms, window_ms)
        if trial is not None:
            trial[2] = 1
    return trials
