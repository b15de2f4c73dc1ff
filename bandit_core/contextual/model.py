"""A fitted contextual model: posteriors per segment, winners, and which untried combination to propose.

The posterior has the segments as its experiments: (n_segments, n_arms). So every policy works on it, and
contextual Thompson sampling is probability matching per segment (Agrawal and Goyal 2013, "Thompson sampling
for contextual bandits with linear payoffs", section 2, in expectation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from bandit_core.contextual.design import Design
from bandit_core.contextual.logistic import Draws, gibbs, laplace
from bandit_core.probability_best import BestArm

__all__ = ["ContextualPosterior", "Proposal", "fit", "propose_combination", "winners"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class ContextualPosterior:
    """Draws of every segment's and arm's rate; the posterior protocol with segments as experiments.

    Parameters
    ----------
    rates : ndarray, shape (n_draws, n_segments, n_arms)
    trials, successes : ndarray, shape (n_segments, n_arms)
        Behind them.
    draws : Draws
        The coefficients, with R-hat and effective sample size.
    """

    rates: Array
    trials: Array
    successes: Array
    draws: Draws

    @property
    def shape(self) -> tuple[int, int]:
        """(n_segments, n_arms)."""
        return self.rates.shape[1], self.rates.shape[2]

    def mean(self) -> Array:
        """Posterior mean rate."""
        return np.asarray(self.rates.mean(axis=0))

    def sd(self) -> Array:
        """Posterior standard deviation."""
        return np.asarray(self.rates.std(axis=0, ddof=1))

    def credible_interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Equal-tailed interval from the draws."""
        if not 0.0 < level < 1.0:
            raise ValueError(f"level: {level!r} is not in (0, 1)")
        tail = 0.5 * (1.0 - level)
        low, high = np.quantile(self.rates, [tail, 1.0 - tail], axis=0)
        return low, high

    def effective_trials(self) -> Array:
        """Trials of the cell itself; what is learned from other cells is not counted."""
        return self.trials

    def reward_moments(self) -> tuple[Array, Array]:
        """Mean and variance of single rewards from the cell itself."""
        mean = self.successes / np.maximum(self.trials, 1e-300)
        return mean, mean * (1.0 - mean)

    def draw(self, rng: np.random.Generator, n_draws: int) -> Array:
        """Draws with replacement, (n_draws, n_segments, n_arms)."""
        return self.rates[rng.integers(0, len(self.rates), n_draws)]

    def best(self, *, eligible: Mask | None = None, lower_is_better: bool = False) -> BestArm:
        """P(best) and expected loss per segment, from the draws (arms are dependent: no quadrature)."""
        sign = -1.0 if lower_is_better else 1.0
        mask = np.ones(self.shape, dtype=bool) if eligible is None else np.broadcast_to(eligible, self.shape)
        signed = np.where(mask, sign * self.rates, -np.inf)
        top = signed.max(axis=2, keepdims=True)
        best = signed == top
        probability = (best / best.sum(axis=2, keepdims=True)).mean(axis=0)
        loss = np.where(mask, (top - np.where(mask, sign * self.rates, 0.0)).mean(axis=0), np.nan)
        return BestArm(probability, loss, sign * top[:, :, 0].mean(axis=0))

    def value_remaining(
        self, quantile: float = 0.95, *, eligible: Mask | None = None, lower_is_better: bool = False
    ) -> Array:
        """Quantile of the relative improvement still possible, per segment."""
        mask = np.ones(self.shape, dtype=bool) if eligible is None else np.broadcast_to(eligible, self.shape)
        chosen = self.best(eligible=mask, lower_is_better=lower_is_better).probability.argmax(axis=1)
        base = self.rates[:, np.arange(self.shape[0]), chosen]
        if lower_is_better:
            relative = 1.0 - np.where(mask, self.rates, np.inf).min(axis=2) / base
        else:
            relative = np.where(mask, self.rates, -np.inf).max(axis=2) / base - 1.0
        return np.asarray(np.quantile(relative, quantile, axis=0))


