"""Delay: closed forms, recovery of known delays, and the traffic of a better but slower arm."""

import numpy as np
import pytest
from scipy.stats import beta

from bandit_core.counts import PeriodCounts
from bandit_core.delay import (
    DelayGrid,
    DelaySettings,
    estimate_delay,
    lag_sums,
    log_likelihood_ratio_of_arms,
)
from bandit_core.policies import policy_from_definition
from bandit_core.simulator import Scenario, simulate

GRID = DelayGrid.of(DelaySettings(72))


def slow_better(hours: int) -> Scenario:
    rates = np.tile([0.05, 0.055], (hours, 1))
    return Scenario("slow but better", rates, 1000, mean_delay_periods=(1.0, 12.0), window_periods=168)


def shares(pending_as: str, *, hours: int, n_runs: int, seed: int = 0) -> list[float]:
    got = simulate(
        slow_better(hours),
        policy_from_definition("thompson"),
        n_runs=n_runs,
        rng=np.random.default_rng(seed),
        pending_as=pending_as,
    )
    return [float(got.best_arm_share(through).mean()) for through in (72, hours)]


def test_lag_sums_by_hand() -> None:
    # Three hours; hour 0 is 2 hours old, so it shows lags 0 to 2, hour 2 only lag 0.
    successes = [[[1, 2, 3]], [[4, 5, 0]], [[6, 0, 0]]]
    counts = PeriodCounts.of([[100], [200], [400]], successes)
    conversions, exposed = lag_sums(counts, 3)
    assert conversions.tolist() == [[11, 7, 3, 0]]
    assert exposed.tolist() == [[700, 300, 100, 0]]
    _, weighted = lag_sums(counts, 3, weights=[0.25, 0.5, 1.0])
    assert weighted.tolist() == [[525, 125, 25, 0]]
    with pytest.raises(ValueError, match="window of 1 periods"):
        lag_sums(counts, 1)


def test_an_exponential_delay_in_hours_has_its_closed_form() -> None:
    grid = DelayGrid.of(DelaySettings(400, shapes=(1.0,), n_scales=2))
    mu = 0.2
    start = 1 - mu * (1 - np.exp(-1 / mu))
    want = [start, *(mu * (1 - np.exp(-1 / mu)) ** 2 * np.exp(-(np.arange(1, 5) - 1) / mu))]
    assert grid.lag_mass[0, :5] == pytest.approx(want, abs=1e-3)
    assert grid.lag_mass.sum(axis=1) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("mean", [0.5, 3.0, 12.0, 30.0])
def test_known_delays_are_recovered_from_truncated_data(mean: float) -> None:
    rng = np.random.default_rng(int(10 * mean) + 1)
    hours, per_hour, rate = 36, 3000, 0.05
    truth = Scenario("d", np.full((1, 1), rate), 1, mean_delay_periods=(mean,), window_periods=72).lag_mass()[
        0
    ]
    successes = np.zeros((hours, 1, 73))
    for hour in range(hours):
        drawn = rng.multinomial(per_hour, [*(rate * truth), 1 - rate * truth.sum()])[:73]
        successes[hour, 0, : hours - hour] = drawn[: hours - hour]
    counts = PeriodCounts.of(np.full((hours, 1), per_hour), successes)
    got = estimate_delay(*lag_sums(counts, 72), GRID)
    lags = np.arange(73)
    assert got.mean_lag_periods[0] == pytest.approx((truth * lags).sum(), abs=3 * got.mean_lag_sd[0] + 0.1)
    posterior_mean = got.alpha[0] / (got.alpha[0] + got.beta[0])
    posterior_sd = np.sqrt(posterior_mean * (1 - posterior_mean) / (got.alpha[0] + got.beta[0]))
    assert posterior_mean == pytest.approx(rate, abs=3 * posterior_sd)
    assert got.effective_trials[0] <= hours * per_hour
    assert got.cdf[0, -1] == pytest.approx(1.0, abs=1e-9)


