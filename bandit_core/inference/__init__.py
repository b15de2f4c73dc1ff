"""Inference that may be shown to people, with the assumption each figure needs.

Steering posteriors are shrunk, discounted and collected adaptively; none of them comes near a report. Here:
confidence sequences (looks are free), batched least squares (one look, at an end fixed beforehand),
simultaneous contrasts for arms chosen from the data, the sample-ratio test, off-policy estimates, and when
it is safe to stop.
"""

from bandit_core.inference.batched import BatchedContrast, batched_ols, require_independent_batches
from bandit_core.inference.contrasts import Contrast, Interval, lifts_against, pairwise_contrasts
from bandit_core.inference.off_policy import NoOverlap, OffPolicyEstimate, off_policy, off_policy_difference
from bandit_core.inference.ratio import RatioTest, sample_ratio_test
from bandit_core.inference.report import (
    ASSUMPTIONS,
    ArmReport,
    Report,
    ReportSettings,
    finished_posterior,
    report,
)
from bandit_core.inference.sequences import (
    Sequence,
    difference_sequence,
    harmful_arms,
    lift_sequence,
    rest_increments,
    trailing_arms,
)
from bandit_core.inference.stopping import (
    STOP_QUANTILE,
    Estimate,
    InSample,
    StopAdvice,
    in_sample,
    safe_to_stop,
)
from bandit_core.inference.values import value_difference, value_lift

__all__ = [
    "ASSUMPTIONS",
    "STOP_QUANTILE",
    "ArmReport",
    "BatchedContrast",
    "Contrast",
    "Estimate",
    "InSample",
    "Interval",
    "NoOverlap",
    "OffPolicyEstimate",
    "RatioTest",
    "Report",
    "ReportSettings",
    "Sequence",
    "StopAdvice",
    "batched_ols",
    "difference_sequence",
    "finished_posterior",
    "harmful_arms",
    "in_sample",
    "lift_sequence",
    "lifts_against",
    "off_policy",
    "off_policy_difference",
    "pairwise_contrasts",
    "report",
    "require_independent_batches",
    "rest_increments",
    "safe_to_stop",
    "sample_ratio_test",
    "trailing_arms",
    "value_difference",
    "value_lift",
]