def fit(
    design: Design,
    trials: Array,
    successes: Array,
    *,
    rng: np.random.Generator,
    mode: Literal["gibbs", "laplace"] = "laplace",
    n_draws: int = 2000,
    arms: Sequence[tuple[str, ...]] | None = None,
) -> ContextualPosterior:
    """Learn from counts by segment and arm.

    Parameters
    ----------
    design : Design
    trials, successes : ndarray, shape (n_segments, n_arms) or (n_intervals, n_segments, n_arms)
        In the order of ``design.segments()`` (with ``other`` last in each feature if there are as many
        rows) and of ``arms``.
    rng : numpy.random.Generator
    mode : {"gibbs", "laplace"}
    n_draws : int
        Altogether.
    arms : sequence of tuple of str, optional
        Factor levels per arm; default the whole product.

    Returns
    -------
    ContextualPosterior
        With interval effects at their average.
    """
    n, y = np.asarray(trials, dtype=np.float64), np.asarray(successes, dtype=np.float64)
    if n.ndim == 2:
        n, y = n[None], y[None]
    combinations = design.arms() if arms is None else list(arms)
    segments = design.segments()
    if n.shape[1] != len(segments):
        segments = design.segments(with_other=True)
    if n.shape != y.shape or n.shape[1:] != (len(segments), len(combinations)):
        raise ValueError(
            f"trials {n.shape} and successes {y.shape}: want ({len(segments)}, {len(combinations)}) cells"
        )
    if design.n_intervals and len(n) != design.n_intervals:
        raise ValueError(f"trials: {len(n)} intervals for a design with {design.n_intervals}")
    if not design.n_intervals:
        n, y = n.sum(axis=0, keepdims=True), y.sum(axis=0, keepdims=True)
    cells = [(t, s, a) for t in range(len(n)) for s in segments for a in combinations]
    columns = design.columns(
        [cell[1] for cell in cells],
        [cell[2] for cell in cells],
        [cell[0] for cell in cells] if design.n_intervals else None,
    )
    if mode == "laplace":
        draws = laplace(columns, n.ravel(), y.ravel(), design.prior_sd(), n_draws=n_draws, rng=rng)
    elif mode == "gibbs":
        per_chain = max(n_draws // 4, 4)
        draws = gibbs(columns, n.ravel(), y.ravel(), design.prior_sd(), n_draws=per_chain, rng=rng)
    else:
        raise ValueError(f"mode: {mode!r} is not gibbs or laplace")
    served = design.columns([s for s in segments for _ in combinations], combinations * len(segments))
    rates = expit(draws.flat() @ served.T).reshape(-1, len(segments), len(combinations))
    return ContextualPosterior(np.asarray(rates), n.sum(axis=0), y.sum(axis=0), draws)


def winners(
    posterior: ContextualPosterior, *, eligible: Mask | None = None, lower_is_better: bool = False
) -> list[int]:
    """Arm to lock for each segment when an experiment is completed: the one most probably best there."""
    best = posterior.best(eligible=eligible, lower_is_better=lower_is_better)
    return [int(arm) for arm in best.probability.argmax(axis=1)]


@dataclass(frozen=True, slots=True)
class Proposal:
    """An untested combination of factor levels.

    Attributes
    ----------
    levels : tuple of str
    probability_best : float
        Of its mean over segments against all combinations.
    probability_better : float
        P(its mean > the dropped arm's).
    mean : float
        Posterior mean over segments.
    """

    levels: tuple[str, ...]
    probability_best: float
    probability_better: float
    mean: float


def propose_combination(
    design: Design,
    posterior: ContextualPosterior,
    *,
    tested: Sequence[tuple[str, ...]],
    dropped: tuple[str, ...],
    segment_weights: Array | None = None,
    lower_is_better: bool = False,
) -> Proposal | None:
    """Propose the untested combination with the highest chance of being best.

    Parameters
    ----------
    design : Design
    posterior : ContextualPosterior
        Fitted on the tested arms; its coefficients tell of the others.
    tested : sequence of tuple of str
        Combinations that were ever live.
    dropped : tuple of str
        The arm whose place is free.
    segment_weights : ndarray, shape (n_segments,), optional
        Shares of traffic; default those of the data.
    lower_is_better : bool

    Returns
    -------
    Proposal or None
        None when everything was tested.
    """
    combinations = design.arms()
    if dropped not in combinations:
        raise ValueError(f"dropped: {dropped} is not a combination of the factors' levels")
    tried = set(tested)
    open_ones = [i for i, levels in enumerate(combinations) if levels not in tried]
    if not open_ones:
        return None
    segments = design.segments()
    if posterior.shape[0] != len(segments):
        segments = design.segments(with_other=True)
    weights = posterior.trials.sum(axis=1) if segment_weights is None else np.asarray(segment_weights)
    weights = weights / weights.sum() if weights.sum() > 0.0 else np.full(len(segments), 1.0 / len(segments))
    columns = design.columns([s for s in segments for _ in combinations], combinations * len(segments))
    rates = expit(posterior.draws.flat() @ columns.T).reshape(-1, len(segments), len(combinations))
    means = (rates * weights[:, None]).sum(axis=1)
    signed = -means if lower_is_better else means
    top = signed.argmax(axis=1)
    chance = np.bincount(top, minlength=len(combinations)) / len(top)
    chosen = max(open_ones, key=lambda i: (chance[i], signed[:, i].mean(), -i))
    better = float((signed[:, chosen] > signed[:, combinations.index(dropped)]).mean())
    return Proposal(combinations[chosen], float(chance[chosen]), better, float(means[:, chosen].mean()))
