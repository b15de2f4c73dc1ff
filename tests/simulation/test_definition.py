"""Definitions in simulated scenarios: the allocator's own computation, and nothing else."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from bandit_core.counts import PeriodCounts
from bandit_core.inference.report import ReportSettings, report
from bandit_core.league import claims
from bandit_core.policies import POLICIES, gather, policy_from_definition
from bandit_core.posteriors import BetaPosterior
from bandit_core.scenarios import scenario_from_definition
from bandit_core.simulator import Scenario, Simulation
from streams.allocator.history import pack_history, read_history
from streams.errors import ConfigError
from streams.experiments.definition import ExperimentRecord
from streams.experiments.validation import parse_definition
from streams.simulation.counts import RunCounts
from streams.simulation.definition import equal_split, record_of, simulate_definition


def record(policy: str = "{}", *, arms: str = "[a, b, c]", more: str = "") -> ExperimentRecord:
    text = f"id: e\narms: {arms}\nreward: {{metric: m, kind: click}}\npolicy: {policy}\n{more}"
    return record_of(parse_definition(text))


def scenario(**fields: Any) -> Scenario:
    given = {"name": "s", "rates": [0.05, 0.05, 0.10], "n_periods": 12, "units_per_period": 500}
    return scenario_from_definition(given | fields)


def run(definition: ExperimentRecord, truth: Scenario, n_runs: int = 2) -> Simulation:
    return simulate_definition(definition, truth, n_runs=n_runs, rng=np.random.default_rng(3))


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"thompson_draw", "contextual"}))
def test_weights_are_the_policy_s_on_what_was_counted(name: str) -> None:
    got = run(record(f"{{algorithm: {name}, floor: 0.02}}"), scenario())
    policy = policy_from_definition(name)
    for hour in range(12):
        n, s = got.trials[:hour].sum(axis=0), got.successes[:hour].sum(axis=0)
        evidence = gather(policy.needs, BetaPosterior.from_counts(n, s), np.ones((2, 3), dtype=bool))
        want = 0.02 + (1 - 3 * 0.02) * policy.choose(evidence, np.random.default_rng(0)).weights
        assert got.weights[hour] == pytest.approx(want, abs=1e-11)
    assert (got.trials.sum(axis=2) == 500).all()
    assert got.lost == pytest.approx(0.05 * (got.trials[:, :, 0] + got.trials[:, :, 1]))
    assert got.best_units.tolist() == got.trials[:, :, 2].tolist()


def test_runs_of_a_policy_that_draws_draw_differently() -> None:
    got = run(record("{algorithm: thompson_draw}"), scenario(rates=[0.05] * 3), n_runs=12)
    assert len({tuple(run.argmax(axis=1)) for run in got.weights.transpose(1, 0, 2)}) > 6


def test_the_comparison_group_sees_no_arm_and_the_holdout_sees_control() -> None:
    got = run(record("{comparison: 0.2, holdout: 0.5}"), scenario(n_periods=40))
    assert got.weights.sum(axis=2) == pytest.approx(np.full((40, 2), 0.8))
    assert got.trials.sum(axis=2).mean() == pytest.approx(400, rel=0.02)
    # By the end the better arm has nearly all that the holdout leaves, less the floors of 1%.
    assert got.weights[-1, :, 0] == pytest.approx(np.full(2, 0.8 * (0.5 + 0.5 * 0.01)), abs=0.01)


def test_interval_is_the_definition_s() -> None:
    got = run(record("{interval: 4h}"), scenario())
    assert (got.weights[0:4] == got.weights[0]).all()
    assert (got.weights[4:8] == got.weights[4]).all()
    assert (got.weights[4] != got.weights[0]).all()


def test_an_arm_that_starts_later_incubates_at_its_nth_and_is_then_learned_of() -> None:
    got = run(record(), scenario(starts=[0, 0, 5], n_periods=40))
    assert (got.weights[:5, :, 2] == 0.0).all()
    assert got.weights[5, :, 2] == pytest.approx(np.full(2, 1 / 3))
    assert got.weights[-1, :, 2].min() > 0.8
    assert got.live is not None
    assert got.live[:, 0, 2].tolist() == [False] * 5 + [True] * 35


def test_a_hopeless_arm_is_dropped_and_stays_without_traffic() -> None:
    lives = "{lifecycle: {drop: true, drop_intervals: 2}}"
    got = run(record(lives), scenario(rates=[0.05, 0.01, 0.10], n_periods=40))
    assert got.live is not None
    assert not got.live[-1, :, 1].any()
    assert (got.weights[~got.live] == 0.0).all()
    # Control and the last two stay.
    assert got.live[:, :, [0, 2]].all()


def test_lower_is_better_turns_truth_and_weights() -> None:
    lower = record(more="")
    version = parse_definition(
        "id: e\narms: [a, b, c]\nreward: {metric: m, kind: click, lower_is_better: true}"
    )
    got = run(record_of(version), scenario(rates=[0.10, 0.05, 0.10], n_periods=40))
    assert got.weights[-1, :, 1].min() > 0.9
    assert got.lost == pytest.approx(0.05 * (got.trials[:, :, 0] + got.trials[:, :, 2]))
    assert got.lower_is_better
    assert not run(lower, scenario()).lower_is_better


def test_arms_without_traffic_are_left_out() -> None:
    definition = record(arms="[a, {id: b, status: stopped}, c]")
    assert [arm.arm_id for arm in definition.arms] == ["a", "c"]
    assert run(definition, scenario(rates=[0.05, 0.1])).weights.shape == (12, 2, 2)


def delayed() -> ExperimentRecord:
    text = "id: e\narms: [a, b]\nreward: {metric: m}\nconversion_window: 10h"
    return record_of(parse_definition(text))


def test_the_window_is_the_definition_s_and_pending_trials_are_not_failures() -> None:
    truth = scenario(rates=[0.05, 0.06], mean_delay_periods=[0.5, 6], n_periods=40, units_per_period=4000)
    got = run(delayed(), truth, n_runs=3)
    assert (got.scenario.window_periods, got.wait_periods) == (10, 10)
    assert got.best_arm_share().mean() > 0.6


def test_counts_as_the_allocator_asks_for_them_add_up() -> None:
    """Whatever is told apart, the sums are the same, and lags later than the hour are not there."""
    rng = np.random.default_rng(5)

    units = np.array([1.0, 1e6, 1e12])[:, None, None, None]  # every conversion is worth 1

    class World:
        arm_ids = ["a", "b"]  # noqa: RUF012 - as the protocol has it
        segment_names = [""]  # noqa: RUF012
        hourly = [rng.integers(50, 99, size=(3, 2)) for _ in range(9)]  # noqa: RUF012
        by_lag = [rng.integers(0, 4, size=(3, 2, 5)) * units for _ in range(9)]  # noqa: RUF012
        arrived = np.zeros((3, 3, 2, 5))
        exposed = np.sum(hourly, axis=0)[:, None]
        converted = exposed * 0

    for bucket in range(9):
        for lag in range(min(5, 9 - bucket)):
            World.arrived[..., lag] += World.by_lag[bucket][..., lag]
    counts = RunCounts(World(), 1, "m")
    total = counts.as_of("e", 1, "m", 9)
    for n_hours, older in ((9, False), (4, True), (2, True), (9, True)):
        periods = counts.periods("e", 1, "m", 9, n_hours=n_hours, older=older)
        read: PeriodCounts = read_history(
            pack_history(periods, ["a", "b"]), 2, cap_micros=10**6, values=False, lag_max_hours=8
        )
        assert read.trials.sum(axis=0).tolist() == [total["a"].trials, total["b"].trials]
        assert read.totals().sum(axis=0).tolist() == [total["a"].successes, total["b"].successes]
    young = counts.periods("e", 1, "m", 9, n_hours=1, older=False)[0]["a"]
    assert {lag[0] for lag in young.lags} <= {0}


def value() -> ExperimentRecord:
    text = "id: e\narms: [a, b, c]\nreward: {metric: m, kind: value, cap: 50}\nconversion_window: 4h"
    return record_of(parse_definition(text))


def test_values_are_learned_capped_and_lost_in_their_own_unit() -> None:
    # Equal rates; conversions of c are worth 30 on average, capped at 50 that is 30 (1 - e^(-5/3)) = 24.33.
    truth = scenario(rates=[0.1, 0.1, 0.1], mean_values=[10, 10, 30], n_periods=30)
    got = run(value(), truth, n_runs=4)
    worth = np.array([10 * (1 - np.exp(-5)), 10 * (1 - np.exp(-5)), 30 * (1 - np.exp(-5 / 3))])
    assert got.scenario.rates[0] == pytest.approx(0.1 * worth / 50)
    assert got.lost == pytest.approx(0.1 * (worth[2] - worth[0]) * got.trials[:, :, :2].sum(axis=2))
    mean = got.successes.sum(axis=(0, 1)) / got.trials.sum(axis=(0, 1))
    assert mean[2] == pytest.approx(0.1 * worth[2] / 50, rel=0.1)
    assert got.weights[-1, :, 2].min() > 0.8
    assert got.best_units.tolist() == got.trials[:, :, 2].tolist()
    delayed_values = replace(truth, mean_delay_periods=(1.0, 1.0, 1.0))
    assert run(value(), delayed_values).weights[-1, :, 2].min() > 0.8


def test_claims_of_values_are_those_that_a_report_makes_of_values() -> None:
    truth = scenario(rates=[0.1, 0.1, 0.1], mean_values=[10, 10, 30], n_periods=24, units_per_period=1000)
    got = run(equal_split(value()), truth, n_runs=3)
    assert got.squares is not None
    said = claims(got).winner_period == 24
    for i in range(3):
        won = got.successes[:, i]
        counts = PeriodCounts.of(got.trials[:, i], won, won, got.squares[:, i])
        settings = ReportSettings(values=True)
        found = report(counts, propensities=got.weights[:, i], control=0, window_periods=4, settings=settings)
        assert (found.winner == 2) == said[i]
    assert said.any()


def test_contextual_definitions_get_weights_by_segment() -> None:
    truth = scenario_from_definition(
        {
            "name": "c",
            "kind": "contextual",
            "features": {"device": ["phone", "desktop"]},
            "rates": [[0.1, 0.3], [0.3, 0.1]],
            "n_periods": 5,
            "units_per_period": 400,
        }
    )
    text = (
        "id: e\narms: [a, b]\nreward: {metric: m, kind: click}\nfeatures: {device: [phone, desktop]}\n"
        "policy: {algorithm: contextual}"
    )
    got = run(record_of(parse_definition(text)), truth)
    assert got.by_segment
    assert got.best_units[-1].min() > 0.9 * 400
    with pytest.raises(ConfigError, match="no segments"):
        run(record_of(parse_definition(text)), scenario(rates=[0.1, 0.2]))


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ConfigError, match=r"rates for 2 arms, the definition has 3: a, b, c"):
        run(record(), scenario(rates=[0.1, 0.2]))
    with pytest.raises(ConfigError, match="kind value, the scenario has no mean_values"):
        run(value(), scenario())
    with pytest.raises(ConfigError, match="kind click, the scenario has values: mean_values"):
        run(record(), scenario(mean_values=[1, 1, 1]))
    given = record()
    crowded = msgspec.structs.replace(given, policy=msgspec.structs.replace(given.policy, floor=0.5))
    with pytest.raises(ConfigError, match="floor"):
        run(crowded, scenario())


def test_a_seed_gives_the_same_runs() -> None:
    one, two = run(record(), scenario()), run(record(), scenario())
    assert one.trials.tobytes() == two.trials.tobytes()
    other = simulate_definition(record(), scenario(), n_runs=2, rng=np.random.default_rng(4))
    assert other.trials.tobytes() != one.trials.tobytes()
    assert replace(one).weights.tobytes() == two.weights.tobytes()
