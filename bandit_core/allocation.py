"""One recalculation of one experiment: posterior and policy in, shares and figures per arm out.

Pure: the same inputs, and a generator in the same state, give the same bytes. Cost: one P(best) by
quadrature (about 0.2 ms an experiment in batches, a few ms alone) and the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bandit_core.lifecycle import limit_step
from bandit_core.policies.base import Policy, gather
from bandit_core.posteriors.base import Posterior
from bandit_core.shares import ArmStatus, Shares, ShareSettings, allocate_shares

__all__ = ["Allocation", "ArmFigures", "allocate", "allocate_segments"]


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
    max_step: float | None = None,
    previous: ArrayLike | None = None,
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
    max_step : float, optional
        Largest change of an arm's weight since ``previous``, before floors and groups.
    previous : array_like, shape (n_arms,), optional
        Weights of the last interval (its shares' ``rest``).

    Raises
    ------
    NoEligibleArm
        No arm is incubating or active.
    ValueError
        The posterior is not of one experiment with as many arms as statuses, or shares contradict each other.
    """
    if posterior.shape[0] != 1:
        raise ValueError(
            f"posterior: shape {posterior.shape} is of {posterior.shape[0]} experiments, want one"
        )
    (only,) = allocate_segments(
        policy,
        posterior,
        trials=np.asarray(trials, dtype=np.float64)[None],
        successes=np.asarray(successes, dtype=np.float64)[None],
        statuses=statuses,
        control=control,
        settings=settings,
        rng=rng,
        lower_is_better=lower_is_better,
        level=level,
        max_step=max_step,
        previous=None if previous is None else np.asarray(previous, dtype=np.float64)[None],
    )
    return only


def allocate_segments(
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
    max_step: float | None = None,
    previous: ArrayLike | None = None,
) -> tuple[Allocation, ...]:
    """Recalculate one experiment with an allocation for each segment.

    Parameters
    ----------
    posterior : Posterior
        Shape (n_segments, n_arms), e.g. a :class:`bandit_core.contextual.ContextualPosterior`.
    trials, successes : array_like, shape (n_segments, n_arms)
    previous : array_like, shape (n_segments, n_arms), optional
    policy, statuses, control, settings, rng, lower_is_better, level, max_step
        As in :func:`allocate`.

    Returns
    -------
    tuple of Allocation
        In the order of the segments.
    """
    n_segments, n_arms = posterior.shape
    if n_arms != len(statuses):
        raise ValueError(f"posterior: shape {posterior.shape} for an experiment with {len(statuses)} arms")
    shown_trials, shown_successes = (
        np.asarray(trials, dtype=np.float64),
        np.asarray(successes, dtype=np.float64),
    )
    if shown_trials.shape != posterior.shape or shown_successes.shape != posterior.shape:
        raise ValueError(f"trials and successes: want the posterior's shape {posterior.shape}")
    live = np.array([ArmStatus(status).eligible for status in statuses], dtype=bool)
    if not live.any():
        # Raises with the message that tells what to do.
        allocate_shares(np.zeros(n_arms), statuses=statuses, control=control, settings=settings)
    eligible = np.tile(live, (n_segments, 1))
    best = posterior.best(eligible=eligible, lower_is_better=lower_is_better)
    evidence = gather(
        policy.needs, posterior, eligible, lower_is_better=lower_is_better, probability_best=best.probability
    )
    chosen = policy.choose(evidence, rng)
    drawn = chosen.selection_probability is not chosen.weights
    before = None if previous is None else np.asarray(previous, dtype=np.float64)
    mean = posterior.mean()
    low, high = posterior.credible_interval(level)
    result = []
    for k in range(n_segments):
        realised = []
        for weights in (
            (chosen.weights[k], chosen.selection_probability[k]) if drawn else (chosen.weights[k],)
        ):
            limited = weights
            if max_step is not None and before is not None:
                limited = limit_step(before[k], weights, max_step, eligible=live)
            realised.append(allocate_shares(limited, statuses=statuses, control=control, settings=settings))
        shares, expected = realised[0], realised[-1]
        arms = tuple(
            ArmFigures(
                weight=shares.weights[i],
                selection_probability=expected.weights[i],
                probability_best=float(best.probability[k, i]) if live[i] else None,
                expected_loss=float(best.expected_loss[k, i]) if live[i] else None,
                mean=float(mean[k, i]),
                low=float(low[k, i]),
                high=float(high[k, i]),
                trials=float(shown_trials[k, i]),
                successes=float(shown_successes[k, i]),
                status=ArmStatus(statuses[i]),
            )
            for i in range(n_arms)
        )
        result.append(Allocation(shares, arms))
    return tuple(result)
