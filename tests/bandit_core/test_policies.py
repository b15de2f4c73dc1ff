"""Policies: weights by hand, parameters and their messages."""

import numpy as np
import pytest

from bandit_core.policies import POLICIES, DefinitionError, Evidence, Need, gather, policy_from_definition
from bandit_core.posteriors import BetaPosterior, GaussianPosterior, GaussianPrior

RNG_SEED = 1


def choose(name: str, evidence: Evidence, **parameters: object) -> list[float]:
    chosen = policy_from_definition(name, parameters).choose(evidence, np.random.default_rng(RNG_SEED))
    weights: list[float] = chosen.weights[0].tolist()
    return weights


def evidence_of(trials: list[float], successes: list[float], eligible: list[bool] | None = None) -> Evidence:
    posterior = BetaPosterior.from_counts(trials, successes)
    mask = np.array([eligible if eligible is not None else [True] * len(trials)])
    return gather(frozenset(Need), posterior, mask)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_starts_equal_and_sums_to_one(name: str) -> None:
    start = evidence_of([0, 0, 0, 0], [0, 0, 0, 0])
    chosen = policy_from_definition(name).choose(start, np.random.default_rng(RNG_SEED))
    assert chosen.selection_probability[0] == pytest.approx([0.25] * 4, abs=1e-9)
    later = evidence_of([1000, 900, 50, 800], [50, 60, 2, 20], [True, True, True, False])
    chosen = policy_from_definition(name).choose(later, np.random.default_rng(RNG_SEED))
    for weights in (chosen.weights[0], chosen.selection_probability[0]):
        assert weights.sum() == pytest.approx(1.0, abs=1e-12)
        assert weights[3] == 0.0
        assert (weights >= 0.0).all()


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_rows_of_a_batch_are_independent(name: str) -> None:
    posterior = BetaPosterior.from_counts([[100, 100], [1000, 10]], [[5, 9], [50, 1]])
    batch = gather(frozenset(Need), posterior, np.ones((2, 2), dtype=bool))
    got = policy_from_definition(name).choose(batch, np.random.default_rng(RNG_SEED)).selection_probability
    alone = evidence_of([1000, 10], [50, 1])
    one = policy_from_definition(name).choose(alone, np.random.default_rng(RNG_SEED)).selection_probability
    assert got[1].tolist() == one[0].tolist()


def test_uniform() -> None:
    assert choose("uniform", evidence_of([9, 9, 9], [1, 2, 3], [True, False, True])) == [0.5, 0.0, 0.5]


def test_thompson_is_probability_matching() -> None:
    evidence = evidence_of([100, 100], [5, 9])
    assert evidence.probability_best is not None
    assert choose("thompson", evidence) == pytest.approx(evidence.probability_best[0].tolist(), abs=1e-12)
    squared = evidence.probability_best[0] ** 2
    assert choose("thompson", evidence, power=2.0) == pytest.approx((squared / squared.sum()).tolist())


def test_epsilon_greedy_splits_over_the_others() -> None:
    evidence = evidence_of([100, 100, 100], [5, 9, 2])
    assert choose("epsilon_greedy", evidence) == pytest.approx([0.05, 0.9, 0.05])
    assert choose("epsilon_greedy", evidence, explore="all") == pytest.approx(
        [0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3]
    )
    assert choose("epsilon_greedy", evidence, exploration=0.3) == pytest.approx([0.15, 0.7, 0.15])


def test_epsilon_greedy_shares_ties() -> None:
    assert choose("epsilon_greedy", evidence_of([10, 10, 10], [5, 5, 2])) == pytest.approx([0.45, 0.45, 0.1])
    assert choose("epsilon_greedy", evidence_of([10, 10], [5, 5], [True, False])) == [1.0, 0.0]


def test_thompson_draw_takes_all_with_the_chance_of_being_best() -> None:
    posterior = BetaPosterior.from_counts(np.full((4000, 3), 100), np.tile([5, 9, 7], (4000, 1)))
    evidence = gather(frozenset(Need), posterior, np.tile([True, True, False], (4000, 1)))
    chosen = policy_from_definition("thompson_draw").choose(evidence, np.random.default_rng(RNG_SEED))
    assert set(np.unique(chosen.weights)) == {0.0, 1.0}
    assert (chosen.weights.sum(axis=1) == 1.0).all()
    assert chosen.weights.mean(axis=0) == pytest.approx(chosen.selection_probability[0], abs=0.03)
    again = policy_from_definition("thompson_draw").choose(evidence, np.random.default_rng(RNG_SEED))
    assert (again.weights == chosen.weights).all()


