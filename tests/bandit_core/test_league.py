"""Scenarios, league and benchmark."""

from collections.abc import Sequence

import numpy as np
import pytest

from bandit_core.counts import PeriodCounts
from bandit_core.inference import report
from bandit_core.league import (
    chunk_key,
    claims,
    detection,
    figures_of,
    fixed_end,
    joined,
    mean_of,
    summary,
)
from bandit_core.policies import DefinitionError, policy_from_definition
from bandit_core.scenarios import scenario_from_definition
from bandit_core.simulator import Scenario, Simulation, simulate, units_of_best, units_of_loss

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


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"kind": "chaos"}, "scenario.kind"),
        ({"rates": [0.1, 2.0]}, "scenario.rates[1]"),
        ({"rates": 0.1}, "scenario.rates"),
        ({"rates": None}, "scenario.rates"),
        ({"name": ""}, "scenario.name"),
        ({"n_periods": "x"}, "scenario.n_periods"),
        ({"n_periods": 1.5}, "scenario.n_periods"),
        ({"starts": [0]}, "scenario.starts"),
        ({"starts": [1, 1]}, "scenario.starts"),
        ({"colour": 1}, "scenario.colour"),
        ({"kind": "drift", "to": 50.0}, "scenario.rates"),
    ],
)
def test_wrong_scenarios_name_their_path(change: dict[str, object], path: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        scenario_from_definition({**SHORT, **change})
    assert caught.value.path == path


CONTEXTUAL = {
    "name": "c",
    "kind": "contextual",
    "features": {"device": ["phone", "desktop"]},
    "segment_shares": [0.75, 0.25],
    "rates": [[0.1, 0.2], [0.2, 0.1]],
    "n_periods": 6,
    "units_per_period": 400,
}


def test_a_contextual_scenario_by_hand() -> None:
    scenario = scenario_from_definition(CONTEXTUAL)
    assert scenario.rates[0] == pytest.approx([0.75 * 0.1 + 0.25 * 0.2, 0.75 * 0.2 + 0.25 * 0.1])
    assert scenario.segments is not None
    assert scenario.segments.design().segments() == [("phone",), ("desktop",)]
    factors = CONTEXTUAL | {"factors": {"button": ["blue", "red"]}}
    found = scenario_from_definition(factors).segments
    assert found is not None
    assert found.design().arms() == [("blue",), ("red",)]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"features": {}}, "scenario.features"),
        ({"features": {"device": "phone"}}, "scenario.features.device"),
        ({"features": {"device": ["phone", "phone"]}}, "scenario.features.device"),
        ({"rates": [[0.1, 0.2]]}, "scenario.rates"),
        ({"rates": [[0.1, 0.2], [0.1]]}, "scenario.rates[1]"),
        ({"rates": [[0.1, 0.2], [0.1, 7]]}, "scenario.rates[1][1]"),
        ({"segment_shares": [0.5, 0.4]}, "scenario.segment_shares"),
        ({"factors": {"button": ["a", "b", "c"]}}, "scenario.factors"),
        ({"starts": [0, 3]}, "scenario.starts"),
    ],
)
def test_wrong_contextual_scenarios_name_their_path(change: dict[str, object], path: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        scenario_from_definition(CONTEXTUAL | change)
    assert caught.value.path == path


def test_a_misspelt_field_is_told_its_likely_name() -> None:
    with pytest.raises(DefinitionError, match=r"unit_per_period: unknown; did you mean units_per_period\?"):
        scenario_from_definition(SHORT | {"unit_per_period": 5})


def test_segments_are_weighed_each_by_itself_only_by_a_contextual_policy() -> None:
    scenario = scenario_from_definition(CONTEXTUAL)
    rng = np.random.default_rng(0)
    contextual = simulate(scenario, policy_from_definition("contextual"), n_runs=3, rng=rng)
    thompson = simulate(scenario, policy_from_definition("thompson"), n_runs=3, rng=rng)
    for got in (contextual, thompson):
        assert (got.trials.sum(axis=2) == 400).all()
        # Every unit either got its segment's best arm or lost a tenth.
        assert got.lost == pytest.approx(0.1 * (400 - got.best_units))
    # All together say the second arm; a quarter of the units are better off with the first.
    assert contextual.best_units[-1].min() > 0.9 * 400
    assert thompson.best_units[-1].max() < 0.85 * 400
    assert contextual.by_segment
    assert np.isnan(figures_of(contextual).covered).all()
    assert not np.isnan(figures_of(thompson).covered).any()


def test_what_is_lost_by_hand() -> None:
    rates, trials = np.array([0.1, 0.3, 0.2]), np.array([10.0, 5.0, 1.0])
    assert units_of_loss(rates, trials) == pytest.approx(10 * 0.2 + 1 * 0.1)
    assert units_of_loss(rates, trials, lower_is_better=True) == pytest.approx(5 * 0.2 + 1 * 0.1)
    started = np.array([True, False, True])
    assert units_of_loss(rates, np.array([10.0, 0.0, 1.0]), started=started) == pytest.approx(10 * 0.1)
    scenario = Scenario("s", np.tile(rates, (2, 1)), 16)
    assert units_of_best(scenario, trials) == 5.0
    assert units_of_best(scenario, trials, lower_is_better=True) == 10.0


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


def _simulated(successes: Sequence[Sequence[float]], n: float = 5000.0, **fields: object) -> Simulation:
    """Make one run of two arms at 10% and 20%, with the same counts in each of 24 hours of a day."""
    counts = np.repeat(np.array(successes), 24, axis=0)[:, None]
    trials = np.full(counts.shape, n)
    scenario = Scenario("by hand", np.tile([0.1, 0.2], (len(counts), 1)), int(2 * n))
    zero = np.zeros(counts.shape[:2])
    return Simulation(scenario, trials / (2 * n), trials, counts, None, zero, trials[:, :, 1], **fields)  # type: ignore[arg-type]  # fields of any kind


def test_claims_by_hand() -> None:
    right = claims(_simulated([[500, 1000], [500, 1000]]))
    assert (right.false_winner[0], right.covered[0], right.winner_period[0]) == (False, True, 24)
    wrong = claims(_simulated([[1000, 500], [1000, 500]]))
    assert (wrong.false_winner[0], wrong.covered[0], wrong.winner_period[0]) == (True, False, np.inf)
    # The wait of a conversion window is added to the day of the claim.
    assert claims(_simulated([[500, 1000], [500, 1000]], wait_periods=24)).winner_period[0] == 48


def test_claims_where_lower_is_better_name_the_lower_arm() -> None:
    lower = claims(_simulated([[500, 1000]], lower_is_better=True))
    assert (lower.false_winner[0], lower.covered[0], lower.winner_period[0]) == (False, True, 24)
    assert claims(_simulated([[1000, 500]], lower_is_better=True)).false_winner[0]


@pytest.mark.parametrize("policy", ["uniform", "thompson"])
def test_claims_are_those_of_the_report(policy: str) -> None:
    """What planning and league count as a claim is what a report of the same counts says, look by look."""
    scenario = scenario_from_definition(SHORT | {"rates": [0.08, 0.10, 0.13], "n_periods": 120})
    got = simulate(scenario, policy_from_definition(policy), n_runs=4, rng=np.random.default_rng(2))
    said = claims(got)
    for run in range(4):
        named = np.inf
        for end in range(24, 121, 24):
            counts = PeriodCounts.of(got.trials[:end, run], got.successes[:end, run])
            found = report(counts, propensities=got.weights[:end, run], control=0, window_periods=0)
            if found.winner == 2 and named == np.inf:
                named = end
        assert said.winner_period[run] == named
    if policy == "uniform":
        assert np.isfinite(said.winner_period).any(), "or nothing was compared"


def test_an_arm_that_is_gone_need_not_be_beaten_and_cannot_win() -> None:
    same = [[750, 750]]
    assert claims(_simulated(same)).winner_period[0] == np.inf
    live = np.ones((24, 1, 2), dtype=bool)
    live[20:, :, 0] = False
    assert claims(_simulated(same, live=live)).winner_period[0] == 24
    live = np.ones((24, 1, 2), dtype=bool)
    live[20:, :, 1] = False
    assert claims(_simulated([[500, 1000]], live=live)).winner_period[0] == np.inf


def test_a_fixed_end_names_the_better_arm_by_hand() -> None:
    # 24 * 10 trials an arm and day at 10% and 20%: z = 0.1 / sqrt(0.15 * 0.85 * 2 / 240) = 3.1 after a day.
    clear = _simulated([[1, 2], [1, 2]], n=10)
    assert fixed_end(clear)[:, 0].tolist() == [True, True]
    # 24 * 2 trials: z = 1.4 after one day, 2.0 after two.
    some = _simulated([[0.2, 0.4]] * 3, n=2)
    assert fixed_end(some)[:, 0].tolist() == [False, False, True]
    assert not fixed_end(_simulated([[2, 1]], n=10)).any()
    assert fixed_end(_simulated([[1, 2], [1, 2]], n=10, wait_periods=24))[:, 0].tolist() == [False, True]


def test_days_are_order_statistics() -> None:
    days = np.array([1.0, 2.0, 3.0, 4.0, np.inf])
    found = detection(days, 0.8)
    assert (found.days, found.median, found.detected) == (4.0, 3.0, 0.8)
    assert found.low <= found.days <= found.high == np.inf
    assert detection(days, 0.9).days == np.inf


def test_planning_by_simulation() -> None:
    policy = policy_from_definition("uniform")
    scenario = scenario_from_definition({**SHORT, "n_periods": 96})
    large = simulate(scenario, policy, n_runs=20, rng=np.random.default_rng(0))
    assert detection(claims(large).winner_period / 24, 0.8).days <= 2.0
    assert fixed_end(large)[1].mean() >= 0.8
    tiny = scenario_from_definition({**SHORT, "rates": [0.05, 0.0501]})
    never = simulate(tiny, policy, n_runs=20, rng=np.random.default_rng(0))
    assert detection(claims(never).winner_period / 24, 0.8).days == np.inf
    assert fixed_end(never).mean() < 0.2


def test_means_and_their_errors_by_hand() -> None:
    found = mean_of(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found.mean == 3.0
    assert found.error == pytest.approx(np.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert np.isnan(mean_of(np.array([1.0])).error)


def test_chunks_join_to_the_figures_of_all_runs() -> None:
    scenario, policy = scenario_from_definition(SHORT), policy_from_definition("thompson")
    parts = [
        figures_of(simulate(scenario, policy, n_runs=2, rng=np.random.default_rng(chunk_key(7, "a", "b", c))))
        for c in (0, 1)
    ]
    both = joined(parts)
    assert both.regret.tolist() == [*parts[0].regret, *parts[1].regret]
    assert both.best_by_period.shape == (48, 4)
    assert both.lost_by_period.sum(axis=0) == pytest.approx(both.regret)
    row = summary(both, scenario="a", policy="b")
    assert row.runs == 4
    assert row.regret.mean == pytest.approx(both.regret.mean())
    assert len({tuple(chunk_key(7, *names, 0)) for names in (("a", "bc"), ("ab", "c"), ("a", "b"))}) == 3


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
