"""The report: honest on real and on simulated experiments, with warnings where the data break assumptions."""

import numpy as np
import pytest

from bandit_core.counts import PeriodCounts
from bandit_core.inference import ReportSettings, report
from bandit_core.simulator import Scenario


def simulated(rates: list[float], *, hours: int = 336, seed: int = 0, wave: float = 0.0) -> PeriodCounts:
    rng = np.random.default_rng(seed)
    trials = rng.multinomial(1000, [1 / len(rates)] * len(rates), size=hours)
    factor = 1 + wave * np.linspace(0, 1, hours)[:, None]
    return PeriodCounts.of(trials, rng.binomial(trials, np.array(rates) * factor))


def even(counts: PeriodCounts) -> np.ndarray:
    return np.full(counts.trials.shape, 1 / counts.trials.shape[1])


def test_a_clear_winner_with_a_comparison_group() -> None:
    counts = simulated([0.05, 0.05, 0.07])
    rng = np.random.default_rng(1)
    bought = rng.binomial(100, 0.05, 336)
    comparison = (np.full(336, 100), bought, bought)
    got = report(counts, propensities=even(counts), control=0, window_periods=0, comparison=comparison)
    assert got.winner == 2
    assert got.bandit_effect is not None
    assert got.bandit_effect.low < 0.17 / 3 - 0.05 < got.bandit_effect.high
    lift = got.arms[2].lift_control
    assert lift is not None
    assert lift.low < 0.4 < lift.high
    assert lift.claim == 1
    assert got.arms[0].lift_control is None
    assert (got.best, got.worst) in ((2, 0), (2, 1))
    best_against_worst, worst_against_best = got.arms[2].lift_worst, got.arms[got.worst or 0].lift_best
    assert best_against_worst is not None
    assert worst_against_best is not None
    assert best_against_worst.low > 0.0
    assert worst_against_best.high < 0.0
    if got.worst == 0:
        assert best_against_worst.low < lift.low, "chosen from the data: over three pairs, not two"
    assert got.arms[2].lift_best is None
    assert not got.sample_ratio_alarm
    assert got.stop.safe
    assert got.exploration_share == pytest.approx(2 / 3, abs=0.02)
    assert got.warnings == ()
    assert got.arms[1].last_day_rate == pytest.approx(0.05, abs=0.01)


def test_lower_is_better_turns_the_winner_round() -> None:
    counts = simulated([0.05, 0.05, 0.03])
    got = report(
        counts,
        propensities=even(counts),
        control=0,
        window_periods=0,
        settings=ReportSettings(lower_is_better=True),
    )
    assert got.winner == 2
    assert report(counts, propensities=even(counts), control=0, window_periods=0).winner is None


def test_warnings_on_mismatch_crossovers_and_drift() -> None:
    counts = simulated([0.05, 0.05], wave=1.0)
    wrong = np.tile([0.52, 0.48], (336, 1))
    got = report(counts, propensities=wrong, control=0, window_periods=0, crossovers=20_000)
    text = " | ".join(got.warnings)
    assert got.sample_ratio_alarm
    assert "sample ratio: arm" in text
    assert "crossovers: 6.0%" in text
    assert "drift" in text


def test_different_delays_are_warned_of() -> None:
    rng = np.random.default_rng(3)
    hours, mass = (
        72,
        Scenario("d", np.full((1, 2), 0.05), 1, mean_delay_periods=(1.0, 9.0), window_periods=24).lag_mass(),
    )
    successes = np.zeros((hours, 2, 25))
    for hour in range(hours):
        known = min(hours - hour, 25)
        successes[hour, :, :known] = rng.poisson(500 * 0.05 * mass)[:, :known]
    counts = PeriodCounts.of(np.full((hours, 2), 500), successes)
    got = report(counts, propensities=even(counts), control=0, window_periods=24)
    assert any("delays differ (mean lags" in warning for warning in got.warnings)
    assert got.contrasts[0].claim == 0


def test_young_periods_wait_for_their_window() -> None:
    counts = simulated([0.05, 0.05], hours=10)
    got = report(counts, propensities=even(counts), control=0, window_periods=24)
    assert got.contrasts == ()
    assert got.winner is None
    assert any("older than the conversion window" in warning for warning in got.warnings)
    assert got.arms[0].trials > 0


