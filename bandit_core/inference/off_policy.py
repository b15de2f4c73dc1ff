"""Off-policy estimates: what another policy would have earned, from logged propensities.

Inverse propensity (IPS), self-normalised (SNIPS; Swaminathan and Joachims 2015, section 4) and doubly
robust estimates (Dudík, Langford and Li 2011, section 3), with intervals clustered by interval: decisions
of one interval share one allocation (and for one-draw policies one draw), so rows are not independent,
intervals nearly are (given the past). The propensity to use is the chance before any draw,
``selection_probability``.

Where the target would use an arm that the log never could, there is no overlap and no estimate:
:class:`NoOverlap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

__all__ = ["NoOverlap", "OffPolicyEstimate", "off_policy"]

Array = NDArray[np.float64]


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
    method: Literal["ips", "snips", "dr"] = "snips",
    predicted_logged: ArrayLike | None = None,
    predicted_target: ArrayLike | None = None,
    level: float = 0.95,
    min_propensity: float = 1e-6,
) -> OffPolicyEstimate:
    """Estimate a target policy's mean reward from logged decisions.

    Parameters
    ----------
    rewards : array_like, shape (n_rows,)
    propensities : array_like, shape (n_rows,)
        Chance, before any draw, of the logged arm.
    target_probabilities : array_like, shape (n_rows,)
        The target policy's chance of the logged arm.
    clusters : array_like, shape (n_rows,)
        Interval of each row.
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
    r, p, q = (np.asarray(array, dtype=np.float64) for array in (rewards, propensities, target_probabilities))
    labels = np.asarray(clusters)
    if not r.shape == p.shape == q.shape == labels.shape or r.ndim != 1 or len(r) == 0:
        raise ValueError("rewards, propensities, target_probabilities and clusters: want one row each")
    if ((p < min_propensity) & (q > 0.0)).any():
        row = int(np.argmax((p < min_propensity) & (q > 0.0)))
        raise NoOverlap(
            f"row {row}: the target would take an arm that the log took with chance {p[row]:.3g}; restrict "
            "the target to arms that had traffic"
        )
    weight = np.divide(q, p, out=np.zeros_like(q), where=q > 0.0)
    if method == "ips":
        estimate = float((weight * r).mean())
        influence = weight * r - estimate
    elif method == "snips":
        if not weight.sum() > 0.0:
            raise NoOverlap("the target has no weight on any logged row")
        estimate = float((weight * r).sum() / weight.sum())
        influence = weight * (r - estimate) / weight.mean()
    elif method == "dr":
        if predicted_logged is None or predicted_target is None:
            raise ValueError("dr: needs predicted_logged and predicted_target")
        logged, target = (
            np.asarray(predicted_logged, dtype=np.float64),
            np.asarray(predicted_target, dtype=np.float64),
        )
        score = target + weight * (r - logged)
        estimate = float(score.mean())
        influence = score - estimate
    else:
        raise ValueError(f"method: {method!r} is not ips, snips or dr")
    _, index = np.unique(labels, return_inverse=True)
    n_clusters = int(index.max()) + 1
    if n_clusters < 2:
        raise NoOverlap("all rows are of one interval: no interval can be given")
    sums = np.bincount(index, weights=influence, minlength=n_clusters)
    standard_error = float(np.sqrt((sums**2).sum() * n_clusters / (n_clusters - 1)) / len(r))
    reach = float(stdtrit(n_clusters - 1, 0.5 + 0.5 * level)) * standard_error
    squares = float((weight**2).sum())
    return OffPolicyEstimate(
        estimate,
        estimate - reach,
        estimate + reach,
        standard_error,
        float(weight.sum() ** 2 / squares) if squares > 0.0 else 0.0,
        float(weight.max()),
        len(r),
        n_clusters,
    )
