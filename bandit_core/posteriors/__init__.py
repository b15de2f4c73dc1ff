"""Posteriors of the arms' means. Arms are the last axis, experiments the first."""

from bandit_core.posteriors.base import Posterior
from bandit_core.posteriors.beta import BetaPosterior, BetaPrior

__all__ = ["BetaPosterior", "BetaPrior", "Posterior"]
