"""Sequences for capped values: by hand, and covering where half of what is believed of values is wrong."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad

from bandit_core.inference import difference_sequence, value_difference, value_lift
from bandit_core.inference.values import _log_wealth, _reach

Draw = Callable[[np.random.Generator, int], np.ndarray]


def exponential(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.exponential(40.0, n)


def heavy(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.asarray(40.0 * np.exp(1.5 * rng.standard_normal(n) - 1.125))


SHOPS: dict[str, tuple[Draw, float, int, float]] = {  # values, cap, units an hour, share that buys
    "exponential": (exponential, 200.0, 1000, 0.03),
    "few buyers": (exponential, 200.0, 100, 0.03),
    "heavy tail": (heavy, 5000.0, 1000, 0.03),
}


def simulated(
    shop: str, *, runs: int, hours: int, seed: int, lift: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Trials, sums and squares (hours, runs, 2) under weights that follow the means, and the true effect."""
    draw, cap, units, buys = SHOPS[shop]
    rng = np.random.default_rng(seed)
    n, s, q = np.zeros((3, hours, runs, 2))
    share = np.full(runs, 0.5)
    for hour in range(hours):
        n[hour, :, 0] = rng.binomial(units, share)
        n[hour, :, 1] = units - n[hour, :, 0]
        for arm in range(2):
            buyers = rng.binomial(n[hour, :, arm].astype(int), buys)
            values = np.minimum(draw(rng, int(buyers.sum())) * (1.0 + lift * arm), cap) / cap
            run = np.repeat(np.arange(runs), buyers)
            s[hour, :, arm] = np.bincount(run, values, minlength=runs)
            q[hour, :, arm] = np.bincount(run, values**2, minlength=runs)
        mean = s.sum(axis=0) / np.maximum(n.sum(axis=0), 1.0)
        error = np.sqrt((q.sum(axis=0) + 1e-4) / np.maximum(n.sum(axis=0), 1.0) ** 2).sum(axis=1)
        share = 0.02 + 0.96 / (1.0 + np.exp(-3.0 * (mean[:, 0] - mean[:, 1]) / error))
    big = draw(rng, 2_000_000)
    first, second = (np.minimum(big * (1.0 + lift * arm), cap).mean() / cap for arm in range(2))
    return n, s, q, float(first - second) * buys


def looked_at(shop: str, *, runs: int, seed: int, lift: float = 0.0) -> tuple[float, float]:
    """Coverage at daily looks for two weeks, and the width at the end against the cap's own."""
    n, s, q, truth = simulated(shop, runs=runs, hours=336, seed=seed, lift=lift)
    a, b = (..., 0), (..., 1)
    got = value_difference(n[a], s[a], q[a], n[b], s[b], q[b])
    most = difference_sequence(n[a], s[a], n[b], s[b])
    looks = slice(23, None, 24)
    covered = ((got.low[looks] <= truth) & (truth <= got.high[looks])).all(axis=0)
    ratio = np.median((got.high[-1] - got.low[-1]) / (most.high[-1] - most.low[-1]))
    return float(covered.mean()), float(ratio)


@pytest.mark.parametrize("shop", SHOPS)
def test_daily_looks_at_values_cover_and_are_narrower_than_the_cap_allows(shop: str) -> None:
    coverage, width = looked_at(shop, runs=60, seed=1)
    assert coverage >= 0.94
    assert width < 0.8


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lift", [0.0, 0.2])
@pytest.mark.parametrize("shop", SHOPS)
def test_two_thousand_runs_of_values_cover(shop: str, lift: float) -> None:
    coverage, width = looked_at(shop, runs=2000, seed=2, lift=lift)
    print(f"values, {shop}, lift {lift:.0%}: coverage {coverage:.2%}, width {width:.2f} of the cap's")
    assert coverage >= 0.94
    assert width < 0.8


def test_the_mixture_is_the_integral_it_stands_for() -> None:
    # Over y = 1 - lambda in (0, 1], with the density of a Gamma(1, 1) cut off at 1.
    excess, variance = 6.0, 4.0

    def integrand(y: float) -> float:
        return float(np.exp((1 - y) * (excess + variance)) * y**variance * np.exp(-y) / (1 - np.exp(-1)))

    exact, _ = quad(integrand, 0.0, 1.0)
    assert _log_wealth(np.array(excess), np.array(variance)) == pytest.approx(np.log(exact), rel=1e-9)
    reach = _reach(np.array([0.0, 1.0, 100.0, 1e7]), 0.025)
    assert _log_wealth(reach, np.array([0.0, 1.0, 100.0, 1e7])) == pytest.approx(
        [-np.log(0.025)] * 4, rel=1e-6
    )


def test_two_trials_by_hand() -> None:
    # Hour 1: one of each arm, 0.5 and 0. Hour 2: the same; the guess is then 0.5 / 2 for a, 0 for b.
    one, nothing = [[1.0], [1.0]], [[0.0], [0.0]]
    got = value_difference(one, [[0.5], [0.5]], [[0.25], [0.25]], one, nothing, nothing)
    assert got.estimate[:, 0] == pytest.approx([0.5, 0.5])
    assert got.information[:, 0] == pytest.approx([0.25 * 0.25, 0.25 * (0.25 + 0.25**2)])
    reach = _reach(got.information, 0.025)
    assert got.high[:, 0] - got.estimate[:, 0] == pytest.approx(reach[:, 0] / [0.5, 1.0])


def test_lifts_of_values_hold_the_truth_and_exclude_nothing_without_data() -> None:
    n, s, q, _ = simulated("exponential", runs=100, hours=240, seed=3, lift=0.2)
    a, b = (..., 1), (..., 0)
    draws = np.random.default_rng(9).exponential(40.0, 2_000_000)
    truth = np.minimum(1.2 * draws, 200.0).mean() / np.minimum(draws, 200.0).mean() - 1.0
    covered = np.ones(100, dtype=bool)
    for look in range(24, 241, 24):
        got = value_lift(n[:look][a], s[:look][a], q[:look][a], n[:look][b], s[:look][b], q[:look][b])
        covered &= (got.low[0] <= truth) & (truth <= got.high[0])
    assert covered.mean() >= 0.94
    nothing = value_lift([10], [0], [0], [10], [0], [0])
    assert (nothing.low[0], nothing.high[0]) == (-1.0, np.inf)


def test_values_above_the_cap_are_refused() -> None:
    with pytest.raises(ValueError, match="shares of the cap"):
        value_difference([1], [2.0], [4.0], [1], [0], [0])
    with pytest.raises(ValueError, match="one shape"):
        value_difference([1], [1], [1], [1, 1], [0, 0], [0, 0])
