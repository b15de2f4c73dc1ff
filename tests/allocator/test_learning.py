"""From what a definition says of learning to posteriors and weights; every policy end to end."""

from typing import Any

import numpy as np
import pytest

from bandit_core.policies import POLICIES
from streams.allocations import Allocation, ArmAllocation, encode_allocation
from streams.allocator.compute import Job, Stamp, compute, inputs_in
from streams.allocator.counts_state import ArmCounts, CountsState, Period
from streams.allocator.history import pack_history, read_history
from streams.allocator.inputs import gather_inputs, inputs_of
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.experiments.definition import (
    Arm,
    Counting,
    Delay,
    ExperimentRecord,
    Learning,
    Policy,
    Prior,
    Reward,
)
from streams.join.cells import Cell, CellKey, LagCounts

HOUR_MS = 3_600_000
FIRST = 1000
STAMP = Stamp(claim=3, trigger="interval", computed_at_ms=1_700_000_000_000)


def experiment(
    arms: str = "ab", *, kind: Any = "conversion_after_display", **policy: Any
) -> ExperimentRecord:
    reward = Reward(metric="buy", kind=kind, cap=100.0 if kind == "value" else 1.0)
    return ExperimentRecord(
        experiment_id="e",
        revision=1,
        status="live",
        arms=tuple(Arm(arm_id=arm_id) for arm_id in arms),
        control=arms[0],
        versions=(Counting(version=1, effective_from_ms=0, reward=reward),),
        policy=Policy(**policy),
    )


def absorb(
    state: CountsState, hour: int, arms: dict[str, tuple[int, dict[int, int]]], source: int = 0
) -> None:
    """An hour's cells: per arm trials and successes by lag."""
    key = CountsKey("e", source, hour)
    cells = {
        CellKey("e", 1, "steering", "buy", arm_id, "", "bandit", 0, hour): Cell(
            trials, 0, {lag: LagCounts(n, n * 10**6, n * 10**12) for lag, n in lags.items()}
        )
        for arm_id, (trials, lags) in arms.items()
    }
    state.absorb(encode_key(key), encode_counts(key, CountsRecord(Order(0, 0, 0), cells)))


def at(record: ExperimentRecord, state: CountsState, hour: int) -> Allocation:
    """Compute, and hold that the published inputs give the same bytes again."""
    (result,) = compute([Job(gather_inputs(record, hour * HOUR_MS, state, None), STAMP)])
    assert isinstance(result, Allocation), result
    (again,) = compute([Job(inputs_in(result), STAMP)])
    assert isinstance(again, Allocation)
    assert encode_allocation(again) == encode_allocation(result)
    return result


def totals(record: ExperimentRecord, **arms: tuple[int, int]) -> Allocation:
    counts = {arm: ArmCounts(n, s, s * 10**6, s * 10**12) for arm, (n, s) in arms.items()}
    (result,) = compute([Job(inputs_of(record, FIRST * HOUR_MS, counts, None), STAMP)])
    assert isinstance(result, Allocation), result
    return result


def means(allocation: Allocation) -> list[float]:
    return [arm.mean for arm in allocation.arms]


# --- counts by hour ---


def test_hours_and_lags_come_out_as_they_went_in_and_older_ones_together() -> None:
    state = CountsState()
    for hour in range(FIRST, FIRST + 6):
        absorb(state, hour, {"a": (100, {0: 3, 2: 2}), "b": (50, {1: 1})}, source=hour % 2)
    found = state.periods("e", 1, "buy", FIRST + 6, n_hours=3, older=True)
    assert found[0] == {"a": Period(100, ((0, 3, 3 * 10**6, 3 * 10**12),)), "b": Period(50, ())}
    assert found[2]["a"].lags == ((0, 3, 3 * 10**6, 3 * 10**12), (2, 2, 2 * 10**6, 2 * 10**12))
    # Three older hours: lag 2 of all of them is past; values and squares stand at the first lag.
    assert found[3]["a"] == Period(300, ((0, 9, 15 * 10**6, 15 * 10**12), (2, 6, 0, 0)))
    earlier = state.periods("e", 1, "buy", FIRST + 4, n_hours=3, older=True)
    assert earlier[3]["a"] == Period(100, ((0, 3, 5 * 10**6, 5 * 10**12), (2, 2, 0, 0)))
    assert earlier[1]["a"].lags == ((0, 3, 3 * 10**6, 3 * 10**12),), "lag 2 was still to come"
    assert state.periods("nobody", 1, "buy", 9, n_hours=3, older=True) == {}


