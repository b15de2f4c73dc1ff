"""Bayesian logistic regression on cells of counts: Polya-Gamma Gibbs, and Laplace as the quick mode.

Gibbs: with ``ω_c ~ PG(n_c, x_c β)`` the coefficients are Gaussian given ``ω`` (Polson, Scott and Windle
2013, "Bayesian inference for logistic models using Polya-Gamma latent variables", section 3); one draw a
cell whatever its count. Convergence by split R-hat on ranks and effective sample size (Vehtari, Gelman,
Simpson, Carpenter and Bürkner 2021, sections 3 and 4). Laplace: the Gaussian at the posterior's mode
(Chapelle and Li 2011, section 4, with the full covariance).

The Polya-Gamma draws come from the ``polyagamma`` package. Cost: O(n_cells p² + p³) a draw, p columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from polyagamma import random_polyagamma
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import expit, ndtri

__all__ = ["Draws", "diagnostics", "gibbs", "laplace"]

Array = NDArray[np.float64]

_NEWTON_STEPS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Draws of the coefficients.

    Attributes
    ----------
    coefficients : ndarray, shape (n_chains, n_draws, n_columns)
    r_hat, ess : float
        Worst over columns; 1 and the number of draws for Laplace, whose draws are independent.
    """

    coefficients: Array
    r_hat: float
    ess: float

    def flat(self) -> Array:
        """All chains together, (n_chains * n_draws, n_columns)."""
        return self.coefficients.reshape(-1, self.coefficients.shape[-1])


def _checked(columns: Array, trials: Array, successes: Array, prior_sd: Array) -> None:
    if columns.ndim != 2 or trials.shape != (len(columns),) or successes.shape != trials.shape:
        raise ValueError(
            f"columns {columns.shape}, trials {trials.shape}, successes {successes.shape}: do not fit"
        )
    if prior_sd.shape != (columns.shape[1],) or not (prior_sd > 0.0).all():
        raise ValueError(f"prior_sd: want {columns.shape[1]} positive numbers")
    if (successes < 0.0).any() or (successes > trials).any():
        raise ValueError("successes: want 0 <= successes <= trials in every cell")


def _mode(columns: Array, trials: Array, successes: Array, prior_sd: Array) -> tuple[Array, Array]:
    """Posterior mode and the upper Cholesky factor of the negative Hessian there (Newton with halving)."""
    precision = 1.0 / prior_sd**2

    def negative_log(beta: Array) -> float:
        z = columns @ beta
        return float(
            (trials * np.logaddexp(0.0, z) - successes * z).sum() + 0.5 * (precision * beta**2).sum()
        )

    beta = np.zeros(columns.shape[1])
    value = negative_log(beta)
    factor = cholesky(np.diag(precision))
    for _ in range(_NEWTON_STEPS):
        p = expit(columns @ beta)
        weight = trials * p * (1.0 - p)
        factor = cholesky(columns.T @ (columns * weight[:, None]) + np.diag(precision))
        gradient = columns.T @ (successes - trials * p) - precision * beta
        step = cho_solve((factor, False), gradient)
        scale = 1.0
        while scale > 1e-6 and negative_log(beta + scale * step) > value + 1e-12 * abs(value):
            scale *= 0.5
        beta = beta + scale * step
        value = negative_log(beta)
        if float(np.abs(step).max()) < 1e-9:
            break
    return beta, np.asarray(factor)


def laplace(
    columns: Array,
    trials: Array,
    successes: Array,
    prior_sd: Array,
    *,
    n_draws: int,
    rng: np.random.Generator,
) -> Draws:
    """Draw from the Gaussian at the mode.

    Parameters
    ----------
    columns : ndarray, shape (n_cells, n_columns)
    trials, successes : ndarray, shape (n_cells,)
    prior_sd : ndarray, shape (n_columns,)
    n_draws : int
    rng : numpy.random.Generator
    """
    _checked(columns, trials, successes, prior_sd)
    beta, factor = _mode(columns, trials, successes, prior_sd)
    noise = solve_triangular(factor, rng.standard_normal((len(beta), n_draws)))
    return Draws((beta[:, None] + noise).T[None], 1.0, float(n_draws))


