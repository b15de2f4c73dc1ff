"""The decision table: which record decides, what happens without one, and how units move."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from scipy.stats import chisquare

from streams.allocations import Allocation
from streams.edge.decision import REASONS
from streams.edge.table import DecisionTable
from streams.experiments.definition import Counting, ExperimentRecord, Feature, Reward

EXPERIMENT = "checkout"
MAX_AGE_MS = 1_000
UNITS = [f"unit-{i}" for i in range(2_000)]

MakeAllocation = Callable[..., Allocation]
MakeRecord = Callable[..., ExperimentRecord]


class Clock:
    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> DecisionTable:
    return DecisionTable(max_age_ms=MAX_AGE_MS, clock_ms=clock)


def arms(table: DecisionTable, units: list[str] = UNITS) -> dict[str, str | None]:
    return {unit_id: table.decide(EXPERIMENT, unit_id).arm_id for unit_id in units}


def test_a_unit_gets_the_same_arm_with_the_allocations_propensity_and_version(
    table: DecisionTable, make_allocation: MakeAllocation, make_record: MakeRecord
) -> None:
    table.set_experiment(EXPERIMENT, make_record(["a", "b"]))
    table.set_allocation(EXPERIMENT, make_allocation({"a": 0.25, "b": 0.75}, version=42), 0)
    decisions = [table.decide(EXPERIMENT, unit_id, {"country": "ch"}) for unit_id in UNITS]
    assert decisions == [table.decide(EXPERIMENT, unit_id, {"country": "ch"}) for unit_id in UNITS]
    for decision in decisions:
        assert decision.propensity == {"a": 0.25, "b": 0.75}[str(decision.arm_id)]
        assert (decision.allocation_version, decision.reason, decision.group) == (42, "allocation", "bandit")
        assert decision.context == {"country": "ch"}
        assert not decision.is_default
    assert table.decided["allocation"] == 2 * len(UNITS)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("draft", "default:draft"),
        ("paused", "default:paused"),
        ("archived", "default:archived"),
        ("completed", "default:completed"),
    ],
)
def test_an_experiment_that_is_not_live_gives_its_default(
    table: DecisionTable, make_allocation: MakeAllocation, make_record: MakeRecord, status: str, reason: str
) -> None:
    table.set_allocation(EXPERIMENT, make_allocation({"a": 0, "b": 1}, version=3, comparison=0.5), 0)
    table.set_experiment(EXPERIMENT, make_record(["a", "b"], revision=2, status=status))
    for unit_id in UNITS[:50]:
        decision = table.decide(EXPERIMENT, unit_id)
        assert (decision.arm_id, decision.propensity, decision.reason) == ("a", 1.0, reason)
        assert decision.group == "bandit"
        assert decision.is_default


def test_a_completed_experiment_gives_its_winner_to_everyone(
    table: DecisionTable, make_allocation: MakeAllocation, make_record: MakeRecord
) -> None:
    table.set_allocation(EXPERIMENT, make_allocation({"a": 0.5, "b": 0.5}, comparison=0.3), 0)
    table.set_experiment(EXPERIMENT, make_record(["a", "b"], revision=2, status="completed", winner="b"))
    assert set(arms(table).values()) == {"b"}


def test_the_default_arm_is_the_named_one_then_control_never_a_stopped_one(
    table: DecisionTable, make_record: MakeRecord
) -> None:
    table.set_experiment(EXPERIMENT, make_record(["a", "b", "c"], default_arm="b"))
    assert table.decide(EXPERIMENT, "u").arm_id == "b"
    table.set_experiment(EXPERIMENT, make_record(["a", "b", "c"], revision=2, default_arm="b", stopped=["b"]))
    assert table.decide(EXPERIMENT, "u").arm_id == "a"
    table.set_experiment(EXPERIMENT, make_record(["a", "b", "c"], revision=3, stopped=["a", "b"]))
    assert table.decide(EXPERIMENT, "u").arm_id == "c"
    table.set_experiment(EXPERIMENT, make_record(["a", "b"], revision=4, stopped=["a", "b"]))
    assert table.decide(EXPERIMENT, "u").arm_id is None


def test_missing_and_unknown_have_reasons_of_their_own(
    table: DecisionTable, make_allocation: MakeAllocation, make_record: MakeRecord
) -> None:
    table.set_experiment(EXPERIMENT, make_record(["a", "b"]))
    missing = table.decide(EXPERIMENT, "u")
    assert (missing.arm_id, missing.allocation_version) == ("a", None)
    assert missing.reason == "default:missing_allocation"
    unknown = table.decide("no-such", "u")
    assert (unknown.arm_id, unknown.reason) == (None, "default:unknown_experiment")
    assert table.decide("no-such", "u", default_arm="plain").arm_id == "plain"
    table.set_experiment(EXPERIMENT, None)
    assert table.decide(EXPERIMENT, "u").reason == "default:unknown_experiment"
    assert set(table.decided) <= set(REASONS)


@pytest.mark.parametrize(("age_ms", "is_stale"), [(MAX_AGE_MS, False), (MAX_AGE_MS + 1, True)])
def test_an_allocation_older_than_the_limit_is_stale(
    table: DecisionTable, clock: Clock, make_allocation: MakeAllocation, age_ms: int, is_stale: bool
) -> None:
    table.set_allocation(EXPERIMENT, make_allocation({"a": 0, "b": 1}, version=9), 5_000)
    clock.now_ms = 5_000 + age_ms
    decision = table.decide(EXPERIMENT, "u")
    assert decision.arm_id == ("a" if is_stale else "b")
    assert decision.reason == ("default:stale_allocation" if is_stale else "allocation")
    assert decision.allocation_version == 9
    table.set_allocation(EXPERIMENT, make_allocation({"a": 0, "b": 1}, version=10), clock.now_ms)
    assert table.decide(EXPERIMENT, "u").reason == "allocation"


def test_the_greatest_version_wins_whatever_the_order(
    table: DecisionTable, make_allocation: MakeAllocation
) -> None:
    assert table.set_allocation(EXPERIMENT, make_allocation({"a": 1, "b": 0}, version=5), 0)
    assert not table.set_allocation(EXPERIMENT, make_allocation({"a": 0, "b": 1}, version=4), 0)
    assert not table.set_allocation(EXPERIMENT, make_allocation({"a": 0, "b": 1}, version=5), 0)
    assert table.decide(EXPERIMENT, "u").arm_id == "a"
    assert table.ignored_allocations == 2
    assert table.set_allocation(EXPERIMENT, make_allocation({"a": 0, "b": 1}, version=6), 0)
    assert table.decide(EXPERIMENT, "u").arm_id == "b"


def test_the_higher_revision_of_the_two_topics_decides_the_status(
    table: DecisionTable, make_allocation: MakeAllocation, make_record: MakeRecord
) -> None:
    table.set_experiment(EXPERIMENT, make_record(["a", "b"], revision=2, status="paused"))
    table.set_allocation(EXPERIMENT, make_allocation({"a": 0, "b": 1}, definition_revision=1), 0)
    assert table.decide(EXPERIMENT, "u").reason == "default:paused"
    table.set_allocation(EXPERIMENT, make_allocation({"a": 0, "b": 1}, version=2, definition_revision=3), 0)
    assert table.decide(EXPERIMENT, "u").reason == "allocation"
    paused = make_allocation({"a": 0, "b": 1}, version=3, definition_revision=4, status="paused")
    table.set_allocation(EXPERIMENT, paused, 0)
    assert table.decide(EXPERIMENT, "u").reason == "default:paused"
    table.set_experiment(EXPERIMENT, make_record(["a", "b"], revision=1))
    assert table.decide(EXPERIMENT, "u").reason == "default:paused", "an older definition was taken"


def test_a_stopped_arm_is_not_served_even_before_the_next_allocation(
    table: DecisionTable, make_allocation: MakeAllocation, make_record: MakeRecord
) -> None:
    table.set_allocation(EXPERIMENT, make_allocation({"a": 0.4, "b": 0.3, "c": 0.3}), 0)
    before = arms(table)
    table.set_experiment(EXPERIMENT, make_record(["a", "b", "c"], revision=2, stopped=["b"]))
    for unit_id in UNITS:
        decision = table.decide(EXPERIMENT, unit_id)
        if before[unit_id] == "b":
            assert (decision.arm_id, decision.reason) == ("a", "default:stopped_arm")
        else:
            assert (decision.arm_id, decision.reason) == (before[unit_id], "allocation")


def test_an_allocation_without_weights_gives_the_default(
    table: DecisionTable, make_allocation: MakeAllocation
) -> None:
    empty = make_allocation({"a": 0.5, "b": 0.5})
    arms_without = tuple(structs.replace(arm, assignment_weight=0.0) for arm in empty.arms)
    table.set_allocation(EXPERIMENT, structs.replace(empty, arms=arms_without), 0)
    assert table.decide(EXPERIMENT, "u").reason == "default:no_eligible_arm"


def test_sticky_interval_redraws_units_at_each_interval_and_sticky_unit_never(
    table: DecisionTable, make_allocation: MakeAllocation
) -> None:
    def next_arms(version: int, sticky: str) -> dict[str, str | None]:
        weights = {"a": 0.5, "b": 0.5}
        allocation = make_allocation(
            weights, version=version, sticky=sticky, interval_id=version, holdout=0.2, comparison=0.1
        )
        table.set_allocation(EXPERIMENT, allocation, 0)
        return arms(table)

    assert next_arms(1, "unit") == next_arms(2, "unit")
    third, fourth = next_arms(3, "interval"), next_arms(4, "interval")
    moved = [u for u in UNITS if third[u] != fourth[u]]
    assert 0.30 < len(moved) / len(UNITS) < 0.42  # half of the 72% outside both groups
    assert {u for u in UNITS if third[u] is None} == {u for u in UNITS if fourth[u] is None}


def test_a_segments_weights_are_used_for_its_units_and_named_in_the_decision(
    table: DecisionTable, make_allocation: MakeAllocation, make_record: MakeRecord
) -> None:
    counting = Counting(
        version=1,
        effective_from_ms=0,
        reward=Reward(metric="order"),
        features=(Feature(name="country", levels=("ch", "de")),),
    )
    table.set_experiment(EXPERIMENT, make_record(["a", "b"], versions=(counting,)))
    segments = {"country=ch": (0.1, 0.9), "country=other": (0.0, 1.0)}
    allocation = make_allocation({"a": 1.0, "b": 0.0}, holdout=0.5, segments=segments)
    table.set_allocation(EXPERIMENT, allocation, 0)
    swiss = [table.decide(EXPERIMENT, u, {"country": "ch"}) for u in UNITS]
    assert {d.segment for d in swiss} == {"country=ch"}
    assert {(d.arm_id, d.propensity) for d in swiss} == {("a", 0.55), ("b", 0.45)}
    german = [table.decide(EXPERIMENT, u, {"country": "de"}) for u in UNITS]  # no weights of its own
    assert {(d.arm_id, d.segment) for d in german} == {("a", "")}
    assert {table.decide(EXPERIMENT, u).segment for u in UNITS} == {"country=other"}


def test_200_000_units_follow_the_realised_weights(
    table: DecisionTable, make_allocation: MakeAllocation
) -> None:
    allocation = make_allocation({"a": 0.6, "b": 0.3, "c": 0.1}, comparison=0.1, holdout=0.2, control="c")
    table.set_allocation(EXPERIMENT, allocation, 0)
    observed: Counter[str | None] = Counter()
    shown = 0
    for i in range(200_000):
        decision = table.decide(EXPERIMENT, f"user-{i}")
        observed[decision.arm_id] += 1
        shown += decision.group == "bandit"
    expected = {arm.arm_id: arm.weight * 200_000 for arm in allocation.arms} | {None: 0.1 * 200_000}
    assert expected == pytest.approx({"a": 86_400, "b": 43_200, "c": 50_400, None: 20_000})
    p = chisquare([observed[k] for k in expected], list(expected.values())).pvalue
    assert p > 1e-4, (observed, expected)
    for arm in allocation.arms:  # the logged propensity is P(arm | bandit group)
        propensity = table.decide(EXPERIMENT, _unit_of(table, arm.arm_id)).propensity
        assert propensity == pytest.approx(arm.weight / 0.9, abs=1e-12)
        assert observed[arm.arm_id] / shown == pytest.approx(propensity, abs=0.005)


def _unit_of(table: DecisionTable, arm_id: str) -> str:
    return next(u for u in UNITS if table.decide(EXPERIMENT, u).arm_id == arm_id)


def fresh_table(allocation: Allocation) -> DecisionTable:
    table = DecisionTable(max_age_ms=MAX_AGE_MS, clock_ms=Clock())
    table.set_allocation(EXPERIMENT, allocation, 0)
    return table


@given(
    shares=st.lists(st.floats(0.0, 0.9), min_size=2, max_size=5).map(lambda s: sorted(s, reverse=True)),
    kind=st.sampled_from(["comparison", "holdout"]),
)
@settings(deadline=None, max_examples=20)
def test_groups_are_nested_as_their_share_shrinks(
    make_allocation: MakeAllocation, shares: list[float], kind: str
) -> None:
    members: set[str] | None = None
    for share in shares:
        table = fresh_table(make_allocation({"a": 0.5, "b": 0.5}, **{kind: share}))
        now = {u for u in UNITS[:300] if table.decide(EXPERIMENT, u).reason == kind}
        assert members is None or now <= members
        members = now


@given(
    weights=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=6),
    which=st.integers(0, 5),
    factor=st.floats(0.5, 2.0),
)
@settings(deadline=None, max_examples=40)
def test_only_units_from_or_to_the_changed_arm_move(
    make_allocation: MakeAllocation, weights: list[float], which: int, factor: float
) -> None:
    changed = f"arm-{which % len(weights)}"
    old = make_allocation({f"arm-{i}": w for i, w in enumerate(weights)})
    scaled = {f"arm-{i}": w * (factor if f"arm-{i}" == changed else 1.0) for i, w in enumerate(weights)}
    new = make_allocation(scaled)
    units = UNITS[:600]
    before, after = arms(fresh_table(old), units), arms(fresh_table(new), units)
    moved = [u for u in units if before[u] != after[u]]
    side = after if factor >= 1.0 else before
    assert all(side[u] == changed for u in moved)
    old_share = old.arms[which % len(weights)].weight
    new_share = new.arms[which % len(weights)].weight
    expected = abs(new_share - old_share)
    spread = (expected * (1 - expected) / len(units)) ** 0.5
    assert abs(len(moved) / len(units) - expected) <= 6 * spread + 2 / len(units)
