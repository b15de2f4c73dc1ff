"""Attribution: what a unit's events contribute to the cells. Pure functions of events and definitions.

Rules
-----
Steering view. A trial is all exposures of one (experiment, unit, definition version, trial window); its first
exposure, by (timestamp, exposure_id), gives arm, group, segment, allocation and bucket. Exposures with the
trial's arm are its touches, the rest are crossovers. A touch at ``e`` is a candidate for a conversion at
``t`` if ``e <= t < e + window`` of the trial's version, the version names the metric, a test conversion meets
a version that counts tests, and, for a conversion after click, the trial has an attributed click at or before
``t`` (clicks of the same millisecond come first). Among all candidates of the experiment, whatever their
version: the one that the conversion's ``exposure_id`` names; else by the touch rule of the newest candidate's
version: ``last`` credits the greatest by (timestamp, exposure_id), ``first`` the least, ``all`` every trial
that has a candidate, once.

Reporting view. One trial per (experiment, unit): the first exposure of all, bound to that exposure's version.
Every conversion of a metric in ``[first, first + window)`` counts, after a click of the unit in the same
interval where the reward asks for one. Crossovers are exposures with another arm in that interval.

A trial earns ``min(cap, sum of values)`` by each metric; lags (hours from the trial's bucket) hold the
increments of successes, value and squared value, in time order.

Cost: O(n log n) for n events of a unit with touch ``last`` or ``first``; with ``all``, O(conversions x
touches in reach).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from streams.join.cells import HOUR_MS, Cell, CellKey, LagIncrements, View
from streams.join.definitions import PLAIN, Definitions, ExperimentPlan, VersionPlan
from streams.join.tally import Stub, Tally
from streams.join.unit import Base, Block, Mark, OpenConversion, Trial

Earned = dict[str, list[OpenConversion]]
"""Metric -> conversions credited to one trial, in time order."""


class BoundExposure(NamedTuple):
    """An accepted exposure; ``version`` is the definition version it was bound to."""

    experiment_id: str
    version: VersionPlan
    timestamp_ms: int
    exposure_id: str
    arm: str
    segment: str
    group: int
    allocation: int


def trial_of(block: Block, version: VersionPlan, timestamp_ms: int) -> Trial | None:
    """Trial that an exposure of this version and time joins; None if it begins one."""
    start_ms, end_ms = version.trial_span_ms(timestamp_ms)
    for trial in block.trials:
        if start_ms <= trial.first_ms < end_ms and trial.version == version.version:
            return trial
    return None


def insert_exposure(block: Block, exposure: BoundExposure) -> None:
    """Add an accepted exposure to its trial; an earlier one than the trial's first takes its place."""
    trial = trial_of(block, exposure.version, exposure.timestamp_ms)
    _, version, ms, exposure_id, arm, segment, group, allocation = exposure
    if trial is None:
        trial = Trial(version.version, ms, exposure_id, arm, segment, group, allocation, [])
        block.trials.append(trial)
    elif (ms, exposure_id) > (trial.first_ms, trial.first_id):
        trial.others.append((ms, exposure_id, arm))
    else:
        trial.others.append((trial.first_ms, trial.first_id, trial.arm))
        trial.first_ms, trial.first_id, trial.arm = ms, exposure_id, arm
        trial.segment, trial.group, trial.allocation = segment, group, allocation
    first = block.trials[0]
    if (trial.first_ms, trial.first_id) < (first.first_ms, first.first_id):
        block.trials.remove(trial)
        block.trials.insert(0, trial)


def attribute(
    plan: ExperimentPlan, trials: Sequence[Trial], conversions: Sequence[OpenConversion]
) -> tuple[list[Earned], list[OpenConversion]]:
    """Credit conversions to steering trials of one experiment.

    Parameters
    ----------
    plan
        The experiment.
    trials
        The unit's trials in it.
    conversions
        Conversions of the unit, sorted by (timestamp, id).

    Returns
    -------
    earned : list
        For each trial, the conversions credited to it by metric, in time order.
    credited : list
        Conversions credited to at least one trial, each once.

    Raises
    ------
    MissingDefinition
        If a trial's version is not in the plan.
    """
    earned: list[Earned] = [{} for _ in trials]
    credited: list[OpenConversion] = []
    versions = [plan.by_number[trial.version] for trial in trials]
    touches = _touches(trials)
    starts = [touch[0] for touch in touches]
    for conversion in _in_order(plan, versions, conversions):
        if conversion.metric not in plan.metrics or conversion.experiment_id not in (
            None,
            plan.experiment_id,
        ):
            continue
        chosen = _choose(plan, conversion, touches, starts, trials, versions, earned)
        for index in chosen:
            earned[index].setdefault(conversion.metric, []).append(conversion)
        if chosen:
            credited.append(conversion)
    return earned, credited


