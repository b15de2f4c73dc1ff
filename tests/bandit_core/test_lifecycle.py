"""Lives of experiments and arms: rules by hand, and how often they err without any difference."""

import numpy as np
import pytest

from bandit_core.inference import harmful_arms, rest_increments, trailing_arms
from bandit_core.lifecycle import (
    ArmLife,
    DropRule,
    FloorRule,
    HoldoutRule,
    IncubationRule,
    advance_arms,
    limit_step,
    next_holdout,
)
from bandit_core.policies import policy_from_definition
from bandit_core.scenarios import scenario_from_definition
from bandit_core.shares import ArmStatus
from bandit_core.simulator import simulate

ACTIVE = ArmLife(ArmStatus.ACTIVE)
NO_WAIT = IncubationRule(min_trials=0, max_trials=0)


def advance(lives: list[ArmLife], p: list[float], trials: float = 1e6, **kw: object) -> list[ArmLife]:
    arguments: dict[str, object] = {
        "control": 0,
        "drop": DropRule(),
        "incubation": NO_WAIT,
        "pooled_rate": 0.05,
        **kw,
    }
    return list(
        advance_arms(lives, trials=[trials] * len(lives), probability_best=p, **arguments)  # type: ignore[arg-type]  # table
    )


def test_holdout_starts_at_an_even_share_shrinks_by_a_tenth_and_never_rises() -> None:
    rule = HoldoutRule()
    known = {"control_trials": 100_000.0, "control_successes": 5_000.0}
    assert next_holdout(None, n_arms=3, **known, rule=rule) == 0.25
    assert next_holdout(0.25, n_arms=3, **known, rule=rule) == pytest.approx(0.225)
    # 1.96 sqrt(0.95 / s) <= 10% needs s >= 365 successes at 5%.
    assert next_holdout(0.25, n_arms=3, control_trials=7_280, control_successes=364, rule=rule) == 0.25
    assert next_holdout(0.25, n_arms=3, control_trials=7_320, control_successes=366, rule=rule) < 0.25
    assert next_holdout(0.0501, n_arms=3, **known, rule=rule) == 0.05
    assert next_holdout(0.02, n_arms=3, **known, rule=rule) == 0.02
    assert next_holdout(0.25, n_arms=3, control_trials=0, control_successes=0, rule=rule) == 0.25
    holdout = 0.25
    for _ in range(40):
        holdout = next_holdout(holdout, n_arms=3, **known, rule=rule)
    assert holdout == 0.05


def test_an_arm_is_dropped_after_a_day_below_and_not_before() -> None:
    lives = [ACTIVE] * 4
    for _ in range(23):
        lives = advance(lives, [0.5, 0.4, 0.09, 0.01])
    assert [life.intervals_below for life in lives] == [0, 0, 0, 23]
    interrupted = advance(lives, [0.5, 0.4, 0.05, 0.05])
    assert interrupted[3].intervals_below == 0
    assert advance(lives, [0.5, 0.4, 0.09, 0.01])[3].status is ArmStatus.DROPPED


def test_the_threshold_is_relative_with_many_arms() -> None:
    assert DropRule().threshold(4) == 0.02
    assert DropRule().threshold(20) == pytest.approx(0.01)


def test_control_and_the_last_two_are_never_dropped() -> None:
    almost = ArmLife(ArmStatus.ACTIVE, 0, 23)
    assert advance([almost, ACTIVE, ACTIVE], [0.0, 0.5, 0.5])[0].status is ArmStatus.ACTIVE
    assert [x.status for x in advance([ACTIVE, almost], [1.0, 0.0])] == [ArmStatus.ACTIVE] * 2
    # Three due, but only two may go: the weakest.
    got = advance([ACTIVE, almost, almost, almost], [0.98, 0.003, 0.001, 0.002])
    assert [x.status.value for x in got] == ["active", "active", "dropped", "dropped"]


def test_an_arm_below_its_trials_is_not_judged() -> None:
    assert advance([ACTIVE] * 3, [0.9, 0.1, 0.0], trials=99)[2].intervals_below == 0


def test_incubation_ends_by_trials_or_time() -> None:
    rule = IncubationRule(target_successes=20, min_trials=100, max_trials=10_000, max_intervals=3)
    assert rule.trials(0.05) == 400
    assert rule.trials(0.5) == 100
    assert rule.trials(0.0) == rule.trials(1e-9) == 10_000
    life = ArmLife(ArmStatus.INCUBATING)
    young = advance([ACTIVE, life], [0.5, 0.5], trials=399, incubation=rule)[1]
    assert young == ArmLife(ArmStatus.INCUBATING, 1)
    assert advance([ACTIVE, life], [0.5, 0.5], trials=400, incubation=rule)[1].status is ArmStatus.ACTIVE
    old = ArmLife(ArmStatus.INCUBATING, 2)
    assert advance([ACTIVE, old], [0.5, 0.5], trials=1, incubation=rule)[1].status is ArmStatus.ACTIVE


def test_floors_fall_with_traffic_within_bounds() -> None:
    rule = FloorRule(target_successes=2.0, minimum=0.005, maximum=0.05)
    assert rule.floor(units_per_day=2_000, pooled_rate=0.05, n_arms=3) == pytest.approx(0.02)
    assert rule.floor(units_per_day=100, pooled_rate=0.05, n_arms=3) == 0.05
    assert rule.floor(units_per_day=10**6, pooled_rate=0.05, n_arms=3) == 0.005
    assert rule.floor(units_per_day=0, pooled_rate=0.0, n_arms=3) == 0.05
    assert rule.floor(units_per_day=0, pooled_rate=0.0, n_arms=50) == 0.01
    with pytest.raises(ValueError, match="floor"):
        FloorRule(minimum=0.1, maximum=0.05)


