"""Contextual learning: sharing across cells, exact posterior against quadrature, diagnostics, proposals."""

import numpy as np
import pytest
from scipy.special import expit

from bandit_core.contextual import (
    OTHER,
    Design,
    Feature,
    diagnostics,
    fit,
    gibbs,
    laplace,
    propose_combination,
    segment_of,
    winners,
)
from bandit_core.policies import gather, policy_from_definition

COUNTRY = Feature("country", ("de", "fr", "jp", "us"))
DEVICE = Feature("device", ("phone", "tablet", "desktop"))
HEADLINE = Feature("headline", ("h1", "h2", "h3", "h4", "h5"))
BUTTON = Feature("button", ("red", "blue"))
SHOP = Design((COUNTRY, DEVICE), (HEADLINE, BUTTON), (("headline", "device"),))


def test_twelve_segments_ten_arms() -> None:
    assert len(SHOP.segments()) == 12
    assert len(SHOP.arms()) == 10
    assert len(SHOP.segments(with_other=True)) == 20
    columns = SHOP.columns([("de", "phone")], [("h1", "red")])
    assert columns.sum() == 1 + 4 + 1  # intercept, four main effects, one interaction
    assert columns.shape[1] == len(SHOP.prior_sd()) == 1 + 4 + 3 + 5 + 2 + 15


def test_unknown_levels_become_other_and_are_counted() -> None:
    assert segment_of({"country": "de", "device": "phone"}, (COUNTRY, DEVICE)) == (("de", "phone"), 0)
    assert segment_of({"country": "xx"}, (COUNTRY, DEVICE)) == ((OTHER, OTHER), 2)
    other = SHOP.columns([(OTHER, OTHER)], [("h1", "red")])
    assert other.sum() == 3


def truth(rng: np.random.Generator) -> np.ndarray:
    columns = SHOP.columns([s for s in SHOP.segments() for _ in SHOP.arms()], SHOP.arms() * 12)
    sd = SHOP.prior_sd().copy()
    sd[0] = 0.0
    return np.asarray(expit(-2.5 + columns @ (rng.standard_normal(len(sd)) * sd * 0.7)).reshape(12, 10))


def test_learning_is_shared_across_cells() -> None:
    rng = np.random.default_rng(1)
    shared, alone = [], []
    for _ in range(15):
        rates = truth(rng)
        trials = np.full((12, 10), 60.0)
        successes = rng.binomial(60, rates).astype(float)
        posterior = fit(SHOP, trials, successes, rng=rng, n_draws=400)
        shared.append(((posterior.mean() - rates) ** 2).mean())
        alone.append((((successes + 1) / 62 - rates) ** 2).mean())
    assert np.mean(shared) < 0.45 * np.mean(alone)


def test_intervals_of_every_cell_cover() -> None:
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(20):
        columns = SHOP.columns([s for s in SHOP.segments() for _ in SHOP.arms()], SHOP.arms() * 12)
        sd = SHOP.prior_sd().copy()
        sd[0] = 0.3
        rates = expit(-2.0 + columns @ (rng.standard_normal(len(sd)) * sd)).reshape(12, 10)
        successes = rng.binomial(100, rates).astype(float)
        low, high = fit(SHOP, np.full((12, 10), 100.0), successes, rng=rng, n_draws=800).credible_interval()
        covered.append(((low < rates) & (rates < high)).mean())
    assert np.mean(covered) >= 0.93


def test_laplace_with_much_data_is_the_binomial_posterior() -> None:
    design = Design((), (Feature("arm", ("a", "b")),))
    posterior = fit(design, np.array([[1e6, 1e6]]), np.array([[5e4, 6e4]]), rng=np.random.default_rng(0))
    assert posterior.mean()[0] == pytest.approx([0.05, 0.06], rel=2e-3)
    assert posterior.sd()[0] == pytest.approx(np.sqrt([0.05 * 0.95 / 1e6, 0.06 * 0.94 / 1e6]), rel=0.06)


def test_gibbs_is_the_posterior_by_quadrature() -> None:
    columns, prior_sd = np.ones((1, 1)), np.array([1.5])
    grid = np.linspace(-8, 4, 20_001)
    density = np.exp(3 * grid - 40 * np.logaddexp(0, grid) - grid**2 / (2 * 1.5**2) + 12)
    density /= density.sum()
    mean = (density * grid).sum()
    sd = np.sqrt((density * (grid - mean) ** 2).sum())
    draws = gibbs(
        columns, np.array([40.0]), np.array([3.0]), prior_sd, n_draws=2000, rng=np.random.default_rng(3)
    )
    assert draws.r_hat < 1.01
    assert draws.ess > 400
    assert draws.flat().mean() == pytest.approx(mean, abs=5 * sd / np.sqrt(draws.ess))
    assert draws.flat().std() == pytest.approx(sd, rel=0.06)
    quick = laplace(
        columns, np.array([40.0]), np.array([3.0]), prior_sd, n_draws=4000, rng=np.random.default_rng(3)
    )
    assert quick.flat().mean() == pytest.approx(mean, abs=0.2)


