"""Period counts, discounting, overdispersion, stratification, pooled priors."""

import numpy as np
import pytest

from bandit_core.counts import PeriodCounts, dispersion, period_weights
from bandit_core.priors import between_arm_variance, james_stein, pooled_beta_prior
from bandit_core.stratification import stratify


def test_weights_by_hand() -> None:
    assert period_weights(4, half_life_periods=1).tolist() == [0.125, 0.25, 0.5, 1.0]
    assert period_weights(4, window_periods=2).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert period_weights(3).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="half_life"):
        period_weights(3, half_life_periods=0)
    with pytest.raises(ValueError, match="window"):
        period_weights(3, window_periods=0)


def test_the_maturity_gate_watches_every_trial_equally_long() -> None:
    counts = PeriodCounts.of([[10], [20], [40]], [[[1, 2, 3]], [[4, 5, 0]], [[6, 0, 0]]])
    gated = counts.mature(1)
    assert gated.trials.tolist() == [[10], [20]]
    assert gated.totals().tolist() == [[3], [9]]
    assert counts.mature(5).trials.shape == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1]], [[[0, 1]]]), "period 0 has lag 1, later than the last of 1"),
        (([[1]], [[2]]), "more successes than trials"),
        (([[-1]], [[0]]), "negative"),
        (([[np.nan]], [[0]]), "trials: not finite"),
        (([1], [1]), "want"),
    ],
)
def test_impossible_counts_are_refused(arguments: tuple[object, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PeriodCounts.of(*arguments)  # type: ignore[arg-type]  # the table holds wrong input


def test_dispersion_finds_a_factor_and_not_more() -> None:
    rng = np.random.default_rng(4)
    trials = np.full((200, 3), 1000)
    drift = np.linspace(0.05, 0.1, 200)[:, None]
    assert dispersion(trials, rng.binomial(trials, drift)) < 1.15
    # Beta-binomial with intraclass correlation 0.003: variance is 1 + 999 * 0.003 times the binomial one.
    strength = 1 / 0.003 - 1
    rates = rng.beta(drift * strength, (1 - drift) * strength, size=(200, 3))
    assert dispersion(trials, rng.binomial(trials, rates)) == pytest.approx(4.0, rel=0.2)
    assert dispersion([[10, 10]], [[1, 2]]) == 1.0


def test_equal_arms_with_a_moving_split_show_no_lift_when_stratified() -> None:
    rng = np.random.default_rng(8)
    n_periods, runs = 200, 400
    rate = np.linspace(0.05, 0.10, n_periods)[:, None]
    share = np.linspace(0.5, 0.9, n_periods)
    trials = np.stack([1000 * (1 - share), 1000 * share], axis=1).astype(int)
    lifts, errors, pooled = [], [], []
    for _ in range(runs):
        successes = rng.binomial(trials, rate)
        got = stratify(trials, successes)
        lifts.append(got.rates[1] - got.rates[0])
        errors.append(np.sqrt(got.variances.sum()))
        raw = successes.sum(axis=0) / trials.sum(axis=0)
        pooled.append(raw[1] / raw[0] - 1)
    assert np.mean(pooled) > 0.05  # what pooling shows between equal arms
    assert abs(np.mean(lifts)) < 2 * np.std(lifts) / np.sqrt(runs)
    assert abs(lifts[0]) < 2 * errors[0]
    assert np.mean(errors) == pytest.approx(np.std(lifts), rel=0.1)
    assert (np.abs(lifts) < 1.96 * np.array(errors)).mean() >= 0.93


def test_an_arm_absent_from_half_the_periods_is_compared_where_it_was() -> None:
    trials = np.array([[100, 100], [100, 0], [100, 100], [100, 0]])
    successes = np.array([[5, 5], [50, 0], [10, 10], [50, 0]])
    got = stratify(trials, successes)
    assert got.rates.tolist() == pytest.approx([0.075, 0.075])
    assert (got.n_common, got.n_left_out) == (2, 2)
    (warning,) = got.warnings
    assert warning.startswith("arms [1] are absent from some of 4 periods: rates are compared over the 2 ")
    assert got.trials == pytest.approx([200, 200], rel=0.02)
    none = stratify([[10, 0], [0, 10]], [[1, 0], [0, 1]])
    assert none.trials.tolist() == [0.0, 0.0]
    assert none.n_common == 0


def test_an_equal_split_is_worth_its_trials() -> None:
    trials = np.full((50, 2), 400)
    successes = np.random.default_rng(0).binomial(trials, 0.1)
    got = stratify(trials, successes)
    assert got.rates == pytest.approx(successes.sum(axis=0) / trials.sum(axis=0))
    assert got.trials == pytest.approx([20_000, 20_000], rel=1e-3)


def test_james_stein_on_the_baseball_players_of_1970() -> None:
    # Efron and Morris 1977, "Stein's paradox in statistics": 45 at bats, grand mean .265, factor .212.
    hits = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])
    averages = hits / 45
    centre = averages.mean()
    shrunk = james_stein(averages, centre * (1 - centre) / 45)
    assert centre == pytest.approx(0.265, abs=0.0005)
    assert (shrunk[0] - centre) / (averages[0] - centre) == pytest.approx(0.212, abs=0.002)
    assert shrunk[0] == pytest.approx(0.294, abs=0.001)  # Clemente
    assert shrunk[-1] == pytest.approx(0.242, abs=0.001)  # Alvis
    truth = np.array(
        [
            0.346,
            0.298,
            0.276,
            0.222,
            0.273,
            0.270,
            0.263,
            0.210,
            0.269,
            0.230,
            0.264,
            0.256,
            0.303,
            0.264,
            0.226,
            0.285,
            0.316,
            0.200,
        ]
    )
    assert ((shrunk - truth) ** 2).sum() < ((averages - truth) ** 2).sum() / 3


def test_between_arm_variance_recovers_the_truth() -> None:
    rng = np.random.default_rng(3)
    got = []
    for _ in range(300):
        variances = rng.uniform(0.5, 2.0, size=20)
        means = rng.normal(7.0, 2.0, size=20) + rng.normal(0, np.sqrt(variances))
        got.append(between_arm_variance(means, variances))
    centre, tau_squared = np.mean(got, axis=0)
    assert centre == pytest.approx(7.0, abs=0.1)
    assert tau_squared == pytest.approx(4.0, rel=0.08)
    assert between_arm_variance([1.0], [1.0]) == (1.0, 0.0)


def test_pooled_prior() -> None:
    assert pooled_beta_prior([0, 0], [0, 0]).alpha == 1.0
    equal = pooled_beta_prior([10_000] * 4, [500] * 4)
    assert equal.alpha + equal.beta == pytest.approx(1000.0)
    assert equal.alpha / 1000 == pytest.approx(0.05, rel=0.01)
    rng = np.random.default_rng(6)
    rates = rng.beta(0.05 * 300, 0.95 * 300, size=200)
    trials = np.full(200, 5000)
    learned = pooled_beta_prior(trials, rng.binomial(trials, rates))
    assert learned.alpha + learned.beta == pytest.approx(300, rel=0.25)
    assert pooled_beta_prior([100, 50], [0, 0]).alpha > 0
