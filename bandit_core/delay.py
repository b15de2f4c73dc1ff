"""Conversion delay: what pending trials are worth, estimated per arm and corrected for right truncation.

A trial of age ``a`` has shown only conversions of delay up to ``a``; counted as a failure it makes a slow
arm look bad and starves it. With ``G(a)`` the share of conversions that have come by age ``a``, such a
trial is worth ``G(a)`` trials. ``G`` itself must be learned from delays that are seen only if they were
short (right truncation; Kalbfleisch and Lawless 1989), together with the rate (Chapelle 2014, "Modeling
delayed feedback in display advertising", section 3; Vernade, Cappé and Perchet 2017, "Stochastic bandit
models for delayed conversions", section 3).

Model, per arm: conversions of lag ``l`` are Poisson with mean ``p * N_l * g_l``; ``N_l`` = trials old
enough to have shown lag ``l``; ``g`` a Weibull delay, cut off at the conversion window and put into hours.
On a grid of (scale, shape), given the delay, ``p`` has a Beta posterior on ``E = Σ_l N_l g_l`` effective
trials, and integrating ``p`` out leaves each grid point's weight in closed form: ``Π (N_l g_l)^{Y_l} * B(α
+ Y, β + E - Y) / ...`` (Poisson form: ``Γ(α + Y) (α + β + E)^{-(α + Y)}``). The posterior of ``p`` is the
mixture over the grid; its mean and variance give a Beta, so an arm whose delay is unknown is uncertain, not
bad. Nothing is shrunk to the other arms: a clearly slower arm must be seen as slower (shrinking to the
pooled delay is what starves it). The prior is log-uniform on the scale over the window, and a log-normal
around 1 (the exponential delay) on the shape.

An arm's figures are the same bit for bit whatever arms it is estimated beside.

Cost: O(n_periods * n_lags) per experiment for ``Y`` and ``N``, then O(n_arms * n_lags * 160) for the grid.
Hundreds of arms at once cost a tenth, each, of what ten do: NumPy's calls cost more than their work.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from bandit_core.counts import PeriodCounts
from bandit_core.posteriors.beta import BetaPrior

__all__ = [
    "DelayEstimate",
    "DelayGrid",
    "DelaySettings",
    "estimate_delay",
    "lag_sums",
    "log_likelihood_ratio_of_arms",
]

Array = NDArray[np.float64]

_SCALE_MIN = 0.2  # periods
_FINE = 0.7  # standard deviations in steps of the grid below which it is too coarse
_FINE_SHAPE = 0.25
_NEWTON_STEPS = 3
_NODES = np.linspace(-2.5, 2.5, 5)  # standard deviations
_PROBE = 0.02
_CHUNK_CELLS = 1 << 18  # rows x points x lags worked on together: some megabytes an array


@dataclass(frozen=True, slots=True)
class DelaySettings:
    """Grid and prior of the delay model.

    Parameters
    ----------
    window_periods : int
        Conversion window in periods: no conversion comes later; at least 1.
    shapes : tuple of float
        Weibull shapes; 1 is the exponential.
    shape_sd : float
        Standard deviation of ``ln(shape)`` in the prior.
    n_scales : int
        Points of the scale, log-spaced from a fifth of a period to the window.
    """

    window_periods: int
    shapes: tuple[float, ...] = (0.6, 0.8, 1.0, 1.25, 1.6)
    shape_sd: float = 0.25
    n_scales: int = 32

    def __post_init__(self) -> None:
        if self.window_periods < 1:
            raise ValueError(f"delay.window_periods: {self.window_periods!r} must be at least 1")
        if not self.shapes or min(self.shapes) <= 0.0 or not self.shape_sd > 0.0 or self.n_scales < 2:
            raise ValueError("delay: needs positive shapes and shape_sd, and at least 2 scales")


@dataclass(frozen=True, slots=True, eq=False)
class DelayGrid:
    """Candidate delays.

    Attributes
    ----------
    lag_mass : ndarray, shape (n_grid, n_lags)
        Share of conversions at each lag, for exposures spread evenly over their period; rows sum to 1.
    log_prior : ndarray, shape (n_grid,)
    log_scale, log_shape : ndarray, shape (n_grid,)
        Of the Weibull delay, the scale in periods.
    settings : DelaySettings
    """

    lag_mass: Array
    log_prior: Array
    log_scale: Array
    log_shape: Array
    settings: DelaySettings

    @classmethod
    @lru_cache(maxsize=32)
    def of(cls, settings: DelaySettings) -> DelayGrid:
        """Tabulate the delays of the settings; lags 0 to ``window_periods``. Not to be written to."""
        scales = np.log(np.geomspace(_SCALE_MIN, settings.window_periods, settings.n_scales))
        shapes = np.log(np.array(settings.shapes))
        log_shape, log_scale = (grid.ravel() for grid in np.meshgrid(shapes, scales, indexing="ij"))
        mass = _lag_mass(log_scale, log_shape, settings.window_periods, settings.window_periods + 1)
        return cls(mass, -0.5 * (log_shape / settings.shape_sd) ** 2, log_scale, log_shape, settings)


def _lag_mass(log_scale: Array, log_shape: Array, window_periods: int, n_lags: int) -> Array:
    """Share of conversions at lags 0 to ``n_lags - 1``: (..., n_lags)."""
    # The exposure's place within its period is uniform: the CDF is averaged over it.
    place, weight = np.array([0.112701665379258, 0.5, 0.887298334620742]), np.array([5.0, 8.0, 5.0]) / 18.0
    shape = np.exp(log_shape)[..., None]
    by_end = np.zeros((*log_scale.shape, n_lags))
    for node, share in zip(place, weight, strict=True):
        reach = np.minimum(np.arange(1, n_lags + 1) - node, float(window_periods))
        by_end -= share * np.expm1(-np.exp(shape * (np.log(reach) - log_scale[..., None])))
    full = -np.expm1(-np.exp(shape * (np.log(float(window_periods)) - log_scale[..., None])))
    mass = np.diff(by_end, axis=-1, prepend=0.0) / full
    floored: Array = np.maximum(mass, 1e-300)
    return floored


@dataclass(frozen=True, slots=True, eq=False)
class DelayEstimate:
    """Delays and delay-corrected counts; arrays (..., n_arms) unless said otherwise.

    Attributes
    ----------
    alpha, beta : ndarray
        Beta posterior of the arm's rate, delay uncertainty included.
    effective_trials : ndarray
        Trials that the posterior is worth, the prior not counted; never more than there were.
    mean_lag_periods, mean_lag_sd : ndarray
        Posterior mean and standard deviation of the arm's mean lag.
    shown : ndarray
        Posterior mean share of the arm's eventual conversions that has come.
    cdf : ndarray, shape (..., n_arms, n_lags)
        Posterior mean of the share of conversions by the end of each lag.
    """

    alpha: Array
    beta: Array
    effective_trials: Array
    mean_lag_periods: Array
    mean_lag_sd: Array
    shown: Array
    cdf: Array

    def rows(self, start: int, end: int) -> DelayEstimate:
        """Give some of the first axis."""
        return DelayEstimate(*(getattr(self, each.name)[start:end] for each in fields(self)))


def lag_sums(
    counts: PeriodCounts, window_periods: int, weights: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Conversions by lag and the trials that could show that lag.

    Parameters
    ----------
    counts : PeriodCounts
    window_periods : int
        Lags beyond it are refused.
    weights : array_like, shape (n_periods,), optional
        Of the periods (discounting).

    Returns
    -------
    tuple of ndarray, shape (n_arms, window_periods + 1)
        ``(conversions, exposed)``.
    """
    n_lags = window_periods + 1
    if counts.successes.shape[2] > n_lags and counts.successes[:, :, n_lags:].any():
        raise ValueError(f"successes: lags beyond the conversion window of {window_periods} periods")
    weight = np.ones(counts.n_periods) if weights is None else np.asarray(weights, dtype=np.float64)
    n_arms = counts.trials.shape[1]
    conversions = np.zeros((n_arms, n_lags))
    seen = min(n_lags, counts.successes.shape[2])
    conversions[:, :seen] = (counts.successes[:, :, :seen] * weight[:, None, None]).sum(axis=0)
    # exposed[l] = trials of the periods with age >= l: sums from the oldest period on.
    running = np.add.accumulate(counts.trials * weight[:, None], axis=0)
    exposed = np.zeros((n_arms, n_lags))
    known = min(n_lags, counts.n_periods)
    exposed[:, :known] = running[::-1][:known].T
    return conversions, exposed


