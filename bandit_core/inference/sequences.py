"""Confidence sequences: intervals that hold at all times at once, so that looking is free.

What: for two arms (or groups) with ``n_t`` trials a period, ``d_t`` the difference of their period rates and
``λ_t = 1 / (1/n_ta + 1/n_tb)``, the sum ``Σ λ_t (d_t - δ_t)`` is a martingale whatever rule chose the
allocations from the past, and whatever the rates do over time. With probability ``1 - α`` it stays within
``sqrt((V + ρ) ln((V + ρ) / (ρ α²)))`` for ever, ``V = Σ λ_t p_t (1 - p_t)``. So
``Σ λ_t d_t / Σ λ_t`` estimates the average effect over the periods, weighted by ``λ``; drift and day/night
cancel because arms are compared within periods.

Sources: Robbins 1970, "Statistical methods related to the law of the iterated logarithm", section 3 (normal
mixture); Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence
sequences", equation 14 and proposition 3; Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024,
"Time-uniform central limit theory and asymptotic confidence sequences", section 2 (estimated variances;
asymptotic validity).

Assumes: one trial per unit (the reporting view), allocation within a period by hash alone, and finished
trials: pass only periods older than the conversion window, so that arms of different delay are compared
when both are complete.

Cost: O(n_periods) for any number of runs at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import lambertw

__all__ = [
    "Sequence",
    "check_alpha",
    "difference_sequence",
    "harmful_arms",
    "lift_bounds",
    "lift_sequence",
    "rest_increments",
    "trailing_arms",
]

Array = NDArray[np.float64]

_BISECTIONS = 60


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """A confidence sequence; arrays (n_periods, ...), the last entry is now.

    Attributes
    ----------
    estimate, low, high : ndarray
        NaN, -inf, inf before there is anything to compare.
    information : ndarray
        ``V``: grows with trials in both arms.
    """

    estimate: Array
    low: Array
    high: Array
    information: Array


def _mixture_rho(target_information: float, alpha: float) -> float:
    """Mixture variance with narrowest intervals at an information (Howard et al. 2021, proposition 3)."""
    root = float(np.real(lambertw(-(alpha**2) / np.e, k=-1)))
    return target_information / (-root - 1.0)


def _boundary(information: Array, alpha: float, rho: float) -> Array:
    total = information + rho
    boundary: Array = np.sqrt(total * np.log(total / (rho * alpha * alpha)))
    return boundary


def _checked(*arrays: ArrayLike) -> tuple[Array, ...]:
    result = tuple(np.asarray(array, dtype=np.float64) for array in arrays)
    if any(array.shape != result[0].shape for array in result) or result[0].ndim < 1:
        raise ValueError(
            f"want arrays of one shape (n_periods, ...), not {[array.shape for array in result]}"
        )
    return result


def check_alpha(alpha: float) -> None:
    """Refuse what is no level, with a ValueError."""
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha: {alpha!r} is not in (0, 1)")


def _parts(
    trials_a: Array,
    sums_a: Array,
    trials_b: Array,
    sums_b: Array,
    squares: tuple[Array, Array] | None,
    ratio: float,
) -> tuple[Array, Array, Array]:
    """Per period: weight λ, contrast ``a - ratio * b``, and λ² times its variance."""
    both = (trials_a > 0.0) & (trials_b > 0.0)
    n_a, n_b = np.where(both, trials_a, 1.0), np.where(both, trials_b, 1.0)
    weight = np.where(both, n_a * n_b / (n_a + n_b), 0.0)
    contrast = np.where(both, sums_a / n_a - ratio * sums_b / n_b, 0.0)
    if squares is None:
        # Common variance, as under equality, from both arms; a touch of the whole keeps empty cells from
        # certainty.
        base = np.add.accumulate(np.where(both, sums_a + sums_b, 0.0), axis=0)
        size = np.add.accumulate(np.where(both, trials_a + trials_b, 0.0), axis=0)
        overall = np.divide(base + 0.5, size + 1.0)
        rate = (np.where(both, sums_a + sums_b, 0.0) + overall) / (np.where(both, n_a + n_b, 0.0) + 1.0)
        single_a = single_b = rate * (1.0 - rate)
    else:
        mean_a, mean_b = sums_a / n_a, sums_b / n_b
        single_a = np.maximum(squares[0] / n_a - mean_a**2, 0.0) * n_a / np.maximum(n_a - 1.0, 1.0)
        single_b = np.maximum(squares[1] / n_b - mean_b**2, 0.0) * n_b / np.maximum(n_b - 1.0, 1.0)
    variance = weight**2 * (single_a / n_a + ratio**2 * single_b / n_b)
    return weight, contrast, np.where(both, variance, 0.0)


def difference_sequence(
    trials_a: ArrayLike,
    successes_a: ArrayLike,
    trials_b: ArrayLike,
    successes_b: ArrayLike,
    *,
    alpha: float = 0.05,
    target_information: float = 500.0,
    squares: tuple[ArrayLike, ArrayLike] | None = None,
) -> Sequence:
    """Difference of two arms' rates or means, ``a - b``, at every period.

    Parameters
    ----------
    trials_a, successes_a, trials_b, successes_b : array_like, shape (n_periods, ...)
        Per period; further axes are independent runs.
    alpha : float
        1 - confidence, over all times together.
    target_information : float
        Where intervals are narrowest, in expected successes (twice weighted: ``V``); to be fixed beforehand.
    squares : pair of array_like, optional
        Sums of squares for values; default rates.

    Returns
    -------
    Sequence
    """
    check_alpha(alpha)
    n_a, s_a, n_b, s_b = _checked(trials_a, successes_a, trials_b, successes_b)
    q = (
        None
        if squares is None
        else (np.asarray(squares[0], dtype=np.float64), np.asarray(squares[1], dtype=np.float64))
    )
    weight, contrast, variance = _parts(n_a, s_a, n_b, s_b, q, 1.0)
    total = np.add.accumulate(weight, axis=0)
    information = np.add.accumulate(variance, axis=0)
    summed = np.add.accumulate(weight * contrast, axis=0)
    some = total > 0.0
    safe = np.where(some, total, 1.0)
    reach = _boundary(information, alpha, _mixture_rho(target_information, alpha)) / safe
    estimate = np.where(some, summed / safe, np.nan)
    return Sequence(
        estimate,
        np.where(some, estimate - reach, -np.inf),
        np.where(some, estimate + reach, np.inf),
        information,
    )


def lift_bounds(
    outside: Callable[[Array], NDArray[np.bool_]], centre: Array, usable: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Invert a test of ``a = ratio * b`` to bounds of the lift; -1 and inf where nothing is excluded there.

    Parameters
    ----------
    outside : callable
        Whether logarithms of ratios are excluded.
    centre : ndarray
        Logarithm of the ratio estimated.
    usable : ndarray of bool
        Where there is such a ratio.
    """
    bounds = []
    for side in (-1.0, 1.0):
        inner, outer = centre.copy(), centre + side * 20.0
        open_end = ~outside(outer) | ~usable
        for _ in range(_BISECTIONS):
            middle = 0.5 * (inner + outer)
            out = outside(middle)
            outer = np.where(out, middle, outer)
            inner = np.where(out, inner, middle)
        bounds.append(np.where(open_end, -1.0 if side < 0 else np.inf, np.expm1(outer)))
    return bounds[0], bounds[1]