def _touches(trials: Sequence[Trial]) -> list[tuple[int, str, int]]:
    """Touches of all trials as (timestamp_ms, exposure_id, index of the trial), sorted."""
    touches = [(trial.first_ms, trial.first_id, index) for index, trial in enumerate(trials)]
    for index, trial in enumerate(trials):
        if trial.others:
            own = trial.arm
            touches += [(ms, exposure_id, index) for ms, exposure_id, arm in trial.others if arm == own]
    touches.sort()
    return touches


def _in_order(
    plan: ExperimentPlan, versions: Iterable[VersionPlan], conversions: Sequence[OpenConversion]
) -> Sequence[OpenConversion]:
    """Conversions by time, with those that need a click after the clicks of the same millisecond."""
    if not plan.has_gates:
        return conversions
    gated = {metric for version in versions for metric, gate in version.roles.items() if gate != PLAIN}
    return sorted(conversions, key=lambda c: (c.timestamp_ms, c.metric in gated))


def _is_candidate(
    version: VersionPlan, touch_ms: int, conversion: OpenConversion, trial: Trial, earned: Earned
) -> bool:
    """Whether a touch of a trial may be credited; the touch is known not to be after the conversion."""
    gate = version.roles.get(conversion.metric)
    if gate is None or conversion.timestamp_ms - touch_ms >= version.window_ms:
        return False
    if conversion.is_test and not version.count_test:
        return False
    return gate == PLAIN or gate in earned or (trial.base is not None and gate in trial.base)


def _choose(
    plan: ExperimentPlan,
    conversion: OpenConversion,
    touches: Sequence[tuple[int, str, int]],
    starts: Sequence[int],
    trials: Sequence[Trial],
    versions: Sequence[VersionPlan],
    earned: Sequence[Earned],
) -> list[int]:
    """Find the trials, by index, that one conversion is credited to."""
    low = bisect_left(starts, conversion.timestamp_ms - plan.max_window_ms + 1)
    high = bisect_right(starts, conversion.timestamp_ms)

    def is_candidate(at: int) -> bool:
        ms, _, index = touches[at]
        return _is_candidate(versions[index], ms, conversion, trials[index], earned[index])

    if conversion.exposure_id is not None:
        for at in range(high - 1, low - 1, -1):
            if touches[at][1] == conversion.exposure_id and is_candidate(at):
                return [touches[at][2]]
    newest = next((at for at in range(high - 1, low - 1, -1) if is_candidate(at)), None)
    if newest is None:
        return []
    rule = versions[touches[newest][2]].touch
    if rule == "last":
        return [touches[newest][2]]
    if rule == "first":
        return [next(touches[at][2] for at in range(low, newest + 1) if is_candidate(at))]
    return sorted({touches[at][2] for at in range(low, newest + 1) if is_candidate(at)})


def reporting_trial(block: Block) -> Mark | None:
    """Derive the reporting trial; None before any exposure and once its window has closed."""
    if block.is_closed or block.mark is not None:
        return block.mark
    if not block.trials:
        return None
    first = block.trials[0]
    return Mark(first.first_ms, first.version, first.arm, first.segment, first.group, first.allocation, {})


def reporting_earned(plan: ExperimentPlan, mark: Mark, conversions: Sequence[OpenConversion]) -> Earned:
    """Conversions that count for the reporting trial, by metric and in time order; click metrics included."""
    version = plan.by_number[mark.version]
    earned: Earned = {}
    end_ms = mark.first_ms + version.window_ms
    for conversion in _in_order(plan, (version,), conversions):
        gate = version.roles.get(conversion.metric)
        if (
            gate is None
            or not mark.first_ms <= conversion.timestamp_ms < end_ms
            or conversion.experiment_id not in (None, plan.experiment_id)
            or (conversion.is_test and not version.count_test)
        ):
            continue
        if gate == PLAIN or gate in earned or gate in mark.base:
            earned.setdefault(conversion.metric, []).append(conversion)
    return earned


