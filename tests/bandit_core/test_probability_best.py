"""P(best), expected loss and value remaining against closed forms, rational sums and quadrature."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from bandit_core.probability_best import (
    probability_best_beta,
    probability_best_gaussian,
    value_remaining_beta,
    value_remaining_gaussian,
)


def exact_two_arms(a1: int, b1: int, a2: int, b2: int) -> float:
    """P(θ2 > θ1) for whole parameters: Cook 2005, "Exact calculation of Beta inequalities", in rationals."""

    def beta(a: int, b: int) -> Fraction:
        return Fraction(math.factorial(a - 1) * math.factorial(b - 1), math.factorial(a + b - 1))

    total = sum(
        (beta(a1 + i, b1 + b2) / ((b2 + i) * beta(1 + i, b2) * beta(a1, b1)) for i in range(a2)), Fraction(0)
    )
    return float(total)


def log_odds_reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Independent reference: SciPy's incomplete Beta function, 20 Gauss points on many panels."""
    mode = np.log(a / b)
    width = np.sqrt(1 / a + 1 / b)
    steps = np.arange(-15, 15.25, 0.5)
    breaks = [mode[i] + width[i] * steps for i in range(len(a))]
    breaks += [mode[i] - np.geomspace(0.1, 40, 40) / min(a[i], 1.0) for i in range(len(a))]
    breaks += [mode[i] + np.geomspace(0.1, 40, 40) / min(b[i], 1.0) for i in range(len(a))]
    edges = np.unique(np.concatenate([*breaks, np.linspace(-10, 10, 81)]))
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = 0.5 * np.diff(edges)[:, None]
    z = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * nodes).ravel()
    weight = (half * weights).ravel()
    x, y = special.expit(z), special.expit(-z)
    cdf = np.where(
        x < 0.5, special.betainc(a[:, None], b[:, None], x), special.betaincc(b[:, None], a[:, None], y)
    )
    result = np.empty(len(a))
    for i in range(len(a)):
        peak = special.xlogy(a[i], special.expit(mode[i])) + special.xlogy(b[i], special.expit(-mode[i]))
        density = np.exp(special.xlogy(a[i], x) + special.xlogy(b[i], y) - peak) * weight
        others = np.prod(np.delete(cdf, i, axis=0), axis=0)
        result[i] = (density * others).sum() / density.sum()
    return result


@pytest.mark.parametrize(
    ("a1", "b1", "a2", "b2"),
    [(1, 1, 1, 1), (1, 1, 51, 951), (3, 20, 5, 18), (40, 60, 50, 50), (1, 300, 2, 250), (120, 80, 130, 95)],
)
def test_two_arms_equal_the_rational_sum(a1: int, b1: int, a2: int, b2: int) -> None:
    got = probability_best_beta([a1, a2], [b1, b2]).probability[0, 1]
    assert got == pytest.approx(exact_two_arms(a1, b1, a2, b2), abs=1e-10)


def test_a_new_arm_against_five_percent_starts_at_ninety_five() -> None:
    assert probability_best_beta([1, 50_000], [1, 950_000]).probability[0, 0] == pytest.approx(0.95, abs=1e-4)


@pytest.mark.parametrize("n_arms", [2, 3, 10, 100])
def test_equal_arms_are_equally_likely(n_arms: int) -> None:
    got = probability_best_beta(np.full(n_arms, 3.5), np.full(n_arms, 70.0))
    assert got.probability == pytest.approx(np.full((1, n_arms), 1 / n_arms), abs=1e-9)


def test_uniform_arms_have_the_moments_of_order_statistics() -> None:
    # The largest of n uniforms has mean n / (n + 1).
    got = probability_best_beta(np.ones(4), np.ones(4))
    assert got.expected_best[0] == pytest.approx(0.8, abs=1e-9)
    assert got.expected_loss == pytest.approx(np.full((1, 4), 0.3), abs=1e-9)


EXTREME = [
    ([1, 1e6 + 1, 1], [1, 1, 1e6 + 1]),  # 0 of 0, all of 10^6, none of 10^6
    ([1, 1, 1], [1, 1e6 + 1, 1e9 + 1]),
    ([1, 5e8, 5e8 + 3e4], [1, 5e8, 5e8 - 3e4]),  # 10^9 trials, two standard deviations apart
    ([5e7, 5e7 + 2e4, 51.0], [95e7, 95e7 - 2e4, 951.0]),
    ([0.5, 0.5, 20.5], [0.5, 1e5, 400.5]),
    ([1.0, 2.0, 1e6], [1e9, 1e9, 1e15]),
    ([0.05, 0.05, 0.5], [0.05, 5.0, 0.5]),
    ([0.05, 0.05, 0.05], [1.3e8, 8.7, 4e4]),
]


