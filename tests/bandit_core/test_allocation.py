"""One recalculation, whole."""

from typing import Any

import numpy as np
import pytest

from bandit_core.allocation import allocate, allocate_segments
from bandit_core.policies import policy_from_definition
from bandit_core.posteriors import BetaPosterior
from bandit_core.shares import ArmStatus, NoEligibleArm, ShareSettings


def test_thompson_with_floor_comparison_and_a_stopped_arm() -> None:
    trials, successes = [1000, 1000, 1000], [50, 70, 90]
    got = allocate(
        policy_from_definition("thompson"),
        BetaPosterior.from_counts(trials, successes),
        trials=trials,
        successes=successes,
        statuses=[ArmStatus.ACTIVE, ArmStatus.ACTIVE, ArmStatus.STOPPED],
        control=0,
        settings=ShareSettings(comparison=0.1, floor=0.01),
        rng=np.random.default_rng(0),
    )
    first, second, third = got.arms
    assert first.probability_best is not None
    assert second.probability_best == pytest.approx(1 - first.probability_best, abs=1e-9)
    assert first.weight == pytest.approx(0.9 * (0.01 + 0.98 * first.probability_best), abs=1e-11)
    assert (third.weight, third.probability_best, third.expected_loss) == (0.0, None, None)
    assert third.mean == pytest.approx(91 / 1002)
    assert third.low < third.mean < third.high
    assert first.selection_probability == first.weight
    assert (first.trials, first.successes) == (1000.0, 50.0)


def test_nothing_eligible_and_wrong_shapes_are_refused() -> None:
    posterior = BetaPosterior.from_counts([1, 1], [0, 0])
    arguments: dict[str, Any] = {
        "trials": [1, 1],
        "successes": [0, 0],
        "control": 0,
        "settings": ShareSettings(),
        "rng": np.random.default_rng(0),
    }
    policy = policy_from_definition("uniform")
    with pytest.raises(NoEligibleArm):
        allocate(policy, posterior, statuses=[ArmStatus.STOPPED] * 2, **arguments)
    with pytest.raises(ValueError, match="3 arms"):
        allocate(policy, posterior, statuses=[ArmStatus.ACTIVE] * 3, **arguments)


def test_segments_have_their_own_shares_and_steps_are_limited() -> None:
    trials, successes = np.full((2, 2), 1000.0), np.array([[50.0, 90.0], [90.0, 50.0]])
    posterior = BetaPosterior.from_counts(trials, successes)
    common: dict[str, Any] = {
        "statuses": [ArmStatus.ACTIVE] * 2,
        "control": 0,
        "settings": ShareSettings(),
        "rng": np.random.default_rng(0),
        "trials": trials,
        "successes": successes,
    }
    policy = policy_from_definition("thompson")
    free = allocate_segments(policy, posterior, **common)
    assert free[0].shares.rest[1] > 0.99
    assert free[1].shares.rest[0] > 0.99
    held = allocate_segments(
        policy,
        posterior,
        **common,
        max_step=0.1,
        previous=[[0.5, 0.5], [0.5, 0.5]],
    )
    assert held[0].shares.rest == pytest.approx((0.4, 0.6))
    assert held[1].shares.rest == pytest.approx((0.6, 0.4))
    one = BetaPosterior.from_counts(trials[0], successes[0])
    arguments: dict[str, Any] = {**common, "trials": trials[0], "successes": successes[0]}
    single = allocate(policy, one, **arguments)
    assert single == free[0]
    with pytest.raises(ValueError, match="2 experiments, want one"):
        allocate(policy, posterior, **arguments)
    with pytest.raises(ValueError, match="trials and successes"):
        allocate_segments(policy, posterior, **arguments)


def test_a_draw_keeps_its_selection_probability() -> None:
    posterior = BetaPosterior.from_counts([1000, 1000], [50, 55])
    got = allocate(
        policy_from_definition("thompson_draw"),
        posterior,
        trials=[1000, 1000],
        successes=[50, 55],
        statuses=[ArmStatus.ACTIVE] * 2,
        control=0,
        settings=ShareSettings(comparison=0.1),
        rng=np.random.default_rng(3),
    )
    assert sorted(arm.weight for arm in got.arms) == [0.0, 0.9]
    for arm in got.arms:
        assert arm.probability_best is not None
        assert arm.selection_probability == pytest.approx(0.9 * arm.probability_best, abs=1e-11)
