"""Lives of arms through successive allocations: each starts from nothing but the record before it."""

from typing import Any

import msgspec
import numpy as np
import pytest

from bandit_core.policies import POLICIES
from streams.allocations import Allocation, decode_allocation, encode_allocation
from streams.allocator.compute import Job, Stamp, compute, inputs_in
from streams.allocator.counts_state import ArmCounts, CountsState, Period
from streams.allocator.history import pack_history
from streams.allocator.inputs import gather_inputs, inputs_of, is_chained
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.edge.decision import DEFAULT_STALE
from streams.edge.table import DecisionTable
from streams.experiments.definition import (
    Arm,
    Counting,
    ExperimentRecord,
    Guardrail,
    Lifecycle,
    Policy,
    Reward,
)
from streams.join.cells import Cell, CellKey, LagCounts

HOUR_MS = 3_600_000
STAMP = Stamp(claim=0, trigger="interval", computed_at_ms=7)
RATES = {"a": 0.05, "b": 0.10, "c": 0.05, "d": 0.05}


def experiment(statuses: dict[str, Any], **fields: Any) -> ExperimentRecord:
    defaults: dict[str, Any] = {
        "experiment_id": "e",
        "revision": 1,
        "status": "live",
        "arms": tuple(Arm(arm_id=arm_id, status=status) for arm_id, status in statuses.items()),
        "control": "a",
        "versions": (Counting(version=1, effective_from_ms=0, reward=Reward(metric="m", kind="click")),),
    }
    return ExperimentRecord(**(defaults | fields))


def after(
    record: ExperimentRecord, hour: int, last: Allocation | None, trials: int = 2000, **own: int
) -> Allocation:
    """Allocate at an hour, through the bytes of the record before, and hold that an audit agrees."""
    read = None if last is None else decode_allocation(encode_allocation(last))
    counts = {}
    for arm in record.arms:
        n = own.get(arm.arm_id, trials)
        s = round(n * RATES[arm.arm_id])
        counts[arm.arm_id] = ArmCounts(n, s, s * 10**6, s * 10**12)
    inputs = inputs_of(record, hour * HOUR_MS, counts, read)
    if record.policy.lifecycle.drop and last is not None:
        hours = {arm: Period(n, ((0, s, v, q),)) for arm, (n, s, v, q) in counts.items()}
        inputs = msgspec.structs.replace(inputs, finished=pack_history({0: hours}, list(counts)))
    (found,) = compute([Job(inputs, STAMP)])
    assert isinstance(found, Allocation), found
    (again,) = compute([Job(inputs_in(found), STAMP)])
    assert isinstance(again, Allocation)
    assert encode_allocation(again) == encode_allocation(found)
    return found


def statuses(allocation: Allocation) -> str:
    return " ".join(arm.status for arm in allocation.arms)


def test_an_incubating_arm_gets_exactly_one_nth_until_it_has_its_trials() -> None:
    record = experiment({"a": "active", "b": "active", "c": "active", "d": "incubating"})
    assert is_chained(record)
    first = after(record, 1, None, d=0)
    assert first.arms[3].weight == 0.25
    second = after(record, 2, first, d=150)
    assert (second.arms[3].status, second.arms[3].weight) == ("incubating", 0.25)
    assert second.arms[3].intervals_incubated == 1
    # Twenty successes at the pooled rate of some 7% take about 300 trials.
    third = after(record, 3, second, d=400)
    assert third.arms[3].status == "active"
    assert after(record, 4, third, d=400).arms[3].status == "active", "and stays so"