@pytest.mark.parametrize(("a", "b"), EXTREME)
def test_extreme_counts_against_the_reference(a: list[float], b: list[float]) -> None:
    reference = log_odds_reference(np.array(a, dtype=float), np.array(b, dtype=float))
    assert probability_best_beta(a, b).probability[0] == pytest.approx(reference, abs=1e-6)


def test_random_experiments_against_the_reference() -> None:
    rng = np.random.default_rng(11)
    trials = 10 ** rng.uniform(0, 8, size=(12, 6))
    rates = 10 ** rng.uniform(-5, -0.3, size=(12, 1)) * rng.uniform(0.8, 1.0, size=(12, 6))
    a = 1 + rng.binomial(trials.astype(np.int64), rates)
    b = 2 + trials - a
    got = probability_best_beta(a, b).probability
    for i in range(12):
        reference = log_odds_reference(a[i].astype(float), b[i])
        assert got[i] == pytest.approx(reference, abs=1e-6)


def test_thirty_digits() -> None:
    # mpmath.quad over x of the density times mpmath.betainc of the others, with 30 digits.
    got = probability_best_beta([3.0, 9.5, 40.0], [30.0, 80.5, 500.0]).probability[0]
    want = [0.345896989508718, 0.568413831413143, 0.0856891790781389]
    assert got == pytest.approx(want, abs=1e-11)


def test_counts_of_ten_to_the_twelve_are_gaussian() -> None:
    a = np.array([5e11, 5e11 + 1e6])
    variance = 2 * 0.25 / 1e12
    want = stats.norm.cdf(1e6 / 1e12 / np.sqrt(variance))
    assert probability_best_beta(a, 1e12 - a).probability[0, 1] == pytest.approx(want, abs=1e-6)


def test_lower_is_better_mirrors() -> None:
    a, b = [4.0, 9.0, 30.0], [40.0, 70.0, 300.0]
    low = probability_best_beta(a, b, lower_is_better=True)
    high = probability_best_beta(b, a)
    assert (low.probability == high.probability).all()
    assert low.expected_best[0] == pytest.approx(1 - high.expected_best[0], abs=1e-15)
    draws = np.random.default_rng(0).beta(a, b, size=(400_000, 3))
    assert low.expected_loss[0] == pytest.approx(
        (draws - draws.min(axis=1, keepdims=True)).mean(axis=0), abs=2e-4
    )


def test_ineligible_arms_are_left_out() -> None:
    mask = [True, False, True]
    got = probability_best_beta([5, 500, 9], [50, 5, 60], eligible=mask)
    want = probability_best_beta([5, 9], [50, 60])
    assert got.probability[0, [0, 2]].tolist() == want.probability[0].tolist()
    assert got.probability[0, 1] == 0.0
    assert np.isnan(got.expected_loss[0, 1])
    alone = probability_best_beta([5, 500], [50, 5], eligible=[True, False])
    assert alone.probability.tolist() == [[1.0, 0.0]]
    assert alone.expected_loss[0, 0] == 0.0


def test_a_batch_changes_no_bit_of_any_experiment() -> None:
    rng = np.random.default_rng(2)
    a = 10 ** rng.uniform(-2, 7, size=(300, 7))
    b = 10 ** rng.uniform(0, 8, size=(300, 7))
    mask = rng.random((300, 7)) < 0.8
    mask[:, 0] = True
    batch = probability_best_beta(a, b, eligible=mask)
    remaining = value_remaining_beta(a[:30], b[:30], eligible=mask[:30])
    order = rng.permutation(300)
    shuffled = probability_best_beta(a[order], b[order], eligible=mask[order])
    assert batch.probability[order].tobytes() == shuffled.probability.tobytes()
    for i in range(30):
        one = probability_best_beta(a[i], b[i], eligible=mask[i])
        assert one.probability[0].tobytes() == batch.probability[i].tobytes()
        assert one.expected_loss[0].tobytes() == batch.expected_loss[i].tobytes()
        assert value_remaining_beta(a[i], b[i], eligible=mask[i])[0] == remaining[i]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(-2, 9).map(lambda x: 10**x), st.floats(-2, 9).map(lambda x: 10**x)),
        min_size=1,
        max_size=12,
    )
)
def test_chances_sum_to_one_and_losses_order_the_means(parameters: list[tuple[float, float]]) -> None:
    a, b = np.array(parameters).T
    got = probability_best_beta(a, b)
    assert got.probability.sum() == pytest.approx(1.0, abs=1e-6)
    mean = a / (a + b)
    assert got.expected_loss[0] == pytest.approx(got.expected_best[0] - mean, abs=1e-9)
    assert got.expected_best[0] >= mean.max() - 1e-7


