"""The record of an experiment as it stands in the compacted topic ``experiments``.

What decides counting is versioned (:class:`Counting`, each with ``effective_from_ms``); what decides allocation
(:class:`Policy`, arms, shares, status) may change at any time and has a ``revision`` only.
"""

from typing import Any, Literal

from msgspec import Struct

RewardKind = Literal["conversion_after_display", "click", "conversion_after_click", "value"]
TrialWindow = Literal["hour", "experiment", "exposure"]
Touch = Literal["last", "first", "all"]
ExperimentStatus = Literal["draft", "live", "paused", "completed", "archived"]
ArmStatus = Literal["pending", "incubating", "active", "stopped", "dropped"]


class Reward(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How conversions become a trial's reward: ``min(cap, sum of values)``; ``cap`` is 1 for rate kinds."""

    metric: str
    kind: RewardKind = "conversion_after_display"
    click_metric: str | None = None
    cap: float = 1.0
    lower_is_better: bool = False


class Guardrail(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A metric watched, never optimised; ``margin`` is the relative harm against control that stops an arm."""

    reward: Reward
    margin: float | None = None


class Feature(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A context feature with its known levels; any other level counts as ``other``."""

    name: str
    levels: tuple[str, ...]


class Counting(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of what decides counting; it holds for exposures with ``timestamp >= effective_from_ms``."""

    version: int
    effective_from_ms: int
    reward: Reward
    guardrails: tuple[Guardrail, ...] = ()
    conversion_window_ms: int = 86_400_000
    trial_window: TrialWindow = "hour"
    touch: Touch = "last"
    features: tuple[Feature, ...] = ()
    count_test: bool = False


class Arm(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One arm; ``levels`` are its factor levels where the arms are a product of design factors."""

    arm_id: str
    status: ArmStatus = "active"
    levels: dict[str, str] = {}
    content: str | None = None


class Factor(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A design factor; the product of all factors' levels gives the arms."""

    name: str
    levels: tuple[str, ...]


class Prior(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Beta prior of every arm (dimensionless pseudo-counts)."""

    alpha: float = 1.0
    beta: float = 1.0


class Policy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What turns counts into weights; any change recalculates at once."""

    algorithm: str = "thompson"
    parameters: dict[str, Any] = {}
    interval_ms: int = 3_600_000
    floor: float | None = None
    holdout: float = 0.0
    comparison: float = 0.0
    prior: Prior = Prior()


class ExperimentRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything known of one experiment: all counting versions, and the newest policy, arms and status."""

    experiment_id: str
    revision: int
    status: ExperimentStatus
    arms: tuple[Arm, ...]
    control: str
    versions: tuple[Counting, ...]
    policy: Policy = Policy()
    factors: tuple[Factor, ...] = ()
    default_arm: str | None = None
    sticky: Literal["unit", "interval"] = "unit"
    winner: str | None = None
    created_at_ms: int = 0
    updated_at_ms: int = 0
    description: str = ""
