"""Shares: the formula, its bounds, and decimals that add up."""

import json
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit_core.policies import policy_from_definition
from bandit_core.policies.base import Evidence
from bandit_core.shares import ArmStatus, NoEligibleArm, Shares, ShareSettings, allocate_shares

A, N, S, D, P = (
    ArmStatus.ACTIVE,
    ArmStatus.INCUBATING,
    ArmStatus.STOPPED,
    ArmStatus.DROPPED,
    ArmStatus.PENDING,
)


def exact_sum(values: tuple[float, ...]) -> Decimal:
    return sum((Decimal(repr(value)) for value in values), Decimal(0))


def share(weights: list[float], statuses: list[ArmStatus], control: int | None = 0, **kw: float) -> Shares:
    return allocate_shares(weights, statuses=statuses, control=control, settings=ShareSettings(**kw))


def test_epsilon_greedy_with_a_comparison_group_of_a_tenth_and_three_arms() -> None:
    policy = policy_from_definition("epsilon_greedy")
    evidence = Evidence(np.ones((1, 3), dtype=bool), means=np.array([[0.05, 0.04, 0.03]]))
    chosen = policy.choose(evidence, np.random.default_rng(0))
    shares = share(chosen.weights[0].tolist(), [A, A, A], comparison=0.1)
    assert shares.weights == (0.81, 0.045, 0.045)
    assert json.dumps(shares.weights) == "[0.81, 0.045, 0.045]"
    assert exact_sum(shares.weights) + Decimal(repr(shares.comparison)) == 1
    assert shares.propensities() == (0.9, 0.05, 0.05)


def test_the_whole_formula_by_hand() -> None:
    shares = share([0.7, 0.2, 0.1], [A, A, A], control=1, comparison=0.1, holdout=0.2, floor=0.05)
    rest = [0.05 + 0.85 * w for w in (0.7, 0.2, 0.1)]
    assert shares.rest == pytest.approx(rest, abs=1e-12)
    want = [0.9 * (0.2 * (i == 1) + 0.8 * r) for i, r in enumerate(rest)]
    assert shares.weights == pytest.approx(want, abs=1e-12)


def test_floors_do_not_revive_stopped_dropped_or_pending_arms() -> None:
    shares = share([0.5, 0.3, 0.1, 0.1], [A, S, D, P], floor=0.1)
    assert shares.rest == (1.0, 0.0, 0.0, 0.0)
    shares = share([0.5, 0.3, 0.1, 0.1], [A, S, A, P], floor=0.1)
    assert shares.rest[1] == shares.rest[3] == 0.0
    assert shares.rest[0] == pytest.approx(0.1 + 0.8 * 5 / 6, abs=1e-12)


def test_no_holdout_on_a_stopped_control() -> None:
    shares = share([0.5, 0.5, 0.0], [S, A, A], control=0, holdout=0.3)
    assert shares.holdout == 0.0
    assert shares.weights == (0.0, 1.0, 0.0)


def test_incubating_arms_get_exactly_one_nth() -> None:
    shares = share([0.05, 0.90, 0.04, 0.01], [A, N, A, A], floor=0.02)
    assert shares.rest[1] == 0.25
    others = [0.02 + (1 - 0.25 - 0.06) * w / 0.10 for w in (0.05, 0.04, 0.01)]
    assert [shares.rest[i] for i in (0, 2, 3)] == pytest.approx(others, abs=1e-12)
    assert share([1, 0, 0], [N, N, N]).rest == pytest.approx([1 / 3] * 3, abs=1e-12)
    assert share([1, 0, 0], [A, A, N], incubation_share=0.1).rest == (0.9, 0.0, 0.1)


def test_all_zero_weights_share_equally() -> None:
    assert share([0, 0], [A, A]).rest == (0.5, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: share([1, 1, 1], [A, A, A], floor=0.34), "floor: 0.34 for each of 3 eligible arms"),
        (lambda: share([1, 1], [A, A], None, holdout=0.1), "holdout needs a control arm"),
        (lambda: share([1, -1], [A, A]), "finite and not negative"),
        (lambda: share([1, math.nan], [A, A]), "finite and not negative"),
        (lambda: share([1], [A, A]), r"shape \(1,\) does not match 2 arms"),
        (lambda: share([1, 1], [A, A], 2), "control: 2 is not the index"),
        (lambda: share([1, 1], [A, A], comparison=1.0), r"comparison: 1.0 is not in \[0, 1\)"),
        (lambda: share([1, 1], [A, A], holdout=-0.1), "holdout"),
        (lambda: share([1, 1], [A, A], floor=2.0), "floor"),
        (lambda: share([1, 1], [A, A], incubation_share=2.0), "incubation_share"),
        (lambda: share([1, 1, 1], [N, N, A], incubation_share=0.6), "incubation_share: 2 incubating arms"),
    ],
)
def test_contradictions_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]  # a lambda of the table


def test_nothing_eligible_is_its_own_error() -> None:
    with pytest.raises(NoEligibleArm, match="resume an arm or complete"):
        share([1, 1], [S, D])


@settings(deadline=None, max_examples=200)
@given(
    data=st.lists(
        st.tuples(st.floats(0, 1e6), st.sampled_from([A, A, A, N, S, D, P])), min_size=1, max_size=40
    ),
    comparison=st.floats(0, 0.9),
    holdout=st.floats(0, 1),
    relative_floor=st.floats(0, 1),
)
def test_decimals_add_up_and_floors_hold(
    data: list[tuple[float, ArmStatus]], comparison: float, holdout: float, relative_floor: float
) -> None:
    weights = [pair[0] for pair in data]
    statuses = [pair[1] for pair in data]
    n = sum(status.eligible for status in statuses)
    if n == 0:
        return
    floor = relative_floor / n
    shares = share(weights, statuses, comparison=comparison, holdout=holdout, floor=floor)
    assert exact_sum(shares.rest) == 1
    assert exact_sum(shares.weights) + Decimal(repr(shares.comparison)) == 1
    assert exact_sum(shares.propensities()) == 1
    for i, status in enumerate(statuses):
        if status.eligible:
            assert shares.rest[i] >= floor - 1e-11
        else:
            assert shares.rest[i] == shares.weights[i] == 0.0
    if statuses[0].eligible:
        assert shares.weights[0] >= (1 - comparison) * holdout - 1e-11