def test_an_arm_goes_from_pending_over_incubating_and_active_to_stopped() -> None:
    others = dict.fromkeys("abc", "active")
    pending = after(experiment(others | {"d": "pending"}), 1, None, d=0)
    assert (pending.arms[3].status, pending.arms[3].weight) == ("pending", 0.0)
    table = DecisionTable(max_age_ms=10**9, clock_ms=lambda: 7)
    table.set_experiment("e", experiment(others | {"d": "pending"}))
    table.set_allocation("e", msgspec.structs.replace(pending, version=1), 7)
    assert "d" not in {table.decide("e", f"unit-{i}").arm_id for i in range(500)}
    incubating = after(experiment(others | {"d": "incubating"}, revision=2), 2, pending, d=0)
    assert (incubating.arms[3].status, incubating.arms[3].weight) == ("incubating", 0.25)
    active = after(experiment(others | {"d": "incubating"}, revision=2), 3, incubating, d=2000)
    assert active.arms[3].status == "active"
    stopped = after(experiment(others | {"d": "stopped"}, revision=3), 4, active)
    assert (stopped.arms[3].status, stopped.arms[3].weight) == ("stopped", 0.0)
    again = after(experiment(others | {"d": "active"}, revision=4), 5, stopped)
    assert (again.arms[3].status, again.arms[3].weight > 0) == ("active", True)
    dropped = after(experiment(others | {"d": "dropped"}, revision=5), 6, again)
    assert (dropped.arms[3].status, dropped.arms[3].weight) == ("dropped", 0.0)
    kept = after(experiment(others | {"d": "active"}, revision=6), 7, dropped)
    assert kept.arms[3].status == "dropped", "whatever a record says: it returns only as another arm"
    assert after(experiment(others | {"d": "pending"}), 2, pending, d=0).arms[3].status == "pending"


def hopeless(hours: int, **lifecycle: Any) -> list[Allocation]:
    record = experiment(
        dict.fromkeys("abc", "active"), policy=Policy(lifecycle=Lifecycle(drop=True, **lifecycle))
    )
    made: list[Allocation] = []
    for hour in range(1, hours + 1):
        made.append(after(record, hour, made[-1] if made else None))
    return made


def test_an_arm_is_dropped_after_24_consecutive_hopeless_intervals_and_never_returns() -> None:
    made = hopeless(26)
    assert [arm.intervals_below for arm in made[23].arms] == [23, 0, 23]
    assert statuses(made[23]) == "active active active"
    assert statuses(made[24]) == "active active dropped", "never control"
    assert made[24].arms[2].weight == 0
    assert statuses(made[25]) == "active active dropped"
    again = experiment(dict.fromkeys("abc", "active"), revision=9)
    assert statuses(after(again, 40, made[25])) == "active active dropped", "also with drop turned off"


def test_one_good_interval_starts_the_count_anew() -> None:
    made = hopeless(10)
    record = experiment(dict.fromkeys("abc", "active"), policy=Policy(lifecycle=Lifecycle(drop=True)))
    good = after(record, 11, made[-1], trials=20)
    assert [arm.intervals_below for arm in good.arms] == [0, 0, 0]


def test_a_change_of_the_definition_counts_no_interval() -> None:
    made = hopeless(10)
    record = experiment(
        dict.fromkeys("abc", "active"), revision=2, policy=Policy(lifecycle=Lifecycle(drop=True))
    )
    again = after(record, 10, made[-1])
    assert [arm.intervals_below for arm in again.arms] == [arm.intervals_below for arm in made[-1].arms]


def test_the_last_two_are_never_dropped() -> None:
    record = experiment(
        {"a": "active", "b": "active"},
        policy=Policy(lifecycle=Lifecycle(drop=True, drop_intervals=2)),
        control="b",
    )
    last = None
    for hour in range(1, 9):
        last = after(record, hour, last)
        assert statuses(last) == "active active"


def test_the_holdout_shrinks_when_control_is_known_and_never_rises() -> None:
    policy = Policy(lifecycle=Lifecycle(adaptive_holdout=True))
    record = experiment(dict.fromkeys("abc", "active"), policy=policy)
    first = after(record, 1, None, trials=100)
    assert first.holdout == pytest.approx(1 / 3)
    vague = after(record, 2, first, trials=100)
    assert vague.holdout == first.holdout
    last, before = vague, vague.holdout
    for hour in range(3, 40):
        last = after(record, hour, last, trials=20_000)
        assert last.holdout == pytest.approx(max(0.05, before * 0.9), abs=1e-11)
        before = last.holdout
    assert last.holdout == 0.05
    assert after(record, 41, last, trials=100).holdout == 0.05


def test_weights_move_by_the_largest_step_at_most() -> None:
    policy = Policy(floor=0.0, lifecycle=Lifecycle(max_step=0.1))
    record = experiment(dict.fromkeys("abc", "active"), policy=policy)
    last = after(record, 1, None, trials=0)
    for hour in range(2, 12):
        new = after(record, hour, last)
        for one, other in zip(last.arms, new.arms, strict=True):
            assert abs(one.assignment_weight - other.assignment_weight) <= 0.1 + 1e-9
        last = new
    assert last.arms[1].weight > 0.99


