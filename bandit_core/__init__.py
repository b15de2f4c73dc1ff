"""The maths of adaptive experiments: pure functions of numbers.

No I/O, no clock, no global state; a random generator is always an argument. Arrays have arms on the last
axis and experiments on the first.

====================  ================================================================================
module                what
====================  ================================================================================
posteriors            beliefs about arms' means, from counts
probability_best      P(best), expected loss, value remaining: exact, by :mod:`quadrature`
policies              what to do with beliefs: weights; ``policy_from_definition(name, parameters)``
shares                comparison group, holdout, floors, incubation: what each arm really gets
allocation            one recalculation: posterior + policy -> shares and figures per arm
assignment            which arm a unit sees: weighted rendezvous hashing, byte-exact in every language
counts                the input by period, arm and lag; discounting, windows, overdispersion
delay                 what pending trials are worth: a delay per arm, corrected for truncation
stratification        arms compared within periods; priors: pooled over the arms
steering              all of these by settings: counts in, the posterior that steers out
lifecycle             holdout, incubation, dropping, statuses, limited steps
inference             what people may be told: confidence sequences, sample ratio, off-policy, the report
contextual            segments x design factors: one logistic regression over all cells
simulator, scenarios  experiments with the truth known, many seeds at once
league                policies compared; planning by simulation
====================  ================================================================================

>>> import numpy as np
>>> from bandit_core import ArmStatus, BetaPosterior, ShareSettings, allocate, policy_from_definition
>>> got = allocate(
...     policy_from_definition("epsilon_greedy", {"exploration": 0.1}),
...     BetaPosterior.from_counts([1000, 1000, 1000], [50, 60, 55]),
...     trials=[1000, 1000, 1000],
...     successes=[50, 60, 55],
...     statuses=[ArmStatus.ACTIVE] * 3,
...     control=0,
...     settings=ShareSettings(comparison=0.1),
...     rng=np.random.default_rng(0),
... )
>>> got.shares.weights
(0.045, 0.81, 0.045)
"""

from bandit_core.allocation import Allocation, ArmFigures, allocate, allocate_segments
from bandit_core.assignment import Assigner, Assignment, Group, derive_seed, uniform_hash
from bandit_core.policies import POLICIES, DefinitionError, Policy, policy_from_definition
from bandit_core.posteriors import BetaPosterior, BetaPrior, Posterior
from bandit_core.probability_best import (
    BestArm,
    probability_best_beta,
    probability_best_gaussian,
    value_remaining_beta,
    value_remaining_gaussian,
)
from bandit_core.shares import ArmStatus, NoEligibleArm, Shares, ShareSettings, allocate_shares

__all__ = [
    "POLICIES",
    "Allocation",
    "ArmFigures",
    "ArmStatus",
    "Assigner",
    "Assignment",
    "BestArm",
    "BetaPosterior",
    "BetaPrior",
    "DefinitionError",
    "Group",
    "NoEligibleArm",
    "Policy",
    "Posterior",
    "ShareSettings",
    "Shares",
    "allocate",
    "allocate_segments",
    "allocate_shares",
    "derive_seed",
    "policy_from_definition",
    "probability_best_beta",
    "probability_best_gaussian",
    "uniform_hash",
    "value_remaining_beta",
    "value_remaining_gaussian",
]
