"""Proposals from the factor model: the untested combination that is most probably the best. Pure.

What: `propose_combination_of` fits a logistic regression on what an allocation says of the arms that are
combinations of factors (Laplace; main effects, pairs of factors, and, where there are counts by segment, each
feature with each factor), and asks :func:`bandit_core.contextual.propose_combination` about the others.

Why from the allocation: it is what edges serve and what `audit` holds, so a proposal can be explained
afterwards; trials are taken for what the posterior says that they are worth, after delay and forgetting.

Cost: 0.07 s of one core for 300 combinations, 0.26 s for 1,000 (20 arms known); in another process.
"""

import itertools

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandit_core.assignment import derive_seed
from bandit_core.contextual import Design, fit, propose_combination
from bandit_core.contextual import Feature as CoreFeature
from streams.allocations import Allocation, ArmAllocation
from streams.allocator.contextual import segment_names
from streams.allocator.history import MICRO
from streams.allocator.segment_counts import ContextInputs
from streams.experiments.definition import ExperimentRecord, Proposal
from streams.experiments.validation import CELLS_MAX

__all__ = ["propose_combination_of", "untested", "weakest"]

N_DRAWS = 2000
Levels = tuple[str, ...]
Array = NDArray[np.float64]


def _levels(record: ExperimentRecord, levels: dict[str, str]) -> Levels:
    return tuple(levels.get(factor.name, "") for factor in record.factors)


def untested(record: ExperimentRecord) -> list[Levels]:
    """Return the combinations that neither are nor were an arm, or a proposal."""
    known = {_levels(record, arm.levels) for arm in record.arms}
    known |= {_levels(record, proposal.levels) for proposal in record.proposals}
    combinations = itertools.product(*(factor.levels for factor in record.factors))
    return [levels for levels in combinations if record.factors and levels not in known]


def weakest(record: ExperimentRecord, allocation: Allocation) -> str | None:
    """Return the arm that is least probably the best of those with traffic; never control."""
    arms = [
        arm
        for arm in allocation.arms
        if arm.status in ("active", "incubating") and arm.arm_id != record.control
    ]
    return min(arms, key=lambda arm: arm.probability_best).arm_id if arms else None


def propose_combination_of(
    record: ExperimentRecord, allocation: Allocation, dropped: str | None
) -> Proposal | None:
    """Propose a combination in the place of an arm.

    Parameters
    ----------
    record
        The experiment, with its factors.
    allocation
        What is known of its arms.
    dropped
        The arm whose place is free; where it is no combination itself, the weakest one that is.

    Returns
    -------
    Proposal or None
        None if the experiment has no factors, or every combination was tested or proposed.
    """
    combinations = set(itertools.product(*(factor.levels for factor in record.factors)))
    defined = {arm.arm_id: _levels(record, arm.levels) for arm in record.arms}
    known = [arm for arm in allocation.arms if defined.get(arm.arm_id, ()) in combinations]
    if not untested(record) or not known:
        return None
    replaced = next((arm for arm in known if arm.arm_id == dropped), None)
    replaced = replaced or min(known, key=lambda arm: arm.probability_best)
    levels = [defined[arm.arm_id] for arm in known]
    design, trials, rewards = _cells(record, allocation, known)
    rng = np.random.default_rng(derive_seed(record.experiment_id, f"proposal {allocation.version}"))
    # Versions of an arm are one combination; a design has a row for each.
    posterior = fit(design, trials, rewards, rng=rng, n_draws=N_DRAWS, arms=levels)
    settled = {_levels(record, each.levels) for each in record.proposals if each.levels}
    found = propose_combination(
        design,
        posterior,
        tested=[*(each for each in defined.values() if each in combinations), *settled],
        dropped=defined[replaced.arm_id],
        lower_is_better=bool(allocation.inputs.get("lower_is_better", False)),
    )
    if found is None:
        return None
    return Proposal(
        source="factors",
        dropped=dropped,
        levels={factor.name: level for factor, level in zip(record.factors, found.levels, strict=True)},
        probability_best=found.probability_best,
        probability_better=found.probability_better,
        mean=found.mean * _cap(allocation),
    )


def _cap(allocation: Allocation) -> float:
    return float(allocation.inputs.get("cap_micros", MICRO)) / MICRO


def _cells(
    record: ExperimentRecord, allocation: Allocation, arms: list[ArmAllocation]
) -> tuple[Design, Array, Array]:
    """Design, and per segment and arm what trials and rewards (as shares of the cap) are worth."""
    factors = tuple(CoreFeature(f"factor {each.name}", each.levels) for each in record.factors)
    pairs = [(one.name, other.name) for one, other in itertools.combinations(factors, 2)]
    worth = np.array([arm.effective_trials for arm in arms])
    means = np.clip(np.array([arm.mean for arm in arms]) / _cap(allocation), 0.0, 1.0)
    context = _context(allocation)
    names = segment_names(context) if context is not None else ()
    n_combinations = int(np.prod([len(factor.levels) for factor in factors]))
    if context is None or len(names) * n_combinations > CELLS_MAX:
        return Design((), factors, interactions=tuple(pairs)), worth[None], (worth * means)[None]
    features = tuple(CoreFeature(name, levels) for name, levels in context.features)
    pairs += [(feature.name, factor.name) for feature in features for factor in factors]
    places = {arm.arm_id: place for place, arm in enumerate(allocation.arms)}
    cells = np.array(
        [
            [
                context.segments[name][places[arm.arm_id]] if name in context.segments else (0, 0)
                for arm in arms
            ]
            for name in names
        ],
        dtype=np.float64,
    )
    trials, rewards = _scaled(cells[:, :, 0], worth), _scaled(cells[:, :, 1], worth * means)
    return Design(features, factors, interactions=tuple(pairs)), trials, np.minimum(rewards, trials)


def _context(allocation: Allocation) -> ContextInputs | None:
    found = allocation.inputs.get("context")
    return None if found is None else msgspec.convert(found, ContextInputs)


def _scaled(cells: Array, totals: Array) -> Array:
    """Give an arm's cells, (n_segments, n_arms), the arm's total: what they are worth together."""
    sums = cells.sum(axis=0)
    ratio: Array = np.divide(totals, sums, out=np.zeros_like(totals), where=sums > 0.0)
    scaled: Array = cells * ratio
    return scaled
