"""Posteriors of the arms' means. Arms are the last axis, experiments the first."""

from bandit_core.posteriors.base import Posterior
from bandit_core.posteriors.beta import BetaPosterior, BetaPrior
from bandit_core.posteriors.gaussian import GaussianPosterior, GaussianPrior
from bandit_core.posteriors.hurdle import HurdlePosterior

__all__ = ["BetaPosterior", "BetaPrior", "GaussianPosterior", "GaussianPrior", "HurdlePosterior", "Posterior"]
