"""Off-policy estimates: what another policy would have earned, from logged propensities.

Inverse propensity (IPS), self-normalised (SNIPS; Swaminathan and Joachims 2015, section 4) and doubly
robust estimates (Dudík, Langford and Li 2011, section 3), with intervals clustered by interval: decisions
of one interval share one allocation (and for one-draw policies one draw), so rows are not independent,
intervals nearly are (given the past). The propensity to use is the chance before any draw,
``selection_probability``.

Where the target would use an arm that the log never could, there is no overlap and no estimate:
:class:`NoOverlap`. Rows that agree in all but the reward may be given as one, with their number and the sum
of their rewards: every estimate and interval is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

__all__ = ["NoOverlap", "OffPolicyEstimate", "off_policy", "off_policy_difference"]

Array = NDArray[np.float64]

Method = Literal["ips", "snips", "dr"]


class NoOverlap(ValueError):
    """The log cannot answer: the target policy uses arms that had no chance of being logged."""


@dataclass(frozen=True, slots=True)
class OffPolicyEstimate:
    """Mean reward of the target policy.

    Attributes
    ----------
    estimate, low, high : float
    standard_error : float
        Clustered.
    effective_rows : float
        Kish's effective sample size of the weights.
    largest_weight : float
    n_rows, n_clusters : int
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    effective_rows: float
    largest_weight: float
    n_rows: int
    n_clusters: int


def off_policy(
    rewards: ArrayLike,
    propensities: ArrayLike,
    target_probabilities: ArrayLike,
    clusters: ArrayLike,
    *,
    sizes: ArrayLike | None = None,
    method: Method = "snips",
    predicted_logged: ArrayLike | None = None,
    predicted_target: ArrayLike | None = None,
    level: float = 0.95,
    min_propensity: float = 1e-6,
) -> OffPolicyEstimate:
    """Estimate a target policy's mean reward from logged decisions.

    Parameters
    ----------
    rewards : array_like, shape (n_rows,)
        Of each row; the sum where a row stands for several decisions.
    propensities : array_like, shape (n_rows,)
        Chance, before any draw, of the logged arm.
    target_probabilities : array_like, shape (n_rows,)
        The target policy's chance of the logged arm.
    clusters : array_like, shape (n_rows,)
        Interval of each row.
    sizes : array_like, shape (n_rows,), optional
        Decisions that each row stands for; default 1.
    method : {"ips", "snips", "dr"}
    predicted_logged, predicted_target : array_like, shape (n_rows,)
        For ``dr``: a model's reward of the logged arm, and its mean over the target's arms; fitted on other
        data or on earlier intervals.
    level : float
    min_propensity : float
        Rows below it, where the target has weight, mean that there is no overlap.

    Returns
    -------
    OffPolicyEstimate

    Raises
    ------
    NoOverlap
        A propensity is (next to) 0 where the target is not, or fewer than two clusters have weight.
    ValueError
        Shapes differ, or predictions are missing.
    """
    log = _Log.of(rewards, propensities, clusters, sizes)
    scored = _scored(log, target_probabilities, method, predicted_logged, predicted_target, min_propensity)
    return _estimate(log, scored, level)


