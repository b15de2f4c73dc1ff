"""Everything a person may be told about one experiment: figures, what each assumes, and warnings.

Input is the reporting view alone: one trial per unit, undiscounted. With delays only periods older than the
conversion window enter comparisons; the others are in the totals. Every claim is valid at every look, so
the report may be made as often as wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandit_core.counts import PeriodCounts
from bandit_core.delay import (
    DelayGrid,
    DelaySettings,
    estimate_delay,
    lag_sums,
    log_likelihood_ratio_of_arms,
)
from bandit_core.inference.ratio import sample_ratio_test
from bandit_core.inference.sequences import Contrast, difference_sequence, lift_sequence, pairwise_contrasts
from bandit_core.inference.stopping import StopAdvice, safe_to_stop
from bandit_core.posteriors.beta import BetaPosterior
from bandit_core.stratification import stratify

__all__ = ["ASSUMPTIONS", "ArmReport", "Interval", "Report", "report"]

Array = NDArray[np.float64]

#: What each figure needs to be true.
ASSUMPTIONS = {
    "rate": "descriptive; adaptive traffic biases an arm's own mean a little downwards",
    "contrasts": "one trial per unit, assignment by hash; holds at every look and for chosen arms",
    "lift_control": "as contrasts; relative effects equal in all periods, or else their weighted average",
    "bandit_effect": "fixed shares of the two groups, one trial per unit; holds at every look",
    "sample_ratio": "one trial per unit; wrong alarms in at most 1 of 1,000 experiments",
    "safe_to_stop": "no claim that the leader is better; rates stay as they were",
}

_CROSSOVER_SHARE = 0.01
_DELAYS_DIFFER = 3.0  # log Bayes factor
_DRIFT_Z = 3.09  # one in a thousand


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


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One arm.

    Attributes
    ----------
    trials, successes : float
    rate : float
        Stratified by period where the arm could be compared; NaN without trials.
    low, high : float
        Credible interval of its pooled rate; descriptive.
    lift_control : Interval or None
        Relative, simultaneous over arms and looks; None for control itself and where there is no overlap.
    share, last_day_rate, last_hour_rate : float
    """

    trials: float
    successes: float
    rate: float
    low: float
    high: float
    lift_control: Interval | None
    share: float
    last_day_rate: float
    last_hour_rate: float


@dataclass(frozen=True, slots=True)
class Report:
    """A whole experiment; see :data:`ASSUMPTIONS` for what each part needs.

    Attributes
    ----------
    arms : tuple of ArmReport
    contrasts : tuple of Contrast
        All pairs of arms with overlap, simultaneous.
    winner : int or None
        The arm that is better than every other one by these contrasts.
    bandit_effect : Interval or None
        Bandit group less comparison group: the headline, where there is a comparison group.
    sample_ratio_p : float
    sample_ratio_alarm : bool
    stop : StopAdvice
    reversals : int
        How often the leading arm of a day differed from the day before's.
    exploration_share : float
        Traffic of the last day that did not go to the arm with the best rate.
    warnings : tuple of str
    """

    arms: tuple[ArmReport, ...]
    contrasts: tuple[Contrast, ...]
    winner: int | None
    bandit_effect: Interval | None
    sample_ratio_p: float
    sample_ratio_alarm: bool
    stop: StopAdvice
    reversals: int
    exploration_share: float
    warnings: tuple[str, ...]


