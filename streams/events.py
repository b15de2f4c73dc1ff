"""Wire events: what producers write to the topics ``exposures`` and ``conversions``."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

Identifier = Annotated[str, Meta(min_length=1, max_length=256)]
Timestamp = Annotated[int, Meta(ge=0, lt=2**53)] | Annotated[datetime, Meta(tz=True)]


class Exposure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Unit ``unit_id`` was shown arm ``arm_id`` of ``experiment_id`` at ``timestamp``."""

    exposure_id: Identifier
    experiment_id: Identifier
    unit_id: Identifier
    timestamp: Timestamp
    arm_id: Identifier | None = None
    propensity: Annotated[float, Meta(gt=0, le=1)] | None = None
    allocation_version: Annotated[int, Meta(ge=0)] | None = None
    context: dict[str, str] | None = None
    group: Literal["bandit", "comparison"] = "bandit"
    reason: str | None = None
    test: bool = False


class Conversion(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Unit ``unit_id`` did ``metric`` at ``timestamp``, worth ``value``."""

    conversion_id: Identifier
    unit_id: Identifier
    metric: Identifier
    timestamp: Timestamp
    value: float = 1.0
    experiment_id: Identifier | None = None
    exposure_id: Identifier | None = None
    test: bool = False
