"""The report: honest on real and on simulated experiments, with warnings where the data break assumptions."""

import numpy as np
import pytest

from bandit_core.counts import PeriodCounts
from bandit_core.inference import report
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
    comparison = (np.full(336, 100), rng.binomial(100, 0.05, 336))
    got = report(counts, propensities=even(counts), control=0, window_periods=0, comparison=comparison)
    assert got.winner == 2
    assert got.bandit_effect is not None
    assert got.bandit_effect.low < 0.17 / 3 - 0.05 < got.bandit_effect.high
    lift = got.arms[2].lift_control
    assert lift is not None
    assert lift.low < 0.4 < lift.high
    assert lift.claim == 1
    assert got.arms[0].lift_control is None
    assert not got.sample_ratio_alarm
    assert got.stop.safe
    assert got.exploration_share == pytest.approx(2 / 3, abs=0.02)
    assert got.warnings == ()
    assert got.arms[1].last_day_rate == pytest.approx(0.05, abs=0.01)


def test_lower_is_better_turns_the_winner_round() -> None:
    counts = simulated([0.05, 0.05, 0.03])
    got = report(counts, propensities=even(counts), control=0, window_periods=0, lower_is_better=True)
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
