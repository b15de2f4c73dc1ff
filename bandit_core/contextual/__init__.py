"""Contextual learning: cells of segment x factor levels, one logistic regression over all of them.

A cell with five trials says little, but its country says something, its device too, and its headline more:
main effects and a few interactions are learned across cells, and each segment gets its own weights.
"""

from bandit_core.contextual.design import OTHER, Design, Feature, segment_of
from bandit_core.contextual.logistic import Draws, diagnostics, gibbs, laplace
from bandit_core.contextual.model import (
    ContextualPosterior,
    Proposal,
    fit,
    propose_combination,
    winners,
)

__all__ = [
    "OTHER",
    "ContextualPosterior",
    "Design",
    "Draws",
    "Feature",
    "Proposal",
    "diagnostics",
    "fit",
    "gibbs",
    "laplace",
    "propose_combination",
    "segment_of",
    "winners",
]
