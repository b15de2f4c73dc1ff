"""The record of an experiment as it stands in the compacted topic ``experiments``.

What decides counting is versioned (:class:`Counting`, each with ``effective_from_ms``); what decides
allocation (:class:`Policy`, arms, shares, status) may change at any time and has a ``revision`` only.

The topic's value is this record as JSON, its key the UTF-8 bytes of ``experiment_id``. Unknown fields are
ignored and new ones have defaults, so that workers and edges of neighbouring releases read each other's
records.
"""

from bisect import bisect_right
from hashlib import sha256
from typing import Any, Literal

import msgspec
from msgspec import Struct

from streams.errors import RecordError

RewardKind = Literal["conversion_after_display", "click", "conversion_after_click", "value"]
TrialWindow = Literal["hour", "experiment", "exposure"]
Touch = Literal["last", "first", "all"]
ExperimentStatus = Literal["draft", "live", "paused", "completed", "archived"]
Delay = Literal["estimate", "gate", "none"]
ValueModel = Literal["hurdle", "gaussian"]
ProposalSource = Literal["factors", "generated"]
ProposalStatus = Literal["pending", "approved", "rejected"]
ArmStatus = Literal["pending", "incubating", "active", "stopped", "dropped"]


class Reward(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How conversions become a trial's reward: ``min(cap, sum of values)``; ``cap`` is 1 for rate kinds."""

    metric: str
    kind: RewardKind = "conversion_after_display"
    click_metric: str | None = None
    cap: float = 1.0
    lower_is_better: bool = False


class Guardrail(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A metric watched, never optimised; ``margin`` is the relative harm against control that is an alarm."""

    reward: Reward
    margin: float | None = None


class Feature(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A context feature with its known levels; any other level counts as ``other``."""

    name: str
    levels: tuple[str, ...]


class Counting(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of what decides counting; holds for exposures with ``timestamp >= effective_from_ms``."""

    version: int
    effective_from_ms: int
    reward: Reward
    guardrails: tuple[Guardrail, ...] = ()
    conversion_window_ms: int = 86_400_000
    trial_window: TrialWindow = "hour"
    touch: Touch = "last"
    features: tuple[Feature, ...] = ()
    count_test: bool = False


VERSION_MARK = "@"
"""Between an arm's name and its version in ``arm_id``; no name has it."""


class Arm(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of one arm; ``levels`` are its factor levels where the arms are made of design factors.

    ``arm_id`` is what edges and events say: the name in the definition (``green``) for the first version,
    and the name with the version (``green@2``) for later ones, so that what was counted of one version is
    never mixed with another's. Whatever can be told from it is not kept beside it.
    """

    arm_id: str
    status: ArmStatus = "active"
    levels: dict[str, str] = {}
    content: str | None = None
    proposal: str | None = None  # id of the proposal that it came from

    @property
    def name(self) -> str:
        """The arm as the definition calls it, whatever the version."""
        return name_of(self.arm_id)

    @property
    def version(self) -> int:
        """Version of the arm, from 1."""
        _, _, number = self.arm_id.partition(VERSION_MARK)
        return int(number) if number.isdecimal() else 1

    @property
    def content_hash(self) -> str:
        """First 16 hexadecimal digits of SHA-256 over content and levels: equal for what is shown alike."""
        shown = msgspec.json.encode((self.content, self.levels), order="deterministic")
        return sha256(shown).hexdigest()[:16]


def name_of(arm_id: str) -> str:
    """Name of an arm in its definition: ``green`` for ``green`` and for ``green@2``."""
    return arm_id.partition(VERSION_MARK)[0]


def arm_id_of(name: str, version: int) -> str:
    """Give the id of an arm's version: ``green`` for the first, ``green@2`` for the second."""
    return name if version == 1 else f"{name}{VERSION_MARK}{version}"


class Factor(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A design factor; the product of all factors' levels gives the arms."""

    name: str
    levels: tuple[str, ...]


class Prior(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Beta prior of every arm (dimensionless pseudo-counts); ``pooled``: learned from all arms instead."""

    alpha: float = 1.0
    beta: float = 1.0
    pooled: bool = False


class Learning(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What steering makes of the counts; ``delay`` None is the default of the reward's kind."""

    delay: Delay | None = None
    half_life_ms: int | None = None
    window_ms: int | None = None
    stratify: bool = False
    overdispersion: bool = False
    model: ValueModel = "hurdle"  # of values


class Lifecycle(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the allocator may do by itself, interval by interval."""

    adaptive_holdout: bool = False
    adaptive_floor: bool = False
    drop: bool = False
    drop_intervals: int = 24
    min_trials: int = 100
    max_trials: int = 10_000
    max_step: float | None = None


class Policy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What turns counts into weights; any change recalculates at once."""

    algorithm: str = "thompson"
    parameters: dict[str, Any] = {}
    interval_ms: int = 3_600_000
    floor: float | None = None
    holdout: float = 0.0
    comparison: float = 0.0
    prior: Prior = Prior()
    learning: Learning = Learning()
    lifecycle: Lifecycle = Lifecycle()


class Proposing(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether and how new arms are proposed; limits are for the whole life of the experiment."""

    on_drop: bool = False
    generate: bool = False
    auto_approve: bool = False
    max_requests: int = 20
    max_tokens: int = 100_000
    instructions: str = ""


class Spending(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What generating has cost so far; what was reserved for a request that never ended stays spent."""

    requests: int = 0
    tokens: int = 0


class Proposal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An arm that might be added: a combination of factors (``levels``), or new ``content``.

    Probabilities are of the factor model's mean: of being the best of all combinations, and of being better
    than ``dropped``, the arm whose place it would take. Of generated content nothing is known.
    """

    source: ProposalSource
    arm_id: str = ""
    proposal_id: str = ""
    status: ProposalStatus = "pending"
    dropped: str | None = None
    on_drop: bool = False  # proposed because it was dropped, not because somebody asked
    levels: dict[str, str] = {}
    content: str | None = None
    rationale: str = ""
    model: str = ""
    probability_best: float | None = None
    probability_better: float | None = None
    mean: float | None = None
    created_at_ms: int = 0
    decided_at_ms: int | None = None


class SegmentWinners(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Winners of a completed experiment by segment; segments are those of counting version ``version``."""

    version: int
    arms: dict[str, str]


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
    ends_at_ms: int | None = None  # when batched least squares may be looked at, once
    segment_winners: SegmentWinners | None = None
    proposing: Proposing = Proposing()
    proposals: tuple[Proposal, ...] = ()
    spending: Spending = Spending()
    created_at_ms: int = 0
    updated_at_ms: int = 0
    description: str = ""

    def arm(self, arm_id: str) -> Arm | None:
        """Return the arm with this id, whatever its status; arms never vanish from a record."""
        return next((arm for arm in self.arms if arm.arm_id == arm_id), None)

    @property
    def newest_arms(self) -> dict[str, Arm]:
        """Newest version of every arm by its name, in the order in which the names came."""
        newest: dict[str, Arm] = {}
        for arm in self.arms:
            if arm.name not in newest or newest[arm.name].version < arm.version:
                newest[arm.name] = arm
        return newest

    def find_arm(self, arm_id_or_name: str) -> Arm | None:
        """Return what a person means: the newest version of a name, or the very version of an id."""
        return self.newest_arms.get(arm_id_or_name) or self.arm(arm_id_or_name)


_decoder = msgspec.json.Decoder(ExperimentRecord)
_encoder = msgspec.json.Encoder(order="deterministic")


def decode_record(experiment_id: str, value: bytes) -> ExperimentRecord:
    """Read a record of the topic ``experiments``.

    Raises
    ------
    RecordError
        If it is not such a record, or its key names another experiment.
    """
    try:
        record = _decoder.decode(value)
    except ValueError as error:
        raise RecordError(
            f"not an experiment record: {error}",
            where=f"experiment {experiment_id}",
            action="apply its definition again with `bandit-streams experiments apply`",
        ) from error
    if record.experiment_id != experiment_id:
        raise RecordError(
            f"the key says {experiment_id!r}, the record {record.experiment_id!r}",
            where=f"experiment {experiment_id}",
            action="write records only through `bandit-streams experiments`",
        )
    return record


def encode_record(record: ExperimentRecord) -> bytes:
    """JSON of a record; equal records give equal bytes."""
    return _encoder.encode(record)


def bind(record: ExperimentRecord, timestamp_ms: int) -> Counting | None:
    """Return the counting version that holds for an exposure of this time.

    It is the last of those with ``effective_from_ms <= timestamp_ms``, in the order of versions, which is
    also the order of their times. A paused or completed experiment still counts; an archived one is for the
    caller to leave out.

    Returns
    -------
    Counting or None
        ``None`` if the experiment is a draft or the exposure is older than its first version (``not_live``).
    """
    if record.status == "draft":
        return None
    found = bisect_right(record.versions, timestamp_ms, key=lambda version: version.effective_from_ms)
    return record.versions[found - 1] if found else None
