"""Claims of the reporting view: what may be said, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest

from streams.allocations import Allocation, ArmAllocation
from streams.allocator.inference import Asked, infer, wording
from streams.allocator.logged import Logged, decode_logged, propensities
from streams.allocator.observed import Observation, next_hour, observe, window_hours
from streams.allocator.reporting import present_statuses
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.join.cells import HOUR_MS, Cell, CellKey, Group, LagCounts
from streams.results import Inference

FIRST = 480_000
COUNTING = Counting(
    version=1, effective_from_ms=0, reward=Reward(metric="buy"), conversion_window_ms=2 * 3_600_000
)


def counted(
    rates: dict[str, float],
    *,
    hours: int = 400,
    units: int = 500,
    kept: dict[str, float] | None = None,
    comparison: float | None = None,
    allocation_version: int = 7,
    crossovers: int = 0,
    counting: Counting = COUNTING,
    seed: int = 1,
) -> Observation:
    """Hours of equal shares; of an arm's units only ``kept`` are recorded."""
    rng = np.random.default_rng(seed)
    observation = Observation()
    for hour in range(FIRST, FIRST + hours):
        cells = {}
        groups: list[tuple[str, Group, float]] = [(arm, "bandit", rate) for arm, rate in rates.items()]
        if comparison is not None:
            groups.append(("", "comparison", comparison))
        for arm, group, rate in groups:
            n = int(rng.binomial(units, (kept or {}).get(arm, 1.0))) if kept else units
            successes = int(rng.binomial(n, rate))
            key = CellKey("e", 1, "reporting", "buy", arm, "", group, allocation_version, hour)
            lags = {1: LagCounts(successes, successes * 10**6, successes * 10**12)} if successes else {}
            cells[key] = Cell(n, crossovers, lags)
        place = CountsKey("e", 0, hour)
        observation.absorb(encode_key(place), encode_counts(place, CountsRecord(Order(0, 0, hour), cells)))
    return observation


def logged(weights: dict[str, float], **fields: Any) -> Logged:
    arms = [
        {"arm_id": arm, "weight": w, "assignment_weight": w, "selection_probability": w}
        for arm, w in weights.items()
    ]
    table = {"boundary_ms": 0, "control": "a", "comparison": 0.0, "holdout": 0.0, "arms": arms}
    return decode_logged(json.dumps(table | fields).encode())


def inferred(observation: Observation, arms: str = "ab", **fields: Any) -> Inference:
    records = observation.records()
    observed = observe(records, COUNTING, list(arms), next_hour(records))
    assert observed is not None
    values: dict[str, Any] = {
        "arm_ids": list(arms),
        "eligible": [True] * len(arms),
        "control": "a",
        "cap": 1.0,
        "window_hours": window_hours(COUNTING),
        "interval_ms": HOUR_MS,
        "lower_is_better": False,
        "values": False,
        "log": {7: logged({arm: 1 / len(arms) for arm in arms})},
    }
    return infer(observed, Asked(**(values | fields)))


def said(found: Inference) -> str:
    return " ".join(wording(found, lower_is_better=False))


def test_a_better_arm_is_called_that_and_its_lift_against_control_holds_the_truth() -> None:
    found = inferred(counted({"a": 0.05, "b": 0.08}))
    assert found.winner == "b"
    assert "b is better than every other arm" in said(found)
    lift = found.arms["b"].lift_control
    assert lift is not None
    assert lift.low < 0.6 < lift.high
    assert found.arms["a"].lift_control is None
    (contrast,) = found.contrasts
    assert (contrast.arm, contrast.other, contrast.effect.claim) == ("a", "b", -1)
    assert contrast.effect.low < -0.03 < contrast.effect.high


def test_equal_arms_are_not_told_apart_and_less_may_be_better() -> None:
    found = inferred(counted({"a": 0.05, "b": 0.05}))
    assert found.winner is None
    assert "No arm can be said to be better than another." in said(found)
    better = inferred(counted({"a": 0.05, "b": 0.08}), lower_is_better=True)
    assert better.winner == "a"