def report(
    counts: PeriodCounts,
    *,
    propensities: ArrayLike,
    control: int | None,
    window_periods: int,
    comparison: tuple[ArrayLike, ArrayLike] | None = None,
    crossovers: float = 0.0,
    eligible: ArrayLike | None = None,
    lower_is_better: bool = False,
    alpha: float = 0.05,
    target_information: float = 500.0,
    periods_per_day: int = 24,
) -> Report:
    """Report on one experiment.

    Parameters
    ----------
    counts : PeriodCounts
        Reporting view of the bandit group, per period.
    propensities : array_like, shape (n_periods, n_arms)
        P(arm | bandit group) as logged.
    control : int or None
    window_periods : int
        Conversion window; 0 if outcomes are known at once.
    comparison : pair of array_like, shape (n_periods,), optional
        Trials and successes of the comparison group.
    crossovers : float
        Trials whose unit saw a second arm.
    eligible : array_like of bool, shape (n_arms,), optional
        Arms still live; default all.
    lower_is_better : bool
    alpha : float
        Error of all contrasts together, and of each other part.
    target_information : float
        See :func:`bandit_core.inference.sequences.difference_sequence`.
    periods_per_day : int
    """
    n_arms = counts.trials.shape[1]
    live = np.ones(n_arms, dtype=bool) if eligible is None else np.asarray(eligible, dtype=bool)
    mature = counts.mature(window_periods)
    n, s = mature.trials, mature.totals()
    warnings: list[str] = []
    overlap = np.flatnonzero(n.sum(axis=0) > 0) if len(n) else np.zeros(0, dtype=np.intp)
    contrasts = (
        pairwise_contrasts(n, s, alpha=alpha, target_information=target_information, arms=overlap)
        if len(overlap) > 1
        else ()
    )
    contrasts = tuple(c for c in contrasts if np.isfinite(c.low))
    ratio = sample_ratio_test(counts.trials, propensities) if counts.n_periods else None
    alarm = bool(ratio.alarm[-1]) if ratio is not None else False
    if ratio is not None and alarm:
        warnings.append(
            f"sample ratio: arm {int(ratio.suspect)} has {float(ratio.suspect_factor):.4f} times the units "
            "it should; no comparison can be trusted until that is explained"
        )
    total = counts.trials.sum()
    if total > 0 and crossovers / total > _CROSSOVER_SHARE:
        warnings.append(
            f"crossovers: {crossovers / total:.1%} of units saw a second arm; differences are diluted"
        )
    if counts.n_periods and not len(n):
        warnings.append("no period is older than the conversion window yet: nothing can be compared")
    warnings.extend(
        text for text in (_drift(n, s, periods_per_day), _delays(counts, window_periods)) if text is not None
    )
    posterior = BetaPosterior.from_counts(n.sum(axis=0)[None], s.sum(axis=0)[None])
    days = counts.n_periods / periods_per_day
    stop = safe_to_stop(posterior, days=days, eligible=live, lower_is_better=lower_is_better)
    arms = _arms(counts, n, s, posterior, control, n_arms, alpha, target_information, periods_per_day)
    reversals, exploration = _leaders(counts, lower_is_better, periods_per_day)
    return Report(
        arms,
        contrasts,
        _winner(contrasts, [int(i) for i in np.flatnonzero(live)], lower_is_better),
        _bandit_effect(n, s, comparison, window_periods, alpha, target_information),
        float(ratio.p_value[-1]) if ratio is not None else 1.0,
        alarm,
        stop,
        reversals,
        exploration,
        tuple(warnings),
    )


def _winner(contrasts: tuple[Contrast, ...], live: list[int], lower_is_better: bool) -> int | None:
    sign = -1 if lower_is_better else 1
    claims = {(c.a, c.b): sign * c.claim for c in contrasts} | {
        (c.b, c.a): -sign * c.claim for c in contrasts
    }
    for arm in live:
        others = [other for other in live if other != arm]
        if others and all(claims.get((arm, other), 0) == 1 for other in others):
            return arm
    return None


def _bandit_effect(
    n: Array,
    s: Array,
    comparison: tuple[ArrayLike, ArrayLike] | None,
    window_periods: int,
    alpha: float,
    target_information: float,
) -> Interval | None:
    if comparison is None or not len(n):
        return None
    trials, successes = (np.asarray(array, dtype=np.float64) for array in comparison)
    kept = len(trials) - window_periods
    got = difference_sequence(
        n.sum(axis=1),
        s.sum(axis=1),
        trials[:kept],
        successes[:kept],
        alpha=alpha,
        target_information=target_information,
    )
    return Interval.of(float(got.estimate[-1]), float(got.low[-1]), float(got.high[-1]))