# --- guardrails, from counts of the reporting view ---


def guarded(margin: float | None) -> ExperimentRecord:
    refund = Reward(metric="refund", lower_is_better=True)
    counting = Counting(
        version=1,
        effective_from_ms=0,
        reward=Reward(metric="m", kind="click"),
        guardrails=(Guardrail(reward=refund, margin=margin),),
        conversion_window_ms=2 * HOUR_MS,
    )
    return experiment(dict.fromkeys("abc", "active"), versions=(counting,), default_arm="c")


def refunds(rates: dict[str, float], hours: int, metric: str = "refund") -> CountsState:
    state, rng = CountsState(views=("steering", "reporting")), np.random.default_rng(3)
    for hour in range(100, 100 + hours):
        cells = {}
        for arm_id, rate in rates.items():
            n = int(rng.binomial(500, rate))
            key = CellKey("e", 1, "reporting", metric, arm_id, "", "bandit", 0, hour)
            cells[key] = Cell(500, 0, {1: LagCounts(n, n * 10**6, n * 10**12)} if n else {})
        key_of = CountsKey("e", 0, hour)
        state.absorb(encode_key(key_of), encode_counts(key_of, CountsRecord(Order(0, 0, 0), cells)))
    return state


def guarded_run(record: ExperimentRecord, state: CountsState, hours: int) -> Allocation:
    last: Allocation | None = None
    for hour in range(101, 101 + hours, 6):
        (found,) = compute([Job(gather_inputs(record, hour * HOUR_MS, state, last), STAMP)])
        assert isinstance(found, Allocation), found
        (again,) = compute([Job(inputs_in(found), STAMP)])
        assert isinstance(again, Allocation)
        assert encode_allocation(again) == encode_allocation(found)
        last = decode_allocation(encode_allocation(found))
    assert last is not None
    return last


def test_a_guardrail_stops_the_arm_that_harms_and_no_other() -> None:
    state = refunds({"a": 0.04, "b": 0.04, "c": 0.08}, 60)
    last = guarded_run(guarded(0.1), state, 60)
    assert statuses(last) == "active active stopped"
    assert last.default_arm == "a", "who was shown the default must not get the harmful arm"
    assert statuses(guarded_run(guarded(None), state, 60)) == "active active active"


def test_a_stopped_arm_returns_when_it_was_stopped_and_then_made_active() -> None:
    last = guarded_run(guarded(0.1), refunds({"a": 0.04, "b": 0.04, "c": 0.08}, 60), 60)
    for status, expected in (("active", "stopped"), ("stopped", "stopped"), ("active", "active")):
        record = experiment(
            {"a": "active", "b": "active", "c": status}, revision=last.definition_revision + 1
        )
        last = after(record, 200, last)
        assert last.arms[2].status == expected


def test_equal_arms_are_not_stopped() -> None:
    last = guarded_run(guarded(0.05), refunds({"a": 0.04, "b": 0.04, "c": 0.04}, 60), 60)
    assert statuses(last) == "active active active"


def test_inputs_do_not_depend_on_which_objects_are_the_same() -> None:
    record = experiment({"a": "active", "b": "active"}, policy=Policy(lifecycle=Lifecycle(max_trials=10_000)))
    other = msgspec.json.decode(msgspec.json.encode(record), type=ExperimentRecord)
    one, two = after(record, 1, None), after(other, 1, None)
    assert encode_allocation(one) == encode_allocation(two)


def test_an_edge_with_a_stale_table_shows_nobody_an_arm_that_a_guardrail_stopped() -> None:
    record = guarded(0.1)
    last = guarded_run(record, refunds({"a": 0.04, "b": 0.04, "c": 0.08}, 60), 60)
    now_ms = [0]
    table = DecisionTable(max_age_ms=1000, clock_ms=lambda: now_ms[0])
    table.set_experiment("e", record)
    table.set_allocation("e", msgspec.structs.replace(last, version=1), 0)
    now_ms[0] = 5000
    decision = table.decide("e", "unit-1")
    assert decision.reason == DEFAULT_STALE
    assert decision.arm_id == "a"


