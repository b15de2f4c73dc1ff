"""Verdicts checked one by one: does what they say hold of their record, and is none missing."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from streams.events import Conversion, Exposure
from streams.experiments.definition import Counting, ExperimentRecord
from streams.join.ledger import Limits
from streams.oracle.log import EventRow, JudgedEvent, Position, judge


def check_verdicts(
    exposures: Iterable[EventRow],
    conversions: Iterable[EventRow],
    experiments: Iterable[ExperimentRecord],
    verdicts: Mapping[Position, str],
    limits: Limits,
) -> list[str]:
    """Check each verdict's own predicate against the log, and that no record lacks one that it must have.

    What the log alone decides (undecodable, key_mismatch, future, late, wrong_partition) is checked both
    ways. What definitions decide is checked against the definitions as they are now, if they have not
    changed since the record was appended. ``unit_limit`` is checked as far as it is necessary: the unit has
    that many events.

    Parameters
    ----------
    exposures, conversions
        All records of the two topics.
    experiments
        All definitions.
    verdicts
        Reason by position.
    limits
        The worker's settings.

    Returns
    -------
    list of str
        What is wrong, one line for each verdict or missing verdict; empty if all is right.
    """
    known = {record.experiment_id: record for record in experiments}
    rows = {"exposures": list(exposures), "conversions": list(conversions)}
    judged: dict[Position, JudgedEvent] = {}
    undecoded: set[Position] = set()
    for topic, topic_rows in rows.items():
        judged |= {item.position: item for item in judge(topic, topic_rows, limits)}
        undecoded |= {(topic, row.partition, row.offset) for row in topic_rows if row.event is None}
    n_events: dict[str, int] = defaultdict(int)
    for item in judged.values():
        if not item.is_misplaced and item.position not in verdicts:
            n_events[item.event.unit_id] += 1
    missing = undecoded - verdicts.keys()
    problems = [f"{position}: does not decode, but has no verdict" for position in missing]
    known = {record.experiment_id: record for record in experiments}
    for position, reason in verdicts.items():
        found = judged.get(position)
        if found is None:
            if position not in undecoded or reason not in _OF_BYTES:
                problems.append(f"{position}: verdict {reason} on a record that is none of that kind")
        elif not _holds(reason, found, known, n_events[found.event.unit_id], limits):
            problems.append(f"{position}: verdict {reason} does not hold for {found.event}")
    for position, item in judged.items():
        needs = item.is_mismatched or (not item.is_misplaced and (item.is_future or item.is_late))
        if needs and position not in verdicts:
            problems.append(f"{position}: mismatched, future or late, but has no verdict: {item.event}")
    return sorted(problems)


_OF_BYTES = ("undecodable", "invalid_field", "value_out_of_range")


def _holds(
    reason: str, item: JudgedEvent, known: Mapping[str, ExperimentRecord], n_events: int, limits: Limits
) -> bool:
    """Whether the predicate of a verdict is true of its record, as far as can be known afterwards."""
    if reason == "key_mismatch":
        return item.is_mismatched
    if reason == "wrong_partition":
        return item.is_misplaced and not item.is_mismatched
    if item.is_misplaced or item.is_mismatched:
        return False
    if reason == "future":
        return item.is_future
    if reason == "late":
        return item.is_late
    if item.is_future or item.is_late:
        return False
    if reason == "oversize":
        return True  # judged by the size of what the record makes of its unit, which is not in the log
    if reason == "unit_limit":
        return n_events >= limits.unit_max_events
    return _holds_by_definition(reason, item, known)


def _holds_by_definition(reason: str, item: JudgedEvent, known: Mapping[str, ExperimentRecord]) -> bool:
    event = item.event
    if event.experiment_id is None:
        concerned = list(known.values())
    else:
        record = known.get(event.experiment_id)
        if record is None:
            return reason == "unknown_experiment"
        concerned = [record]
    if any(record.updated_at_ms > item.row.append_ms for record in concerned):
        return True
    if reason == "not_live":
        live = [record for record in concerned if record.status != "draft"]
        starts = [min(v.effective_from_ms for v in record.versions) for record in live]
        return not live or (isinstance(event, Exposure) and item.timestamp_ms < min(starts))
    if reason == "unknown_arm" and isinstance(event, Exposure):
        return all(arm.arm_id != event.arm_id for record in concerned for arm in record.arms)
    if reason == "unknown_metric" and isinstance(event, Conversion):
        return all(event.metric not in _metrics(v) for record in concerned for v in record.versions)
    return False


def _metrics(counting: Counting) -> set[str | None]:
    rewards = (counting.reward, *(guardrail.reward for guardrail in counting.guardrails))
    return {reward.metric for reward in rewards} | {
        reward.click_metric for reward in rewards if reward.kind == "conversion_after_click"
    }