def _arms(
    counts: PeriodCounts,
    n: Array,
    s: Array,
    posterior: BetaPosterior,
    control: int | None,
    n_arms: int,
    alpha: float,
    target_information: float,
    periods_per_day: int,
) -> tuple[ArmReport, ...]:
    low, high = posterior.credible_interval()
    rates = stratify(n, s).rates if len(n) else np.full(n_arms, np.nan)
    totals = counts.totals()
    all_trials = counts.trials.sum(axis=0)
    result = []
    for i in range(n_arms):
        lift = None
        if control is not None and i != control and ((n[:, i] > 0) & (n[:, control] > 0)).any():
            got = lift_sequence(
                n[:, i],
                s[:, i],
                n[:, control],
                s[:, control],
                alpha=alpha / max(n_arms - 1, 1),
                target_information=target_information,
            )
            lift = Interval.of(float(got.estimate[0]), float(got.low[0]), float(got.high[0]))
        recent = [_rate(counts.trials[-k:, i].sum(), totals[-k:, i].sum()) for k in (periods_per_day, 1)]
        result.append(
            ArmReport(
                float(all_trials[i]),
                float(totals[:, i].sum()),
                float(rates[i]),
                float(low[0, i]),
                float(high[0, i]),
                lift,
                float(all_trials[i] / all_trials.sum()) if all_trials.sum() > 0 else 0.0,
                recent[0],
                recent[1],
            )
        )
    return tuple(result)


def _rate(trials: float, successes: float) -> float:
    return float(successes / trials) if trials > 0 else float("nan")


def _leaders(counts: PeriodCounts, lower_is_better: bool, periods_per_day: int) -> tuple[int, float]:
    """Count changes of the daily leader by cumulative rates; and the last day's exploration share."""
    n, s = np.add.accumulate(counts.trials, axis=0), np.add.accumulate(counts.totals(), axis=0)
    days = np.arange(periods_per_day - 1, len(n), periods_per_day)
    # Half a success keeps an arm of no successes in 3 trials from leading or trailing by chance of its size.
    rate = (s + 0.5) / (n + 1.0)
    signed = np.where(n > 0, -rate if lower_is_better else rate, -np.inf)
    leaders = signed[days].argmax(axis=1) if len(days) else np.zeros(0, dtype=np.intp)
    if not len(n):
        return 0, float("nan")
    last = counts.trials[-periods_per_day:].sum(axis=0)
    leader = int(signed[-1].argmax())
    share = 1.0 - last[leader] / last.sum() if last.sum() > 0 else float("nan")
    return int((np.diff(leaders) != 0).sum()), float(share)


def _delays(counts: PeriodCounts, window_periods: int) -> str | None:
    """Whether the arms' delays clearly differ."""
    if window_periods < 1 or counts.successes.shape[2] < 2:
        return None
    conversions, exposed = lag_sums(counts, window_periods)
    informed = conversions.sum(axis=1) > 0.0
    if informed.sum() < 2:
        return None
    grid = DelayGrid.of(DelaySettings(window_periods))
    if float(log_likelihood_ratio_of_arms(conversions[informed], exposed[informed], grid)) <= _DELAYS_DIFFER:
        return None
    lags = estimate_delay(conversions, exposed, grid).mean_lag_periods
    shown = ", ".join(f"{lag:.1f}" for lag in lags)
    return f"the arms' delays differ (mean lags {shown} periods): totals that include young trials mislead"


def _drift(n: Array, s: Array, periods_per_day: int) -> str | None:
    """Whether whole days' rates differ more than chance allows (chi-square over days, all arms together)."""
    n_days = len(n) // periods_per_day
    if n_days < 2:
        return None
    kept = n_days * periods_per_day
    trials = n[:kept].reshape(n_days, -1).sum(axis=1)
    successes = s[:kept].reshape(n_days, -1).sum(axis=1)
    rate = successes.sum() / max(trials.sum(), 1.0)
    expected = trials * rate
    if not 0.0 < rate < 1.0 or expected.min() < 5.0:
        return None
    statistic = float(((successes - expected) ** 2 / (expected * (1.0 - rate))).sum())
    # Wilson and Hilferty 1931: the cube root of a chi-square is nearly Gaussian.
    freedom = n_days - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
    if z < _DRIFT_Z:
        return None
    return (
        "drift: rates differ between days more than chance allows; pooled rates mix arms with days, use the "
        "contrasts, which compare within periods"
    )