def test_packed_hours_read_back_with_late_lags_put_together() -> None:
    text = pack_history(
        {0: {"b": Period(7, ())}, 5: {"a": Period(9, ((0, 1, 2, 3), (5, 2, 10**6, 4)))}}, "ab"
    )
    counts = read_history(text, 2, cap_micros=10**6, values=True, lag_max_hours=4)
    assert counts.trials.tolist() == [[9, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 7]]
    assert counts.successes[0, 0].tolist() == [1, 0, 0, 0, 2]
    assert read_history("", 2, cap_micros=1, values=False, lag_max_hours=4).n_periods == 0


# --- delay ---


def delayed(hours: int) -> CountsState:
    """Two equal arms of 10%; a converts at once, b after about 6 hours; growing traffic."""
    state, rng = CountsState(), np.random.default_rng(1)
    for i in range(hours):
        trials = 400
        late = rng.multinomial(40, np.diff(1 - np.exp(-np.arange(26) / 6.0), append=1.0)[:25])
        absorb(
            state,
            FIRST + i,
            {"a": (trials, {0: 40}), "b": (trials, {lag: int(n) for lag, n in enumerate(late[:24]) if n})},
        )
    return state


@pytest.mark.parametrize(("delay", "low", "high"), [("none", 0.03, 0.07), ("estimate", 0.085, 0.15)])
def test_pending_trials_are_no_failures_of_the_slower_arm(delay: Delay, low: float, high: float) -> None:
    state = delayed(8)
    found = at(experiment(learning=Learning(delay=delay)), state, FIRST + 8)
    assert means(found)[0] == pytest.approx(0.1, abs=0.01)
    assert low < means(found)[1] < high
    if delay == "estimate":
        assert found.arms[1].effective_trials < found.arms[1].trials == 8 * 400
        assert any("delays differ" in warning for warning in found.warnings)


def test_the_gate_uses_no_hour_before_its_window_is_over() -> None:
    record = experiment(learning=Learning(delay="gate"))
    assert [arm.effective_trials for arm in at(record, delayed(24), FIRST + 24).arms] == [0, 0]
    assert [arm.effective_trials for arm in at(record, delayed(30), FIRST + 30).arms] == [6 * 400] * 2


def test_by_default_delays_are_estimated_but_for_clicks() -> None:
    assert inputs_of(experiment(), 0, {}, None).learning.delay == "estimate"
    assert inputs_of(experiment(kind="click"), 0, {}, None).learning.delay == "none"


# --- forgetting and strata ---


def turned() -> CountsState:
    """100 hours in which a is better, then 20 in which b is."""
    state = CountsState()
    for i in range(120):
        a, b = (20, 10) if i < 100 else (10, 20)
        absorb(state, FIRST + i, {"a": (100, {0: a}), "b": (100, {0: b})})
    return state


@pytest.mark.parametrize(
    ("learning", "best"),
    [
        (Learning(delay="none"), "a"),
        (Learning(delay="none", half_life_ms=5 * HOUR_MS), "b"),
        (Learning(delay="none", window_ms=20 * HOUR_MS), "b"),
    ],
)
def test_what_is_old_is_forgotten_by_calendar_time(learning: Learning, best: str) -> None:
    found = at(experiment(learning=learning), turned(), FIRST + 120)
    assert max(found.arms, key=lambda arm: arm.mean).arm_id == best
    later = at(experiment(learning=Learning(delay="none", half_life_ms=HOUR_MS)), turned(), FIRST + 400)
    assert means(later) == pytest.approx([0.5, 0.5], abs=1e-6), "back to the prior, which does not fade"


def test_strata_keep_a_growing_share_in_good_hours_from_passing_for_a_lift() -> None:
    state = CountsState()
    for i in range(200):
        share, rate = (0.5, 0.05) if i < 100 else (0.9, 0.10)
        n = {"a": round(1000 * (1 - share)), "b": round(1000 * share)}
        absorb(state, FIRST + i, {arm: (k, {0: round(k * rate)}) for arm, k in n.items()})
    pooled = means(at(experiment(learning=Learning(delay="none")), state, FIRST + 200))
    assert pooled[1] / pooled[0] > 1.2
    found = at(experiment(learning=Learning(delay="none", stratify=True)), state, FIRST + 200)
    assert means(found)[1] / means(found)[0] == pytest.approx(1, abs=0.01)


def test_counts_that_vary_more_than_chance_are_worth_less() -> None:
    state = CountsState()
    for i in range(60):
        absorb(state, FIRST + i, {"a": (100, {0: 0 if i % 2 else 20}), "b": (100, {0: 20 if i % 2 else 0})})
    plain, wary = (
        at(experiment(learning=Learning(delay="none", overdispersion=flag)), state, FIRST + 60)
        for flag in (False, True)
    )
    assert wary.arms[0].effective_trials < plain.arms[0].effective_trials / 5


# --- values and priors ---