def test_a_lost_share_of_one_arms_units_raises_the_alarm_and_takes_the_claims_back() -> None:
    found = inferred(counted({"a": 0.05, "b": 0.08}, units=2000, kept={"a": 1.0, "b": 0.9}))
    assert found.sample_ratio_alarm
    assert found.winner is None
    assert not found.safe_to_stop
    assert "No comparison of arms can be trusted" in said(found)
    assert any("sample ratio: arm" in warning and "arm 0" not in warning for warning in found.warnings)
    intact = inferred(counted({"a": 0.05, "b": 0.08}, units=2000))
    assert not intact.sample_ratio_alarm
    assert "Sample ratio: as logged" in said(intact)


def test_units_without_an_allocation_cannot_raise_the_alarm_and_are_told_of() -> None:
    lost = counted({"a": 0.05, "b": 0.05}, units=2000, kept={"a": 1.0, "b": 0.9}, allocation_version=-1)
    found = inferred(lost)
    assert not found.sample_ratio_alarm
    assert found.sample_ratio_p is None
    assert any("100.0% of the units name no allocation" in warning for warning in found.warnings)


def test_bandit_group_against_comparison_group_is_the_headline() -> None:
    found = inferred(counted({"a": 0.05, "b": 0.08}, comparison=0.04))
    assert found.bandit_effect is not None
    assert found.bandit_effect.low < 0.025 < found.bandit_effect.high
    assert found.bandit_effect.claim == 1
    assert wording(found, lower_is_better=False)[0].startswith("Bandit group less comparison group: +0.02")
    assert inferred(counted({"a": 0.05, "b": 0.08}, hours=9)).bandit_effect is None


def test_stopping_needs_two_whole_weeks_and_is_no_claim() -> None:
    young = inferred(counted({"a": 0.05, "b": 0.08}, hours=200, units=2000))
    assert not young.safe_to_stop
    assert "It is not yet safe to stop: 1 whole weeks of at least 2" in said(young)
    old = inferred(counted({"a": 0.05, "b": 0.08}, hours=340, units=2000))
    assert old.safe_to_stop
    assert "no claim that the leader is better" in old.stop_reason


def test_nothing_is_compared_before_a_window_is_over() -> None:
    found = inferred(counted({"a": 0.05, "b": 0.08}, hours=1))
    assert found.contrasts == ()
    assert "Arms cannot be compared yet" in said(found)
    assert observe((), COUNTING, ["a"], FIRST + 1) is None


def test_crossovers_are_warned_of_and_values_are_in_the_metrics_unit() -> None:
    found = inferred(counted({"a": 0.05, "b": 0.08}, crossovers=20))
    assert any(warning.startswith("crossovers: 4.0% of units") for warning in found.warnings)
    scaled = inferred(counted({"a": 0.05, "b": 0.08}), cap=50.0)
    assert scaled.arms["b"].rate == pytest.approx(50 * 0.08, rel=0.1)


def test_the_allocators_own_steps_are_an_arms_present_status() -> None:
    arms = (Arm(arm_id="a"), Arm(arm_id="b"), Arm(arm_id="c", status="incubating"))
    record = ExperimentRecord(
        experiment_id="e", revision=4, status="live", arms=arms, control="a", versions=(COUNTING,)
    )
    assert present_statuses(record, None) == ["active", "active", "incubating"]

    def allocation(revision: int) -> Allocation:
        statuses = {"a": "active", "b": "dropped", "c": "active"}
        return Allocation(
            experiment_id="e",
            version=1,
            claim=0,
            trigger="interval",
            interval_id=0,
            boundary_ms=0,
            computed_at_ms=0,
            algorithm="thompson",
            seed=0,
            definition_version=1,
            definition_revision=revision,
            status="live",
            sticky="unit",
            control="a",
            default_arm="a",
            comparison=0.0,
            holdout=0.0,
            arms=tuple(
                ArmAllocation(
                    arm_id=arm_id,
                    status=status,
                    weight=0.0,
                    assignment_weight=0.0,
                    selection_probability=0.0,
                    probability_best=0.0,
                    mean=0.0,
                    interval=(0.0, 1.0),
                    trials=0,
                    successes=0,
                )
                for arm_id, status in statuses.items()
            ),
        )

    assert present_statuses(record, allocation(4)) == ["active", "dropped", "active"]
    assert present_statuses(record, allocation(3)) == ["active", "dropped", "incubating"]


