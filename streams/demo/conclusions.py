"""What may honestly be concluded from clicks per arm, in sentences.

What: a test that all arms have the same rate, what the data could have shown at all, and what P(best) does
and does not say. Pure; every figure in the sentences is in :class:`Conclusions` too.

Why this way: with few clicks per arm the chi-square distribution is a poor approximation, so the test
compares with clicks dealt at random over the impressions (conditional on both totals, a permutation test;
Fisher's argument). What could have been detected uses the two-sample normal approximation at 80% power and a
two-sided 5% level (Fleiss, Levin and Paik 2003, section 4.2), which is good enough for an order of magnitude.

Cost: O(draws * arms).
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

__all__ = ["Arm", "Conclusions", "conclude", "sentences"]

DRAWS: Final = 4_000
LEVEL: Final = 0.05
_Z_TWO_SIDED: Final = 1.959964
_Z_POWER: Final = 0.841621
_LIFT: Final = 0.2


class Arm(NamedTuple):
    """What is known of one arm."""

    arm_id: str
    trials: int
    clicks: int
    mean: float
    low: float
    high: float
    probability_best: float


class Conclusions(NamedTuple):
    """Figures behind the sentences.

    Attributes
    ----------
    trials, clicks
        Totals.
    rate
        Clicks per trial; 0 without trials.
    p_equal
        P(a spread over the arms at least as uneven, if all arms had the same rate), in (0, 1].
    best
        Arm with the greatest P(best).
    n_overlapping
        Arms whose interval reaches the lower end of the best arm's.
    detectable_rate
        Rate that one arm of average size would have needed to stand out; NaN without clicks.
    trials_needed
        Trials per arm to tell a rate from one 20% higher; 0 without clicks.
    """

    trials: int
    clicks: int
    rate: float
    p_equal: float
    best: Arm
    n_overlapping: int
    detectable_rate: float
    trials_needed: int


def conclude(arms: Sequence[Arm], rng: np.random.Generator) -> Conclusions:
    """Work out what the counts can say.

    Parameters
    ----------
    arms
        At least one.
    rng
        For the permutation test.

    Raises
    ------
    ValueError
        There is no arm.
    """
    if not arms:
        raise ValueError("arms: none given; there is nothing to conclude from")
    trials = np.array([arm.trials for arm in arms], dtype=np.int64)
    clicks = np.array([arm.clicks for arm in arms], dtype=np.int64)
    n, k = int(trials.sum()), int(clicks.sum())
    rate = k / n if n else 0.0
    best = max(arms, key=lambda arm: arm.probability_best)
    others = [arm for arm in arms if arm is not best]
    per_arm = n / len(arms)
    return Conclusions(
        trials=n,
        clicks=k,
        rate=rate,
        p_equal=_p_equal(trials, clicks, rng),
        best=best,
        n_overlapping=sum(arm.high >= best.low for arm in others),
        detectable_rate=_detectable_rate(rate, per_arm, n) if 0 < k < n else math.nan,
        trials_needed=_trials_needed(rate) if 0 < k < n else 0,
    )


def sentences(found: Conclusions, n_arms: int) -> list[str]:
    """Say it in words; one thought a line."""
    if not found.clicks:
        return ["There was no click: nothing can be said about the arms."]
    if n_arms == 1:
        return [_say_how_much(found, n_arms), "With one arm alone there is nothing to compare."]
    lines = [
        _say_how_much(found, n_arms),
        _say_whether_arms_differ(found),
        _say_who_leads(found, n_arms),
    ]
    if not math.isnan(found.detectable_rate):
        lines.append(
            f"With so little data, an arm would have needed a rate of about {found.detectable_rate:.1%}"
            f" ({found.detectable_rate / found.rate:.1f} times the average) to stand out. To tell a 20%"
            f" better arm takes some {found.trials_needed:,} impressions an arm;"
            f" there are {found.trials / n_arms:,.0f}."
        )
    lines.append(
        "The weights follow the evidence: they lean towards arms that may be good, and go on testing all."
    )
    return lines


def _say_how_much(found: Conclusions, n_arms: int) -> str:
    said = f"{found.clicks:,} clicks in {found.trials:,} impressions are {found.rate:.2%}"
    return f"{said}; over {n_arms} arms that is {found.clicks / n_arms:.1f} clicks an arm."


def _say_whether_arms_differ(found: Conclusions) -> str:
    if found.p_equal < LEVEL:
        share = f"{found.p_equal:.1%}" if found.p_equal >= 0.001 else "less than 0.1%"
        return (
            f"If all arms were equally good, clicks would be spread this unevenly in {share}"
            " of all cases: there is evidence that the arms differ, not yet of which one is best."
        )
    return (
        f"If all arms were equally good, clicks would be spread at least this unevenly in {found.p_equal:.0%}"
        " of all cases: the data do not show that the arms differ at all."
    )


def _say_who_leads(found: Conclusions, n_arms: int) -> str:
    best = found.best
    said = (
        f"Arm {best.arm_id} leads with P(best) = {best.probability_best:.2f} on {best.clicks} clicks;"
        f" the intervals of {found.n_overlapping} of the other {n_arms - 1} arms reach into its own,"
        f" {best.low:.2%} to {best.high:.2%}."
    )
    if best.trials < found.trials / n_arms / 4:
        said += (
            f" It leads because it was shown so rarely ({best.trials:,} times) that it may still be anything."
        )
    if best.probability_best < 0.95 or found.p_equal >= LEVEL:
        said += " To name a winner now would be guessing."
    else:
        said += " But a P(best) that is looked at every hour passes any limit by chance sooner or later."
    return said


def _p_equal(trials: np.ndarray, clicks: np.ndarray, rng: np.random.Generator) -> float:
    """P-value of the permutation test of equal rates; the statistic is Pearson's."""
    shown = trials > 0
    trials, clicks = trials[shown], clicks[shown]
    k = int(clicks.sum())
    if len(trials) < 2 or k in (0, int(trials.sum())):
        return 1.0
    expected = trials * (k / trials.sum())

    def statistic(counts: np.ndarray) -> np.ndarray:
        return np.asarray(((counts - expected) ** 2 / expected).sum(axis=-1))

    dealt = rng.multivariate_hypergeometric(trials, k, size=DRAWS, method="marginals")
    at_least = int((statistic(dealt) >= statistic(clicks) - 1e-9).sum())
    return (at_least + 1) / (DRAWS + 1)


def _detectable_rate(rate: float, n_arm: float, n_all: int) -> float:
    """Rate of one arm that differs from the pooled rate with 80% power."""
    low, high = rate, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        spread_null = math.sqrt(rate * (1 - rate) * (1 / n_arm + 1 / n_all))
        spread = math.sqrt(middle * (1 - middle) / n_arm + rate * (1 - rate) / n_all)
        if middle - rate < _Z_TWO_SIDED * spread_null + _Z_POWER * spread:
            low = middle
        else:
            high = middle
    return high


def _trials_needed(rate: float) -> int:
    """Trials per arm to tell ``rate`` from one 20% higher, 5% two-sided, 80% power."""
    better = min(rate * (1 + _LIFT), (1 + rate) / 2)
    pooled = (rate + better) / 2
    spread = _Z_TWO_SIDED * math.sqrt(2 * pooled * (1 - pooled)) + _Z_POWER * math.sqrt(
        rate * (1 - rate) + better * (1 - better)
    )
    return math.ceil((spread / (better - rate)) ** 2)
