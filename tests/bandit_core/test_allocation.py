"""One recalculation, whole."""

import numpy as np
import pytest

from bandit_core.allocation import allocate
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
    arguments = {
        "trials": [1, 1],
        "successes": [0, 0],
        "control": 0,
        "settings": ShareSettings(),
        "rng": np.random.default_rng(0),
    }
    policy = policy_from_definition("uniform")
    with pytest.raises(NoEligibleArm):
        allocate(policy, posterior, statuses=[ArmStatus.STOPPED] * 2, **arguments)  # type: ignore[arg-type]  # shared
    with pytest.raises(ValueError, match="3 arms"):
        allocate(policy, posterior, statuses=[ArmStatus.ACTIVE] * 3, **arguments)  # type: ignore[arg-type]  # shared
