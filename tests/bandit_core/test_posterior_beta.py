"""Beta posteriors against conjugate sums and SciPy."""

import numpy as np
import pytest
from scipy import stats

from bandit_core.posteriors import BetaPosterior, BetaPrior


def test_counts_are_added_to_the_prior() -> None:
    posterior = BetaPosterior.from_counts([10, 0], [3, 0], BetaPrior(2.0, 5.0))
    assert posterior.alpha.tolist() == [[5.0, 2.0]]
    assert posterior.beta.tolist() == [[12.0, 5.0]]
    assert posterior.mean().tolist() == [[5 / 17, 2 / 7]]
    assert posterior.effective_trials().tolist() == [[10.0, 0.0]]


def test_fractional_rewards_one_by_one_equal_their_sum() -> None:
    rewards = np.random.default_rng(3).uniform(size=50)
    alpha, beta = 1.0, 1.0
    for reward in rewards:
        alpha, beta = alpha + reward, beta + 1.0 - reward
    posterior = BetaPosterior.from_counts([50], [rewards.sum()])
    assert posterior.alpha[0, 0] == pytest.approx(alpha, rel=1e-14)
    assert posterior.beta[0, 0] == pytest.approx(beta, rel=1e-14)


def test_moments_and_interval_against_scipy() -> None:
    trials = np.array([[0, 10, 1000], [10**6, 10**9, 3]])
    successes = np.array([[0, 0, 50], [10**6, 5 * 10**8, 1]])
    posterior = BetaPosterior.from_counts(trials, successes)
    reference = stats.beta(posterior.alpha, posterior.beta)
    assert posterior.mean() == pytest.approx(reference.mean(), rel=1e-12)
    assert posterior.sd() == pytest.approx(reference.std(), rel=1e-9)
    low, high = posterior.credible_interval(0.9)
    assert reference.cdf(low) == pytest.approx(np.full((2, 3), 0.05), abs=1e-8)
    assert reference.cdf(high) == pytest.approx(np.full((2, 3), 0.95), abs=1e-8)


def test_draws_have_the_posterior_s_moments_and_the_seed_s_values() -> None:
    posterior = BetaPosterior.from_counts([[100, 50]], [[10, 20]])
    draws = posterior.draw(np.random.default_rng(5), 20_000)
    assert draws.shape == (20_000, 1, 2)
    assert draws.mean(axis=0) == pytest.approx(
        posterior.mean(), abs=5 * posterior.sd().max() / np.sqrt(20_000)
    )
    assert (draws == posterior.draw(np.random.default_rng(5), 20_000)).all()


def test_informative_prior_from_mean_and_strength() -> None:
    prior = BetaPrior.from_mean(0.05, 200)
    assert (prior.alpha, prior.beta) == pytest.approx((10.0, 190.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: BetaPosterior.from_counts([10, 5], [3, 6]),
            "experiment 0, arm 1: .*6.0.* successes of .*5.0",
        ),
        (lambda: BetaPosterior.from_counts([10], [-1]), "arm 0"),
        (lambda: BetaPosterior.from_counts([np.nan], [0]), "arm 0"),
        (lambda: BetaPosterior.from_counts([1, 2], [0]), "shapes"),
        (lambda: BetaPrior(0.0, 1.0), "prior.alpha"),
        (lambda: BetaPrior(1.0, float("inf")), "prior.beta"),
        (lambda: BetaPrior.from_mean(1.0, 10), "mean"),
        (lambda: BetaPosterior.from_counts([1], [0]).credible_interval(1.0), "level"),
    ],
)
def test_impossible_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]  # a lambda of the table
