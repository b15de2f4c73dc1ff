"""Claims of the reporting view: what may be said, and what is refused."""

from typing import Any

import numpy as np
import pytest

from streams.allocations import Allocation, ArmAllocation
from streams.allocator.inference import Inference, infer, wording
from streams.allocator.observed import Observation
from streams.allocator.reporting import present_statuses
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.join.cells import Cell, CellKey, Group, LagCounts

FIRST = 480_000
COUNTING = Counting(
    version=1, effective_from_ms=0, reward=Reward(metric="buy"), conversion_window_ms=2 * 3_600_000
)


def observe(
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
    observation = Observation("e", counting)
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


def inferred(observation: Observation, arms: str = "ab", **fields: Any) -> Inference:
    observed = observation.by_hour(list(arms))
    assert observed is not None
    values: dict[str, Any] = {
        "eligible": [True] * len(arms),
        "control": "a",
        "cap": 1.0,
        "window_hours": observation.window_hours,
        "lower_is_better": False,
        "propensities": {7: [1 / len(arms)] * len(arms)},
    }
    return infer(observed, list(arms), **(values | fields))


def said(found: Inference) -> str:
    return " ".join(wording(found, lower_is_better=False))


def test_a_better_arm_is_called_that_and_its_lift_against_control_holds_the_truth() -> None:
    found = inferred(observe({"a": 0.05, "b": 0.08}))
    assert found.winner == "b"
    assert "b is better than every other arm" in said(found)
    lift = found.lift_control["b"]
    assert lift is not None
    assert lift.low < 0.6 < lift.high
    assert found.lift_control["a"] is None
    (contrast,) = found.contrasts
    assert (contrast.arm, contrast.other, contrast.effect.claim) == ("a", "b", -1)
    assert contrast.effect.low < -0.03 < contrast.effect.high


def test_equal_arms_are_not_told_apart_and_less_may_be_better() -> None:
    found = inferred(observe({"a": 0.05, "b": 0.05}))
    assert found.winner is None
    assert "No arm can be said to be better than another." in said(found)
    better = inferred(observe({"a": 0.05, "b": 0.08}), lower_is_better=True)
    assert better.winner == "a"


def test_a_lost_share_of_one_arms_units_raises_the_alarm_and_takes_the_claims_back() -> None:
    found = inferred(observe({"a": 0.05, "b": 0.08}, units=2000, kept={"a": 1.0, "b": 0.9}))
    assert found.sample_ratio_alarm
    assert found.winner is None
    assert not found.safe_to_stop
    assert "No comparison of arms can be trusted" in said(found)
    assert any("sample ratio: arm" in warning and "arm 0" not in warning for warning in found.warnings)
    intact = inferred(observe({"a": 0.05, "b": 0.08}, units=2000))
    assert not intact.sample_ratio_alarm
    assert "Sample ratio: as logged" in said(intact)


def test_units_without_an_allocation_cannot_raise_the_alarm_and_are_told_of() -> None:
    lost = observe({"a": 0.05, "b": 0.05}, units=2000, kept={"a": 1.0, "b": 0.9}, allocation_version=-1)
    found = inferred(lost)
    assert not found.sample_ratio_alarm
    assert found.sample_ratio_p is None
    assert any("100.0% of the units name no allocation" in warning for warning in found.warnings)


def test_bandit_group_against_comparison_group_is_the_headline() -> None:
    found = inferred(observe({"a": 0.05, "b": 0.08}, comparison=0.04))
    assert found.bandit_effect is not None
    assert found.bandit_effect.low < 0.025 < found.bandit_effect.high
    assert found.bandit_effect.claim == 1
    assert wording(found, lower_is_better=False)[0].startswith("Bandit group less comparison group: +0.02")
    assert inferred(observe({"a": 0.05, "b": 0.08}, hours=9)).bandit_effect is None


def test_stopping_needs_two_whole_weeks_and_is_no_claim() -> None:
    young = inferred(observe({"a": 0.05, "b": 0.08}, hours=200, units=2000))
    assert not young.safe_to_stop
    assert "It is not yet safe to stop: 1 whole weeks of at least 2" in said(young)
    old = inferred(observe({"a": 0.05, "b": 0.08}, hours=340, units=2000))
    assert old.safe_to_stop
    assert "no claim that the leader is better" in old.stop_reason


def test_nothing_is_compared_before_a_window_is_over() -> None:
    found = inferred(observe({"a": 0.05, "b": 0.08}, hours=1))
    assert found.contrasts == ()
    assert "Arms cannot be compared yet" in said(found)
    assert Observation("e", COUNTING).by_hour(["a"]) is None


def test_crossovers_are_warned_of_and_values_are_in_the_metrics_unit() -> None:
    found = inferred(observe({"a": 0.05, "b": 0.08}, crossovers=20))
    assert any(warning.startswith("crossovers: 4.0% of units") for warning in found.warnings)
    scaled = inferred(observe({"a": 0.05, "b": 0.08}), cap=50.0)
    assert scaled.arms["b"]["rate"] == pytest.approx(50 * 0.08, rel=0.1)


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
    found = inferred(observe({"a": 0.05, "b": 0.08}, comparison=0.04), by_segment=True)
    assert (found.contrasts, found.winner, found.lift_control["b"]) == ((), None, None)
    assert found.bandit_effect is not None
    assert any("weights differ by segment" in warning for warning in found.warnings)
