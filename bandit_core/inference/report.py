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
from bandit_core.inference.contrasts import Contrast, Interval, lifts_against, pairwise_contrasts
from bandit_core.inference.ratio import RatioTest, sample_ratio_test
from bandit_core.inference.sequences import difference_sequence
from bandit_core.inference.stopping import StopAdvice, safe_to_stop
from bandit_core.inference.values import value_difference
from bandit_core.posteriors.beta import BetaPosterior
from bandit_core.stratification import stratify

__all__ = ["ASSUMPTIONS", "ArmReport", "Report", "ReportSettings", "finished_posterior", "report"]

Array = NDArray[np.float64]

#: What each figure needs to be true.
ASSUMPTIONS = {
    "rate": "descriptive; adaptive traffic biases an arm's own mean a little downwards",
    "last_day": "descriptive, pooled over a day or an hour; conversions of these units are still to come",
    "contrasts": "one trial per unit, assignment by hash; holds at every look and for chosen arms",
    "lift_control": "as contrasts; relative effects equal in all periods, or else their weighted average",
    "lift_best": "as lift_control; simultaneous over all pairs, for best and worst were chosen by looking",
    "bandit_effect": "fixed shares of the two groups, one trial per unit; holds at every look",
    "sample_ratio": "one trial per unit; wrong alarms in at most 1 of 1,000 experiments",
    "safe_to_stop": "no claim that the leader is better; rates stay as they were",
    "reversals": "descriptive: how often the leader of a day was another one than the day before",
    "exploration_share": "descriptive: units of the last day that did not see the arm with the best rate",
}

_CROSSOVER_SHARE = 0.01
_LEFT_OUT_SHARE = 0.05  # of the trials
_DELAYS_DIFFER = 3.0  # log Bayes factor
_DRIFT_Z = 3.09  # one in a thousand
_ALL_PAIRS_MAX_ARMS = 12  # of more arms only pairs with control, the best or the worst are told


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """How a report is made.

    Parameters
    ----------
    lower_is_better : bool
    values : bool
        Whether rewards are values as shares of a cap, with sums of squares, and not rates.
    alpha : float
        Error of all contrasts together, and of each other part.
    target_information : float
        See :func:`bandit_core.inference.sequences.difference_sequence`.
    periods_per_day : int
    """

    lower_is_better: bool = False
    values: bool = False
    alpha: float = 0.05
    target_information: float = 500.0
    periods_per_day: int = 24


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
    lift_best, lift_worst : Interval or None
        Relative to the arms that seem best and worst, simultaneous over all pairs.
    share, last_day_rate, last_hour_rate : float
    """

    trials: float
    successes: float
    rate: float
    low: float
    high: float
    lift_control: Interval | None
    lift_best: Interval | None
    lift_worst: Interval | None
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
        All pairs of arms with overlap, simultaneous; of more than twelve arms those with control, best or
        worst.
    best, worst : int or None
        Live arms with the highest and lowest mean of finished trials (the other way round where less is
        better); None for one arm alone.
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
    best: int | None
    worst: int | None
    winner: int | None
    bandit_effect: Interval | None
    sample_ratio_p: float
    sample_ratio_alarm: bool
    stop: StopAdvice
    reversals: int
    exploration_share: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Finished:
    """Trials whose window is over: arrays (n_periods, n_arms), and which arms are live."""

    n: Array
    s: Array
    q: Array
    live: NDArray[np.bool_]
    settings: ReportSettings

    @property
    def squares(self) -> Array | None:
        """Sums of squares, for values."""
        return self.q if self.settings.values else None

    def extremes(self) -> tuple[int | None, int | None]:
        """Live arms that seem best and worst."""
        trials = self.n.sum(axis=0)
        arms = np.flatnonzero(self.live & (trials > 0.0))
        if len(arms) < 2:
            return None, None
        mean = self.s.sum(axis=0)[arms] / trials[arms]
        best, worst = int(arms[np.argmax(mean)]), int(arms[np.argmin(mean)])
        return (worst, best) if self.settings.lower_is_better else (best, worst)


def report(
    counts: PeriodCounts,
    *,
    propensities: ArrayLike,
    control: int | None,
    window_periods: int,
    comparison: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    crossovers: float = 0.0,
    eligible: ArrayLike | None = None,
    settings: ReportSettings | None = None,
    value_remaining: float | None = None,
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
    comparison : three array_like, shape (n_periods,), optional
        Trials, successes (or values) and squares of the comparison group.
    crossovers : float
        Trials whose unit saw a second arm.
    eligible : array_like of bool, shape (n_arms,), optional
        Arms still live; default all.
    settings : ReportSettings, optional
    value_remaining : float, optional
        Of :func:`finished_posterior`, among live arms, where it was worked out with those of other
        experiments: ten together cost what two cost one by one.
    """
    settings = settings or ReportSettings()
    n_arms = counts.trials.shape[1]
    live = np.ones(n_arms, dtype=bool) if eligible is None else np.asarray(eligible, dtype=bool)
    mature = counts.mature(window_periods)
    done = _Finished(mature.trials, mature.totals(), mature.totals("squares"), live, settings)
    best, worst = done.extremes()
    contrasts = _contrasts(done, [arm for arm in (control, best, worst) if arm is not None])
    ratio = sample_ratio_test(counts.trials, propensities) if counts.n_periods else None
    posterior = _posterior(mature)
    days = counts.n_periods / settings.periods_per_day
    reversals, exploration = _leaders(counts, settings)
    return Report(
        _arms(counts, done, posterior, control, best, worst),
        contrasts,
        best,
        worst,
        _winner(contrasts, [int(i) for i in np.flatnonzero(live)], settings.lower_is_better),
        _bandit_effect(done, comparison, window_periods),
        float(ratio.p_value[-1]) if ratio is not None else 1.0,
        bool(ratio.alarm[-1]) if ratio is not None else False,
        safe_to_stop(
            posterior,
            days=days,
            eligible=live,
            lower_is_better=settings.lower_is_better,
            value_remaining=value_remaining,
        ),
        reversals,
        exploration,
        _warnings(counts, done, ratio, crossovers, window_periods),
    )


