"""Arms against each other, simultaneously: whichever arm is then called the best or the worst is covered.

The level is shared by all pairs of arms and both ends of every interval (Bonferroni), so it does not matter
which pairs are looked at, nor how an arm was chosen from the data.

Cost: O(n_periods) a pair.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandit_core.inference.sequences import Sequence, difference_sequence, lift_sequence
from bandit_core.inference.values import value_difference, value_lift

__all__ = ["Contrast", "Interval", "lifts_against", "pairwise_contrasts"]

Array = NDArray[np.float64]

_PAIRS_AT_ONCE = 128  # bounds memory


@dataclass(frozen=True, slots=True)
class Contrast:
    """Arm ``a`` against arm ``b`` now.

    Attributes
    ----------
    a, b : int
    estimate, low, high : float
        Difference of rates (or means) ``a - b``.
    claim : int
        1 if ``a`` is better, -1 if ``b`` is, 0 if that cannot be said.
    """

    a: int
    b: int
    estimate: float
    low: float
    high: float
    claim: int


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval; ``claim`` is 1 (above 0), -1 (below) or 0 (cannot be said)."""

    estimate: float
    low: float
    high: float
    claim: int

    @classmethod
    def of(cls, estimate: float, low: float, high: float) -> Interval:
        """Derive the claim from the bounds."""
        return cls(estimate, low, high, int(low > 0.0) - int(high < 0.0))

    @classmethod
    def last(cls, sequence: Sequence, at: int = 0) -> Interval:
        """Take one run's newest interval of a sequence."""
        bounds = (sequence.estimate, sequence.low, sequence.high)
        return cls.of(*(float(np.atleast_1d(array[-1])[at]) for array in bounds))


def pairwise_contrasts(
    trials: ArrayLike,
    sums: ArrayLike,
    *,
    squares: ArrayLike | None = None,
    alpha: float = 0.05,
    target_information: float = 500.0,
    arms: NDArray[np.intp] | None = None,
    involving: Collection[int] | None = None,
) -> tuple[Contrast, ...]:
    """Differences of arms now.

    Parameters
    ----------
    trials, sums : array_like, shape (n_periods, n_arms)
        Successes, or values as shares of the cap.
    squares : array_like, optional
        Sums of squares of values; default: rates.
    alpha : float
        Over all pairs and all times together.
    target_information : float
        See :func:`bandit_core.inference.sequences.difference_sequence`; for rates.
    arms : ndarray of int, optional
        Arms that are compared; default all.
    involving : collection of int, optional
        Only pairs with one of these arms; the level is that of all pairs.

    Returns
    -------
    tuple of Contrast
        For ``a < b``, in the order of the arms.
    """
    n, s = np.asarray(trials, dtype=np.float64), np.asarray(sums, dtype=np.float64)
    if n.ndim != 2 or n.shape != s.shape:
        raise ValueError(f"trials {n.shape} and sums {s.shape}: want the same (n_periods, n_arms)")
    q = None if squares is None else np.asarray(squares, dtype=np.float64)
    chosen = np.arange(n.shape[1]) if arms is None else np.asarray(arms)
    pairs = [(int(a), int(b)) for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
    level = alpha / max(len(pairs), 1)
    if involving is not None:
        pairs = [pair for pair in pairs if pair[0] in involving or pair[1] in involving]
    result = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[start : start + _PAIRS_AT_ONCE]
        a, b = (np.array(side) for side in zip(*part, strict=True))
        if q is None:
            got = difference_sequence(
                n[:, a], s[:, a], n[:, b], s[:, b], alpha=level, target_information=target_information
            )
        else:
            got = value_difference(n[:, a], s[:, a], q[:, a], n[:, b], s[:, b], q[:, b], alpha=level)
        for at, (one, other) in enumerate(part):
            found = Interval.last(got, at)
            result.append(Contrast(one, other, found.estimate, found.low, found.high, found.claim))
    return tuple(result)


def lifts_against(
    base: int,
    arms: ArrayLike,
    trials: ArrayLike,
    sums: ArrayLike,
    *,
    squares: ArrayLike | None = None,
    alpha: float,
    target_information: float = 500.0,
) -> dict[int, Interval]:
    """Relative lift of arms against one of them, now.

    Parameters
    ----------
    base : int
    arms : array_like of int
        Compared with it; ``base`` itself and arms that share no period with it are left out.
    trials, sums, squares
        As in :func:`pairwise_contrasts`.
    alpha : float
        Of each interval.
    target_information : float

    Returns
    -------
    dict of int to Interval
    """
    n, s = np.asarray(trials, dtype=np.float64), np.asarray(sums, dtype=np.float64)
    others = np.array(
        [arm for arm in np.asarray(arms) if arm != base and ((n[:, arm] > 0) & (n[:, base] > 0)).any()],
        dtype=np.intp,
    )
    found: dict[int, Interval] = {}
    for start in range(0, len(others), _PAIRS_AT_ONCE):
        part = others[start : start + _PAIRS_AT_ONCE]
        same = np.full(len(part), base)
        one, other = (n[:, part], s[:, part]), (n[:, same], s[:, same])
        if squares is None:
            got = lift_sequence(*one, *other, alpha=alpha, target_information=target_information)
        else:
            q = np.asarray(squares, dtype=np.float64)
            got = value_lift(*one, q[:, part], *other, q[:, same], alpha=alpha)
        found.update({int(arm): Interval.last(got, at) for at, arm in enumerate(part)})
    return found
