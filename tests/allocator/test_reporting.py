"""Figures for people: each note exactly where it applies."""

import json
from typing import Any

import msgspec
import pytest

from streams.allocations import Allocation
from streams.allocator.compute import Job, Stamp, compute, inputs_of
from streams.allocator.counts_state import ArmCounts
from streams.allocator.logged import decode_logged
from streams.allocator.observed import Observation
from streams.allocator.reporting import ResultsFailed, ResultsJob, make_results, try_results
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.join.cells import HOUR_MS, Cell, CellKey, Group, LagCounts
from streams.results import Results, decode_results, encode_results

HOUR = 480_000


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


def observation(
    counts: dict[str, ArmCounts],
    *,
    hours: int = 1,
    comparison: ArmCounts | None = None,
    n_allocations: int = 1,
) -> Observation:
    """The same counts in each hour, from allocations that take turns."""
    found = Observation()
    for hour in range(HOUR, HOUR + hours):
        cells = {}
        groups: list[tuple[str, Group, ArmCounts]] = [(arm, "bandit", count) for arm, count in counts.items()]
        groups += [("", "comparison", comparison)] if comparison is not None else []
        for arm, group, count in groups:
            for version in range(n_allocations if group == "bandit" and n_allocations > 1 else 1):
                part = count if version == 0 else ArmCounts(0, 0, 0, 0)
                lags = {0: LagCounts(*part[1:])} if part.successes else {}
                key = CellKey("e", 1, "reporting", "click", arm, "", group, version, hour)
                cells[key] = Cell(part.trials, 0, lags)
        place = CountsKey("e", 0, hour)
        found.absorb(encode_key(place), encode_counts(place, CountsRecord(Order(0, 0, hour), cells)))
    return found


def of(
    counts: dict[str, ArmCounts],
    record: ExperimentRecord | None = None,
    *,
    allocation: Allocation | None = None,
    hours: int = 1,
    **fields: Any,
) -> Results:
    record = record or experiment()
    found = observation(counts, hours=hours, **fields) if counts else Observation()
    return make_results(job(found, record, hours=hours, allocation=allocation))


def job(
    found: Observation, record: ExperimentRecord, *, hours: int = 1, allocation: Allocation | None = None
) -> ResultsJob:
    arms = [
        {"arm_id": arm, "weight": 0.5, "assignment_weight": 0.5, "selection_probability": 0.5} for arm in "ab"
    ]
    table = {"boundary_ms": 0, "control": "a", "comparison": 0.0, "holdout": 0.0, "arms": arms}
    log = {0: decode_logged(json.dumps(table).encode())}
    return ResultsJob(
        record, record.versions[0], found.records(), log, allocation, (HOUR + hours) * HOUR_MS, 1
    )


def noted(found: Results, text: str) -> bool:
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


@pytest.mark.parametrize(("n_allocations", "said"), [(1, False), (2, True)])
def test_changed_shares_are_said(n_allocations: int, said: bool) -> None:
    assert noted(of(rates(a=(10, 1)), n_allocations=n_allocations), "not a measured lift") is said


def test_the_comparison_group_stands_apart_and_weights_come_from_the_allocation() -> None:
    record = experiment()
    (allocation,) = compute([Job(inputs_of(record, 0, {}, None), Stamp(1, "change", 1))])
    assert isinstance(allocation, Allocation)
    found = of(rates(a=(10, 1)), comparison=ArmCounts(50, 5, 5_000_000, 5 * 10**12), allocation=allocation)
    assert found.comparison is not None
    assert found.comparison.mean == pytest.approx(6 / 52)
    assert [arm.weight for arm in found.arms] == [0.5, 0.5, 0.0]
    assert of({}).comparison is None
    assert found.model_state == "created"
    assert (of({}).allocation_version, of({}).model_state) == (None, None)


def test_values_are_given_in_the_metrics_unit() -> None:
    record = experiment(kind="value", cap=50.0)
    arm = of({"a": ArmCounts(98, 10, 1_225_000_000, 10**18)}, record).arms[0]  # 1225 of 98 * 50
    assert arm.mean == pytest.approx(50 * (1 + 24.5) / 100)


def ends(at_hour: int, **changes: Any) -> ExperimentRecord:
    record = experiment()
    counting = msgspec.structs.replace(
        record.versions[0], trial_window="experiment", conversion_window_ms=2 * HOUR_MS
    )
    changes = {"versions": (counting,), "ends_at_ms": (HOUR + at_hour) * HOUR_MS} | changes
    return msgspec.structs.replace(record, **changes)


