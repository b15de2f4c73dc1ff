"""A whole definition, simulated: the allocator's own computation at every boundary, on simulated counts.

What: :func:`simulate_definition` lets hours pass. At every boundary of the definition's interval the inputs
are gathered and the allocation computed by the functions that the allocator calls (`gather_inputs`,
`compute`): posterior, delay, forgetting, lives of the arms, floors, holdout, steps and groups are what a
live experiment would get. Units are drawn by the shares, conversions by the scenario's rates and delays.

Rewards of kind value take the scenario's ``mean_values``: a conversion's value spreads exponentially around
the arm's and is capped as the definition says. Regret is then in the metric's unit.

What is not simulated: units that come back (every unit is one trial, so steering and reporting views agree),
guardrail metrics (there is no harm, and no guardrail stops an arm), contexts outside the scenario's segments.
An arm that starts later is pending until then, and incubates as one added to a live experiment does.

Cost: a few milliseconds for each run and boundary; tenths of a second for a contextual one.
"""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandit_core.shares import ArmStatus
from bandit_core.simulator import Scenario, Simulation, units_of_best, units_of_loss
from streams.allocations import Allocation
from streams.allocator.compute import Failure, Job, Stamp, compute
from streams.allocator.history import MICRO
from streams.allocator.inputs import gather_inputs
from streams.config import HOUR_MS
from streams.errors import ConfigError
from streams.experiments.arms import ELIGIBLE
from streams.experiments.changes import apply_definition
from streams.experiments.definition import Arm, ExperimentRecord, Feature, Lifecycle
from streams.experiments.validation import Definition
from streams.join.segments import Segmenter
from streams.simulation.counts import Counts, RunCounts

__all__ = ["equal_split", "record_of", "simulate_definition"]

_STAMP = Stamp(claim=0, trigger="interval", computed_at_ms=0)

Array = NDArray[np.float64]


def record_of(definition: Definition) -> ExperimentRecord:
    """Make the record of a definition as of its first boundary, live, without arms that get no traffic."""
    record = apply_definition(definition, None, now_ms=0, lead_ms=0).record
    version = msgspec.structs.replace(record.versions[0], effective_from_ms=0)
    arms = tuple(arm for arm in record.arms if arm.status in ELIGIBLE)
    return msgspec.structs.replace(
        record,
        status="live",
        versions=(version,),
        arms=arms,
        # A design with arms missing is no longer the product of its factors.
        factors=record.factors if len(arms) == len(record.arms) else (),
    )


def equal_split(record: ExperimentRecord) -> ExperimentRecord:
    """Take the same experiment as an ordinary A/B test: nothing but equal shares, all arms to the end."""
    policy = msgspec.structs.replace(
        record.policy, algorithm="uniform", parameters={}, floor=None, holdout=0.0, lifecycle=Lifecycle()
    )
    return msgspec.structs.replace(record, policy=policy)