def lift_sequence(
    trials_a: ArrayLike,
    successes_a: ArrayLike,
    trials_b: ArrayLike,
    successes_b: ArrayLike,
    *,
    alpha: float = 0.05,
    target_information: float = 500.0,
) -> Sequence:
    """Relative lift ``a / b - 1`` at the last period, by inverting the sequence of ``a - (1 + lift) b``.

    Parameters
    ----------
    trials_a, successes_a, trials_b, successes_b : array_like, shape (n_periods, ...)
    alpha, target_information : float
        As in :func:`difference_sequence`.

    Returns
    -------
    Sequence
        With arrays of one period, (1, ...); bounds -1 and inf where the data exclude nothing there.
    """
    check_alpha(alpha)
    n_a, s_a, n_b, s_b = _checked(trials_a, successes_a, trials_b, successes_b)
    both = (n_a > 0.0) & (n_b > 0.0)
    weight = np.where(both, n_a * n_b / np.where(both, n_a + n_b, 1.0), 0.0)
    mean_a = (weight * np.divide(s_a, n_a, out=np.zeros_like(s_a), where=both)).sum(axis=0)
    mean_b = (weight * np.divide(s_b, n_b, out=np.zeros_like(s_b), where=both)).sum(axis=0)
    # The arms' rates as multiples of the periods' common rate: the variance under a lift is not the pooled
    # one.
    rate = np.clip((s_a + s_b + 0.01) / (n_a + n_b + 1.0), 0.0, 1.0)
    common = (weight * rate).sum(axis=0)
    safe_common = np.where(common > 0.0, common, 1.0)
    variances = []
    for size, mean in ((n_a, mean_a), (n_b, mean_b)):
        own = np.clip(rate * (mean / safe_common), 0.0, 1.0)
        single = np.where(both, weight**2 * own * (1.0 - own) / np.where(both, size, 1.0), 0.0)
        variances.append(single.sum(axis=0))
    variance_a, variance_b = variances
    rho = _mixture_rho(target_information, alpha)

    def outside(log_ratio: Array) -> NDArray[np.bool_]:
        ratio = np.exp(log_ratio)
        # Any scale fixed for a ratio is valid; this one keeps the information comparable over ratios.
        scale = np.maximum(ratio, 1.0)
        excess = np.abs(mean_a - ratio * mean_b) / scale
        information = (variance_a + ratio**2 * variance_b) / scale**2
        beyond: NDArray[np.bool_] = excess > _boundary(information, alpha, rho)
        return beyond

    centre = np.log(np.maximum(mean_a, 1e-300)) - np.log(np.maximum(mean_b, 1e-300))
    usable = (mean_a > 0.0) & (mean_b > 0.0)
    centre = np.where(usable, centre, 0.0)
    low, high = lift_bounds(outside, centre, usable)
    estimate = np.where(usable, np.expm1(centre), np.nan)
    return Sequence(
        np.asarray(estimate)[None],
        low[None],
        high[None],
        np.asarray(variance_a + variance_b)[None],
    )