def gibbs(
    columns: Array,
    trials: Array,
    successes: Array,
    prior_sd: Array,
    *,
    n_draws: int,
    rng: np.random.Generator,
    n_chains: int = 4,
    n_warm_up: int = 200,
) -> Draws:
    """Draw from the exact posterior.

    Parameters
    ----------
    columns : ndarray, shape (n_cells, n_columns)
    trials, successes : ndarray, shape (n_cells,)
        Whole numbers; empty cells are left out.
    prior_sd : ndarray, shape (n_columns,)
    n_draws : int
        Per chain, after the warm-up.
    rng : numpy.random.Generator
    n_chains, n_warm_up : int
    """
    _checked(columns, trials, successes, prior_sd)
    # Its stubs know no call with arrays and a generator together.
    sample = cast("Callable[..., Any]", random_polyagamma)
    seen = trials > 0.0
    x, n, y = columns[seen], trials[seen], successes[seen]
    precision = np.diag(1.0 / prior_sd**2)
    target = x.T @ (y - 0.5 * n)
    mode, factor = _mode(columns, trials, successes, prior_sd)
    kept = np.empty((n_chains, n_draws, columns.shape[1]))
    for chain in range(n_chains):
        # Started wider than the posterior, so that R-hat can tell.
        beta = mode + 2.0 * solve_triangular(factor, rng.standard_normal(len(mode)))
        for draw in range(-n_warm_up, n_draws):
            omega = np.asarray(sample(n, x @ beta, random_state=rng), dtype=np.float64) if len(n) else n
            factor = np.asarray(cholesky(x.T @ (x * omega[:, None]) + precision))
            mean = cho_solve((factor, False), target)
            beta = mean + solve_triangular(factor, rng.standard_normal(len(mean)))
            if draw >= 0:
                kept[chain, draw] = beta
    r_hat, ess = diagnostics(kept)
    return Draws(kept, float(r_hat.max()), float(ess.min()))


def diagnostics(chains: Array) -> tuple[Array, Array]:
    """Split R-hat on rank-normalised draws and bulk effective sample size (Vehtari et al. 2021).

    Parameters
    ----------
    chains : ndarray, shape (n_chains, n_draws, n_columns)
        At least 4 draws.

    Returns
    -------
    tuple of ndarray, shape (n_columns,)
        ``(r_hat, ess)``.
    """
    n_chains, n_draws, n_columns = chains.shape
    if n_draws < 4:
        raise ValueError(f"chains: {n_draws} draws are too few, want at least 4")
    half = n_draws // 2
    split = np.concatenate([chains[:, :half], chains[:, n_draws - half :]])
    ranks = split.reshape(-1, n_columns).argsort(axis=0).argsort(axis=0) + 1.0
    z = np.asarray(ndtri((ranks - 0.375) / (len(ranks) + 0.25)), dtype=np.float64).reshape(split.shape)
    means = z.mean(axis=1)
    within = z.var(axis=1, ddof=1).mean(axis=0)
    between = half * means.var(axis=0, ddof=1)
    plus = (half - 1) / half * within + between / half
    r_hat = np.sqrt(plus / within)
    # Autocovariances of every chain by Fourier transform; Geyer's initial monotone sequence.
    centred = z - means[:, None]
    size = 2 ** int(np.ceil(np.log2(2 * half)))
    spectrum = np.fft.rfft(centred, size, axis=1)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum), size, axis=1)[:, :half].mean(axis=0) / half
    correlation = 1.0 - (within - covariance * half / (half - 1)) / plus
    even = half - half % 2
    pairs = correlation[0:even:2] + correlation[1:even:2]
    positive = np.logical_and.accumulate(pairs > 0.0, axis=0)
    monotone = np.minimum.accumulate(np.where(positive, pairs, 0.0), axis=0)
    tau = np.maximum(2.0 * monotone.sum(axis=0) - 1.0, 1.0 / np.log10(2 * n_chains * half))
    return r_hat, 2 * n_chains * half / tau