def finished_posterior(counts: PeriodCounts, window_periods: int) -> BetaPosterior:
    """Posterior, shape (1, n_arms), of the periods older than the conversion window: advice on stopping's."""
    return _posterior(counts.mature(window_periods))


def _posterior(mature: PeriodCounts) -> BetaPosterior:
    return BetaPosterior.from_counts(mature.trials.sum(axis=0)[None], mature.totals().sum(axis=0)[None])


def _contrasts(done: _Finished, told: list[int]) -> tuple[Contrast, ...]:
    overlap = np.flatnonzero(done.n.sum(axis=0) > 0) if len(done.n) else np.zeros(0, dtype=np.intp)
    if len(overlap) < 2:
        return ()
    found = pairwise_contrasts(
        done.n,
        done.s,
        squares=done.squares,
        alpha=done.settings.alpha,
        target_information=done.settings.target_information,
        arms=overlap,
        involving=told if len(overlap) > _ALL_PAIRS_MAX_ARMS else None,
    )
    return tuple(contrast for contrast in found if np.isfinite(contrast.low))


def _warnings(
    counts: PeriodCounts, done: _Finished, ratio: RatioTest | None, crossovers: float, window_periods: int
) -> tuple[str, ...]:
    warnings: list[str | None] = []
    if ratio is not None and bool(ratio.alarm[-1]):
        warnings.append(
            f"sample ratio: arm {int(ratio.suspect)} has {float(ratio.suspect_factor):.4f} times the units "
            "it should; no comparison can be trusted until that is explained"
        )
    total = counts.trials.sum()
    if total > 0 and crossovers / total > _CROSSOVER_SHARE:
        warnings.append(
            f"crossovers: {crossovers / total:.1%} of units saw a second arm; differences are diluted"
        )
    if counts.n_periods and not len(done.n):
        warnings.append("no period is older than the conversion window yet: nothing can be compared")
    warnings += [_absent(done), _drift(done), _delays(counts, window_periods)]
    return tuple(text for text in warnings if text is not None)