def test_arms_that_were_not_shown_together_are_warned_of_and_compared_where_they_were() -> None:
    counts = simulated([0.05, 0.05, 0.07])
    trials, successes = counts.trials.copy(), counts.totals().copy()
    trials[:168, 2] = successes[:168, 2] = 0  # the third arm came after a week, in which all was half as good
    successes[:168] = np.floor(successes[:168] / 2)
    propensities = np.where(np.arange(336)[:, None] < 168, [0.5, 0.5, 0.0], np.full(3, 1 / 3))
    got = report(PeriodCounts.of(trials, successes), propensities=propensities, control=0, window_periods=0)
    assert any("those of the 168 of 336 periods" in warning for warning in got.warnings)
    assert got.arms[0].rate == pytest.approx(0.05, abs=0.003)
    lift = got.arms[2].lift_control
    assert lift is not None
    assert lift.low < 0.4 < lift.high


def test_many_arms_are_told_against_control_best_and_worst_with_the_level_of_all_pairs() -> None:
    rates = [0.05] * 18 + [0.03, 0.09]
    counts = simulated(rates)
    got = report(counts, propensities=even(counts), control=4, window_periods=0)
    assert (got.best, got.worst) == (19, 18)
    assert {pair for c in got.contrasts for pair in (c.a, c.b) if pair in (4, 18, 19)} == {4, 18, 19}
    assert len(got.contrasts) == 19 + 18 + 17
    few = report(
        PeriodCounts.of(counts.trials[:, 17:], counts.successes[:, 17:]),
        propensities=np.full((336, 3), 1 / 3),
        control=0,
        window_periods=0,
    )
    wide = next(c for c in got.contrasts if (c.a, c.b) == (18, 19))
    narrow = next(c for c in few.contrasts if (c.a, c.b) == (1, 2))
    assert wide.estimate == pytest.approx(narrow.estimate)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert got.winner == 19


def test_values_are_claimed_by_what_was_earned_and_not_by_the_most_that_the_cap_allows() -> None:
    rng = np.random.default_rng(4)
    trials = np.full((336, 2), 500)
    buyers = rng.binomial(trials, [0.03, 0.03])
    sums, squares = np.zeros((2, 336, 2))
    for hour, arm in np.ndindex(336, 2):
        spent = np.minimum(rng.exponential((40, 48)[arm], buyers[hour, arm]), 500) / 500
        sums[hour, arm], squares[hour, arm] = spent.sum(), (spent**2).sum()
    counts = PeriodCounts.of(trials, sums, sums, squares)
    by_value, by_cap = (
        report(
            counts,
            propensities=even(counts),
            control=0,
            window_periods=0,
            settings=ReportSettings(values=values),
        )
        for values in (True, False)
    )
    narrow, wide = by_value.contrasts[0], by_cap.contrasts[0]
    assert narrow.estimate == pytest.approx(wide.estimate)
    assert narrow.low < -8 * 0.03 / 500 < narrow.high
    assert (narrow.high - narrow.low) < 0.6 * (wide.high - wide.low)
    assert (narrow.claim, wide.claim) == (-1, 0)
    lift = by_value.arms[1].lift_control
    assert lift is not None
    assert 0.0 < lift.low < 0.2 < lift.high


def test_the_last_hour_stands_against_the_last_day_and_leaders_that_change_are_counted() -> None:
    trials = np.full((96, 2), 100.0)
    successes = np.zeros((96, 2))
    # Who leads by all days so far: a, b, b, a.
    for day, (a, b) in enumerate([(5, 4), (4, 9), (5, 4), (20, 4)]):
        successes[24 * day : 24 * (day + 1)] = (a, b)
    successes[-1] = (50, 4)
    trials[-24:, 1] = 25
    got = report(
        PeriodCounts.of(trials, successes),
        propensities=np.where(np.arange(96)[:, None] < 72, [0.5, 0.5], [0.8, 0.2]),
        control=0,
        window_periods=0,
    )
    assert got.reversals == 2
    assert got.arms[0].last_hour_rate == pytest.approx(0.5)
    assert got.arms[0].last_day_rate == pytest.approx((23 * 20 + 50) / 2400)
    assert got.exploration_share == pytest.approx(0.2), "units of the last day that did not see the leader"
