"""Gaussian and hurdle posteriors."""

import numpy as np
import pytest

from bandit_core.posteriors import BetaPosterior, GaussianPosterior, GaussianPrior, HurdlePosterior


def test_gaussian_is_the_conjugate_update_by_hand() -> None:
    # Values 2, 4, 6; prior mean 0 worth 1: mean 12 / 4 = 3. Sum of squares about the mean 8, prior 4 * 1,
    # shift 3/4 * 16.
    got = GaussianPosterior.from_sums([3], [12], [56], GaussianPrior(0.0, 1.0, 1.0, 4.0))
    assert got.mean()[0, 0] == pytest.approx(3.0)
    assert got.sd()[0, 0] ** 2 == pytest.approx((4 + 8 + 12) / (7 - 2) / 4)
    low, high = got.credible_interval()
    assert (high - low)[0, 0] == pytest.approx(2 * 1.959964 * got.sd()[0, 0], rel=1e-6)


def test_gaussian_with_much_data_is_the_sample() -> None:
    values = np.random.default_rng(0).gamma(2.0, 5.0, size=(20_000, 2))
    got = GaussianPosterior.from_sums(
        [20_000] * 2, values.sum(0), (values**2).sum(0), GaussianPrior(0.0, 1.0, 1.0)
    )
    assert got.mean()[0] == pytest.approx(values.mean(0), rel=1e-3)
    assert got.sd()[0] == pytest.approx(values.std(0) / np.sqrt(20_000), rel=1e-2)
    assert got.best().probability.sum() == pytest.approx(1.0)
    assert got.draw(np.random.default_rng(1), 4).shape == (4, 1, 2)
    assert got.value_remaining()[0] >= 0.0
    with pytest.raises(ValueError, match="squares"):
        GaussianPosterior.from_sums([2], [4], [1], GaussianPrior())
    with pytest.raises(ValueError, match="variance_strength"):
        GaussianPrior(variance_strength=2.0)


def test_hurdle_with_constant_amounts_is_the_beta_posterior() -> None:
    trials, successes = [100_000, 80_000], [5000, 4200]
    hurdle = HurdlePosterior.from_sums(
        trials, successes, np.array(successes) * 3.0, np.array(successes) * 9.0, cap=3.0
    )
    beta = BetaPosterior.from_counts(trials, successes)
    assert hurdle.mean() == pytest.approx(3.0 * beta.mean(), rel=1e-3)
    assert hurdle.sd() == pytest.approx(3.0 * beta.sd(), rel=1e-2)
    assert hurdle.best().probability == pytest.approx(beta.best().probability, abs=0.01)


def test_hurdle_covers_the_true_value_and_never_goes_below_zero() -> None:
    rng = np.random.default_rng(2)
    n, rate, runs = 2000, 0.03, 1000
    converted = rng.binomial(n, rate, size=(runs, 3))
    sums, squares = np.zeros((runs, 3)), np.zeros((runs, 3))
    for i in range(runs):
        for j in range(3):
            amounts = np.minimum(rng.lognormal(3.0, 0.6, size=converted[i, j]), 100.0)
            sums[i, j], squares[i, j] = amounts.sum(), (amounts**2).sum()
    truth = rate * np.minimum(rng.lognormal(3.0, 0.6, size=2_000_000), 100.0).mean()
    got = HurdlePosterior.from_sums(np.full((runs, 3), n), converted, sums, squares, cap=100.0)
    low, high = got.credible_interval(0.95)
    assert ((low < truth) & (truth < high)).mean() >= 0.93
    assert (low > 0.0).all()
    assert got.best().probability.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_hurdle_without_data_and_with_wrong_sums() -> None:
    empty = HurdlePosterior.from_sums([0, 0], [0, 0], [0, 0], [0, 0], cap=10.0)
    assert empty.best().probability[0] == pytest.approx([0.5, 0.5])
    assert 0.0 < empty.mean()[0, 0] < 10.0
    with pytest.raises(ValueError, match="sums"):
        HurdlePosterior.from_sums([5], [1], [11], [121], cap=10.0)
    with pytest.raises(ValueError, match="cap"):
        HurdlePosterior.from_sums([5], [1], [1], [1], cap=0.0)
