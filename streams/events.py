"""Wire events: what producers write to the topics ``exposures`` and ``conversions``.

One JSON object a record, the record's key the UTF-8 bytes of ``unit_id``. How the types may change:

- a new field is optional with a default, so that old events decode; unknown fields are ignored, so that new
events
  decode in old workers;
- a field is never removed, renamed, or given another meaning or unit;
- ``tests/golden/events/v1`` holds bytes of every shape ever documented; they decode for ever.

A timestamp is epoch milliseconds, or RFC 3339 text with an offset; the text's fraction is read to the nearest
microsecond (msgspec's rule) and then cut to the millisecond, so that both forms of one instant agree. A value
becomes an integer number of micro-units, ``value * 1e6`` in IEEE double arithmetic rounded half to even, so
that sums are exact and do not depend on their order.

Cost: see ``bench/events.py``; below a microsecond an event, for the object itself.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from streams.errors import DeadLetterReason, EventError

MICROS_PER_UNIT = 1_000_000
VALUE_MAX = 1e9

Identifier = Annotated[str, Meta(min_length=1, max_length=256)]
Timestamp = Annotated[int, Meta(ge=0, lt=2**53)] | Annotated[datetime, Meta(tz=True)]


class Exposure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Unit ``unit_id`` was shown arm ``arm_id`` of ``experiment_id`` at ``timestamp``."""

    exposure_id: Annotated[
        Identifier, Meta(description="Identity of this exposure; the same id again is a duplicate.")
    ]
    experiment_id: Annotated[Identifier, Meta(description="The experiment.")]
    unit_id: Annotated[Identifier, Meta(description="Who was shown it; also the record's key.")]
    timestamp: Annotated[Timestamp, Meta(description="When: epoch milliseconds, or RFC 3339 with an offset.")]
    arm_id: Annotated[
        Identifier | None, Meta(description="The arm shown; absent exactly when `group` is `comparison`.")
    ] = None
    propensity: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="Probability with which this arm was chosen, given the group, segment and version."),
    ] = None
    allocation_version: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="Version of the allocation that chose the arm.")
    ] = None
    context: Annotated[
        dict[str, str] | None,
        Meta(description="Context features, name to level; unknown levels count as `other`."),
    ] = None
    group: Annotated[
        Literal["bandit", "comparison"],
        Meta(description="`comparison`: the unit is in the group that sees no arm; never learned from."),
    ] = "bandit"
    reason: Annotated[
        str | None,
        Meta(
            description="Why the edge chose so; beginning with `default`: counted apart, never learned from."
        ),
    ] = None
    test: Annotated[
        bool, Meta(description="A test event: counted only where the definition says `count_test`.")
    ] = False


class Conversion(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Unit ``unit_id`` did ``metric`` at ``timestamp``, worth ``value``."""

    conversion_id: Annotated[
        Identifier, Meta(description="Identity of this conversion; the same id again is a duplicate.")
    ]
    unit_id: Annotated[Identifier, Meta(description="Who did it; also the record's key.")]
    metric: Annotated[Identifier, Meta(description="What was done, as definitions name it.")]
    timestamp: Annotated[Timestamp, Meta(description="When: epoch milliseconds, or RFC 3339 with an offset.")]
    value: Annotated[
        float,
        Meta(
            description="Worth, from 0 to 1e9: an amount, or a reward from 0 to 1; read to six decimals.",
            # Checked after decoding, because it has a dead letter's reason of its own.
            extra_json_schema={"minimum": 0, "maximum": 1e9},
        ),
    ] = 1.0
    experiment_id: Annotated[
        Identifier | None,
        Meta(description="Attribute to this experiment only; absent: to every one it fits."),
    ] = None
    exposure_id: Annotated[
        Identifier | None,
        Meta(description="Attribute to this exposure, if it is the unit's and within its window."),
    ] = None
    test: Annotated[
        bool, Meta(description="A test event: counted only where the definition says `count_test`.")
    ] = False


_exposures = msgspec.json.Decoder(Exposure)
_conversions = msgspec.json.Decoder(Conversion)
_encoder = msgspec.json.Encoder()

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def decode_exposure(value: bytes) -> Exposure:
    """Read a record of the topic ``exposures``.

    Raises
    ------
    EventError
        ``undecodable`` if it is not JSON, ``invalid_field`` with the field's path if a field is missing or
        wrong.
    """
    try:
        exposure = _exposures.decode(value)
    except ValueError as error:
        raise _event_error(error) from None
    if type(exposure.timestamp) is not int:
        _require_epoch(exposure.timestamp)
    if (exposure.arm_id is None) is not (exposure.group == "comparison"):
        raise EventError(
            "invalid_field",
            "$.arm_id",
            "must be absent in group `comparison`, which sees no arm"
            if exposure.arm_id is not None
            else "must name the arm shown; only group `comparison` has none",
        )
    return exposure


def decode_conversion(value: bytes) -> Conversion:
    """Read a record of the topic ``conversions``.

    Raises
    ------
    EventError
        ``undecodable`` if it is not JSON, ``invalid_field`` with the field's path if a field is missing or
        wrong, ``value_out_of_range`` if ``value`` is not from 0 to 1e9.
    """
    try:
        conversion = _conversions.decode(value)
    except ValueError as error:
        raise _event_error(error) from None
    if type(conversion.timestamp) is not int:
        _require_epoch(conversion.timestamp)
    if not 0.0 <= conversion.value <= VALUE_MAX:
        raise EventError(
            "value_out_of_range",
            "$.value",
            f"{conversion.value!r} is not from 0 to {VALUE_MAX:g}; correct the producer",
        )
    return conversion


def encode_event(event: Exposure | Conversion) -> bytes:
    """JSON of an event; fields at their default are left out."""
    return _encoder.encode(event)


def event_key(event: Exposure | Conversion) -> bytes:
    """Key that the event's record must have."""
    return event.unit_id.encode()


def timestamp_ms(event: Exposure | Conversion) -> int:
    """Epoch milliseconds of an event, UTC; fractions of a millisecond are cut off."""
    timestamp = event.timestamp
    return timestamp if type(timestamp) is int else _epoch_ms(timestamp)


def value_micros(conversion: Conversion) -> int:
    """Value in micro-units: ``value * 1e6``, rounded half to even; from 0 to 1e15, hence exact."""
    return round(conversion.value * MICROS_PER_UNIT)


def _epoch_ms(timestamp: int | datetime) -> int:
    return timestamp if isinstance(timestamp, int) else (timestamp - _EPOCH) // _MILLISECOND


def _require_epoch(timestamp: int | datetime) -> None:
    if _epoch_ms(timestamp) < 0:
        raise EventError(
            "invalid_field", "$.timestamp", f"{timestamp} is before 1970; correct the producer's clock"
        )


def _event_error(error: ValueError) -> EventError:
    """Reason and field of what msgspec (or the UTF-8 codec) found; paths are taken out of its messages."""
    if not isinstance(error, msgspec.ValidationError):
        reason: DeadLetterReason = "undecodable"
        return EventError(reason, "$", f"not JSON in UTF-8: {error}")
    message, _, path = str(error).partition(" - at ")
    if missing := message.partition("Object missing required field ")[2]:
        return EventError(
            "invalid_field", f"{path.strip('`') or '$'}.{missing.strip('`')}", "missing; it is required"
        )
    return EventError("invalid_field", path.strip("`") or "$", message)
