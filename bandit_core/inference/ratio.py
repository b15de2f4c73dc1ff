"""Sample-ratio mismatch: are units seen in the proportions that were logged? One test, valid at every look.

For each arm and each of a few factors ``r`` the alternative is that the arm's units arrive ``r`` times as
often as they should (exposures of one arm lost or doubled). Its likelihood ratio against the logged
propensities, ``Π_t r^{n_ti} / (1 + p_ti (r - 1))^{n_t}``, is a martingale if the propensities are right,
however they change; so is the average over arms and factors, which exceeds ``1 / α`` ever with probability
at most ``α`` (Ville's inequality). Sources: Lindon and Malek 2022, "Anytime-valid inference for multinomial
count data", section 3; Ville 1939. Nothing is asymptotic here.

Assumes: one trial per unit (the reporting view): a sticky unit's visitor-hours all fall on one arm, and a
test that takes them for independent alarms in 61% of runs without a fault.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RatioTest", "sample_ratio_test"]

Array = NDArray[np.float64]

_LOG_FACTORS = np.array([0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.4, 1.0])


@dataclass(frozen=True, slots=True, eq=False)
class RatioTest:
    """Result over time; arrays (n_periods, ...).

    Attributes
    ----------
    log_evidence : ndarray
        Logarithm of the evidence against the logged propensities.
    p_value : ndarray
        Valid at all times: smallest so far of 1 / evidence, at most 1.
    alarm : ndarray of bool
        Whether there was ever enough evidence.
    suspect : ndarray of int, shape (...)
        Arm with most evidence now.
    suspect_factor : ndarray, shape (...)
        Its units over those expected: 0.99 is a loss of 1%.
    """

    log_evidence: Array
    p_value: Array
    alarm: NDArray[np.bool_]
    suspect: NDArray[np.intp]
    suspect_factor: Array


def sample_ratio_test(trials: ArrayLike, propensities: ArrayLike, *, alpha: float = 0.001) -> RatioTest:
    """Test counts of units against logged propensities.

    Parameters
    ----------
    trials : array_like, shape (n_periods, ..., n_arms)
        Units first seen in each period, per arm.
    propensities : array_like, same shape
        P(arm) of each period's units as logged before they came; rows sum to 1. Arms with propensity 0 must
        have no units.
    alpha : float
        Chance of a false alarm, ever.

    Returns
    -------
    RatioTest

    Raises
    ------
    ValueError
        Shapes differ, propensities do not sum to 1, or an arm has units at propensity 0 (itself a mismatch).
    """
    n = np.asarray(trials, dtype=np.float64)
    p = np.broadcast_to(np.asarray(propensities, dtype=np.float64), n.shape)
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha: {alpha!r} is not in (0, 1)")
    if n.ndim < 2 or (np.abs(p.sum(axis=-1) - 1.0) > 1e-6).any():
        raise ValueError("propensities: want (n_periods, ..., n_arms) with rows that sum to 1")
    if ((p <= 0.0) & (n > 0.0)).any():
        where = np.argwhere((p <= 0.0) & (n > 0.0))[0].tolist()
        raise ValueError(
            f"trials at {where} for an arm whose logged propensity is 0: exposures and log disagree"
        )
    n_arms = n.shape[-1]
    total = n.sum(axis=-1, keepdims=True)
    log_evidence = np.full(n.shape[:-1], -np.inf)
    for log_r in np.concatenate([-_LOG_FACTORS, _LOG_FACTORS]):
        gain = n * log_r - total * np.log1p(p * np.expm1(log_r))
        log_evidence = np.logaddexp(
            log_evidence, np.logaddexp.reduce(np.add.accumulate(gain, axis=0), axis=-1)
        )
    log_evidence = log_evidence - np.log(2.0 * len(_LOG_FACTORS) * n_arms)
    highest = np.maximum.accumulate(log_evidence, axis=0)
    expected = (total * p).sum(axis=0)
    ratio = np.divide(n.sum(axis=0), expected, out=np.ones_like(expected), where=expected > 0.0)
    spread = np.sqrt(np.maximum((total * p * (1.0 - p)).sum(axis=0), 1e-300))
    suspect = np.argmax(np.abs(n.sum(axis=0) - expected) / spread, axis=-1)
    factor = np.take_along_axis(ratio, np.asarray(suspect)[..., None], axis=-1)[..., 0]
    return RatioTest(
        log_evidence,
        np.exp(-np.maximum(highest, 0.0)),
        highest >= -np.log(alpha),
        np.asarray(suspect),
        factor,
    )
