"""Inference that may be shown to people, with the assumption each figure needs.

Steering posteriors are shrunk, discounted and collected adaptively; none of them comes near a report. Here:
confidence sequences (looks are free), batched least squares (one look, at an end fixed beforehand),
simultaneous contrasts for arms chosen from the data, the sample-ratio test, off-policy estimates, and when
it is safe to stop.
"""

from bandit_core.inference.batched import BatchedContrast, batched_ols, require_independent_batches
from bandit_core.inference.off_policy import NoOverlap, OffPolicyEstimate, off_policy
from bandit_core.inference.ratio import RatioTest, sample_ratio_test
from bandit_core.inference.report import ASSUMPTIONS, ArmReport, Interval, Report, report
from bandit_core.inference.sequences import (
    Contrast,
    Sequence,
    difference_sequence,
    harmful_arms,
    lift_sequence,
    pairwise_contrasts,
)
from bandit_core.inference.stopping import InSample, StopAdvice, in_sample, safe_to_stop

__all__ = [
    "ASSUMPTIONS",
    "ArmReport",
    "BatchedContrast",
    "Contrast",
    "InSample",
    "Interval",
    "NoOverlap",
    "OffPolicyEstimate",
    "RatioTest",
    "Report",
    "Sequence",
    "StopAdvice",
    "batched_ols",
    "difference_sequence",
    "harmful_arms",
    "in_sample",
    "lift_sequence",
    "off_policy",
    "pairwise_contrasts",
    "report",
    "require_independent_batches",
    "safe_to_stop",
    "sample_ratio_test",
]
