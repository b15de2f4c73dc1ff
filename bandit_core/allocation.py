"""One recalculation of one experiment: posterior and policy in, shares and figures per arm out.

Pure: the same inputs, and a generator in the same state, give the same bytes. Cost: one P(best) by
quadrature (about 0.2 ms an experiment in batches, a few ms alone) and the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bandit_core.policies.base import Policy, gather
from bandit_core.posteriors.base import Posterior
from bandit_core.shares import ArmStatus, Shares, ShareSettings, allocate_shares

__all__ = ["Allocation", "ArmFigures", "allocate"]


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """One arm of an allocation. Figures of the posterior are None for arms that are not eligible.

    Attributes
    ----------
    weight : float
        Realised share of all units.
    selection_probability : float
        Expected share before the policy's draw; equals ``weight`` for policies that draw nothing.
    probability_best : float or None
    expected_loss : float or None
    mean, low, high : float
        Posterior mean and equal-tailed credible interval.
    trials, successes : float
        As given.
    status : ArmStatus
    """

    weight: float
    selection_probability: float
    probability_best: float | None
    expected_loss: float | None
    mean: float
    low: float
    high: float
    trials: float
    successes: float
    status: ArmStatus


@dataclass(frozen=True, slots=True)
class Allocation:
    """Shares of an experiment and the figures behind them, arms in the order given."""

    shares: Shares
    arms: tuple[ArmFigures, ...]


def allocate(
    policy: Policy,
    posterior: Posterior,
    *,
    trials: ArrayLike,
    successes: ArrayLike,
    statuses: Sequence[ArmStatus],
    control: int | None,
    settings: ShareSettings,
    rng: np.random.Generator,
    lower_is_better: bool = False,
    level: float = 0.95,
) -> Allocation:
    """Recalculate one experiment.

    Parameters
    ----------
    policy : Policy
    posterior : Posterior
        Of one experiment: shape (1, n_arms).
    trials, successes : array_like, shape (n_arms,)
        Counts to be shown; the posterior already holds them.
    statuses : sequence of ArmStatus, length n_arms
    control : int or None
        Index of the control arm.
    settings : ShareSettings
    rng : numpy.random.Generator
        Used by policies that draw.
    lower_is_better : bool
    level : float
        Of the credible intervals.

    Raises
    ------
    NoEligibleArm
        No arm is incubating or active.
    ValueError
        The posterior is not of one experiment with as many arms as statuses, or shares contradict each other.
    """
    n_arms = len(statuses)
    if posterior.shape != (1, n_arms):
        raise ValueError(f"posterior: shape {posterior.shape} for one experiment with {n_arms} arms")
    eligible = np.array([[ArmStatus(status).eligible for status in statuses]], dtype=bool)
    if not eligible.any():
        # Raises with the message that tells what to do.
        allocate_shares(np.zeros(n_arms), statuses=statuses, control=control, settings=settings)
    best = posterior.best(eligible=eligible, lower_is_better=lower_is_better)
    evidence = gather(
        policy.needs,
        posterior,
        eligible,
        lower_is_better=lower_is_better,
        probability_best=best.probability,
    )
    chosen = policy.choose(evidence, rng)
    shares = allocate_shares(chosen.weights[0], statuses=statuses, control=control, settings=settings)
    expected = shares
    if chosen.selection_probability is not chosen.weights:
        expected = allocate_shares(
            chosen.selection_probability[0], statuses=statuses, control=control, settings=settings
        )
    mean = posterior.mean()[0]
    low, high = (bound[0] for bound in posterior.credible_interval(level))
    shown_trials = np.asarray(trials, dtype=np.float64)
    shown_successes = np.asarray(successes, dtype=np.float64)
    arms = tuple(
        ArmFigures(
            weight=shares.weights[i],
            selection_probability=expected.weights[i],
            probability_best=float(best.probability[0, i]) if eligible[0, i] else None,
            expected_loss=float(best.expected_loss[0, i]) if eligible[0, i] else None,
            mean=float(mean[i]),
            low=float(low[i]),
            high=float(high[i]),
            trials=float(shown_trials[i]),
            successes=float(shown_successes[i]),
            status=ArmStatus(statuses[i]),
        )
        for i in range(n_arms)
    )
    return Allocation(shares, arms)