def off_policy_difference(
    rewards: ArrayLike,
    propensities: ArrayLike,
    target_probabilities: tuple[ArrayLike, ArrayLike],
    clusters: ArrayLike,
    *,
    sizes: ArrayLike | None = None,
    level: float = 0.95,
    min_propensity: float = 1e-6,
) -> OffPolicyEstimate:
    """Estimate how much more one target policy would have earned than another, self-normalised.

    The two estimates come from the same rows, so their errors go together: the interval is that of the
    difference and not of two independent estimates.

    Parameters
    ----------
    rewards, propensities, clusters, sizes, level, min_propensity
        As in :func:`off_policy`.
    target_probabilities : pair of array_like, shape (n_rows,)
        Of the policy and of the one that is taken from it.

    Raises
    ------
    NoOverlap, ValueError
        As there.
    """
    log = _Log.of(rewards, propensities, clusters, sizes)
    one, other = (_scored(log, each, "snips", None, None, min_propensity) for each in target_probabilities)
    weight = np.maximum(one.weight, other.weight)
    return _estimate(
        log, _Scored(one.estimate - other.estimate, one.influence - other.influence, weight), level
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Log:
    rewards: Array
    propensities: Array
    labels: NDArray[np.generic]
    sizes: Array

    @classmethod
    def of(
        cls, rewards: ArrayLike, propensities: ArrayLike, clusters: ArrayLike, sizes: ArrayLike | None
    ) -> _Log:
        r, p = (np.asarray(array, dtype=np.float64) for array in (rewards, propensities))
        labels = np.asarray(clusters)
        n = np.ones_like(r) if sizes is None else np.asarray(sizes, dtype=np.float64)
        if not r.shape == p.shape == labels.shape == n.shape or r.ndim != 1 or len(r) == 0:
            raise ValueError("rewards, propensities, clusters and sizes: want one row each")
        return cls(r, p, labels, n)


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """An estimate with what each row adds to its error, and the rows' weights."""

    estimate: float
    influence: Array
    weight: Array


def _scored(
    log: _Log,
    target_probabilities: ArrayLike,
    method: str,
    predicted_logged: ArrayLike | None,
    predicted_target: ArrayLike | None,
    min_propensity: float,
) -> _Scored:
    p, q = log.propensities, np.asarray(target_probabilities, dtype=np.float64)
    if q.shape != p.shape:
        raise ValueError(f"target_probabilities: {q.shape} for {p.shape} rows; want one each")
    if ((p < min_propensity) & (q > 0.0)).any():
        row = int(np.argmax((p < min_propensity) & (q > 0.0)))
        raise NoOverlap(
            f"row {row}: the target would take an arm that the log took with chance {p[row]:.3g}; restrict "
            "the target to arms that had traffic"
        )
    weight = np.divide(q, p, out=np.zeros_like(q), where=q > 0.0)
    total, weighted = log.sizes.sum(), (weight * log.sizes).sum()
    if method == "ips":
        estimate = float((weight * log.rewards).sum() / total)
        influence = weight * log.rewards - log.sizes * estimate
    elif method == "snips":
        if not weighted > 0.0:
            raise NoOverlap("the target has no weight on any logged row")
        estimate = float((weight * log.rewards).sum() / weighted)
        influence = weight * (log.rewards - log.sizes * estimate) * (total / weighted)
    elif method == "dr":
        if predicted_logged is None or predicted_target is None:
            raise ValueError("dr: needs predicted_logged and predicted_target")
        logged, target = (
            np.asarray(predicted_logged, dtype=np.float64),
            np.asarray(predicted_target, dtype=np.float64),
        )
        score = log.sizes * target + weight * (log.rewards - log.sizes * logged)
        estimate = float(score.sum() / total)
        influence = score - log.sizes * estimate
    else:
        raise ValueError(f"method: {method!r} is not ips, snips or dr")
    return _Scored(estimate, influence, weight)


def _estimate(log: _Log, scored: _Scored, level: float) -> OffPolicyEstimate:
    _, index = np.unique(log.labels, return_inverse=True)
    n_clusters = int(index.max()) + 1
    if n_clusters < 2:
        raise NoOverlap("all rows are of one interval: no interval can be given")
    n_rows = log.sizes.sum()
    sums = np.bincount(index, weights=scored.influence, minlength=n_clusters)
    standard_error = float(np.sqrt((sums**2).sum() * n_clusters / (n_clusters - 1)) / n_rows)
    reach = float(stdtrit(n_clusters - 1, 0.5 + 0.5 * level)) * standard_error
    weight = scored.weight
    squares = float((weight**2 * log.sizes).sum())
    return OffPolicyEstimate(
        scored.estimate,
        scored.estimate - reach,
        scored.estimate + reach,
        standard_error,
        float((weight * log.sizes).sum() ** 2 / squares) if squares > 0.0 else 0.0,
        float(weight.max()),
        round(n_rows),
        n_clusters,
    )
