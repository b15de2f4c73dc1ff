"""Allocations by segment: one logistic regression over all cells of segment and arm.

What: `allocate_by_segment` fits :mod:`bandit_core.contextual` on the steering view's counts by segment and
gives every segment weights of its own; the overall weights of the record are their average, weighted by the
segments' trials. Trials and successes of a segment are worth what steering has found for the arm as a whole
(delay, forgetting). Features are those of the definition, each with its level ``other``. The arms' side are
the design factors, and each arm that is no combination of them, by itself; every feature interacts with every
factor.

Why an average beside: edges that do not know a unit's segment, and people, need one table.

Cost: tenths of a second by Laplace, seconds by Gibbs; always in a process of the pool. The last table serves
meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bandit_core.allocation import allocate_segments
from bandit_core.contextual import Design, fit, winners
from bandit_core.contextual import Feature as CoreFeature
from bandit_core.policies.base import DefinitionError, Evidence, Need, Parameters, PolicyWeights
from bandit_core.policies.contextual import Contextual
from bandit_core.posteriors import BetaPosterior
from bandit_core.shares import ArmStatus, ShareSettings
from streams.allocator.history import MICRO
from streams.allocator.inputs import Inputs
from streams.allocator.segment_counts import ContextInputs
from streams.experiments.definition import Feature
from streams.join.segments import Segmenter

__all__ = ["Averaged", "Segmented", "allocate_by_segment", "segment_names"]

N_DRAWS = 1000
R_HAT_MAX, ESS_MIN = 1.05, 100.0  # beyond them P(best) is off by more than a few hundredths
LONE_ARMS = "arm"
"""What definitions call the factor of the arms that are no combination of factors."""


class Segmented(NamedTuple):
    """What a fit gives: per segment weights (the second stage) and the best arm, and the policy's average.

    ``fit`` says how far the draws can be trusted: the worst ``r_hat`` and ``ess`` of all coefficients.
    """

    weights: dict[str, tuple[float, ...]]
    best: dict[str, str]
    average: NDArray[np.float64]
    fit: dict[str, float]

    def warnings(self) -> tuple[str, ...]:
        """Say what is wrong with the draws."""
        if self.fit["r_hat"] <= R_HAT_MAX and self.fit["ess"] >= ESS_MIN:
            return ()
        text = (
            f"the contextual model's chains have not settled: R-hat {self.fit['r_hat']:.3f}, effective sample"
            f" size {self.fit['ess']:.0f}; use fewer interactions, or mode laplace"
        )
        return (text,)


@dataclass(frozen=True, slots=True, eq=False)
class Averaged:
    """The policy's weights over all segments together, as a policy: shares are made of them as of any."""

    average: NDArray[np.float64]

    name: ClassVar[str] = "contextual"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROBABILITY_BEST})
    default_floor: ClassVar[float] = Contextual.default_floor

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Self:  # noqa: ARG003 - protocol
        """Refuse: it is made of weights, never of a definition."""
        raise DefinitionError("policy", "an average of segments has no parameters")

    def choose(self, evidence: Evidence, rng: np.random.Generator) -> PolicyWeights:  # noqa: ARG002 - protocol
        """Give the average, over the arms that get traffic."""
        weights = np.where(evidence.eligible, self.average[None], 0.0)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        return PolicyWeights(weights, weights)


def _features(context: ContextInputs) -> tuple[CoreFeature, ...]:
    return tuple(CoreFeature(name, levels) for name, levels in context.features)


def _design(context: ContextInputs, arm_ids: Sequence[str], policy: Contextual) -> Design:
    """Features, factors, and as one factor more the arms that are no combination of these."""
    features = _features(context)
    factors = tuple(CoreFeature(f"factor {name}", levels) for name, levels in context.factors)
    # In the arms' order: the mapping is sorted where it was read from a record.
    if alone := tuple(arm_id for arm_id in arm_ids if not any(context.levels[arm_id])):
        factors = (*factors, CoreFeature("the arm", alone))
    if policy.interactions is None:
        pairs = tuple((feature.name, factor.name) for feature in features for factor in factors)
    else:
        names = {factor.name.removeprefix("factor "): factor.name for factor in factors}
        names |= {LONE_ARMS: "the arm"} if alone else {}
        names |= {feature.name: feature.name for feature in features}
        pairs = tuple((names[a], names[b]) for a, b in policy.interactions if a in names and b in names)
    return Design(features, factors, interactions=pairs, n_intervals=len(context.days))