def test_weights_by_segment_leave_the_comparison_group_alone_to_speak() -> None:
    found = inferred(counted({"a": 0.05, "b": 0.08}, comparison=0.04), by_segment=True)
    assert (found.contrasts, found.winner, found.arms["b"].lift_control) == ((), None, None)
    assert found.bandit_effect is not None
    assert any("weights differ by segment" in warning for warning in found.warnings)


def test_the_log_is_found_by_segment_and_by_what_was_before_the_draw() -> None:
    drawn = decode_logged(
        b'{"boundary_ms":0,"control":"a","comparison":0.2,"holdout":0.1,"arms":['
        b'{"arm_id":"a","weight":0.08,"assignment_weight":0.0,"selection_probability":0.32},'
        b'{"arm_id":"b","weight":0.72,"assignment_weight":1.0,"selection_probability":0.48}],'
        b'"segments":{"de":[0.5,0.5]},"inputs":{"much":"more"}}'
    )
    found = propensities(np.array([7, 7, 8]), ["", "de", ""], {7: drawn}, ["b", "a", "new"])
    assert found.realised[found.row[0]] == pytest.approx([0.9, 0.1, 0.0])
    assert found.before_draw[found.row[0]] == pytest.approx([0.6, 0.4, 0.0])
    assert found.realised[found.row[1]] == pytest.approx([0.45, 0.55, 0.0])
    assert np.isnan(found.realised[found.row[2]]).all()


def drawn_by_hour(rates: dict[str, float], *, hours: int = 200, units: int = 400) -> Inference:
    """One arm takes an hour whole, drawn with chances that swing; the log has both."""
    rng = np.random.default_rng(6)
    observation, log = Observation(), {}
    for hour in range(FIRST, FIRST + hours):
        chance = 0.5 + 0.3 * np.sin(hour)
        arm = "a" if rng.random() < chance else "b"
        taken = {each: {"weight": float(each == arm)} for each in "ab"}
        before = {"a": chance, "b": 1 - chance}
        arms = [
            {"arm_id": each, **taken[each], "assignment_weight": 0.5, "selection_probability": before[each]}
            for each in "ab"
        ]
        table = {"boundary_ms": 0, "control": "a", "comparison": 0.0, "holdout": 0.0, "arms": arms}
        log[hour] = decode_logged(json.dumps(table).encode())
        bought = int(rng.binomial(units, rates[arm]))
        cell = Cell(units, 0, {0: LagCounts(bought, bought * 10**6, bought * 10**12)})
        key = CellKey("e", 1, "reporting", "buy", arm, "", "bandit", hour, hour)
        place = CountsKey("e", 0, hour)
        observation.absorb(
            encode_key(place), encode_counts(place, CountsRecord(Order(0, 0, hour), {key: cell}))
        )
    return inferred(observation, log=log, present=[0.25, 0.75])


def test_off_policy_estimates_take_the_chance_before_the_draw_and_the_sample_ratio_the_weight() -> None:
    found = drawn_by_hour({"a": 0.05, "b": 0.08})
    assert not found.sample_ratio_alarm, "by the chances before the draw every hour would be a mismatch"
    assert found.off_policy is not None
    values = {each.arm or each.policy: each for each in found.off_policy.values}
    for name, truth in {"a": 0.05, "b": 0.08, "uniform": 0.065, "present": 0.0725}.items():
        value = values[name]
        for estimate in (value.snips, value.doubly_robust):
            assert estimate is not None
            width = estimate.high - estimate.low
            assert abs(estimate.estimate - truth) < 0.75 * width  # three standard errors
            assert width < 0.02
        assert value.left_out_share == 0.0
        assert value.units == 198 * 400
    (contrast,) = found.off_policy.contrasts
    assert (contrast.arm, contrast.other) == ("b", "a")
    assert contrast.difference is not None
    assert 0.0 < contrast.difference.low < 0.03 < contrast.difference.high


def test_what_an_arm_without_a_chance_would_have_earned_is_refused() -> None:
    refused = inferred(counted({"a": 0.05}), log={7: logged({"a": 1.0, "b": 0.0})})
    assert refused.off_policy is not None
    by_name = {each.arm or each.policy: each for each in refused.off_policy.values}
    assert by_name["a"].refused is None
    assert by_name["uniform"].refused is not None
    assert by_name["uniform"].snips is None
    assert by_name["uniform"].left_out_share == 1.0
    assert refused.off_policy.contrasts == ()