def test_quadrature_is_many_times_faster_than_monte_carlo() -> None:
    rng = np.random.default_rng(1)
    trials = rng.integers(100, 20_000, size=(500, 10))
    successes = rng.binomial(trials, rng.uniform(0.02, 0.08, size=(500, 10)))
    a, b = 1 + successes, 1 + trials - successes
    probability_best_beta(a, b)
    start = time.process_time()
    exact = probability_best_beta(a, b).probability
    quadrature_s = time.process_time() - start
    start = time.process_time()
    sampled = np.array(
        [
            np.bincount(rng.beta(a[i], b[i], (10_000, 10)).argmax(axis=1), minlength=10) / 10_000
            for i in range(50)
        ]
    )
    monte_carlo_s = 10 * (time.process_time() - start)
    assert monte_carlo_s > 8 * quadrature_s  # measured: 37 to 52 times
    assert np.abs(sampled - exact[:50]).max() < 0.03
    assert np.abs(sampled - exact[:50]).max() > 1e-3


def test_gaussian_arms_have_the_closed_form() -> None:
    got = probability_best_gaussian([[1.0, 1.5], [0.0, 1e4]], [[0.4, 0.3], [1.0, 1e-6]])
    assert got.probability[0, 1] == pytest.approx(stats.norm.cdf(0.5 / 0.5), abs=1e-10)
    assert got.probability[1, 1] == pytest.approx(1.0, abs=1e-10)
    # E[max] of two Gaussians: Clark 1961, "The greatest of a finite set of random variables", equation 2.
    want = 1.5 * stats.norm.cdf(1) + 1.0 * stats.norm.cdf(-1) + 0.5 * stats.norm.pdf(1)
    assert got.expected_best[0] == pytest.approx(want, abs=1e-10)
    low = probability_best_gaussian([1.0, 1.5], [0.4, 0.3], lower_is_better=True)
    assert low.probability[0, 0] == pytest.approx(got.probability[0, 1], abs=1e-12)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_value_remaining_against_draws(lower_is_better: bool) -> None:
    a = np.array([[60.0, 55.0, 30.0], [3.0, 2.0, 1.0], [500.0, 300.0, 10.0]])
    b = np.array([[940.0, 950.0, 470.0], [30.0, 30.0, 1.0], [9500.0, 9700.0, 190.0]])
    got = value_remaining_beta(a, b, lower_is_better=lower_is_better)
    draws = np.random.default_rng(7).beta(a, b, size=(400_000, 3, 3))
    chosen = probability_best_beta(a, b, lower_is_better=lower_is_better).probability.argmax(axis=1)
    for i in range(3):
        base = draws[:, i, chosen[i]]
        best = draws[:, i].min(axis=1) if lower_is_better else draws[:, i].max(axis=1)
        sample = 1 - best / base if lower_is_better else best / base - 1
        # Checked on the probability scale: the share of draws up to the quantile found.
        assert (sample <= got[i] + 1e-12).mean() == pytest.approx(max(0.95, (sample <= 0).mean()), abs=0.002)


def test_value_remaining_of_gaussians_against_draws() -> None:
    mean, sd = np.array([[10.0, 9.8]]), np.array([[0.2, 0.3]])
    got = value_remaining_gaussian(mean, sd)[0]
    draws = np.random.default_rng(7).normal(mean[0], sd[0], size=(400_000, 2))
    sample = np.maximum(draws[:, 1] - draws[:, 0], 0) / 10.0
    assert (sample <= got).mean() == pytest.approx(0.95, abs=0.002)
    assert value_remaining_gaussian([10.0, 0.0], [0.1, 0.1])[0] == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probability_best_beta([1, 0], [1, 1]), "experiment 0, arm 1: alpha"),
        (lambda: probability_best_beta([1, 1], [1, np.inf]), "arm 1"),
        (lambda: probability_best_beta([1, 1], [1]), "shapes"),
        (lambda: probability_best_beta([], []), "shapes"),
        (lambda: probability_best_beta([1, 1], [1, 1], eligible=[False, False]), "no eligible arm"),
        (lambda: probability_best_gaussian([1, 1], [1, 0]), "sd"),
        (lambda: value_remaining_beta([1, 1], [1, 1], quantile=1.0), "quantile"),
    ],
)
def test_impossible_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]  # a lambda of the table
