"""Logged impressions and clicks (the columns of the Open Bandit Dataset) as exposures and conversions.

What: each row is one impression of one item; there is no user id, so a row is a unit of its own. The item is
the arm, the logged propensity is kept, position and the four user features are context. A click becomes a
conversion with the metric ``click``, :data:`CLICK_DELAY_MS` after its impression, because the files have no
time of the click.

Why this way: a row that cannot be read is not dropped here. It is sent as it stands, and the pipeline
dead-letters it like any other bad input, so that nothing is missing from the demo's accounts. Rows are sorted
by time, because a history is replayed in the order in which it happened; rows without a readable time come
first.

Cost: the file is held in memory as encoded events, some 400 bytes a row.
"""

import csv
import gzip
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from streams.errors import Stop
from streams.events import Conversion, Exposure
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Feature, Policy, Reward

__all__ = [
    "CLICK_DELAY_MS",
    "COLUMNS",
    "EXPERIMENT_ID",
    "Event",
    "InputUnreadable",
    "LoggedEvents",
    "events_of",
    "load_logged_events",
    "replay_experiment",
]

EXPERIMENT_ID: Final = "open-bandit-men"
METRIC: Final = "click"
CLICK_DELAY_MS: Final = 5_000
CONVERSION_WINDOW_MS: Final = 3_600_000
FEATURES: Final = ("user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3")
COLUMNS: Final = ("timestamp", "item_id", "position", "click", "propensity_score", *FEATURES)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR_MS: Final = 3_600_000
_encode = msgspec.json.Encoder().encode


class InputUnreadable(Stop):
    """The input file is not a CSV of impressions."""

    exit_code = 65


class Event(NamedTuple):
    """One record for a source topic."""

    timestamp_ms: int
    key: bytes
    value: bytes


class LoggedEvents(NamedTuple):
    """A log, ready to be produced.

    Attributes
    ----------
    name
        Of the file.
    exposures, conversions
        Sorted by time.
    arm_ids
        Every item seen, numbers in their order.
    clicks
        Rows with a click, unreadable rows aside.
    unreadable
        Rows that do not hold what their columns promise; they are among the exposures, as they stand.
    first_ms, last_ms
        Least and greatest time of a readable row.
    """

    name: str
    exposures: list[Event]
    conversions: list[Event]
    arm_ids: tuple[str, ...]
    clicks: int
    unreadable: int
    first_ms: int
    last_ms: int


def load_logged_events(path: Path) -> LoggedEvents:
    """Read a CSV file, gzipped or plain.

    Raises
    ------
    InputUnreadable
        The file cannot be opened, lacks a column, or has no readable row.
    """
    exposures: list[Event] = []
    conversions: list[Event] = []
    arm_ids: set[str] = set()
    unreadable = 0
    first_ms, last_ms = 2**53, -1
    for number, row in _rows(path):
        unit_id = f"row-{number:08d}"
        try:
            exposure, conversion = _events(unit_id, row)
        except (ValueError, KeyError, TypeError):
            unreadable += 1
            raw = {str(name): value for name, value in row.items()}
            exposures.append(Event(0, unit_id.encode(), _encode(raw)))
            continue
        timestamp_ms = exposure.timestamp if isinstance(exposure.timestamp, int) else 0
        first_ms, last_ms = min(first_ms, timestamp_ms), max(last_ms, timestamp_ms)
        arm_ids.add(str(exposure.arm_id))
        exposures.append(Event(timestamp_ms, unit_id.encode(), _encode(exposure)))
        if conversion is not None:
            conversions.append(Event(timestamp_ms + CLICK_DELAY_MS, unit_id.encode(), _encode(conversion)))
    if last_ms < 0:
        raise InputUnreadable(
            f"no row could be read as an impression ({unreadable} rows)",
            where=str(path),
            action=f"give a CSV file with a header line and the columns {', '.join(COLUMNS)}",
        )
    exposures.sort(key=lambda event: event.timestamp_ms)
    conversions.sort(key=lambda event: event.timestamp_ms)
    arms = tuple(sorted(arm_ids, key=_numbers_first))
    n_clicks = len(conversions)
    return LoggedEvents(path.name, exposures, conversions, arms, n_clicks, unreadable, first_ms, last_ms)