def test_gibbs_and_laplace_agree_on_the_shop() -> None:
    rng = np.random.default_rng(4)
    rates = truth(rng)
    trials = np.full((12, 10), 200.0)
    successes = rng.binomial(200, rates).astype(float)
    exact = fit(SHOP, trials, successes, rng=rng, mode="gibbs", n_draws=2000)
    assert exact.draws.r_hat < 1.05
    assert exact.draws.ess > 100
    quick = fit(SHOP, trials, successes, rng=rng, mode="laplace", n_draws=4000)
    assert exact.mean() == pytest.approx(quick.mean(), rel=0.1)
    assert winners(exact)[0] in np.argsort(-quick.best().probability[0])[:2]


def test_diagnostics_on_chains_that_mix_and_that_do_not() -> None:
    rng = np.random.default_rng(5)
    good = rng.standard_normal((4, 1000, 2))
    r_hat, ess = diagnostics(good)
    assert (r_hat < 1.01).all()
    assert ess == pytest.approx([4000, 4000], rel=0.15)
    stuck = good + np.arange(4)[:, None, None]
    assert (diagnostics(stuck)[0] > 1.5).all()
    # AR(1) with coefficient 0.8: effective size n (1 - 0.8) / (1 + 0.8).
    chain = np.zeros((4, 4000, 1))
    for t in range(1, 4000):
        chain[:, t] = 0.8 * chain[:, t - 1] + rng.standard_normal((4, 1))
    assert diagnostics(chain)[1][0] == pytest.approx(16_000 / 9, rel=0.2)
    with pytest.raises(ValueError, match="too few"):
        diagnostics(good[:, :3])


def test_segments_get_their_own_winner_and_weights() -> None:
    design = Design(
        (Feature("device", ("phone", "desktop")),), (Feature("arm", ("a", "b")),), (("arm", "device"),)
    )
    trials = np.full((2, 2), 5000.0)
    successes = np.array([[400.0, 300.0], [300.0, 400.0]])
    posterior = fit(design, trials, successes, rng=np.random.default_rng(6))
    assert winners(posterior) == [0, 1]
    assert winners(posterior, lower_is_better=True) == [1, 0]
    policy = policy_from_definition("contextual")
    evidence = gather(policy.needs, posterior, np.ones((2, 2), dtype=bool))
    weights = policy.choose(evidence, np.random.default_rng(0)).weights
    assert weights[0, 0] > 0.99
    assert weights[1, 1] > 0.99
    assert posterior.value_remaining()[0] >= 0.0
    assert winners(posterior, eligible=np.array([[False, True], [False, True]])) == [1, 1]


def test_interval_effects_take_out_drift() -> None:
    rng = np.random.default_rng(7)
    design = Design((), (Feature("arm", ("a", "b")),), n_intervals=20)
    share = np.linspace(0.5, 0.9, 20)
    trials = np.stack([2000 * (1 - share), 2000 * share], axis=1).round()[:, None, :]
    rate = np.linspace(0.05, 0.15, 20)[:, None, None]
    successes = rng.binomial(trials.astype(int), rate).astype(float)
    low, high = np.quantile(
        np.diff(fit(design, trials, successes, rng=rng).rates[:, 0], axis=1), [0.01, 0.99]
    )
    assert low < 0 < high
    plain = Design((), (Feature("arm", ("a", "b")),))
    pooled = fit(plain, trials, successes, rng=rng)
    assert pooled.best().probability[0, 1] > 0.999  # what pooling claims of equal arms


def test_six_variants_and_three_hundred_observations() -> None:
    # Few data: the model is uncertain, and says so.
    design = Design((), (Feature("arm", tuple("abcdef")),))
    rng = np.random.default_rng(8)
    confident = 0
    for _ in range(40):
        trials = np.full((1, 6), 50.0)
        posterior = fit(design, trials, rng.binomial(50, 0.1, (1, 6)).astype(float), rng=rng, n_draws=500)
        confident += posterior.best().probability.max() > 0.95
    assert confident <= 2


def test_the_untested_combination_of_the_best_levels_is_proposed() -> None:
    design = Design((), (Feature("headline", ("h1", "h2", "h3")), Feature("button", ("red", "blue"))))
    tested = [("h1", "red"), ("h2", "red"), ("h3", "red"), ("h1", "blue")]
    effect = {"h1": 0.0, "h2": 0.5, "h3": -0.3, "red": 0.0, "blue": 0.4}
    rng = np.random.default_rng(9)
    rates = np.array([[expit(-2.5 + effect[h] + effect[b]) for h, b in tested]])
    posterior = fit(
        design, np.full((1, 4), 5000.0), rng.binomial(5000, rates).astype(float), rng=rng, arms=tested
    )
    got = propose_combination(design, posterior, tested=tested, dropped=("h3", "red"))
    assert got is not None
    assert got.levels == ("h2", "blue")
    assert got.probability_better > 0.99
    assert got.probability_best > 0.5
    assert propose_combination(design, posterior, tested=design.arms(), dropped=("h3", "red")) is None
    with pytest.raises(ValueError, match="dropped"):
        propose_combination(design, posterior, tested=tested, dropped=("h9", "red"))


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="names must differ"):
        Design((COUNTRY,), (COUNTRY,))
    with pytest.raises(ValueError, match="interactions"):
        Design((COUNTRY,), (BUTTON,), (("country", "colour"),))
    with pytest.raises(ValueError, match="want"):
        fit(SHOP, np.zeros((3, 3)), np.zeros((3, 3)), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="successes"):
        fit(SHOP, np.zeros((12, 10)), np.ones((12, 10)), rng=np.random.default_rng(0))