def simulate_definition(
    record: ExperimentRecord, scenario: Scenario, *, n_runs: int, rng: np.random.Generator
) -> Simulation:
    """Run a definition in a scenario.

    Parameters
    ----------
    record
        From :func:`record_of`.
    scenario
        With as many arms as the record, in its order, and periods of an hour. Its conversion window is
        replaced by the definition's.
    n_runs
        Number of runs.
    rng
        Everything comes from it.

    Raises
    ------
    ConfigError
        If definition and scenario do not fit, or an allocation cannot be computed.
    """
    _check_fit(record, scenario)
    counting = record.versions[0]
    window = -(-counting.conversion_window_ms // HOUR_MS)
    scenario = replace(scenario, window_periods=window)
    world = _World(scenario, record, n_runs, rng)
    truth = replace(scenario, rates=scenario.rates * world.worth / counting.reward.cap)
    lower = counting.reward.lower_is_better
    shape = (scenario.n_periods, n_runs, scenario.n_arms)
    weights, trials, successes, squares = np.zeros((4, *shape))
    seen, lost, best_units = np.zeros(shape), np.zeros(shape[:2]), np.zeros(shape[:2])
    live = np.ones(shape, dtype=bool)
    last: Sequence[Allocation] = ()
    share = np.zeros((n_runs, world.n_segments, scenario.n_arms))
    by_segment = False
    interval_hours = record.policy.interval_ms // HOUR_MS
    for hour in range(scenario.n_periods):
        now = _at(record, scenario, hour)
        # An arm that starts is a change of the definition, which recalculates at once.
        if hour % interval_hours == 0 or hour in (scenario.starts or ()):
            last = _allocations(now, world, hour, last)
            for run, allocation in enumerate(last):
                share[run] = world.shares_of(allocation)
                seen[hour, run] = [arm.probability_best for arm in allocation.arms]
                live[hour, run] = [ArmStatus(arm.status).eligible for arm in allocation.arms]
                by_segment = by_segment or bool(allocation.segments)
        elif hour:
            seen[hour], live[hour] = seen[hour - 1], live[hour - 1]
        drawn = world.expose(share)
        weights[hour] = (world.segment_shares[:, None] * share).sum(axis=1)
        trials[hour] = drawn.sum(axis=1)
        successes[hour], squares[hour] = world.convert(hour, drawn)
        started = scenario.started()[hour]
        rates = world.rates(hour) * world.worth
        lost[hour] = units_of_loss(
            rates, drawn, started=np.broadcast_to(started, rates.shape), lower_is_better=lower
        ).sum(axis=1)
        best_units[hour] = world.on_best(truth, drawn, lower_is_better=lower).sum(axis=1)
    return Simulation(
        truth,
        weights,
        trials,
        successes,
        seen,
        lost,
        best_units,
        by_segment=by_segment,
        lower_is_better=lower,
        wait_periods=window,
        live=live,
        squares=None if scenario.mean_values is None else squares,
    )


def _check_fit(record: ExperimentRecord, scenario: Scenario) -> None:
    arm_ids = [arm.arm_id for arm in record.arms]
    where = f"experiment {record.experiment_id}, scenario {scenario.name}"
    if len(arm_ids) != scenario.n_arms:
        raise ConfigError(
            f"the scenario has rates for {scenario.n_arms} arms, the definition has {len(arm_ids)}:"
            f" {', '.join(arm_ids)}",
            where=where,
            action="give one rate for each arm with --rates, in the definition's order",
        )
    by_value = record.versions[0].reward.kind == "value"
    if by_value != (scenario.mean_values is not None):
        raise ConfigError(
            f"the reward is of kind {record.versions[0].reward.kind}, the scenario has"
            f" {'no' if by_value else 'values:'} mean_values",
            where=where,
            action="give what a conversion is worth on average, one mean_values for each arm, if and only if"
            " the definition's reward is of kind value",
        )
    features = {feature.name: feature.levels for feature in record.versions[0].features}
    if record.policy.algorithm == "contextual":
        known = (
            {feature.name: feature.levels for feature in scenario.segments.features}
            if scenario.segments
            else {}
        )
        if known != features:
            raise ConfigError(
                f"contextual learns by {features}, the scenario has {known or 'no segments'}",
                where=where,
                action="use a scenario of kind contextual with the definition's features and levels",
            )


def _at(record: ExperimentRecord, scenario: Scenario, hour: int) -> ExperimentRecord:
    """Return the record as it stands in an hour: arms that start later are pending, then incubate."""
    if scenario.starts is None:
        return record

    def arm(index: int, given: Arm) -> Arm:
        start = scenario.starts[index] if scenario.starts else 0
        if start == 0:
            return given
        return msgspec.structs.replace(given, status="incubating" if hour >= start else "pending")

    return msgspec.structs.replace(record, arms=tuple(arm(i, each) for i, each in enumerate(record.arms)))


def _allocations(
    record: ExperimentRecord, world: "_World", hour: int, last: Sequence[Allocation]
) -> Sequence[Allocation]:
    world.begin(hour)
    jobs = []
    for run in range(len(world.names)):
        before = last[run] if last else None
        # The seed of a policy that draws comes from the id: every run needs one of its own.
        named = msgspec.structs.replace(record, experiment_id=world.names[run])
        counts = RunCounts(world, run, record.versions[-1].reward.metric)
        jobs.append(Job(gather_inputs(named, hour * HOUR_MS, counts, before), _STAMP))
    found = []
    for each in compute(jobs):
        if isinstance(each, Failure):
            raise ConfigError(
                f"the allocation cannot be computed: {each.message}",
                where=f"experiment {record.experiment_id}",
                action="change the definition; `bandit-streams experiments validate` checks what it can",
            )
        found.append(each)
    return found


class _World:
    """The truth, and what is known of it, for all runs of a chunk."""

    def __init__(
        self, scenario: Scenario, record: ExperimentRecord, n_runs: int, rng: np.random.Generator
    ) -> None:
        self._scenario, self._rng = scenario, rng
        self.names = [f"{record.experiment_id}.{rng.integers(2**62)}" for _ in range(n_runs)]
        self.arm_ids = [arm.arm_id for arm in record.arms]
        self._control = self.arm_ids.index(record.control)
        self._cap = record.versions[0].reward.cap
        self.worth = np.ones(scenario.n_arms)  # expected reward of a conversion, (n_arms,)
        if scenario.mean_values is not None:
            mean = np.array(scenario.mean_values)
            self.worth = -mean * np.expm1(-self._cap / mean)
        self._mass = scenario.lag_mass()
        segments = scenario.segments
        self.n_segments = 1 if segments is None else len(segments.shares)
        self.segment_shares = np.ones(1) if segments is None else segments.shares
        self.segment_names = [""] if segments is None else _names(scenario)
        shape = (n_runs, self.n_segments, scenario.n_arms)
        self.exposed, self.converted = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        self.hourly: list[Counts] = []  # trials by hour, (n_runs, n_arms)
        self.by_lag: list[Array] = []  # eventual conversions, values, squares by hour of exposure and lag
        n_lags = self._mass.shape[1]
        self.arrived = np.zeros((3, n_runs, scenario.n_arms, n_lags))
        self.hour = 0

    def rates(self, hour: int) -> Array:
        """Rates of an hour, (n_segments, n_arms)."""
        segments = self._scenario.segments
        rates: Array = self._scenario.rates[hour][None] if segments is None else segments.rates
        return rates

    def shares_of(self, allocation: Allocation) -> Array:
        """Overall shares by segment, (n_segments, n_arms); what is missing to 1 sees no arm."""
        overall = np.array([arm.weight for arm in allocation.arms])
        if not allocation.segments:
            return np.tile(overall, (self.n_segments, 1))
        held = np.zeros(len(overall))
        held[self._control] = allocation.holdout
        rest = np.array([allocation.segments[name] for name in self.segment_names])
        result: Array = (1.0 - allocation.comparison) * (held + (1.0 - allocation.holdout) * rest)
        return result

    def expose(self, share: Array) -> Array:
        """Draw the units of an hour: (n_runs, n_segments, n_arms)."""
        n_runs = len(share)
        units = self._rng.multinomial(self._scenario.units_per_period, self.segment_shares, size=n_runs)
        nobody = np.maximum(1.0 - share.sum(axis=2, keepdims=True), 0.0)
        drawn = self._rng.multinomial(units, np.concatenate([share, nobody], axis=2))[:, :, :-1]
        units_drawn: Array = drawn.astype(np.float64)
        return units_drawn

    def convert(self, hour: int, drawn: Array) -> tuple[Array, Array]:
        """Draw the rewards of an hour's units, whenever they come.

        Returns
        -------
        tuple of ndarray, shape (n_runs, n_arms)
            Sums of the rewards as shares of the cap, and of their squares.
        """
        units = drawn.astype(np.int64)
        hits = self._rng.binomial(units, self.rates(hour))
        self.exposed += units
        self.hourly.append(units.sum(axis=1))
        total: Counts = hits.sum(axis=1)
        if self._scenario.mean_delay_periods is None:
            by_lag = total[:, :, None]
            self.converted += hits
        else:
            by_lag = np.stack(
                [
                    self._rng.multinomial(total[:, arm], mass / mass.sum())
                    for arm, mass in enumerate(self._mass)
                ],
                axis=1,
            )
        valued = self._valued(by_lag)
        self.by_lag.append(valued)
        unit = MICRO * self._cap
        return valued[1].sum(axis=2) / unit, valued[2].sum(axis=2) / unit**2

    def _valued(self, by_lag: Counts) -> Array:
        """Conversions by lag, their values and the squares of these, (3, n_runs, n_arms, n_lags)."""
        if self._scenario.mean_values is None:
            units: Array = by_lag * np.array([1.0, MICRO, MICRO * MICRO])[:, None, None, None]
            return units
        counts = by_lag.ravel()
        place = np.repeat(np.arange(len(counts)), counts)
        mean = np.broadcast_to(np.array(self._scenario.mean_values)[:, None], by_lag.shape).ravel()
        value = np.rint(np.minimum(self._rng.exponential(mean[place]), self._cap) * MICRO)
        sums = [np.bincount(place, weight, minlength=len(counts)) for weight in (value, value * value)]
        return np.stack([counts.astype(np.float64), *sums]).reshape(3, *by_lag.shape)

    def on_best(self, truth: Scenario, drawn: Array, *, lower_is_better: bool) -> Array:
        """Units that got the best arm, in their segment where there are segments: (n_runs, n_segments)."""
        segments = self._scenario.segments
        if segments is None:
            return units_of_best(truth, drawn, lower_is_better=lower_is_better)
        best = segments.rates.argmin(axis=1) if lower_is_better else segments.rates.argmax(axis=1)
        on_best: Array = drawn[:, np.arange(self.n_segments), best]
        return on_best

    def begin(self, hour: int) -> None:
        """Let what is dated before the hour become known."""
        for now in range(self.hour, hour):
            for lag in range(min(now + 1, self.arrived.shape[3])):
                self.arrived[..., lag] += self.by_lag[now - lag][..., lag]
        self.hour = hour


def _names(scenario: Scenario) -> list[str]:
    segments = scenario.segments
    if segments is None:
        return [""]
    segmenter = Segmenter([Feature(name=each.name, levels=each.levels) for each in segments.features])
    names = [each.name for each in segments.features]
    return [
        segmenter.segment(dict(zip(names, levels, strict=True)))[0] for levels in segments.design().segments()
    ]