def events_of(events: LoggedEvents, experiment_id: str) -> tuple[list[Event], list[Event]]:
    """Give the log's exposures and conversions as those of an experiment.

    Another experiment than :data:`EXPERIMENT_ID` gets ids of its own for them, and no unreadable rows.
    """
    if experiment_id == EXPERIMENT_ID:
        return events.exposures, events.conversions
    sides = []
    for side in (events.exposures, events.conversions):
        copies = []
        for event in side:
            fields = msgspec.json.decode(event.value)
            if "experiment_id" in fields:
                ids = [name for name in ("exposure_id", "conversion_id") if name in fields]
                fields |= {name: f"{fields[name]}-{experiment_id}" for name in ids}
                copies.append(event._replace(value=_encode(fields | {"experiment_id": experiment_id})))
        sides.append(copies)
    return sides[0], sides[1]


def replay_experiment(
    events: LoggedEvents, created_at_ms: int, algorithm: str = "thompson"
) -> ExperimentRecord:
    """Make the experiment that the log is replayed into: every item an arm, the first one as control.

    Thompson sampling has :data:`EXPERIMENT_ID`, other algorithms their name behind it; contextual learns by
    the position on the page.
    """
    contexts = [msgspec.json.decode(event.value).get("context") or {} for event in events.exposures]
    positions = tuple(sorted({context["position"] for context in contexts if "position" in context}))
    features = (Feature(name="position", levels=positions),) if algorithm == "contextual" else ()
    return ExperimentRecord(
        experiment_id=EXPERIMENT_ID if algorithm == "thompson" else f"{EXPERIMENT_ID}-{algorithm}",
        revision=1,
        status="live",
        arms=tuple(Arm(arm_id=arm_id) for arm_id in events.arm_ids),
        control=events.arm_ids[0],
        versions=(
            Counting(
                version=1,
                effective_from_ms=events.first_ms // _HOUR_MS * _HOUR_MS,
                reward=Reward(metric=METRIC, kind="click"),
                conversion_window_ms=CONVERSION_WINDOW_MS,
                trial_window="exposure",
                features=features,
            ),
        ),
        policy=Policy(algorithm=algorithm, interval_ms=_HOUR_MS),
        created_at_ms=created_at_ms,
        updated_at_ms=created_at_ms,
        description="Replay of logged impressions and clicks; the arms are the items of the shop.",
    )


def _events(unit_id: str, row: dict[str, str]) -> tuple[Exposure, Conversion | None]:
    """Make a row's exposure, and its conversion if it was clicked; ValueError if a column is not as said."""
    shown = datetime.fromisoformat(row["timestamp"])
    shown = shown.replace(tzinfo=UTC) if shown.tzinfo is None else shown
    timestamp_ms = (shown - _EPOCH) // timedelta(milliseconds=1)
    click = int(row["click"])
    propensity = float(row["propensity_score"])
    if (
        None in row.values()
        or click not in (0, 1)
        or not row["item_id"]
        or not 0.0 < propensity <= 1.0
        or timestamp_ms < 0
    ):
        raise ValueError(f"{unit_id}: click, item_id, propensity_score or timestamp out of range")
    exposure = Exposure(
        exposure_id=f"{unit_id}-shown",
        experiment_id=EXPERIMENT_ID,
        unit_id=unit_id,
        timestamp=timestamp_ms,
        arm_id=row["item_id"],
        propensity=propensity,
        context={"position": row["position"], **{name: row[name] for name in FEATURES}},
    )
    if not click:
        return exposure, None
    return exposure, Conversion(
        conversion_id=f"{unit_id}-click",
        unit_id=unit_id,
        metric=METRIC,
        timestamp=timestamp_ms + CLICK_DELAY_MS,
        experiment_id=EXPERIMENT_ID,
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield data rows with their number from 1; gzip is told by its first bytes, not by the name."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputUnreadable(
            f"input cannot be read: {error}",
            where=str(path),
            action="give a CSV file, gzipped or plain, in UTF-8",
        ) from error
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise InputUnreadable(
            f"column{'s' if len(missing) > 1 else ''} missing: {', '.join(missing)}",
            where=str(path),
            action=f"the first line must name at least {', '.join(COLUMNS)}",
        )
    yield from enumerate(reader, start=1)


def _numbers_first(arm_id: str) -> tuple[int, int, str]:
    return (0, int(arm_id), arm_id) if arm_id.isdecimal() else (1, 0, arm_id)
