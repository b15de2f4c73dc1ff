"""Policies: weights by hand, parameters and their messages."""

import numpy as np
import pytest

from bandit_core.policies import POLICIES, DefinitionError, Evidence, Need, gather, policy_from_definition
from bandit_core.posteriors import BetaPosterior

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


def test_lower_is_better_reverses() -> None:
    posterior = BetaPosterior.from_counts([100, 100], [5, 9])
    mask = np.ones((1, 2), dtype=bool)
    low = gather(frozenset(Need), posterior, mask, lower_is_better=True)
    assert choose("epsilon_greedy", low) == pytest.approx([0.9, 0.1])
    assert choose("thompson", low)[0] > 0.8


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