def stub_of(experiment_id: str, view: View, trial: Trial | Mark) -> Stub:
    """Cell key, without metric, of a trial."""
    return (
        experiment_id,
        trial.version,
        view,
        trial.arm,
        trial.segment,
        trial.group,
        trial.allocation,
        trial.first_ms // HOUR_MS,
    )


Sign = Literal[1, -1]


def count_block(
    tally: Tally,
    plan: ExperimentPlan,
    block: Block,
    conversions: Sequence[OpenConversion],
    settled_ms: int,
    sign: Sign,
) -> None:
    """Add (or, with sign -1, take away) everything that a block's open events contribute."""
    count_trials(tally, plan, block, settled_ms, sign)
    count_lags(tally, plan, block, conversions, sign)


def count_trials(tally: Tally, plan: ExperimentPlan, block: Block, settled_ms: int, sign: Sign) -> None:
    """Add trials and crossovers of exposures not older than ``settled_ms``; older ones are in the cells."""
    for trial in block.trials:
        increments = tally.at(stub_of(plan.experiment_id, "steering", trial))
        if trial.first_ms >= settled_ms:
            increments.trials += sign
        n = sum(1 for ms, _, arm in trial.others if arm != trial.arm and ms >= settled_ms)
        increments.crossovers += sign * n
    mark = reporting_trial(block)
    if mark is None:
        return
    increments = tally.at(stub_of(plan.experiment_id, "reporting", mark))
    if mark.first_ms >= settled_ms:
        increments.trials += sign
    end_ms = mark.first_ms + plan.by_number[mark.version].window_ms
    for trial in block.trials:
        shown = [(trial.first_ms, trial.arm), *[(ms, arm) for ms, _, arm in trial.others]]
        n = sum(1 for ms, arm in shown if arm != mark.arm and settled_ms <= ms < end_ms)
        increments.crossovers += sign * n


def count_lags(
    tally: Tally,
    plan: ExperimentPlan,
    block: Block,
    conversions: Sequence[OpenConversion],
    sign: Sign,
) -> None:
    """Add what open conversions earn, in both views; note their credits and what trials have earned."""
    if not conversions or (sign < 0 and _earns_nothing(block)):
        return
    earned, credited = attribute(plan, block.trials, conversions)
    for conversion in credited:
        conversion.n_credits += sign
    for trial, own in zip(block.trials, earned, strict=True):
        trial.earned = None
        if own:
            stub = stub_of(plan.experiment_id, "steering", trial)
            trial.earned = add_earned(tally, stub, plan.by_number[trial.version], trial.base, own, sign)
    block.earned = None
    mark = reporting_trial(block)
    if mark is not None:
        own = reporting_earned(plan, mark, conversions)
        if own:
            stub = stub_of(plan.experiment_id, "reporting", mark)
            block.earned = add_earned(tally, stub, plan.by_number[mark.version], mark.base, own, sign)


def _earns_nothing(block: Block) -> bool:
    """Whether no open conversion counts for a block."""
    return block.earned is None and all(trial.earned is None for trial in block.trials)


def add_earned(
    tally: Tally, stub: Stub, version: VersionPlan, base: Base | None, earned: Earned, sign: Sign
) -> Base:
    """Add one trial's increments by lag, on top of what it had earned when it was frozen.

    Returns
    -------
    Base
        All that the trial has earned.
    """
    bucket = stub[-1]
    increments = tally.at(stub)
    total = dict(base) if base else {}
    for metric, conversions in earned.items():
        cap = version.caps.get(metric)
        if cap is None:  # a click metric that is nobody's reward
            total[metric] = 0
            continue
        lags = increments.lags_of(metric)
        value = total.get(metric)
        for conversion in conversions:
            value = _add_one(lags, conversion, bucket, value, cap, sign)
            total[metric] = value
    return total


