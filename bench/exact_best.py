"""P(best) by other ways: closed forms to measure errors against, and a grid that is not good enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from scipy.special import betainc, betaln, xlog1py, xlogy

from bandit_core.probability_best import probability_best_beta

Case = tuple[list[float], list[float], list[float]]  # alpha and beta of the arms, their P(best)


def rational(a1: int, b1: int, a2: int, b2: int) -> float:
    """P(second > first) for whole parameters (Cook 2005, "Exact calculation of Beta inequalities")."""

    def beta(a: int, b: int) -> Fraction:
        return Fraction(math.factorial(a - 1) * math.factorial(b - 1), math.factorial(a + b - 1))

    terms = (beta(a1 + i, b1 + b2) / ((b2 + i) * beta(1 + i, b2) * beta(a1, b1)) for i in range(a2))
    return float(sum(terms, Fraction(0)))


def cases() -> Iterator[Case]:
    rng = np.random.default_rng(3)
    for _ in range(200):
        trials = rng.integers(0, 200, size=2)
        won = rng.binomial(trials, rng.uniform(0.0, 0.5, size=2))
        (a1, a2), (b1, b2) = (1 + won).tolist(), (1 + trials - won).tolist()
        better = rational(a1, b1, a2, b2)
        yield [a1, a2], [b1, b2], [1.0 - better, better]
    for n_arms in (2, 3, 10, 100):  # nothing seen, or the same seen of all
        for a, b in ((1.0, 1.0), (1.0, 1e6 + 1), (1e6 + 1, 1.0), (5e7 + 1, 9.5e8 + 1)):
            yield [a] * n_arms, [b] * n_arms, [1.0 / n_arms] * n_arms
    for a, b in ((1.0, 1e6 + 1), (1e6 + 1, 1.0), (5e7 + 1, 9.5e8 + 1), (51.0, 951.0), (1.0, 1e9 + 1)):
        below = a / (a + b)  # P(uniform < theta) is the mean of theta
        yield [1.0, a], [1.0, b], [1.0 - below, below]
    for m, n in ((10**6, 10**6), (10**6, 10**3), (10**9, 10**9), (10**9, 1)):  # no success of m and of n
        second = (m + 1) / (m + n + 2)  # the larger of Beta(1, m + 1) and Beta(1, n + 1)
        yield [1.0, 1.0], [m + 1.0, n + 1.0], [1.0 - second, second]


def largest_error() -> tuple[float, int]:
    """Largest absolute error of the product's P(best) over all cases, and their number."""
    worst, count = 0.0, 0
    for a, b, want in cases():
        got = probability_best_beta(np.array([a]), np.array([b])).probability[0]
        worst = max(worst, float(np.abs(got - want).max()))
        count += 1
    return worst, count


def naive_grid(a: np.ndarray, b: np.ndarray, n_points: int = 128) -> np.ndarray:
    """P(best) on equally spaced points from the lowest arm's 6 standard deviations to the highest's."""
    mean = a / (a + b)
    sd = np.sqrt(mean * (1.0 - mean) / (a + b + 1.0))
    low = np.maximum((mean - 6.0 * sd).min(axis=1), 1e-12)
    high = np.minimum((mean + 6.0 * sd).max(axis=1), 1.0 - 1e-12)
    place = (np.arange(n_points) + 0.5) / n_points
    result = np.empty(a.shape)
    for start in range(0, len(a), 500):
        rows = slice(start, start + 500)
        x = (low[rows, None] + (high - low)[rows, None] * place)[:, None]
        alpha, beta = a[rows, :, None], b[rows, :, None]
        log_cdf = np.log(np.maximum(betainc(alpha, beta, x), 1e-300))
        density = np.exp(xlogy(alpha - 1.0, x) + xlog1py(beta - 1.0, -x) - betaln(alpha, beta))
        mass = (density * np.exp(log_cdf.sum(axis=1, keepdims=True) - log_cdf)).sum(axis=2)
        result[rows] = mass / np.maximum(mass.sum(axis=1, keepdims=True), 1e-300)
    return result