def harmful_arms(
    trials: ArrayLike,
    successes: ArrayLike,
    *,
    control: int,
    margin: float = 0.0,
    alpha: float = 0.05,
    higher_is_harm: bool = False,
    target_information: float = 500.0,
) -> NDArray[np.bool_]:
    """Guardrail: arms whose harm against control exceeds the margin, with a bound that holds at all times.

    Parameters
    ----------
    trials, successes : array_like, shape (n_periods, ..., n_arms)
        Of the guardrail metric.
    control : int
    margin : float
        Relative harm that is tolerated: 0.1 stops arms that lose more than a tenth of control's rate.
    alpha : float
        Chance that any arm without such harm is ever stopped (over all arms and times).
    higher_is_harm : bool
        Whether the metric is better when lower.
    target_information : float

    Returns
    -------
    ndarray of bool, shape (..., n_arms)
        Now; never control.
    """
    check_alpha(alpha)
    if margin < 0.0:
        raise ValueError(f"margin: {margin!r} is negative")
    n, s = _checked(trials, successes)
    n_arms = n.shape[-1]
    result = np.zeros(n.shape[1:], dtype=bool)
    tolerated = 1.0 + margin if higher_is_harm else 1.0 - margin
    for arm in range(n_arms):
        if arm == control:
            continue
        weight, contrast, variance = _parts(
            n[..., arm], s[..., arm], n[..., control], s[..., control], None, tolerated
        )
        # One side only: the two-sided boundary at twice the level.
        level = min(2.0 * alpha / (n_arms - 1), 0.999)
        summed = (weight * contrast).sum(axis=0)
        reach = _boundary(variance.sum(axis=0), level, _mixture_rho(target_information, level))
        result[..., arm] = summed > reach if higher_is_harm else summed < -reach
    return result


def trailing_arms(
    sums: ArrayLike, information: ArrayLike, *, alpha: float = 0.05, target_information: float = 50.0
) -> NDArray[np.bool_]:
    """Tell which arms are not the best, with a bound that holds at all times.

    Each arm is compared with all others together, within periods. The best arm is at least as good as any
    average of the others, whatever their shares, so an arm that is shown to be worse is not the best: one
    comparison an arm, and none that depends on which arm leads.

    Parameters
    ----------
    sums, information : array_like, shape (..., n_arms)
        ``Σ λ_t d_t`` of each arm against the rest and ``V``, from :func:`rest_increments`; positive is
        better.
    alpha : float
        Chance that any arm as good as the best is ever called trailing.
    target_information : float
        Where the bound is narrowest; see :func:`difference_sequence`.

    Returns
    -------
    ndarray of bool, shape (..., n_arms)
    """
    check_alpha(alpha)
    s, v = np.asarray(sums, dtype=np.float64), np.asarray(information, dtype=np.float64)
    # One side only: the two-sided boundary at twice the level.
    level = min(2.0 * alpha / s.shape[-1], 0.999)
    trailing: NDArray[np.bool_] = s < -_boundary(v, level, _mixture_rho(target_information, level))
    return trailing


def rest_increments(trials: ArrayLike, successes: ArrayLike) -> tuple[Array, Array]:
    """Evidence of each arm against all others together, period by period.

    Parameters
    ----------
    trials, successes : array_like, shape (n_periods, ..., n_arms)

    Returns
    -------
    sums, information : ndarray, same shape
        To be added up over periods.
    """
    n, s = _checked(trials, successes)
    rest_n, rest_s = n.sum(axis=-1, keepdims=True) - n, s.sum(axis=-1, keepdims=True) - s
    weight, contrast, variance = _parts(n, s, rest_n, rest_s, None, 1.0)
    return weight * contrast, variance