def test_guardrails_stop_arms_but_not_control() -> None:
    got = advance([ACTIVE, ACTIVE, ACTIVE], [0.3, 0.3, 0.4], harmful=[True, True, False])
    assert [x.status.value for x in got] == ["active", "stopped", "active"]


def test_steps_are_limited_without_leaving_the_simplex() -> None:
    got = limit_step([0.5, 0.3, 0.2], [0.1, 0.8, 0.1], 0.1)
    assert got.tolist() == pytest.approx([0.42, 0.4, 0.18])
    assert limit_step([0.5, 0.5], [0.45, 0.55], 0.1).tolist() == [0.45, 0.55]
    stopped = limit_step([0.5, 0.3, 0.2], [0.5, 0.5, 0.0], 0.05, eligible=[True, True, False])
    assert stopped[2] == 0.0
    assert stopped.sum() == pytest.approx(1.0)
    assert limit_step([0.0, 1.0], [1.0, 0.0], 0.1, eligible=[True, False]).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="max_step"):
        limit_step([1.0], [1.0], 0.0)


def test_a_day_of_consecutive_looks_rarely_drops_among_equals_where_one_look_mostly_does() -> None:
    scenario = scenario_from_definition(
        {"name": "aa", "kind": "stationary", "rates": [0.05] * 4, "n_periods": 168}
    )
    got = simulate(scenario, policy_from_definition("uniform"), n_runs=60, rng=np.random.default_rng(0))
    thompson = simulate(scenario, policy_from_definition("thompson"), n_runs=60, rng=np.random.default_rng(0))
    assert thompson.probability_best is not None
    below = thompson.probability_best[24:] < 0.02
    once = below.any(axis=(0, 2)).mean()
    running = np.zeros(below.shape[1:], dtype=int)
    longest = np.zeros_like(running)
    for look in below:
        running = np.where(look, running + 1, 0)
        longest = np.maximum(longest, running)
    dropped = (longest >= 24).any(axis=1).mean()
    assert once > 0.7
    assert dropped < once / 1.5
    assert got.probability_best is None


def test_guardrails_stop_nothing_in_most_runs_without_harm_and_stop_harm() -> None:
    rng = np.random.default_rng(3)
    runs, hours = 400, 336
    trials = rng.multinomial(1000, [0.4, 0.3, 0.3], size=(hours, runs)).astype(float)
    wave = 0.05 * (1 + 0.4 * np.sin(2 * np.pi * np.arange(hours) / 24))[:, None, None]
    equal = rng.binomial(trials.astype(int), wave).astype(float)
    ever = np.zeros(runs, dtype=bool)
    for day in range(24, hours + 1, 24):
        ever |= harmful_arms(trials[:day], equal[:day], control=0).any(axis=-1)
    assert ever.mean() <= 0.05
    worse = rng.binomial(trials.astype(int), wave * np.array([1.0, 1.0, 0.8])).astype(float)
    stopped = harmful_arms(trials, worse, control=0)
    assert stopped[:, 2].mean() > 0.95
    assert not stopped[:, 0].any()
    assert harmful_arms(trials, worse, control=0, margin=0.3)[:, 2].mean() < 0.05
    assert harmful_arms(trials, worse, control=2, higher_is_harm=True)[:, 0].mean() > 0.95
    with pytest.raises(ValueError, match="margin"):
        harmful_arms(trials, worse, control=0, margin=-0.1)


def first_drops(rates: list[float], *, n_runs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hour of each arm's drop by P(best) alone, and with the bound; inf if it stays. (n_runs, n_arms)."""
    scenario = scenario_from_definition({"name": "drops", "kind": "stationary", "rates": rates})
    got = simulate(
        scenario,
        policy_from_definition("thompson"),
        n_runs=n_runs,
        rng=np.random.default_rng(seed),
        floor=0.01,
    )
    assert got.probability_best is not None
    rule = DropRule()
    hopeless, running = (
        np.zeros_like(got.probability_best, dtype=bool),
        np.zeros((n_runs, len(rates)), dtype=int),
    )
    for hour, looked in enumerate(got.probability_best):
        running = np.where(looked < rule.threshold(len(rates)), running + 1, 0)
        hopeless[hour] = running >= rule.intervals
    sums, information = rest_increments(got.trials, got.successes)
    trailing = trailing_arms(np.add.accumulate(sums, axis=0), np.add.accumulate(information, axis=0))
    return tuple(  # type: ignore[return-value]  # two of them
        np.where(due.any(axis=0), due.argmax(axis=0), np.inf) for due in (hopeless, hopeless & trailing)
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("rates", "n_runs"),
    [([0.05] * 4, 400), ([0.05, 0.05, 0.05, 0.03], 100), ([0.05, 0.05, 0.05, 0.04], 100)],
)
def test_drops_of_two_weeks(rates: list[float], n_runs: int) -> None:
    alone, bound = first_drops(rates, n_runs=n_runs, seed=1)
    best = [arm for arm, rate in enumerate(rates) if rate == max(rates)]
    for name, hours in (("P(best) alone", alone), ("with the bound", bound)):
        some = np.isfinite(hours[:, best]).any(axis=1).mean()
        last = f"{np.isfinite(hours[:, -1]).mean():.0%} of the runs after {np.median(hours[:, -1]):.0f} hours"
        print(f"drops, {rates}, {name}: one of the best {some:.1%}; the last arm {last}")
    assert np.isfinite(bound[:, best]).any(axis=1).mean() <= 0.05
    assert (bound >= alone).all()
    if rates[-1] == 0.03:
        assert np.median(bound[:, -1]) < 100
