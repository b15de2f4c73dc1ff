"""Scenarios, league and benchmark."""

import numpy as np
import pytest

from bandit_core.league import benchmark_environments, claims, days_to_detect, league, reward_benchmark
from bandit_core.policies import DefinitionError, policy_from_definition
from bandit_core.scenarios import STANDARD, scenario_from_definition
from bandit_core.simulator import Scenario, simulate

SHORT = {
    "name": "short",
    "kind": "stationary",
    "rates": [0.05, 0.10],
    "n_periods": 48,
    "units_per_period": 500,
}


def test_scenario_shapes_by_hand() -> None:
    drift = scenario_from_definition(
        {"name": "d", "kind": "drift", "rates": [0.05], "to": 2.0, "n_periods": 11}
    )
    assert drift.rates[[0, 5, 10], 0] == pytest.approx([0.05, 0.075, 0.10])
    night = scenario_from_definition({"name": "n", "kind": "day_night", "rates": [0.1], "amplitude": 0.5})
    assert night.rates[[0, 6, 18], 0] == pytest.approx([0.1, 0.15, 0.05])
    flip = scenario_from_definition({"name": "f", "kind": "sign_flip", "rates": [0.1, 0.2], "at_period": 3})
    assert flip.rates[2:4].tolist() == [[0.1, 0.2], [0.2, 0.1]]
    assert [scenario_from_definition(one).n_periods for one in STANDARD] == [336] * len(STANDARD)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"kind": "chaos"}, "scenario.kind"),
        ({"rates": [2.0]}, "scenario.rates"),
        ({"rates": None}, "scenario.rates"),
        ({"name": ""}, "scenario.name"),
        ({"n_periods": "x"}, "scenario.n_periods"),
        ({"starts": [0]}, "scenario.starts"),
        ({"colour": 1}, "scenario.colour"),
        ({"kind": "drift", "to": 50.0}, "scenario.rates"),
    ],
)
def test_wrong_scenarios_name_their_path(change: dict[str, object], path: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        scenario_from_definition({**SHORT, **change})
    assert caught.value.path == path


def test_a_seed_gives_the_same_run_and_another_a_different_one() -> None:
    scenario = scenario_from_definition(SHORT)
    policy = policy_from_definition("thompson")
    one, two, other = (simulate(scenario, policy, n_runs=3, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert one.trials.tobytes() == two.trials.tobytes()
    assert one.successes.tobytes() == two.successes.tobytes()
    assert one.trials.tobytes() != other.trials.tobytes()


def test_bookkeeping_adds_up() -> None:
    scenario = scenario_from_definition(SHORT)
    got = simulate(scenario, policy_from_definition("uniform"), n_runs=5, rng=np.random.default_rng(0))
    assert (got.trials.sum(axis=2) == 500).all()
    assert (got.successes <= got.trials).all()
    assert got.regret() == pytest.approx(0.05 * got.trials[:, :, 0].sum(axis=0))
    assert got.best_arm_share() == pytest.approx([0.5] * 5, abs=0.02)


def test_learning_beats_an_equal_split_and_the_sign_flip_is_survived() -> None:
    scenario = scenario_from_definition(SHORT)
    learned = simulate(scenario, policy_from_definition("thompson"), n_runs=20, rng=np.random.default_rng(0))
    equal = simulate(scenario, policy_from_definition("uniform"), n_runs=20, rng=np.random.default_rng(0))
    assert learned.regret().mean() < 0.2 * equal.regret().mean()
    flip = scenario_from_definition(
        {"name": "f", "kind": "sign_flip", "rates": [0.05, 0.1], "at_period": 100, "n_periods": 200}
    )
    policy = policy_from_definition("thompson")
    stuck = simulate(flip, policy, n_runs=10, rng=np.random.default_rng(0), floor=0.01)
    turned = simulate(flip, policy, n_runs=10, rng=np.random.default_rng(0), floor=0.01, half_life_periods=24)
    assert turned.regret().mean() < 0.5 * stuck.regret().mean()


def test_a_new_arm_incubates_at_its_nth() -> None:
    scenario = Scenario("new", np.full((40, 3), 0.05), 1000, starts=(0, 0, 20), incubation_periods=10)
    got = simulate(scenario, policy_from_definition("thompson"), n_runs=4, rng=np.random.default_rng(0))
    assert (got.weights[:20, :, 2] == 0).all()
    assert got.weights[20:30, :, 2] == pytest.approx(np.full((10, 4), 1 / 3))
    assert (got.weights[30:, :, 2] != 1 / 3).any()
    assert got.regret() == pytest.approx([0.0] * 4)
    better = Scenario("better", np.tile([0.05, 0.06], (4, 1)), 100, starts=(0, 3))
    late = simulate(better, policy_from_definition("uniform"), n_runs=1, rng=np.random.default_rng(0))
    assert late.regret()[0] == pytest.approx(0.01 * late.trials[3, 0, 0])
    assert got.weights.sum(axis=2) == pytest.approx(np.ones((40, 4)))


@pytest.mark.parametrize("name", ["ucb1", "epsilon_greedy", "thompson_draw"])
def test_policies_that_favour_one_arm_leave_incubation_alone(name: str) -> None:
    scenario = Scenario("new", np.full((12, 3), 0.05), 1000, starts=(0, 0, 4), incubation_periods=4)
    got = simulate(scenario, policy_from_definition(name), n_runs=4, rng=np.random.default_rng(0))
    assert got.weights[4:8, :, 2] == pytest.approx(np.full((4, 4), 1 / 3))
    assert got.weights.sum(axis=2) == pytest.approx(np.ones((12, 4)))


def test_claims_find_a_large_difference_and_when() -> None:
    scenario = scenario_from_definition({**SHORT, "n_periods": 96})
    got = simulate(scenario, policy_from_definition("uniform"), n_runs=10, rng=np.random.default_rng(1))
    said = claims(got)
    assert not said.false_winner.any()
    assert said.covered.all()
    assert (said.winner_period <= 96).all()


def test_planning_by_simulation() -> None:
    policy = policy_from_definition("uniform")
    scenario = scenario_from_definition({**SHORT, "n_periods": 96})
    large = days_to_detect(scenario, policy, n_runs=20, rng=np.random.default_rng(0))
    assert large.detected == 1.0
    assert large.median_days <= large.high_days <= 2.0
    tiny = scenario_from_definition({**SHORT, "rates": [0.05, 0.0501]})
    never = days_to_detect(tiny, policy, n_runs=20, rng=np.random.default_rng(0))
    assert never.median_days == np.inf
    assert never.detected < 0.1


def test_adding_a_policy_changes_no_other_row() -> None:
    scenario = scenario_from_definition(SHORT)
    uniform, thompson = policy_from_definition("uniform"), policy_from_definition("thompson")
    (alone,) = league([scenario], [uniform], n_runs=4, seed=7)
    both = league([scenario], [thompson, uniform], n_runs=4, seed=7)
    assert both[1] == alone
    assert both[0].regret < alone.regret


def test_the_benchmark_s_environments_follow_the_recipe() -> None:
    environments = benchmark_environments(42)
    assert environments.shape == (20, 4)
    ordered = np.sort(environments, axis=1)
    gap = ordered[:, 3] - ordered[:, 2]
    assert gap.min() >= 0.149
    assert (environments == environments.round(3)).all()


def test_the_benchmark_is_near_its_published_figures() -> None:
    # Published from one seed: Thompson 110 / 20.89, epsilon-greedy 110 / 62.93, UCB1 331 / 93.68.
    thompson = reward_benchmark("thompson", seeds=range(10))
    assert thompson.regret == pytest.approx(21.0, abs=5 * thompson.regret_error + 1)
    assert thompson.convergence == pytest.approx(120, abs=12)
    greedy = reward_benchmark("epsilon_greedy", seeds=range(10))
    assert 55 < greedy.regret < 75
    ucb = reward_benchmark("ucb1", seeds=range(10))
    assert 75 < ucb.regret < 100
    with pytest.raises(ValueError, match="policy"):
        reward_benchmark("softmax", seeds=[1])


@pytest.mark.parametrize("pending_as", ["known", "failure", "gate", "estimated"])
def test_every_way_to_count_pending_trials_runs(pending_as: str) -> None:
    rates = np.tile([0.05, 0.20], (30, 1))
    scenario = Scenario("pending", rates, 300, mean_delay_periods=(2.0, 2.0), window_periods=10)
    got = simulate(
        scenario,
        policy_from_definition("thompson"),
        n_runs=3,
        rng=np.random.default_rng(0),
        pending_as=pending_as,
    )
    # The gate sees nothing before the window is over; all see the large difference by the end.
    if pending_as == "gate":
        assert got.weights[:11] == pytest.approx(np.full((11, 3, 2), 0.5))
    assert got.weights[-1, :, 1].min() > 0.9
    assert got.starved().tolist() == [0.0] * 3


def test_contradictory_simulations_are_refused() -> None:
    scenario = scenario_from_definition(SHORT)
    policy, rng = policy_from_definition("uniform"), np.random.default_rng(0)
    with pytest.raises(ValueError, match="pending_as"):
        simulate(scenario, policy, n_runs=1, rng=rng, pending_as="ignored")
    delayed = Scenario("d", np.full((2, 1), 0.1), 5, mean_delay_periods=(1.0,))
    with pytest.raises(ValueError, match="half_life_periods"):
        simulate(delayed, policy, n_runs=1, rng=rng, half_life_periods=3)
    with pytest.raises(ValueError, match="units_per_period"):
        Scenario("d", np.full((2, 1), 0.1), 0)
    with pytest.raises(ValueError, match="rates"):
        Scenario("d", np.full((2, 1), 1.1), 5)
    with pytest.raises(ValueError, match="starts"):
        Scenario("d", np.full((2, 1), 0.1), 5, starts=(0, 1))