def test_top_two_is_its_formula() -> None:
    p = np.array([[0.6, 0.3, 0.1]])
    evidence = Evidence(np.ones((1, 3), dtype=bool), probability_best=p)
    want = [
        p[0, i] * (0.7 + 0.3 * sum(p[0, j] / (1 - p[0, j]) for j in range(3) if j != i)) for i in range(3)
    ]
    assert choose("top_two", evidence, leader=0.7) == pytest.approx(want)
    certain = Evidence(np.ones((1, 3), dtype=bool), probability_best=np.array([[1.0, 0.0, 0.0]]))
    assert choose("top_two", certain) == pytest.approx([0.5, 0.25, 0.25])
    alone = Evidence(np.array([[True, False]]), probability_best=np.array([[1.0, 0.0]]))
    assert choose("top_two", alone) == [1.0, 0.0]


def test_softmax_by_hand() -> None:
    evidence = Evidence(np.ones((1, 3), dtype=bool), means=np.array([[0.05, 0.04, 0.0]]))
    raw = np.exp([10.0, 8.0, 0.0])
    assert choose("softmax", evidence) == pytest.approx((raw / raw.sum()).tolist())
    zero = Evidence(np.ones((1, 3), dtype=bool), means=np.zeros((1, 3)))
    assert choose("softmax", zero) == pytest.approx([1 / 3] * 3)
    lower = Evidence(np.ones((1, 2), dtype=bool), means=np.array([[-0.05, -0.04]]))
    assert choose("softmax", lower)[1] == pytest.approx(1 / (1 + np.exp(-2)))


def test_ucb1_by_hand() -> None:
    # 0.5 + sqrt(2 ln 110 / 100) = 0.807 against 0.3 + sqrt(2 ln 110 / 10) = 1.270.
    assert choose("ucb1", evidence_of([100, 10], [50, 3])) == [0.0, 1.0]
    assert choose("ucb1", evidence_of([1000, 1000], [500, 300])) == [1.0, 0.0]
    assert choose("ucb1", evidence_of([10, 0, 0], [5, 0, 0])) == [0.0, 0.5, 0.5]
    assert choose("ucb1", evidence_of([10, 10, 10], [5, 5, 1])) == [0.5, 0.5, 0.0]


def test_ucb1_tuned_uses_the_variance() -> None:
    # n = 500 each: ln t / n = 0.01382; V = 0.2 * 0.8 + sqrt(0.02763) = 0.3262 -> 1/4: bound 0.2588.
    # A reward that is always 0.2 has V = 0.1662: bound 0.2479.
    posterior = BetaPosterior.from_counts([500, 500], [100, 100], squares=[100, 20])
    evidence = gather(frozenset(Need), posterior, np.ones((1, 2), dtype=bool))
    assert choose("ucb1", evidence) == [0.5, 0.5]
    assert choose("ucb1_tuned", evidence) == [1.0, 0.0]


def test_lower_is_better_reverses() -> None:
    posterior = BetaPosterior.from_counts([100, 100], [5, 9])
    mask = np.ones((1, 2), dtype=bool)
    low = gather(frozenset(Need), posterior, mask, lower_is_better=True)
    assert choose("epsilon_greedy", low) == pytest.approx([0.9, 0.1])
    assert choose("thompson", low)[0] > 0.8
    assert choose("ucb1", low) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "parameters", "path", "message"),
    [
        ("thomson", {}, "policy.algorithm", "unknown algorithm 'thomson'; one of "),
        ("epsilon_greedy", {"exploration": 1.5}, "policy.parameters.exploration", r"1.5 is not in \[0, 1\]"),
        ("epsilon_greedy", {"exploration": "x"}, "policy.parameters.exploration", "'x' is not a number"),
        ("epsilon_greedy", {"exploration": True}, "policy.parameters.exploration", "True is not a number"),
        (
            "epsilon_greedy",
            {"explore": "some"},
            "policy.parameters.explore",
            "'some' is not one of others, all",
        ),
        (
            "uniform",
            {"epsilon": 1},
            "policy.parameters.epsilon",
            "unknown parameter; this algorithm has: none",
        ),
        ("thompson", {"power": 0}, "policy.parameters.power", r"0 is not in \(0, 10\]"),
    ],
)
def test_wrong_parameters_name_their_path(
    name: str, parameters: dict[str, object], path: str, message: str
) -> None:
    with pytest.raises(DefinitionError, match=message) as caught:
        policy_from_definition(name, parameters)
    assert caught.value.path == path


def test_a_policy_gets_only_what_it_declares() -> None:
    posterior = BetaPosterior.from_counts([1, 1], [0, 0])
    evidence = gather(frozenset({Need.MEANS}), posterior, np.ones((1, 2), dtype=bool))
    assert evidence.probability_best is None
    with pytest.raises(ValueError, match="lacks probability_best"):
        policy_from_definition("thompson").choose(evidence, np.random.default_rng(0))


