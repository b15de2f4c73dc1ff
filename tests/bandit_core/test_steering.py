"""From counts to the steering posterior: each option alone by hand, then together."""

import numpy as np
import pytest

from bandit_core.counts import PeriodCounts
from bandit_core.posteriors import BetaPosterior, BetaPrior, GaussianPosterior, HurdlePosterior
from bandit_core.simulator import Scenario
from bandit_core.steering import SteeringSettings, steering_posterior

COUNTS = PeriodCounts.of([[100, 200], [300, 400]], [[[5, 1], [10, 2]], [[15, 0], [20, 0]]])


def alpha_beta(posterior: object) -> tuple[list[float], list[float]]:
    assert isinstance(posterior, BetaPosterior)
    return posterior.alpha[0].tolist(), posterior.beta[0].tolist()


def test_plain_counts() -> None:
    got = steering_posterior(COUNTS, SteeringSettings(prior=BetaPrior(2, 3)))
    assert alpha_beta(got.posterior) == ([23.0, 34.0], [3.0 + 379, 3.0 + 568])
    assert got.dispersion == 1.0
    assert got.warnings == ()


def test_discount_keeps_the_prior() -> None:
    got = steering_posterior(COUNTS, SteeringSettings(half_life_periods=1.0))
    assert got.effective_trials.tolist() == [350.0, 500.0]
    assert alpha_beta(got.posterior)[0] == [1 + 3 + 15, 1 + 6 + 20]
    window = steering_posterior(COUNTS, SteeringSettings(sliding_window_periods=1))
    assert window.effective_trials.tolist() == [300.0, 400.0]


def test_the_gate_uses_mature_periods_alone() -> None:
    got = steering_posterior(COUNTS, SteeringSettings(delay="gate", window_periods=1))
    assert got.effective_trials.tolist() == [100.0, 200.0]
    assert got.successes.tolist() == [6.0, 12.0]
    empty = steering_posterior(COUNTS, SteeringSettings(delay="gate", window_periods=5))
    assert empty.effective_trials.tolist() == [0.0, 0.0]


def test_stratification_and_its_warning_pass_through() -> None:
    counts = PeriodCounts.of([[100, 100], [100, 0]], [[5, 5], [50, 0]])
    got = steering_posterior(counts, SteeringSettings(stratify=True))
    rates = got.successes / got.effective_trials
    assert rates == pytest.approx([0.05, 0.05])
    assert "absent" in got.warnings[0]


def test_overdispersed_counts_are_worth_less() -> None:
    rng = np.random.default_rng(0)
    trials = np.full((300, 2), 500)
    rates = rng.beta(5, 95, size=(300, 2))
    counts = PeriodCounts.of(trials, rng.binomial(trials, rates))
    got = steering_posterior(counts, SteeringSettings(overdispersion=True))
    assert got.dispersion > 3
    assert got.effective_trials == pytest.approx(np.full(2, 150_000 / got.dispersion))


def test_pooled_prior_draws_few_counts_to_the_rest() -> None:
    counts = PeriodCounts.of([[10_000, 10_000, 10_000, 20]], [[500, 510, 490, 4]])
    plain = steering_posterior(counts, SteeringSettings()).posterior.mean()[0, 3]
    pooled = steering_posterior(counts, SteeringSettings(pooled_prior=True)).posterior.mean()[0, 3]
    assert plain > 0.2
    assert pooled < 0.07


def test_values_are_hurdles() -> None:
    counts = PeriodCounts.of([[1000, 1000]], [[50, 50]], [[500.0, 1000.0]], [[5500.0, 21000.0]])
    got = steering_posterior(counts, SteeringSettings(reward="value", cap=100.0))
    assert isinstance(got.posterior, HurdlePosterior)
    assert got.posterior.mean()[0] == pytest.approx([0.52, 1.02], rel=0.05)
    assert got.posterior.best().probability[0, 1] > 0.99


def test_values_may_be_gaussian_means() -> None:
    counts = PeriodCounts.of([[1000, 1000]], [[50, 50]], [[500.0, 1000.0]], [[5500.0, 21000.0]])
    settings = SteeringSettings(reward="value", cap=100.0, model="gaussian", prior=BetaPrior(0.02, 1.98))
    got = steering_posterior(counts, settings).posterior
    assert isinstance(got, GaussianPosterior)
    # Prior: 1% of the cap, worth 2 trials. By hand: (2 * 1 + 500) / 1002 and (2 * 1 + 1000) / 1002.
    assert got.mean()[0] == pytest.approx([502 / 1002, 1002 / 1002])
    relative = got.relative(100.0)
    assert 100 * relative.mean() == pytest.approx(got.mean())
    assert 100 * relative.sd() == pytest.approx(got.sd())
    # Both models see the same two arms; a mean of 1000 values is nearly Gaussian.
    hurdle = steering_posterior(counts, SteeringSettings(reward="value", cap=100.0)).posterior
    assert got.best().probability[0, 1] == pytest.approx(hurdle.best().probability[0, 1], abs=0.02)
    assert relative.best().probability[0, 1] == pytest.approx(got.best().probability[0, 1], abs=0.01)


def delayed(hours: int, means: tuple[float, float], seed: int) -> PeriodCounts:
    rng = np.random.default_rng(seed)
    truth = Scenario("d", np.full((1, 2), 0.05), 1, mean_delay_periods=means, window_periods=48).lag_mass()
    successes = np.zeros((hours, 2, 49))
    for hour in range(hours):
        for arm in range(2):
            drawn = rng.multinomial(500, [*(0.05 * truth[arm]), 1 - 0.05 * truth[arm].sum()])[:49]
            successes[hour, arm, : hours - hour] = drawn[: hours - hour]
    return PeriodCounts.of(np.full((hours, 2), 500), successes)


def test_estimated_delays_make_equal_arms_equal_again() -> None:
    settings = SteeringSettings(delay="estimate", window_periods=48)
    naive, corrected = [], []
    for seed in range(20):
        counts = delayed(24, (1.0, 12.0), seed)
        naive.append(steering_posterior(counts, SteeringSettings()).posterior.best().probability[0, 1])
        got = steering_posterior(counts, settings)
        corrected.append(got.posterior.best().probability[0, 1])
        assert got.delay is not None
        assert got.effective_trials[1] < got.effective_trials[0] < 12_000.5
        assert any("delays differ" in warning for warning in got.warnings)
    assert np.mean(naive) < 0.001
    assert 0.3 < np.mean(corrected) < 0.7
    same = steering_posterior(delayed(24, (5.0, 5.0), 99), settings)
    assert same.warnings == ()


def test_all_options_together_and_the_same_bytes_again() -> None:
    settings = SteeringSettings(
        delay="estimate",
        window_periods=48,
        half_life_periods=48,
        stratify=True,
        overdispersion=True,
        pooled_prior=True,
    )
    counts = delayed(30, (2.0, 6.0), 1)
    one, two = (steering_posterior(counts, settings).posterior.best().probability.tobytes() for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": "clicks"}, "reward"),
        ({"delay": "guess"}, "delay"),
        ({"cap": 0.0}, "cap"),
        ({"window_periods": -1}, "window_periods"),
        ({"half_life_periods": -1.0}, "half_life"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SteeringSettings(**arguments)  # type: ignore[arg-type]  # the table holds wrong input