def _add_one(
    lags: LagIncrements,
    conversion: OpenConversion,
    bucket: int,
    value: int | None,
    cap: int,
    sign: Sign,
) -> int:
    """Add the increments of one conversion to a trial that has earned ``value``; None if nothing yet."""
    lag = conversion.timestamp_ms // HOUR_MS - bucket
    counts = lags.get(lag)
    if counts is None:
        counts = lags[lag] = [0, 0, 0]
    if value is None:
        value = 0
        counts[0] += sign
    grown = min(cap, value + conversion.value_micros)
    if grown != value:
        counts[1] += sign * (grown - value)
        counts[2] += sign * (grown * grown - value * value)
    return grown


def count_newest(tally: Tally, plan: ExperimentPlan, block: Block, conversion: OpenConversion) -> bool:
    """Count a conversion that is later than every other of its unit, in both views.

    It takes no other's place and gates no other, so it only adds to what its trials have earned.

    Returns
    -------
    bool
        False, and nothing is changed, if it needs more than the newest touch: an exposure id to look for, or
        another touch rule than ``last``.
    """
    if conversion.exposure_id is not None:
        return False
    at_ms = conversion.timestamp_ms
    chosen: Trial | None = None
    chosen_version: VersionPlan | None = None
    newest = (-1, "")
    for trial in block.trials:
        version = plan.by_number[trial.version]
        if trial.first_ms > at_ms or not _may_earn(version, conversion, trial.earned or trial.base):
            continue
        touch = (trial.first_ms, trial.first_id)
        for ms, exposure_id, arm in trial.others:
            if ms <= at_ms and arm == trial.arm and (ms, exposure_id) > touch:
                touch = (ms, exposure_id)
        if touch > newest and at_ms - touch[0] < version.window_ms:
            chosen, chosen_version, newest = trial, version, touch
    if chosen is not None and chosen_version is not None:
        if chosen_version.touch != "last":
            return False
        stub = stub_of(plan.experiment_id, "steering", chosen)
        chosen.earned = _earn(tally, stub, chosen_version, chosen.earned or chosen.base, conversion)
        conversion.n_credits += 1
    if block.is_closed or not (block.mark or block.trials):
        return True
    first = block.mark or block.trials[0]
    version = plan.by_number[first.version]
    earned = block.earned if block.mark is None else block.earned or block.mark.base
    if 0 <= at_ms - first.first_ms < version.window_ms and _may_earn(version, conversion, earned):
        stub = stub_of(plan.experiment_id, "reporting", first)
        block.earned = _earn(tally, stub, version, earned, conversion)
    return True


def _may_earn(version: VersionPlan, conversion: OpenConversion, earned: Base | None) -> bool:
    """Whether a version names a conversion's metric, counts its kind, and has the click that it needs."""
    gate = version.roles.get(conversion.metric)
    if gate is None or (conversion.is_test and not version.count_test):
        return False
    return gate == PLAIN or (earned is not None and gate in earned)


def _earn(
    tally: Tally, stub: Stub, version: VersionPlan, earned: Base | None, conversion: OpenConversion
) -> Base:
    """Count one more conversion of a trial; returns what it has earned then."""
    metric = conversion.metric
    total = dict(earned) if earned else {}
    cap = version.caps.get(metric)
    if cap is None:
        total[metric] = 0
    else:
        lags = tally.at(stub).lags_of(metric)
        total[metric] = _add_one(lags, conversion, stub[-1], total.get(metric), cap, 1)
    return total


def contribution(
    exposures: Iterable[BoundExposure], conversions: Iterable[OpenConversion], definitions: Definitions
) -> dict[CellKey, Cell]:
    """Cells of one unit's accepted events, counted from nothing.

    This is what every count is defined by; the batch step adds differences of it, and its shorter ways are
    held to it by tests.

    Parameters
    ----------
    exposures, conversions
        Accepted events of one unit, in any order, without duplicates.
    definitions
        Definitions that hold every version that an exposure is bound to.
    """
    blocks: dict[str, Block] = {}
    for exposure in exposures:
        block = blocks.get(exposure.experiment_id)
        if block is None:
            block = blocks[exposure.experiment_id] = Block([])
        insert_exposure(block, exposure)
    ordered = sorted(conversions, key=OpenConversion.order)
    tally = Tally()
    for experiment_id, block in blocks.items():
        count_block(tally, definitions.plans[experiment_id], block, ordered, 0, 1)
    return tally.cells(definitions)
