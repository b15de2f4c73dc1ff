"""The one-decision benchmark: its recipe number by number, and its published figures."""

import numpy as np
import pytest

from bandit_core.benchmark import (
    N_ROUNDS,
    TEXTBOOK,
    BenchmarkResult,
    benchmark_environments,
    convergence_rounds,
    reward_benchmark,
    textbook_benchmark,
)
from bandit_core.policies import policy_from_definition


def test_environments_follow_the_recipe() -> None:
    # The recipe, written out again: one generator, per environment 4 rates, the winner, its lead.
    rng = np.random.default_rng(42)
    for rates in benchmark_environments(42):
        want = rng.uniform(0.03, 0.40, 4)
        winner = rng.integers(0, 4)
        want[winner] = want.max() + rng.uniform(0.15, 0.30)
        assert rates.tolist() == np.round(want, 3).tolist()
    assert benchmark_environments(42).shape == (20, 4)
    assert N_ROUNDS == 2000


def test_the_winner_leads_by_at_least_what_was_added() -> None:
    ordered = np.sort(np.concatenate([benchmark_environments(seed) for seed in range(50)]), axis=1)
    gap = ordered[:, 3] - ordered[:, 2]
    assert gap.min() >= 0.149
    assert ordered[:, :3].max() <= 0.40
    assert ordered[:, 0].min() >= 0.03


def test_convergence_by_hand() -> None:
    hits = np.zeros((300, 4), dtype=bool)
    hits[:, 0] = True  # from the start: the first round that may count is 100
    hits[20:100, 1] = True  # 80 of the first 100, just
    hits[21:100, 2] = True  # 79 of them; the eightieth comes in round 150
    hits[149, 2] = True
    # The fourth never hits: as many rounds as there are.
    assert convergence_rounds(hits).tolist() == [100, 100, 300, 300]
    hits[100, 2] = True  # round 101: trailing 100 are rounds 2 to 101
    assert convergence_rounds(hits)[2] == 101


def test_summary_by_hand() -> None:
    regret = np.array([[10.0, 20.0], [30.0, 40.0]])
    when = np.array([[100, 200], [100, 400]])
    found = BenchmarkResult.of(regret, when)
    assert (found.regret.mean, found.convergence.mean) == (25.0, 200.0)
    assert found.regret_sd == pytest.approx(np.sqrt(200.0))
    assert found.regret.error == pytest.approx(10.0)


def test_published_environments_give_the_published_figures() -> None:
    # Published from one run: Thompson 20.89 / 110, epsilon-greedy 62.93 / 110, UCB1 93.68 / 331. Over
    # many runs the textbook's Thompson is 21.1 and one run of it varies by 1.7; convergence 121 by 10.
    thompson = textbook_benchmark("thompson", seeds=[42], streams=40)
    assert thompson.regret.mean == pytest.approx(21.1, abs=5 * thompson.regret.error)
    assert thompson.convergence.mean == pytest.approx(121, abs=5 * thompson.convergence.error)
    assert 1.0 < thompson.regret_sd < 2.5
    assert 5 < thompson.convergence_sd < 15
    greedy = textbook_benchmark("epsilon_greedy", seeds=[42], streams=20)
    assert abs(greedy.regret.mean - 62.93) < 2 * greedy.regret_sd
    ucb = textbook_benchmark("ucb1", seeds=[42], streams=20)
    assert abs(ucb.regret.mean - 93.68) < 4 * ucb.regret_sd
    assert abs(ucb.convergence.mean - 331) < 2 * ucb.convergence_sd


def test_the_textbook_s_epsilon_explores_all_arms() -> None:
    # Once it has settled, 0.1 * 3/4 of the rounds lose; over the others it would be 0.1.
    all_arms = textbook_benchmark("epsilon_greedy", seeds=range(10)).regret.mean
    others = reward_benchmark(policy_from_definition("epsilon_greedy"), seeds=range(10)).regret.mean
    like_the_textbook = reward_benchmark(
        policy_from_definition("epsilon_greedy", {"explore": "all"}), seeds=range(10)
    ).regret.mean
    assert others > like_the_textbook
    assert all_arms > 0.075 * 0.3 * N_ROUNDS


def test_weights_drawn_from_are_as_good_as_the_textbook_and_the_variance_bound_is_better() -> None:
    tuned = reward_benchmark(policy_from_definition("ucb1_tuned"), seeds=range(10))
    plain = reward_benchmark(policy_from_definition("ucb1"), seeds=range(10))
    textbook = textbook_benchmark("ucb1", seeds=range(10))
    thompson = textbook_benchmark("thompson", seeds=range(10))
    assert plain.regret.mean == pytest.approx(textbook.regret.mean, abs=5 * textbook.regret.error + 2)
    assert tuned.regret.mean < thompson.regret.mean - 3 * thompson.regret.error


def test_a_seed_gives_the_same_figures() -> None:
    assert textbook_benchmark("thompson", seeds=[3]).regret.mean == (
        textbook_benchmark("thompson", seeds=[3]).regret.mean
    )
    with pytest.raises(ValueError, match="policy"):
        textbook_benchmark("softmax", seeds=[1])
    assert len(TEXTBOOK) == 3