def _absent(done: _Finished) -> str | None:
    """Whether some arm is missing from many periods, so that rates are compared over the others."""
    n = done.n[:, done.n.sum(axis=0) > 0]
    common = (n > 0).all(axis=1)
    if not len(n) or n[~common].sum() <= _LEFT_OUT_SHARE * n.sum():
        return None
    traffic = (n > 0).any(axis=1)
    return (
        f"arms were not shown together: rates are those of the {int(common.sum())} of {int(traffic.sum())} "
        "periods in which every arm had units, and each contrast is that of the periods its two arms share"
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
    done: _Finished, comparison: tuple[ArrayLike, ArrayLike, ArrayLike] | None, window_periods: int
) -> Interval | None:
    if comparison is None or not len(done.n):
        return None
    kept = len(np.asarray(comparison[0])) - window_periods
    n, s, q = (np.asarray(array, dtype=np.float64)[:kept] for array in comparison)
    all_n, all_s, all_q = (array.sum(axis=1) for array in (done.n, done.s, done.q))
    settings = done.settings
    if settings.values:
        return Interval.last(value_difference(all_n, all_s, all_q, n, s, q, alpha=settings.alpha))
    return Interval.last(
        difference_sequence(
            all_n, all_s, n, s, alpha=settings.alpha, target_information=settings.target_information
        )
    )


def _arms(
    counts: PeriodCounts,
    done: _Finished,
    posterior: BetaPosterior,
    control: int | None,
    best: int | None,
    worst: int | None,
) -> tuple[ArmReport, ...]:
    n_arms, day = counts.trials.shape[1], done.settings.periods_per_day
    low, high = posterior.credible_interval()
    rates = stratify(done.n, done.s).rates if len(done.n) else np.full(n_arms, np.nan)
    totals, all_trials = counts.totals(), counts.trials.sum(axis=0)
    n_seen = int((done.n.sum(axis=0) > 0).sum())
    each, any_pair = max(n_arms - 1, 1), max(n_seen * (n_seen - 1) // 2, 1)
    lifts = [
        {}
        if base is None
        else lifts_against(
            base,
            np.arange(n_arms),
            done.n,
            done.s,
            squares=done.squares,
            alpha=done.settings.alpha / shared,
            target_information=done.settings.target_information,
        )
        for base, shared in ((control, each), (best, any_pair), (worst, any_pair))
    ]
    return tuple(
        ArmReport(
            float(all_trials[i]),
            float(totals[:, i].sum()),
            float(rates[i]),
            float(low[0, i]),
            float(high[0, i]),
            lifts[0].get(i),
            lifts[1].get(i),
            lifts[2].get(i),
            float(all_trials[i] / all_trials.sum()) if all_trials.sum() > 0 else 0.0,
            _rate(counts.trials[-day:, i].sum(), totals[-day:, i].sum()),
            _rate(counts.trials[-1:, i].sum(), totals[-1:, i].sum()),
        )
        for i in range(n_arms)
    )


def _rate(trials: float, successes: float) -> float:
    return float(successes / trials) if trials > 0 else float("nan")


def _leaders(counts: PeriodCounts, settings: ReportSettings) -> tuple[int, float]:
    """Count changes of the daily leader by cumulative rates; and the last day's exploration share."""
    periods_per_day, lower_is_better = settings.periods_per_day, settings.lower_is_better
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


def _drift(done: _Finished) -> str | None:
    """Whether whole days' rates differ more than chance allows (chi-square over days, all arms together)."""
    per_day = done.settings.periods_per_day
    n_days = len(done.n) // per_day
    if n_days < 2:
        return None
    trials, sums, squares = (
        array[: n_days * per_day].reshape(n_days, -1).sum(axis=1) for array in (done.n, done.s, done.q)
    )
    size = max(trials.sum(), 1.0)
    rate, square = sums.sum() / size, squares.sum() / size
    variance = trials * (square - rate**2)
    # Days with few successes have a skewed statistic; so many there are, whatever each is worth.
    if not 0.0 < rate < 1.0 or (trials * rate**2 / square).min() < 5.0:
        return None
    statistic = float(((sums - trials * rate) ** 2 / variance).sum())
    # Wilson and Hilferty 1931: the cube root of a chi-square is nearly Gaussian.
    freedom = n_days - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
    if z < _DRIFT_Z:
        return None
    return (
        "drift: rates differ between days more than chance allows; pooled rates mix arms with days, use the "
        "contrasts, which compare within periods"
    )
