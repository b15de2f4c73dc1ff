"""Allocations from inputs: shares on paper, equal start, statuses; the same bytes from the same inputs."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.allocations import Allocation, decode_allocation, encode_allocation
from streams.allocator.compute import Failure, Job, Stamp, compute, counting_at, inputs_in, inputs_of
from streams.allocator.counts_state import ArmCounts
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Policy, Reward

HOUR_MS = 3_600_000
STAMP = Stamp(claim=3, trigger="interval", computed_at_ms=1_700_000_000_000)


def experiment(experiment_id: str = "e", **fields: Any) -> ExperimentRecord:
    defaults: dict[str, Any] = {
        "experiment_id": experiment_id,
        "revision": 4,
        "status": "live",
        "arms": tuple(Arm(arm_id=arm_id) for arm_id in "abc"),
        "control": "a",
        "versions": (Counting(version=1, effective_from_ms=0, reward=Reward(metric="click")),),
    }
    return ExperimentRecord(**(defaults | fields))


def rates(**arms: tuple[int, int]) -> dict[str, ArmCounts]:
    return {arm: ArmCounts(n, s, s * 1_000_000, s * 10**12) for arm, (n, s) in arms.items()}


def one(
    record: ExperimentRecord,
    counts: dict[str, ArmCounts] | None = None,
    *,
    boundary_ms: int = 10 * HOUR_MS,
    last: Allocation | None = None,
) -> Allocation:
    (result,) = compute([Job(inputs_of(record, boundary_ms, counts or {}, last), STAMP)])
    assert isinstance(result, Allocation), result
    return result


def weights(allocation: Allocation) -> list[float]:
    return [arm.weight for arm in allocation.arms]


def total(allocation: Allocation) -> Decimal:
    """Sum of what is printed: decimals, so that nothing is rounded away."""
    return sum(
        (Decimal(repr(weight)) for weight in weights(allocation)), Decimal(repr(allocation.comparison))
    )


def test_without_data_all_arms_start_equal() -> None:
    allocation = one(experiment(arms=tuple(Arm(arm_id=arm_id) for arm_id in "abcd")))
    assert weights(allocation) == [0.25] * 4
    assert [arm.probability_best for arm in allocation.arms] == pytest.approx([0.25] * 4, abs=1e-9)
    assert allocation.state == "created"
    assert (allocation.interval_id, allocation.boundary_ms) == (10, 10 * HOUR_MS)


def test_epsilon_greedy_with_a_comparison_group_of_a_tenth_is_81_045_045_and_10() -> None:
    policy = Policy(algorithm="epsilon_greedy", comparison=0.1)
    allocation = one(experiment(policy=policy), rates(a=(1000, 50), b=(1000, 90), c=(1000, 60)))
    assert weights(allocation) == [0.045, 0.81, 0.045]
    assert allocation.comparison == 0.1
    assert [arm.assignment_weight for arm in allocation.arms] == [0.05, 0.9, 0.05]
    assert total(allocation) == 1
    assert allocation.state == "trained"


def test_two_arms_against_a_closed_form() -> None:
    # P(b > a) for two Beta posteriors: Evan Miller 2015, "Formulas for Bayesian A/B testing", equation (6).
    from math import exp, lgamma

    def log_beta(x: float, y: float) -> float:
        return lgamma(x) + lgamma(y) - lgamma(x + y)

    alpha_a, beta_a, alpha_b, beta_b = 1 + 30, 1 + 70, 1 + 40, 1 + 60
    expected = sum(
        exp(log_beta(alpha_a + i, beta_b + beta_a) - log_beta(1 + i, beta_b) - log_beta(alpha_a, beta_a))
        / (beta_b + i)
        for i in range(alpha_b)
    )
    record = experiment(arms=(Arm(arm_id="a"), Arm(arm_id="b")), policy=Policy(floor=0.0))
    allocation = one(record, rates(a=(100, 30), b=(100, 40)))
    assert allocation.arms[1].probability_best == pytest.approx(expected, abs=1e-8)
    assert allocation.arms[1].weight == pytest.approx(expected, abs=1e-8)
    assert allocation.arms[0].mean == pytest.approx(31 / 102)


def test_thompson_has_a_floor_of_a_hundredth_by_default() -> None:
    allocation = one(experiment(), rates(a=(10**6, 10), b=(10**6, 90_000), c=(10**6, 10)))
    assert weights(allocation) == pytest.approx([0.01, 0.98, 0.01], abs=1e-9)
    many = experiment(arms=tuple(Arm(arm_id=f"a{i}") for i in range(80)), control="a0")
    assert total(one(many)) == 1, "a default floor does not contradict 80 arms"


def test_a_stopped_arm_gets_nothing_and_keeps_its_figures() -> None:
    arms = (Arm(arm_id="a"), Arm(arm_id="b", status="stopped"), Arm(arm_id="c"))
    allocation = one(experiment(arms=arms), rates(a=(100, 5), b=(100, 50), c=(100, 5)))
    assert allocation.arms[1].weight == 0.0
    assert allocation.arms[1].probability_best == 0.0
    assert allocation.arms[1].successes == 50
    assert total(allocation) == 1


def test_a_reward_in_parts_counts_in_parts_and_is_shown_in_the_metrics_unit() -> None:
    versions = (Counting(version=1, effective_from_ms=0, reward=Reward(metric="r", kind="value", cap=200.0)),)
    counts = {"a": ArmCounts(10, 4, 300_000_000, 4 * 75**2 * 10**12)}  # 4 of 10 paid 75 each
    arm = one(experiment(versions=versions), counts).arms[0]
    # A hurdle: rate (1 + 4) / (2 + 10), times the mean amount, of which nothing but 75 was seen.
    assert arm.mean == pytest.approx(5 / 12 * 75)
    assert 0 < arm.interval[0] < arm.mean < arm.interval[1] < 200
    assert (arm.trials, arm.successes) == (10, 4)


def test_where_less_is_better_the_lowest_rate_wins() -> None:
    versions = (
        Counting(version=1, effective_from_ms=0, reward=Reward(metric="bounce", lower_is_better=True)),
    )
    allocation = one(experiment(versions=versions), rates(a=(1000, 300), b=(1000, 100), c=(1000, 300)))
    assert allocation.arms[1].weight > 0.95


def test_pausing_freezes_weights_and_lets_figures_go_on() -> None:
    live = one(experiment(), rates(a=(100, 5), b=(100, 9), c=(100, 7)))
    paused = experiment(status="paused", revision=5)
    first = one(paused, rates(a=(1000, 5), b=(1000, 9), c=(1000, 700)), boundary_ms=11 * HOUR_MS, last=live)
    assert first.status == "paused"
    assert weights(first) == weights(live)
    assert first.arms[2].probability_best > 0.99
    later = one(paused, rates(a=(2000, 5)), boundary_ms=12 * HOUR_MS, last=first)
    assert weights(later) == weights(live), "frozen through any number of intervals"
    resumed = one(experiment(revision=6), rates(a=(100, 50)), boundary_ms=13 * HOUR_MS, last=later)
    assert weights(resumed) != weights(live)


def test_pausing_before_any_allocation_or_with_other_arms_computes_weights() -> None:
    assert total(one(experiment(status="paused"))) == 1
    live = one(experiment(arms=(Arm(arm_id="a"), Arm(arm_id="b"))))
    assert len(weights(one(experiment(status="paused"), last=live))) == 3


@pytest.mark.parametrize("status", ["live", "paused"])
def test_when_every_arm_is_stopped_the_default_arm_gets_everything(status: str) -> None:
    arms = tuple(Arm(arm_id=arm_id, status="stopped") for arm_id in "abc")
    record = experiment(status=status, arms=arms, default_arm="b", policy=Policy(comparison=0.1, holdout=0.2))
    allocation = one(record, rates(a=(100, 5)), last=one(experiment()))
    assert weights(allocation) == [0.0, 0.9, 0.0]
    assert (allocation.comparison, allocation.holdout) == (0.1, 0.0)


@pytest.mark.parametrize(("winner", "expected"), [("b", [0.0, 1.0, 0.0]), (None, [1.0, 0.0, 0.0])])
def test_the_winner_of_a_completed_experiment_gets_everything(
    winner: str | None, expected: list[float]
) -> None:
    record = experiment(
        status="completed", winner=winner, policy=Policy(comparison=0.1, holdout=0.2), default_arm="a"
    )
    allocation = one(record, rates(a=(100, 5), b=(100, 9), c=(100, 7)))
    assert weights(allocation) == expected
    assert (allocation.comparison, allocation.holdout, allocation.status) == (0.0, 0.0, "completed")


def test_an_archived_experiment_has_no_arms() -> None:
    allocation = one(experiment(status="archived"), rates(a=(100, 5)))
    assert (allocation.status, allocation.arms) == ("archived", ())


def test_one_failure_leaves_the_others_alone() -> None:
    good = experiment("good")
    bad = [
        (experiment("no-arms", arms=()), {}, "arms: there is none"),
        (experiment("algorithm", policy=Policy(algorithm="magic")), {}, "unknown algorithm 'magic'"),
        (experiment("floor", policy=Policy(floor=0.9)), {}, "floor: 0.9 for each of 3 eligible arms"),
        (
            experiment("counts"),
            {"a": ArmCounts(1, 2, 2_000_000, 0)},
            "period 0, arm 0: more successes than trials",
        ),
        (experiment("winner", status="completed", winner="z"), {}, "winner: 'z' is not an arm"),
    ]
    jobs = [Job(inputs_of(good, HOUR_MS, {}, None), STAMP)]
    jobs += [Job(inputs_of(record, HOUR_MS, counts, None), STAMP) for record, counts, _ in bad]
    jobs += [Job(inputs_of(good, 2 * HOUR_MS, {}, None), STAMP)]
    first, *failures, last = compute(jobs)
    assert isinstance(first, Allocation)
    assert isinstance(last, Allocation)
    assert (first.interval_id, last.interval_id) == (1, 2)
    for failure, (record, _, message) in zip(failures, bad, strict=True):
        assert isinstance(failure, Failure)
        assert failure.experiment_id == record.experiment_id
        assert message in failure.message


def test_the_newest_version_in_effect_decides_what_counts() -> None:
    versions = tuple(
        Counting(version=v, effective_from_ms=v * HOUR_MS, reward=Reward(metric=f"m{v}")) for v in (1, 2, 3)
    )
    record = experiment(versions=versions)
    at = [
        counting_at(record, boundary_ms).version for boundary_ms in (0, HOUR_MS, 3 * HOUR_MS - 1, 3 * HOUR_MS)
    ]
    assert at == [1, 1, 2, 3]


COUNTS = st.integers(0, 5000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@settings(deadline=None, max_examples=25)
@given(
    counts=st.lists(st.tuples(COUNTS, COUNTS, COUNTS), min_size=1, max_size=6),
    algorithm=st.sampled_from(["thompson", "epsilon_greedy", "uniform"]),
    comparison=st.sampled_from([0.0, 0.1, 1 / 3]),
    holdout=st.sampled_from([0.0, 0.05, 1 / 7]),
)
def test_same_inputs_same_bytes_alone_or_in_a_batch_and_after_a_round_trip(
    counts: list[tuple[tuple[int, int], ...]], algorithm: str, comparison: float, holdout: float
) -> None:
    policy = Policy(algorithm=algorithm, comparison=comparison, holdout=holdout)
    jobs = [
        Job(inputs_of(experiment(f"e{i}", policy=policy), HOUR_MS, rates(a=a, b=b, c=c), None), STAMP)
        for i, (a, b, c) in enumerate(counts)
    ]
    batch = compute(jobs)
    for job, allocation in zip(jobs, batch, strict=True):
        assert isinstance(allocation, Allocation)
        assert total(allocation) == 1
        raw = encode_allocation(allocation)
        read = decode_allocation(raw)
        (again,) = compute([Job(inputs_in(read), Stamp(read.claim, read.trigger, read.computed_at_ms))])
        assert isinstance(again, Allocation)
        assert encode_allocation(again) == raw
        assert inputs_in(read) == job.inputs


def test_inputs_of_another_form_are_refused() -> None:
    allocation = one(experiment())
    broken = msgspec.structs.replace(allocation, inputs=allocation.inputs | {"arms": 3})
    with pytest.raises(msgspec.ValidationError, match=r"\$\.arms"):
        inputs_in(broken)