def test_batched_least_squares_are_given_once_from_what_was_known_at_the_end() -> None:
    counts = rates(a=(200, 10), b=(200, 16))
    found = observation(counts, hours=100)
    before = make_results(job(found, ends(50), hours=49))
    assert before.inference is not None
    assert before.inference.batched is not None
    assert before.inference.batched.contrasts == ()
    assert "which is 1 hours away" in (before.inference.batched.refused or "")
    assert any("No batched least squares: it is good for one look" in line for line in before.statements)
    at_end, later = (make_results(job(found, ends(50), hours=hours)) for hours in (50, 100))
    assert at_end.inference is not None
    assert later.inference is not None
    assert at_end.inference.batched == later.inference.batched, "another look is the same look"
    assert at_end.inference.batched is not None
    (contrast,) = at_end.inference.batched.contrasts
    assert (contrast.arm, contrast.other) == ("b", "a")
    assert contrast.effect.estimate == pytest.approx(0.03)
    # 48 hours of 200 and 200: the pooled rate is 13/200, so the standard error is sqrt(2 p (1 - p) / 9600).
    error = (2 * 0.065 * 0.935 / 9600) ** 0.5
    assert contrast.effect.high - contrast.effect.low == pytest.approx(2 * 1.96 * error, rel=0.01)
    assert experiment().ends_at_ms is None
    assert of(counts).inference.batched is None  # type: ignore[union-attr]  # there is inference


def test_batched_least_squares_of_visitor_hours_of_sticky_units_are_refused() -> None:
    found = observation(rates(a=(200, 10), b=(200, 16)), hours=100)
    hourly = ends(50)
    hourly = msgspec.structs.replace(
        hourly, versions=(msgspec.structs.replace(hourly.versions[0], trial_window="hour"),)
    )
    refused = make_results(job(found, hourly, hours=60)).inference
    assert refused is not None
    assert refused.batched is not None
    assert "a returning unit" in (refused.batched.refused or "")
    drawn_anew = make_results(
        job(found, msgspec.structs.replace(hourly, sticky="interval"), hours=60)
    ).inference
    assert drawn_anew is not None
    assert drawn_anew.batched is not None
    assert drawn_anew.batched.refused is None


def test_in_sample_figures_are_of_the_present_weights() -> None:
    record = experiment()
    (allocation,) = compute([Job(inputs_of(record, 0, {}, None), Stamp(1, "change", 1))])
    assert isinstance(allocation, Allocation)
    found = of(rates(a=(998, 49), b=(998, 59)), allocation=allocation).in_sample
    assert found is not None
    assert found.expected_reward.estimate == pytest.approx((0.05 + 0.06) / 2)
    assert found.expected_reward.low < 0.055 < found.expected_reward.high
    assert found.lift_control is not None
    assert found.lift_control.estimate == pytest.approx(0.055 / 0.05 - 1)
    assert of(rates(a=(998, 49))).in_sample is None, "without an allocation there are no weights"


def test_results_come_back_from_their_bytes_and_have_no_nan() -> None:
    found = of(rates(a=(998, 49), b=(998, 59)), hours=30)
    raw = encode_results(found)
    assert decode_results(raw) == found
    assert encode_results(decode_results(raw)) == raw
    json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_results_before_a_boundary_do_not_see_what_came_after_it() -> None:
    found = observation(rates(a=(100, 5), b=(100, 5)), hours=30)
    early, late = (make_results(job(found, experiment(), hours=hours)) for hours in (10, 30))
    assert [arm.trials for arm in early.arms] == [1000, 1000, 0]
    assert [arm.trials for arm in late.arms] == [3000, 3000, 0]
    only = make_results(job(observation(rates(a=(100, 5), b=(100, 5)), hours=10), experiment(), hours=10))
    assert only == early


def test_together_the_same_as_alone_and_what_cannot_be_made_is_told() -> None:
    lower = experiment(lower_is_better=True)
    jobs = [
        job(observation(rates(a=(1000, 50 + n), b=(900, 60)), hours=10), record, hours=10)
        for n, record in enumerate([experiment(), lower, experiment(), lower])
    ]
    broken = job(observation(rates(a=(1, 5), b=(1, 5))), experiment())
    none = job(Observation(), experiment())
    *together, failed, empty = try_results([*jobs, broken, none])
    assert together == [make_results(each) for each in jobs]
    assert empty == make_results(none)
    assert isinstance(failed, ResultsFailed)
    assert "more successes than trials" in failed.message