def estimate_delay(
    conversions: ArrayLike, exposed: ArrayLike, grid: DelayGrid, prior: BetaPrior | None = None
) -> DelayEstimate:
    """Fit rate and delay of every arm.

    Parameters
    ----------
    conversions, exposed : array_like, shape (..., n_arms, n_lags)
        From :func:`lag_sums`.
    grid : DelayGrid
    prior : BetaPrior, optional
        Of the rate; default Beta(1, 1).

    Returns
    -------
    DelayEstimate
    """
    y, n = np.asarray(conversions, dtype=np.float64), np.asarray(exposed, dtype=np.float64)
    if y.shape != n.shape or y.shape[-1] != grid.lag_mass.shape[1]:
        raise ValueError(f"conversions {y.shape} and exposed {n.shape}: want {grid.lag_mass.shape[1]} lags")
    rate_prior = BetaPrior() if prior is None else prior
    lead, n_lags = y.shape[:-1], y.shape[-1]
    y, n = y.reshape(-1, n_lags), n.reshape(-1, n_lags)
    n_rows = max(1, _CHUNK_CELLS // (len(_NODES) ** 2 * n_lags))
    parts = [
        _fitted(y[start : start + n_rows], n[start : start + n_rows], grid, rate_prior)
        for start in range(0, max(len(y), 1), n_rows)
    ]
    summary = _Summary(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in _Summary.__slots__)
    )
    all_trials = n[:, 0]
    mean, variance = summary.mean, np.maximum(summary.variance, 1e-300)
    worth = np.maximum(mean * (1.0 - mean) / variance - 1.0, 1e-3)
    prior_worth = rate_prior.alpha + rate_prior.beta
    worth = np.minimum(worth, prior_worth + all_trials)
    shown = np.divide(summary.effective, all_trials, out=np.zeros(len(n)), where=all_trials > 0.0)
    return DelayEstimate(
        alpha=(mean * worth).reshape(lead),
        beta=((1.0 - mean) * worth).reshape(lead),
        effective_trials=np.maximum(worth - prior_worth, 0.0).reshape(lead),
        mean_lag_periods=summary.mean_lag.reshape(lead),
        mean_lag_sd=summary.sd_lag.reshape(lead),
        shown=shown.reshape(lead),
        cdf=summary.cdf.reshape(*lead, n_lags),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    """Delays weighed for each arm: coordinates (n, n_points), lag mass (n_points, L) or (n, n_points, L)."""

    log_scale: Array
    log_shape: Array
    lag_mass: Array


@dataclass(frozen=True, slots=True, eq=False)
class _Summary:
    """Posterior moments per arm, (n,), and the mean CDF, (n, n_lags)."""

    mean: Array
    variance: Array
    effective: Array
    mean_lag: Array
    sd_lag: Array
    mean_scale: Array
    mean_shape: Array
    sd_scale: Array
    sd_shape: Array
    cdf: Array


def _fitted(y: Array, n: Array, grid: DelayGrid, prior: BetaPrior) -> _Summary:
    """Moments of some rows: on the common grid, and where that is too coarse on one of the row's own."""
    coarse = _Candidates(
        np.broadcast_to(grid.log_scale, (len(y), len(grid.log_scale))),
        np.broadcast_to(grid.log_shape, (len(y), len(grid.log_shape))),
        grid.lag_mass,
    )
    summary = _summary(coarse, y, n, grid.settings, prior)
    step = (grid.log_scale[1] - grid.log_scale[0], _FINE_SHAPE)
    is_fine = (summary.sd_scale < _FINE * step[0]) | (summary.sd_shape < _FINE * step[1])
    known = np.maximum((n > 0.0).sum(axis=1), 1)  # later lags add nothing to the likelihood
    for n_known in np.unique(known[is_fine]).tolist():
        rows = np.flatnonzero(is_fine & (known == n_known))
        refined = _refined(summary, rows, y[rows], n[rows], n_known, grid.settings, prior)
        for name in _Summary.__slots__:
            getattr(summary, name)[rows] = getattr(refined, name)
    return summary


def _by_lag(values: Array, mass: Array) -> Array:
    """Sum over lags: (n, L) with (G, L) or (n, G, L) -> (n, G); without BLAS, so in the same order always."""
    pattern = "nl,gl->ng" if mass.ndim == 2 else "nl,ngl->ng"
    result: Array = np.einsum(pattern, values, mass, optimize=False)
    return result


def _log_posterior(
    points: _Candidates, y: Array, n: Array, settings: DelaySettings, prior: BetaPrior
) -> tuple[Array, Array]:
    """Log-weight of each candidate and the trials effective under it, both (n, n_points)."""
    effective = _by_lag(n, points.lag_mass)
    total = y.sum(axis=1, keepdims=True)
    # p is integrated out of p^(alpha + Y - 1) e^(-p (alpha + beta + E)): a Gamma integral.
    log_weight = _by_lag(y, np.log(points.lag_mass)) - 0.5 * (points.log_shape / settings.shape_sd) ** 2
    return log_weight - (prior.alpha + total) * np.log(prior.alpha + prior.beta + effective), effective


def _summary(points: _Candidates, y: Array, n: Array, settings: DelaySettings, prior: BetaPrior) -> _Summary:
    log_weight, effective = _log_posterior(points, y, n, settings, prior)
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    weight = weight / weight.sum(axis=1, keepdims=True)
    total = y.sum(axis=1, keepdims=True)
    a = prior.alpha + total
    b = prior.beta + np.maximum(effective - total, 0.0)
    given = a / (a + b)
    mean = (weight * given).sum(axis=1)
    # Within each candidate the Beta variance, between candidates that of its mean.
    within = (weight * given * (1.0 - given) / (a + b + 1.0)).sum(axis=1)
    variance = within + (weight * (given - mean[:, None]) ** 2).sum(axis=1)
    lags = np.arange(points.lag_mass.shape[-1], dtype=np.float64)
    lag = np.einsum("...gl,l->...g", points.lag_mass, lags, optimize=False)
    mean_lag = (weight * lag).sum(axis=1)
    moments = []
    for coordinate in (points.log_scale, points.log_shape):
        centre = (weight * coordinate).sum(axis=1)
        moments.append((centre, np.sqrt((weight * (coordinate - centre[:, None]) ** 2).sum(axis=1))))
    pattern = "ng,gl->nl" if points.lag_mass.ndim == 2 else "ng,ngl->nl"
    cdf = np.add.accumulate(np.einsum(pattern, weight, points.lag_mass, optimize=False), axis=1)
    return _Summary(
        mean=mean,
        variance=variance,
        effective=(weight * effective).sum(axis=1),
        mean_lag=mean_lag,
        sd_lag=np.sqrt((weight * (lag - mean_lag[:, None]) ** 2).sum(axis=1)),
        mean_scale=moments[0][0],
        mean_shape=moments[1][0],
        sd_scale=moments[0][1],
        sd_shape=moments[1][1],
        cdf=cdf,
    )


def _at(log_scale: Array, log_shape: Array, settings: DelaySettings, n_lags: int) -> _Candidates:
    mass = _lag_mass(log_scale, log_shape, settings.window_periods, n_lags)
    return _Candidates(log_scale, log_shape, mass)


def _refined(
    coarse: _Summary,
    rows: NDArray[np.intp],
    y: Array,
    n: Array,
    known: int,
    settings: DelaySettings,
    prior: BetaPrior,
) -> _Summary:
    """Moments on a grid of each arm's own, where the data say more than the common grid resolves.

    ``known`` lags could be seen.

    Newton's method from the coarse mean gives mode and curvature; 7 x 7 points within 3 standard deviations
    do the rest.
    """
    centre = np.stack([coarse.mean_scale[rows], coarse.mean_shape[rows]])
    y_known, n_known = np.ascontiguousarray(y[:, :known]), np.ascontiguousarray(n[:, :known])
    covariance = np.zeros((2, 2, len(rows)))
    for _ in range(_NEWTON_STEPS):
        u, v = (
            offset.ravel()
            for offset in np.meshgrid([-_PROBE, 0.0, _PROBE], [-_PROBE, 0.0, _PROBE], indexing="ij")
        )
        points = _at(centre[0][:, None] + u, centre[1][:, None] + v, settings, known)
        f = _log_posterior(points, y_known, n_known, settings, prior)[0].reshape(-1, 3, 3)
        gradient = np.stack([f[:, 2, 1] - f[:, 0, 1], f[:, 1, 2] - f[:, 1, 0]]) / (2.0 * _PROBE)
        h_uu = (2.0 * f[:, 1, 1] - f[:, 2, 1] - f[:, 0, 1]) / _PROBE**2
        h_vv = (2.0 * f[:, 1, 1] - f[:, 1, 2] - f[:, 1, 0]) / _PROBE**2
        h_uv = -(f[:, 2, 2] - f[:, 2, 0] - f[:, 0, 2] + f[:, 0, 0]) / (4.0 * _PROBE**2)
        h_uu, h_vv = np.maximum(h_uu, 1.0), np.maximum(h_vv, 1.0)
        h_uv = np.clip(h_uv, -0.98 * np.sqrt(h_uu * h_vv), 0.98 * np.sqrt(h_uu * h_vv))
        determinant = h_uu * h_vv - h_uv**2
        covariance = np.stack([np.stack([h_vv, -h_uv]), np.stack([-h_uv, h_uu])]) / determinant
        step = np.stack(
            [
                covariance[0, 0] * gradient[0] + covariance[0, 1] * gradient[1],
                covariance[1, 0] * gradient[0] + covariance[1, 1] * gradient[1],
            ]
        )
        centre = centre + np.clip(step, -0.3, 0.3)
    first = np.sqrt(covariance[0, 0])
    slope = covariance[0, 1] / first
    second = np.sqrt(np.maximum(covariance[1, 1] - slope**2, 1e-12))
    u, v = (offset.ravel() for offset in np.meshgrid(_NODES, _NODES, indexing="ij"))
    log_scale = centre[0][:, None] + first[:, None] * u
    log_shape = centre[1][:, None] + slope[:, None] * u + second[:, None] * v
    return _summary(_at(log_scale, log_shape, settings, y.shape[1]), y, n, settings, prior)


def log_likelihood_ratio_of_arms(conversions: ArrayLike, exposed: ArrayLike, grid: DelayGrid) -> Array:
    """How much better delays of their own explain the arms than one delay for all.

    Returns
    -------
    ndarray, shape (...)
        Log Bayes factor: above 3 the arms' delays clearly differ, and reports warn.
    """
    y, n = np.asarray(conversions, dtype=np.float64), np.asarray(exposed, dtype=np.float64)
    total = y.sum(axis=-1)[..., None]
    effective = np.einsum("...l,gl->...g", n, grid.lag_mass, optimize=False)
    log_like = np.einsum("...l,gl->...g", y, np.log(grid.lag_mass), optimize=False)
    log_like = log_like - (total + 1.0) * np.log(effective + 2.0) + gammaln(total + 1.0)
    prior = grid.log_prior - _log_sum_exp(grid.log_prior)
    apart = _log_sum_exp(log_like + prior).sum(axis=-1)
    together = _log_sum_exp(log_like.sum(axis=-2) + prior)
    difference: Array = apart - together
    return difference


def _log_sum_exp(values: Array) -> Array:
    top = values.max(axis=-1, keepdims=True)
    result: Array = np.log(np.exp(values - top).sum(axis=-1)) + top[..., 0]
    return result