def test_values_are_learned_by_rate_and_amount() -> None:
    record = experiment(kind="value", learning=Learning(delay="none"))
    # Both arms earned 500 of 1,000 trials: 50 x 10, or 10 x 50. The second is known less well.
    counts = {
        "a": ArmCounts(1000, 50, 500 * 10**6, 50 * 10**2 * 10**12),
        "b": ArmCounts(1000, 10, 500 * 10**6, 10 * 50**2 * 10**12),
    }
    (found,) = compute([Job(inputs_of(record, 0, counts, None), STAMP)])
    assert isinstance(found, Allocation)
    widths = [arm.interval[1] - arm.interval[0] for arm in found.arms]
    assert widths[1] > 1.5 * widths[0]
    assert means(found) == pytest.approx([0.5, 0.5], rel=0.25)


def test_values_may_be_learned_by_their_mean_alone() -> None:
    learning = Learning(delay="none", model="gaussian")
    record = experiment(kind="value", learning=learning, prior=Prior(alpha=0.01, beta=0.99))
    # Every trial earned: 1,000 of 30 or 31 on average, with a spread of 10.
    counts = {
        arm: ArmCounts(1000, 1000, mean * 1000 * 10**6, 1000 * (mean**2 + 100) * 10**12)
        for arm, mean in (("a", 30), ("b", 31))
    }
    (found,) = compute([Job(inputs_of(record, 0, counts, None), STAMP)])
    assert isinstance(found, Allocation)
    assert means(found) == pytest.approx([30.0, 31.0], rel=0.01)
    widths = [arm.interval[1] - arm.interval[0] for arm in found.arms]
    assert widths == pytest.approx([2 * 1.96 * 10 / 1000**0.5] * 2, rel=0.1)
    # 1 apart, with a standard error of 10 * sqrt(2 / 1000) = 0.45: P(b is better) = Phi(2.24) = 0.987.
    assert found.arms[1].probability_best == pytest.approx(0.987, abs=0.01)
    (again,) = compute([Job(inputs_in(found), STAMP)])
    assert isinstance(again, Allocation)
    assert encode_allocation(again) == encode_allocation(found)


def test_an_informative_prior_and_one_learned_from_the_arms() -> None:
    counts = {"a": (1000, 50), "b": (1000, 52), "c": (10, 3)}
    plain = totals(experiment("abc", kind="click"), **counts)
    told = totals(experiment("abc", kind="click", prior=Prior(alpha=50, beta=950)), **counts)
    pooled = totals(experiment("abc", kind="click", prior=Prior(pooled=True)), **counts)
    assert means(told)[2] == pytest.approx(53 / 1010)
    assert means(plain)[2] == pytest.approx(4 / 12)
    assert means(pooled)[2] < 0.15 < means(plain)[2]
    assert means(pooled)[0] == pytest.approx(0.05, abs=0.005)


# --- every policy, switched at once ---


def arms_of(algorithm: str, **parameters: Any) -> tuple[ArmAllocation, ...]:
    record = experiment("abc", kind="click", algorithm=algorithm, parameters=parameters, floor=0.0)
    return totals(record, a=(1000, 50), b=(1000, 70), c=(1000, 60)).arms


@pytest.mark.parametrize("algorithm", sorted(set(POLICIES) - {"contextual"}))
def test_every_policy_goes_the_whole_way_and_favours_the_best(algorithm: str) -> None:
    weights = [arm.weight for arm in arms_of(algorithm)]
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    if algorithm == "uniform":
        assert weights == pytest.approx([1 / 3] * 3)
    elif algorithm != "thompson_draw":
        assert weights[1] == max(weights) > 1 / 3


def test_a_draw_carries_what_was_to_be_expected_before_it() -> None:
    drawn, matched = arms_of("thompson_draw"), arms_of("thompson")
    assert sorted(arm.weight for arm in drawn) == [0, 0, 1]
    for one, other in zip(drawn, matched, strict=True):
        assert one.selection_probability == pytest.approx(other.weight, abs=1e-9)
        assert other.selection_probability == other.weight


def test_upper_bounds_count_effective_trials() -> None:
    # Equal rates, but most of b's trials are pending: its bound is wider than trials alone would give.
    state = CountsState()
    for i in range(4):
        absorb(state, FIRST + i, {"a": (100, {0: 10}), "b": (100, {3 - i: 10} if i < 1 else {})})
    record = experiment(algorithm="ucb1", floor=0.0)
    found = at(record, state, FIRST + 4)
    assert found.arms[1].effective_trials < found.arms[1].trials
    n = np.array([arm.effective_trials for arm in found.arms])
    assert n[1] < n[0]
    assert [arm.weight for arm in found.arms] == [0.0, 1.0]


def test_untried_arms_come_first_for_upper_bounds() -> None:
    for algorithm in ("ucb1", "ucb1_tuned"):
        record = experiment("abc", kind="click", algorithm=algorithm, floor=0.0)
        assert [arm.weight for arm in totals(record, a=(100, 90)).arms] == pytest.approx([0, 0.5, 0.5])
