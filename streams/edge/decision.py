"""What an edge decides, and why.

A decision carries everything an exposure event needs, so that emitting it later asks nobody. Reasons are a
closed set (:data:`REASONS`), because they are a metric's label and because the pipeline reads them: every
reason that begins with ``default`` marks an arm that was not drawn from an allocation, and such exposures are
counted but left out of learning, of sample-ratio checks and of off-policy estimates.
"""

from typing import Final, Literal

from msgspec import Struct

from streams.experiments.definition import name_of

ALLOCATION: Final = "allocation"
HOLDOUT: Final = "holdout"
COMPARISON: Final = "comparison"
DEFAULT_UNKNOWN: Final = "default:unknown_experiment"
DEFAULT_MISSING: Final = "default:missing_allocation"
DEFAULT_STALE: Final = "default:stale_allocation"
DEFAULT_NO_ARM: Final = "default:no_eligible_arm"
DEFAULT_STOPPED: Final = "default:stopped_arm"
DEFAULT_DRAFT: Final = "default:draft"
DEFAULT_PAUSED: Final = "default:paused"
DEFAULT_ARCHIVED: Final = "default:archived"
DEFAULT_COMPLETED: Final = "default:completed"

REASONS: Final[dict[str, str]] = {
    ALLOCATION: "drawn from the allocation's weights",
    HOLDOUT: "control, because the unit is in the holdout",
    COMPARISON: "no arm at all, because the unit is in the comparison group",
    DEFAULT_UNKNOWN: "neither a definition nor an allocation is known; no arm unless the caller named one",
    DEFAULT_MISSING: "the experiment is live, but no allocation has been published yet",
    DEFAULT_STALE: "the newest allocation was published more than allocation_max_age_ms ago",
    DEFAULT_NO_ARM: "the allocation gives weight to no arm",
    DEFAULT_STOPPED: "the drawn arm was stopped after the allocation had been computed",
    DEFAULT_DRAFT: "the experiment is a draft",
    DEFAULT_PAUSED: "the experiment is paused",
    DEFAULT_ARCHIVED: "the experiment is archived",
    DEFAULT_COMPLETED: "the experiment is completed; the winner, of the unit's segment if each has its own",
}
"""Every reason a decision can have, with what it means."""


class Decision(Struct, frozen=True, kw_only=True, gc=False):
    """Which arm a unit sees.

    Attributes
    ----------
    experiment_id, unit_id
        As asked.
    arm_id
        The arm; None where the unit sees none: in the comparison group, and for an unknown experiment without
        a default.
    propensity
        P(arm | group, segment, version) in (0, 1]; 1 where nothing was drawn.
    allocation_version
        Version of the allocation that was used; None where none was.
    reason
        One of :data:`REASONS`.
    group
        ``comparison`` or ``bandit``.
    segment
        Segment whose weights were used; empty for the experiment's overall weights.
    context
        As asked; it goes into the exposure.
    """

    experiment_id: str
    unit_id: str
    arm_id: str | None
    propensity: float
    allocation_version: int | None
    reason: str
    group: Literal["bandit", "comparison"] = "bandit"
    segment: str = ""
    context: dict[str, str] | None = None

    @property
    def arm_name(self) -> str | None:
        """The arm as the definition calls it: ``green`` for the versions ``green`` and ``green@2``."""
        return None if self.arm_id is None else name_of(self.arm_id)

    @property
    def is_default(self) -> bool:
        """Whether the arm was not drawn from an allocation."""
        return self.reason.startswith("default")
