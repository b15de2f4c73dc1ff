"""Period stratification: arms compared within periods, so that a changing allocation cannot fake a lift.

Pooling counts over periods mixes the arms' rates with when they had traffic (Simpson's paradox): with rates
rising from 5% to 10% and the split moving from 50/50 to 90/10 two equal arms show a lift of tens of
percent. Here each arm's rate is the average of its period rates with weights common to all arms (direct
standardisation; Rothman, Greenland and Lash 2008, "Modern epidemiology" 3rd ed., chapter 15). The weights
are the periods' Mantel-Haenszel ones, ``1 / Σ_arms 1 / n``: a period counts for as much as its thinnest arm
lets it.

Cost: O(n_periods * n_arms).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Stratified", "stratify"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Stratified:
    """Standardised rates; arrays (n_arms,).

    Attributes
    ----------
    rates, variances : ndarray
        Standardised rate and its sampling variance; NaN for arms that are not compared.
    trials, successes : ndarray
        Effective counts: a binomial sample with this rate and variance.
    n_common : int
        Periods in which every compared arm had trials.
    n_left_out : int
        Periods with traffic that could not be used.
    warnings : tuple of str
    """

    rates: Array
    variances: Array
    trials: Array
    successes: Array
    n_common: int
    n_left_out: int
    warnings: tuple[str, ...]


def stratify(trials: ArrayLike, successes: ArrayLike, *, compared: ArrayLike | None = None) -> Stratified:
    """Standardise the arms' rates over the periods that all of them share.

    Parameters
    ----------
    trials, successes : array_like, shape (n_periods, n_arms)
        May be fractional (effective or discounted).
    compared : array_like of bool, shape (n_arms,), optional
        Arms that must be present in a period for it to count; default: those with any trials.

    Returns
    -------
    Stratified
        With no common period: effective trials of 0 and a warning.
    """
    n, s = np.asarray(trials, dtype=np.float64), np.asarray(successes, dtype=np.float64)
    if n.ndim != 2 or n.shape != s.shape:
        raise ValueError(f"trials {n.shape} and successes {s.shape}: want the same (n_periods, n_arms)")
    mask = n.sum(axis=0) > 0 if compared is None else np.asarray(compared, dtype=bool)
    n_arms = n.shape[1]
    rates, variances = np.full(n_arms, np.nan), np.full(n_arms, np.nan)
    eff_trials, eff_successes = np.zeros(n_arms), np.zeros(n_arms)
    active = (n[:, mask] > 0).any(axis=1)
    common = (n[:, mask] > 0).all(axis=1) & active
    n_left_out = int((active & ~common).sum())
    warnings: list[str] = []
    if n_left_out:
        absent = [int(i) for i in np.flatnonzero(mask) if (n[active, i] <= 0).any()]
        warnings.append(
            f"arms {absent} are absent from some of {int(active.sum())} periods: rates are compared over the "
            f"{int(common.sum())} periods that all arms share"
        )
    if common.any():
        m, t = n[common][:, mask], s[common][:, mask]
        weight = 1.0 / (1.0 / m).sum(axis=1, keepdims=True)
        weight = weight / weight.sum()
        rate = (weight * (t / m)).sum(axis=0)
        pooled = t.sum() / m.sum()
        # A period's variance comes from its rate over all arms, drawn a little to the whole: single cells are
        # often 0 of few, which would look like certainty.
        period = (t.sum(axis=1, keepdims=True) + pooled) / (m.sum(axis=1, keepdims=True) + 1.0)
        variance = (weight**2 * period * (1.0 - period) / m).sum(axis=0)
        level = float((weight * period * (1.0 - period)).sum())
        rates[mask], variances[mask] = rate, variance
        eff_trials[mask] = np.divide(level, variance, out=np.zeros_like(variance), where=variance > 0.0)
        # No information was made: a stratified sample is worth at most its trials.
        eff_trials[mask] = np.minimum(eff_trials[mask], m.sum(axis=0)) if level > 0.0 else m.sum(axis=0)
        eff_successes[mask] = np.minimum(rate, 1.0) * eff_trials[mask]
    return Stratified(
        rates, variances, eff_trials, eff_successes, int(common.sum()), n_left_out, tuple(warnings)
    )