def test_a_posterior_covers_the_rate_whatever_the_delay() -> None:
    rng = np.random.default_rng(5)
    n, hours, per_hour, rate = 400, 24, 1000, 0.05
    truth = Scenario("d", np.full((1, 1), rate), 1, mean_delay_periods=(8.0,), window_periods=72).lag_mass()[
        0
    ]
    conversions = np.zeros((n, 1, 73))
    for lag in range(hours):
        conversions[:, 0, lag] = rng.poisson(per_hour * (hours - lag) * rate * truth[lag], size=n)
    exposed = np.maximum(per_hour * (hours - np.arange(73.0)), 0.0)
    got = estimate_delay(conversions, np.broadcast_to(exposed, (n, 1, 73)), GRID)
    position = np.asarray(beta(got.alpha[:, 0], got.beta[:, 0]).cdf(rate))
    covered = ((position > 0.025) & (position < 0.975)).mean()
    assert covered >= 0.93  # counting pending trials as failures covers nothing here
    successes = conversions.sum(axis=(1, 2))
    naive = np.asarray(beta(1 + successes, 1 + per_hour * hours - successes).cdf(rate))
    assert (naive < 0.975).mean() < 0.01


@pytest.mark.parametrize("window", [1, 24, 72, 168])
def test_a_batch_gives_the_same_as_one_bit_for_bit(window: int) -> None:
    rng = np.random.default_rng(window)
    grid = DelayGrid.of(DelaySettings(window))
    lags, n_rows = np.arange(window + 1.0), 150
    ages = rng.integers(1, 2 * window + 3, n_rows)
    exposed = np.maximum(rng.integers(1, 3000, n_rows)[:, None] * (ages[:, None] - lags), 0.0)
    rates = rng.choice([0.0001, 0.001, 0.02], n_rows)[:, None]
    conversions = rng.poisson(exposed * rates * np.exp(-3.0 * lags / window)).astype(float)
    batch = estimate_delay(conversions, exposed, grid)
    for row in rng.integers(0, n_rows, 10).tolist():
        for rows in (slice(row, row + 1), slice(max(row - 4, 0), row + 1)):
            few = estimate_delay(conversions[rows], exposed[rows], grid)
            for name in ("alpha", "beta", "effective_trials", "mean_lag_periods", "shown", "cdf"):
                assert getattr(few, name)[-1].tobytes() == getattr(batch, name)[row].tobytes()


def test_no_data_gives_the_prior() -> None:
    got = estimate_delay(np.zeros((2, 73)), np.zeros((2, 73)), GRID)
    assert got.alpha == pytest.approx([1.0, 1.0])
    assert got.beta == pytest.approx([1.0, 1.0])
    assert got.effective_trials == pytest.approx([0.0, 0.0], abs=1e-9)


def test_different_delays_are_noticed_and_equal_ones_are_not() -> None:
    exposed = np.maximum(1000.0 * (48 - np.arange(73.0)), 0.0)
    rng = np.random.default_rng(1)

    def factor(means: tuple[float, float]) -> float:
        truth = Scenario(
            "d", np.full((1, 2), 0.05), 1, mean_delay_periods=means, window_periods=72
        ).lag_mass()
        conversions = rng.poisson(exposed * 0.05 * truth).astype(float)
        return float(log_likelihood_ratio_of_arms(conversions, np.stack([exposed, exposed]), GRID))

    assert factor((1.0, 12.0)) > 10
    assert factor((6.0, 6.0)) < 0


def test_a_better_but_slower_arm_gets_its_traffic() -> None:
    at_72, _ = shares("estimated", hours=72, n_runs=16)
    assert at_72 >= 0.70
    naive, _ = shares("failure", hours=72, n_runs=16)
    assert naive < 0.10


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_better_but_slower_arm_gets_its_traffic_for_a_week() -> None:
    at_72, at_168 = shares("estimated", hours=168, n_runs=60, seed=1)
    assert at_72 >= 0.70
    assert at_168 >= 0.85


def test_settings_and_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="window_periods"):
        DelaySettings(0)
    with pytest.raises(ValueError, match="shapes"):
        DelaySettings(5, shapes=())
    with pytest.raises(ValueError, match="want 73 lags"):
        estimate_delay(np.zeros((1, 5)), np.zeros((1, 5)), GRID)