def segment_names(context: ContextInputs) -> tuple[str, ...]:
    """Names of all segments, ``other`` included, in the model's order."""
    segmenter = Segmenter([Feature(name=name, levels=levels) for name, levels in context.features])
    names = [name for name, _ in context.features]
    design = Design(_features(context), (CoreFeature("any", ("any",)),))
    return tuple(
        segmenter.segment(dict(zip(names, segment, strict=True)))[0]
        for segment in design.segments(with_other=True)
    )


def allocate_by_segment(
    inputs: Inputs,
    policy: Contextual,
    posterior: BetaPosterior,
    statuses: Sequence[ArmStatus],
    settings: ShareSettings,
    *,
    rng: np.random.Generator,
    level: float,
) -> Segmented:
    """Fit the model and allocate every segment.

    Raises
    ------
    ValueError
        If the inputs carry no segments.
    """
    context = inputs.context
    if context is None:
        raise ValueError("features: there is none; contextual needs at least one")
    arm_ids = [arm.arm_id for arm in inputs.arms]
    names = segment_names(context)
    by_day = [_cells(day, names, len(arm_ids)) for day in context.days or (context.segments,)]
    trials = np.stack([day[0] for day in by_day])
    rewards = np.stack([day[1] for day in by_day])
    trials *= _worth(posterior.data_trials[0], [arm.trials for arm in inputs.arms])
    rewards *= _worth(posterior.data_successes[0], [arm.value_micros / MICRO for arm in inputs.arms])
    rewards = np.minimum(rewards, trials)
    design = _design(context, arm_ids, policy)
    levels = [_levels(context, arm_id, len(design.factors)) for arm_id in arm_ids]
    mode: Literal["gibbs", "laplace"] = "gibbs" if policy.mode == "gibbs" else "laplace"
    model = fit(design, trials, rewards, rng=rng, mode=mode, n_draws=N_DRAWS, arms=levels)
    trials, rewards = trials.sum(axis=0), rewards.sum(axis=0)
    allocations = allocate_segments(
        policy,
        model,
        trials=trials,
        successes=rewards,
        statuses=statuses,
        control=arm_ids.index(inputs.control) if inputs.control in arm_ids else None,
        settings=settings,
        rng=rng,
        lower_is_better=inputs.lower_is_better,
        level=level,
    )
    seen = trials.sum(axis=1)
    traffic = seen / seen.sum() if seen.sum() > 0 else np.full(len(names), 1.0 / len(names))
    eligible = np.array([status.eligible for status in statuses])
    best = model.best(eligible=eligible, lower_is_better=inputs.lower_is_better).probability
    weights = {name: each.shares.rest for name, each in zip(names, allocations, strict=True)}
    leaders = winners(model, eligible=eligible, lower_is_better=inputs.lower_is_better)
    leader_ids = {name: arm_ids[arm] for name, arm in zip(names, leaders, strict=True)}
    quality = {"r_hat": model.draws.r_hat, "ess": model.draws.ess}
    return Segmented(weights, leader_ids, (traffic[:, None] * best).sum(axis=0), quality)


def _cells(
    segments: Mapping[str, Sequence[tuple[int, int]]], names: Sequence[str], n_arms: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Trials and rewards of each segment and arm, both (n_segments, n_arms)."""
    trials = np.zeros((len(names), n_arms))
    rewards = np.zeros_like(trials)
    for row, name in enumerate(names):
        for arm, cell in enumerate(segments.get(name, ())):
            trials[row, arm] = cell[0]
            rewards[row, arm] = min(max(cell[1] / MICRO, 0.0), cell[0])
    return trials, rewards


def _levels(context: ContextInputs, arm_id: str, n_factors: int) -> tuple[str, ...]:
    """Levels of an arm in the design; a level that is not listed has no effect of its own."""
    levels = context.levels[arm_id]
    return (*levels, "" if any(levels) else arm_id) if n_factors > len(context.factors) else levels


def _worth(effective: NDArray[np.float64], counted: Sequence[float]) -> NDArray[np.float64]:
    n = np.array(counted, dtype=np.float64)
    worth: NDArray[np.float64] = np.divide(effective, n, out=np.ones_like(n), where=n > 0.0)
    return worth