@pytest.mark.parametrize("algorithm", sorted(POLICIES))
def test_a_policy_is_switched_at_once_from_the_same_counts(algorithm: str) -> None:
    """As after a new fit of the same definition: what the other policy published does not show."""
    before = after(experiment(dict.fromkeys("abc", "active"), policy=Policy(algorithm="uniform")), 5, None)
    record = experiment(dict.fromkeys("abc", "active"), revision=2, policy=Policy(algorithm=algorithm))
    switched, fresh = after(record, 5, before), after(record, 5, None)
    assert switched.algorithm == algorithm
    assert [arm.weight for arm in switched.arms] == [arm.weight for arm in fresh.arms]


# --- the drop rule: hopeless, and shown to be worse ---


def dropping(hours: int, rates: dict[str, float], **fields: Any) -> list[Allocation]:
    """Allocate hour by hour from counts of both views; a window of two hours."""
    counting = Counting(
        version=1,
        effective_from_ms=0,
        reward=Reward(metric="m", kind="click"),
        conversion_window_ms=2 * HOUR_MS,
    )
    policy = Policy(lifecycle=Lifecycle(drop=True, drop_intervals=3, min_trials=0))
    record = experiment(
        dict.fromkeys(rates, "active"), **({"versions": (counting,), "policy": policy} | fields)
    )
    state = refunds(rates, hours, "m")
    made: list[Allocation] = []
    for hour in range(100, 101 + hours):
        last = decode_allocation(encode_allocation(made[-1])) if made else None
        inputs = gather_inputs(record, hour * HOUR_MS, state, last)
        # Steering is certain from the beginning that c is not the best: only the evidence keeps it.
        sure = {"a": (9000, 900), "b": (9000, 900), "c": (9000, 300)}
        arms = tuple(
            msgspec.structs.replace(arm, trials=n, successes=s, value_micros=s * 10**6)
            for arm, (n, s) in zip(inputs.arms, sure.values(), strict=True)
        )
        (found,) = compute([Job(msgspec.structs.replace(inputs, arms=arms), STAMP)])
        assert isinstance(found, Allocation), found
        made.append(found)
    return made


def test_a_hopeless_arm_is_dropped_when_hours_whose_window_is_over_show_it_to_be_worse() -> None:
    made = dropping(60, {"a": 0.05, "b": 0.05, "c": 0.02})
    dropped = [statuses(each).endswith("dropped") for each in made].index(True)
    assert made[2].arms[2].against_rest == (0.0, 0.0), "no window was over"
    # An hour of 500 units an arm, in the information of c against the two others.
    one = made[3].arms[2].against_rest
    assert one[1] == pytest.approx(500 * 1000 / 1500 * 0.04 * 0.96, rel=0.15)
    assert made[4].arms[2].against_rest[1] == pytest.approx(2 * one[1], rel=0.25)
    assert 3 < dropped < 30
    assert made[dropped - 1].arms[2].intervals_below >= 3


def test_an_arm_that_only_seems_hopeless_is_kept() -> None:
    made = dropping(60, {"a": 0.05, "b": 0.05, "c": 0.05})
    assert made[-1].arms[2].intervals_below > 24
    assert statuses(made[-1]) == "active active active"


def test_evidence_begins_anew_without_an_arm_that_somebody_stopped_and_with_another_version() -> None:
    made = dropping(20, {"a": 0.05, "b": 0.05, "c": 0.02})
    record = experiment(
        {"a": "active", "b": "stopped", "c": "active"},
        revision=2,
        policy=Policy(lifecycle=Lifecycle(drop=True)),
    )
    assert made[10].arms[2].against_rest != (0.0, 0.0)
    stopped = after(record, 130, made[10])
    assert stopped.arms[2].against_rest == (0.0, 0.0)
    other = msgspec.structs.replace(record.versions[0], version=2, effective_from_ms=1)
    counted_anew = msgspec.structs.replace(
        record, versions=(*record.versions, other), arms=experiment(dict.fromkeys("abc", "active")).arms
    )
    inputs = inputs_of(counted_anew, 131 * HOUR_MS, {}, made[10])
    assert inputs.before is not None
    assert inputs.before.arms["c"].against_rest == (0.0, 0.0)