def test_thompson_on_paper() -> None:
    # Nothing seen: Beta(1, 1), density 1. One success of one: Beta(2, 1), density 2x.
    # P(second > first) = ∫ 2x * x dx = 2/3.
    assert choose("thompson", evidence_of([0, 1], [0, 1])) == pytest.approx([1 / 3, 2 / 3], abs=1e-9)
    # Two successes of two: ∫ 3x^2 * x dx = 3/4; squared and made to sum to 1: 9 / (9 + 1).
    assert choose("thompson", evidence_of([0, 2], [0, 2])) == pytest.approx([1 / 4, 3 / 4], abs=1e-9)
    assert choose("thompson", evidence_of([0, 2], [0, 2]), power=2.0) == pytest.approx([0.1, 0.9], abs=1e-9)


def test_thompson_draw_on_paper() -> None:
    # P(best) is .6, .3, .1: numbers below .6 draw the first, from there to .9 the second, then the third.
    evidence = Evidence(np.ones((1, 3), dtype=bool), probability_best=np.array([[0.6, 0.3, 0.1]]))
    policy = policy_from_definition("thompson_draw")
    for seed in range(20):
        number = np.random.default_rng(seed).random()
        chosen = policy.choose(evidence, np.random.default_rng(seed))
        drawn = 0 if number < 0.6 else 1 if number < 0.9 else 2
        assert chosen.weights[0].tolist() == [float(arm == drawn) for arm in range(3)]
        assert chosen.selection_probability[0] == pytest.approx([0.6, 0.3, 0.1])


def test_top_two_on_paper() -> None:
    # Leader a half: arm 1 leads with .6, and challenges with .3 * .6/.7 + .1 * .6/.9 = .3238; half of both.
    evidence = Evidence(np.ones((1, 3), dtype=bool), probability_best=np.array([[0.6, 0.3, 0.1]]))
    assert choose("top_two", evidence) == pytest.approx([0.4619, 0.3917, 0.1464], abs=5e-5)
    # Two arms: each is the other's only challenger, whatever is known.
    two = Evidence(np.ones((1, 2), dtype=bool), probability_best=np.array([[0.99, 0.01]]))
    assert choose("top_two", two) == pytest.approx([0.5, 0.5])


def test_ucb1_tuned_on_paper() -> None:
    # t = 100 + 100, ln t = 5.298; per trial 0.05298, sqrt(2 * that) = 0.3255.
    # First: mean .5, variance .25: min(1/4, .5755) -> bonus sqrt(.05298 / 4) = .1151, bound .6151.
    # Second: mean .6, every reward .6, variance 0: min(1/4, .3255) -> the same bonus, bound .7151.
    posterior = BetaPosterior.from_counts([100, 100], [50, 60], squares=[50, 36])
    evidence = gather(frozenset(Need), posterior, np.ones((1, 2), dtype=bool))
    assert choose("ucb1_tuned", evidence) == [0.0, 1.0]
    # Untried arms share before any other; arms with equal bounds share.
    assert choose("ucb1_tuned", evidence_of([10, 0, 0], [9, 0, 0])) == [0.0, 0.5, 0.5]
    assert choose("ucb1_tuned", evidence_of([50, 50, 50], [9, 9, 1])) == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("name", ["ucb1", "ucb1_tuned"])
def test_bounds_count_effective_trials_of_eligible_arms(name: str) -> None:
    # Discounted to 5 and 0.5 trials, t is 5.5: sqrt(2 ln 5.5 / 0.5) = 2.61 lifts the second arm.
    # (tuned: .92 against .4 + .29).
    assert choose(name, evidence_of([5, 0.5], [2, 0.0])) == [0.0, 1.0]
    # A stopped arm's trials are nobody's: t = 200, not 10^9. UCB1: .5 + .326 against .45 + .326.
    stopped = [True, True, False]
    assert choose(name, evidence_of([100, 100, 1e9], [50, 45, 1e8], stopped)) == [1.0, 0.0, 0.0]


def test_bounds_cap_rewards_to_one() -> None:
    # Values of 3 a trial count as 1: both arms are at the cap, and the bonuses decide.
    values = GaussianPosterior.from_sums([[10.0, 20.0]], [[30.0, 20.0]], [[90.0, 20.0]], GaussianPrior())
    evidence = gather(frozenset(Need), values, np.ones((1, 2), dtype=bool))
    assert evidence.reward_means is not None
    assert evidence.reward_means[0].tolist() == [1.0, 1.0]
    assert choose("ucb1", evidence) == [1.0, 0.0]


def test_contextual_weighs_each_segment_by_its_own_chances() -> None:
    chances = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]])
    evidence = Evidence(np.array([[True, True, True], [True, True, False]]), probability_best=chances)
    chosen = policy_from_definition("contextual").choose(evidence, np.random.default_rng(0))
    # In the second segment the third arm is stopped: .2 and .5 of .7.
    assert chosen.weights == pytest.approx(np.array([[0.9, 0.1, 0.0], [2 / 7, 5 / 7, 0.0]]))
