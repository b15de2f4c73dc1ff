"""The engine's input: counts by period, arm and lag, and how old periods are weighed.

Layout: period ``t`` (an hour, oldest first) of ``n_periods``; a trial of period ``t`` belongs to the hour
of its exposure; lag ``l`` is the hour of its conversion less that hour. At the boundary after the last
period the age of period ``t`` is ``n_periods - 1 - t``: lags up to the age are known, longer ones are still
to come. Entries beyond the age must be zero, so counts "as of" a boundary are a prefix of the same arrays.

Discounting: counts are multiplied by ``0.5 ** (age / half_life_periods)``; the prior is not, so that the
belief of an arm without traffic returns to the prior instead of to nothing (Raj and Kalyani 2017, "Taming
non-stationary bandits", section 3: discounted Thompson sampling; Garivier and Moulines 2011, section 2: the
sliding window).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["PeriodCounts", "dispersion", "period_weights"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PeriodCounts:
    """Counts of one experiment.

    Parameters
    ----------
    trials : ndarray, shape (n_periods, n_arms)
    successes : ndarray, shape (n_periods, n_arms, n_lags)
        Trials whose first conversion came at that lag.
    sums, squares : ndarray, shape (n_periods, n_arms, n_lags)
        Increments of the sum and of the sum of squares of per-trial values; for rates equal to ``successes``.
    """

    trials: Array
    successes: Array
    sums: Array
    squares: Array

    @classmethod
    def of(
        cls,
        trials: ArrayLike,
        successes: ArrayLike,
        sums: ArrayLike | None = None,
        squares: ArrayLike | None = None,
    ) -> Self:
        """Check shapes and contents; successes without a lag axis count as lag 0.

        Raises
        ------
        ValueError
            Shapes do not fit, numbers are negative or not finite, a lag beyond a period's age is not zero,
            or more trials succeeded than there were.
        """
        n = np.asarray(trials, dtype=np.float64)
        s = np.asarray(successes, dtype=np.float64)
        if s.ndim == 2:
            s = s[:, :, None]
        if n.ndim != 2 or s.ndim != 3 or s.shape[:2] != n.shape or s.shape[2] < 1:
            raise ValueError(
                f"trials {n.shape}, successes {s.shape}: want (n_periods, n_arms) and (..., n_lags)"
            )
        v = s if sums is None else np.asarray(sums, dtype=np.float64).reshape(s.shape)
        q = v if squares is None else np.asarray(squares, dtype=np.float64).reshape(s.shape)
        for name, array in (("trials", n), ("successes", s), ("sums", v), ("squares", q)):
            if not np.isfinite(array).all():
                raise ValueError(f"{name}: not finite at {np.argwhere(~np.isfinite(array))[0].tolist()}")
        if (n < 0).any() or (s < 0).any():
            raise ValueError("trials and successes must not be negative")
        unknown = np.arange(s.shape[2]) > (len(n) - 1 - np.arange(len(n)))[:, None]
        if (s.transpose(0, 2, 1)[unknown] != 0).any():
            period, _, lag = np.argwhere((s != 0) & unknown[:, None, :])[0]
            raise ValueError(
                f"successes: period {period} has lag {lag}, later than the last of {len(n)} periods"
            )
        if (s.sum(axis=2) > n * (1 + 1e-12)).any():
            period, arm = np.argwhere(s.sum(axis=2) > n * (1 + 1e-12))[0]
            raise ValueError(f"period {period}, arm {arm}: more successes than trials")
        return cls(n, s, v, q)

    @property
    def n_periods(self) -> int:
        """Number of periods."""
        return len(self.trials)

    def ages(self) -> NDArray[np.intp]:
        """Age of each period at the boundary, in periods: (n_periods,), the last is 0."""
        return np.arange(self.n_periods - 1, -1, -1)

    def totals(self, field: str = "successes") -> Array:
        """``successes``, ``sums`` or ``squares`` over all known lags: (n_periods, n_arms)."""
        array: Array = {"successes": self.successes, "sums": self.sums, "squares": self.squares}[field]
        return np.add.accumulate(array, axis=2)[:, :, -1]

    def mature(self, maturity_periods: int) -> Self:
        """Only the periods at least that old, cut at that lag: the maturity gate.

        Every trial left has been watched for the same time, so arms of different delay compare fairly;
        younger periods are not used at all.
        """
        if maturity_periods < 0:
            raise ValueError(f"maturity_periods: {maturity_periods} is negative")
        keep = self.ages() >= maturity_periods
        lags = slice(0, maturity_periods + 1)
        return type(self)(
            self.trials[keep],
            self.successes[keep, :, lags],
            self.sums[keep, :, lags],
            self.squares[keep, :, lags],
        )


def period_weights(
    n_periods: int, *, half_life_periods: float | None = None, window_periods: int | None = None
) -> Array:
    """Weight of each period, the last one's is 1: (n_periods,).

    Parameters
    ----------
    n_periods : int
    half_life_periods : float, optional
        Age at which a period counts half; calendar time, whether the experiment had traffic or not.
    window_periods : int, optional
        Older periods do not count at all.
    """
    if half_life_periods is not None and not half_life_periods > 0.0:
        raise ValueError(f"half_life_periods: {half_life_periods!r} must be positive")
    if window_periods is not None and window_periods < 1:
        raise ValueError(f"window_periods: {window_periods!r} must be at least 1")
    age = np.arange(n_periods - 1, -1, -1, dtype=np.float64)
    weights = np.ones(n_periods) if half_life_periods is None else np.exp2(-age / half_life_periods)
    return weights if window_periods is None else np.where(age < window_periods, weights, 0.0)


def dispersion(trials: ArrayLike, successes: ArrayLike) -> float:
    """Overdispersion of period counts: Pearson's statistic over its degrees of freedom, at least 1.

    Periods and arms may differ (expected counts are those of a two-way table); what is left beyond binomial
    noise, from units that come back or bursts, is the dispersion by which trials are to be divided. Source:
    McCullagh and Nelder 1989, "Generalized linear models" 2nd ed., section 4.5.

    Parameters
    ----------
    trials, successes : array_like, shape (n_periods, n_arms)

    Returns
    -------
    float
        1 where there are too few counts to tell (no degrees of freedom).
    """
    n, s = np.asarray(trials, dtype=np.float64), np.asarray(successes, dtype=np.float64)
    period = s.sum(axis=1, keepdims=True) / np.maximum(n.sum(axis=1, keepdims=True), 1e-300)
    # Arms' relative rates given the periods' (one step of proportional fitting, twice, is close to the fit).
    relative = np.ones((1, n.shape[1]))
    for _ in range(20):
        relative = s.sum(axis=0) / np.maximum((n * period).sum(axis=0), 1e-300)
        period = s.sum(axis=1, keepdims=True) / np.maximum((n * relative).sum(axis=1, keepdims=True), 1e-300)
    rate = np.clip(period * relative, 0.0, 1.0)
    variance = n * rate * (1.0 - rate)
    # Cells with next to nothing expected have a skewed statistic and tell nothing.
    used = variance >= 0.5
    freedom = used.sum() - used.any(axis=1).sum() - used.any(axis=0).sum() + 1
    if freedom < 1:
        return 1.0
    statistic = float(((s - n * rate)[used] ** 2 / variance[used]).sum())
    return max(1.0, statistic / float(freedom))
