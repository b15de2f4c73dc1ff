"""Figures for people: each note exactly where it applies."""

from typing import Any

import pytest

from streams.allocations import Allocation
from streams.allocator.compute import Job, Stamp, compute, inputs_of
from streams.allocator.counts_state import ArmCounts
from streams.allocator.reporting import Report, report
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward


def experiment(**reward: Any) -> ExperimentRecord:
    return ExperimentRecord(
        experiment_id="e",
        revision=1,
        status="live",
        arms=(Arm(arm_id="a"), Arm(arm_id="b"), Arm(arm_id="c", status="stopped")),
        control="a",
        versions=(Counting(version=1, effective_from_ms=0, reward=Reward(metric="click", **reward)),),
    )


def rates(**arms: tuple[int, int]) -> dict[str, ArmCounts]:
    return {arm: ArmCounts(n, s, s * 1_000_000, s * 10**12) for arm, (n, s) in arms.items()}


def of(counts: dict[str, ArmCounts], record: ExperimentRecord | None = None, **fields: Any) -> Report:
    record = record or experiment()
    return report(record, record.versions[0], counts, **fields)


def noted(found: Report, text: str) -> bool:
    return any(text in note for note in found.notes)


def test_figures_are_those_of_the_posterior() -> None:
    first, second, stopped = of(rates(a=(1000, 100), b=(1000, 200), c=(10, 9))).arms
    assert (first.trials, first.successes) == (1000, 100)
    assert first.mean == pytest.approx(101 / 1002)
    assert first.interval[0] < first.mean < first.interval[1]
    assert first.probability_best is not None
    assert second.probability_best is not None
    assert first.probability_best + second.probability_best == pytest.approx(1)
    assert stopped.probability_best is None, "an arm without traffic is no candidate"
    assert stopped.trials == 10


def test_an_arm_without_counts_has_the_priors_figures() -> None:
    arm = of({}).arms[0]
    assert (arm.trials, arm.mean) == (0, 0.5)
    assert list(arm.interval) == pytest.approx([0.025, 0.975])


def test_few_successes_and_overlapping_intervals_are_said() -> None:
    few = of(rates(a=(1000, 10), b=(1000, 14)))
    assert noted(few, "24 successes in all is few")
    assert noted(few, "interval of b overlaps those of a")
    many = of(rates(a=(10_000, 1000), b=(10_000, 2000)))
    assert not noted(many, "is few")
    assert not noted(many, "overlap")
    assert noted(many, "not a test")


def test_where_less_is_better_the_lowest_is_compared_with_the_others() -> None:
    found = of(rates(a=(1000, 100), b=(1000, 104)), experiment(lower_is_better=True))
    assert noted(found, "interval of a overlaps those of b")


@pytest.mark.parametrize(("n_allocations", "said"), [(0, False), (1, False), (2, True)])
def test_changed_shares_are_said(n_allocations: int, said: bool) -> None:
    assert noted(of(rates(a=(10, 1)), n_allocations=n_allocations), "not a measured lift") is said


def test_the_comparison_group_stands_apart_and_weights_come_from_the_allocation() -> None:
    record = experiment()
    (allocation,) = compute([Job(inputs_of(record, 0, {}, None), Stamp(1, "change", 1))])
    assert isinstance(allocation, Allocation)
    found = of(rates(a=(10, 1)), comparison=ArmCounts(50, 5, 5_000_000, 0), allocation=allocation)
    assert found.comparison is not None
    assert found.comparison.mean == pytest.approx(6 / 52)
    assert [arm.weight for arm in found.arms] == [0.5, 0.5, 0.0]
    assert of({}).comparison is None
    assert found.model_state == "created"
    assert (of({}).allocation_version, of({}).model_state) == (None, None)


def test_values_are_given_in_the_metrics_unit() -> None:
    record = experiment(kind="value", cap=50.0)
    arm = of({"a": ArmCounts(98, 10, 1_225_000_000, 0)}, record).arms[0]  # 1225 of 98 * 50
    assert arm.mean == pytest.approx(50 * (1 + 24.5) / 100)
