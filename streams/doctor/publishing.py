"""Checks of what goes in and comes out: definitions, allocations, dead letters."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from streams.allocations import Allocation, decode_allocation
from streams.deadletters import Filter, read_letters
from streams.doctor.findings import Context, Finding, Level, ok
from streams.errors import RecordError
from streams.experiments.definition import ExperimentRecord
from streams.log_reader import LogReader

__all__ = ["check_allocations", "check_dead_letters", "check_definitions"]

HOUR_MS = 3_600_000

REASON_ACTIONS = {
    "undecodable": "the producer does not send JSON objects; see docs/producers.md",
    "invalid_field": "a field is missing or of a wrong type; the letters name it",
    "key_mismatch": "set the record's key to the unit_id",
    "unknown_experiment": "apply the definition, then replay; or correct experiment_id in the producer",
    "unknown_arm": "add the arm to the definition, then replay; or correct arm_id in the producer",
    "unknown_metric": "no experiment counts this metric: correct the producer, or name it in a definition",
    "not_live": "the exposure is older than the experiment, or the experiment is a draft",
    "future": "correct the producer's clock or its unit (epoch milliseconds)",
    "late": "they came more than BANDIT_GRACE_MS behind newer ones: send them sooner",
    "unit_limit": "one unit has very many events: a bot, or a unit_id that many share",
    "oversize": "one unit has too many events with long ids for a journal record: a bot, or a shared unit_id",
    "wrong_partition": "they stayed misplaced after one re-routing; see the check of producers",
    "value_out_of_range": "value is negative, not finite or above 1e9: correct the producer",
}


async def _newest(reader: LogReader, topic: str) -> dict[bytes, bytes]:
    """Return the newest value of each key of a compacted topic; deleted ones are left out."""
    values: dict[bytes, bytes] = {}
    async for record in reader.read(topic):
        if record.value is None:
            values.pop(record.key or b"", None)
        else:
            values[record.key or b""] = record.value
    return values


async def _definitions(context: Context) -> tuple[dict[str, ExperimentRecord], list[str]]:
    records: dict[str, ExperimentRecord] = {}
    problems = []
    for key, value in (await _newest(context.reader, context.settings.topic("experiments"))).items():
        try:
            records[key.decode()] = msgspec.json.decode(value, type=ExperimentRecord)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            problems.append(f"{key!r}: {error}")
    return records, problems


async def check_definitions(context: Context) -> Sequence[Finding]:
    """Read every definition."""
    if not context.has("experiments"):
        return []
    topic = context.settings.topic("experiments")
    records, problems = await _definitions(context)
    findings = [
        Finding(
            Level.FAIL,
            "definitions",
            f"a definition cannot be read: {problem}",
            topic,
            "`bandit-streams experiments apply FILE` again; until then the last good one counts",
        )
        for problem in problems
    ]
    if not records and not problems:
        return [
            Finding(
                Level.WARN, "definitions", "no experiment", topic, "`bandit-streams experiments apply FILE`"
            )
        ]
    if records:
        statuses = Counter(record.status for record in records.values())
        findings.append(
            ok("definitions", ", ".join(f"{n} {status}" for status, n in sorted(statuses.items())), topic)
        )
    return findings


async def check_allocations(context: Context) -> Sequence[Finding]:
    """See that every live experiment has an allocation that is not old."""
    if not context.has("allocations", "experiments"):
        return []
    topic = context.settings.topic("allocations")
    records, _ = await _definitions(context)
    allocations: dict[str, Allocation] = {}
    findings: list[Finding] = []
    for key, value in (await _newest(context.reader, topic)).items():
        try:
            allocations[key.decode()] = decode_allocation(value, where=topic)
        except (RecordError, UnicodeDecodeError) as error:
            findings.append(
                Finding(
                    Level.FAIL,
                    "allocations",
                    f"the allocation of {key!r} cannot be read: {error}",
                    topic,
                    "restart the allocator's worker: a new owner publishes again",
                )
            )
    live = [record for record in records.values() if record.status == "live"]
    for record in live:
        findings += _allocation(context, record, allocations.get(record.experiment_id), topic)
    if live and not findings:
        findings.append(ok("allocations", f"{len(live)} live experiments have a fresh allocation", topic))
    return findings


def _allocation(
    context: Context, record: ExperimentRecord, allocation: Allocation | None, topic: str
) -> list[Finding]:
    where = f"{topic}, experiment {record.experiment_id}"
    action = "see that a worker with the role allocator runs, and its log"
    if allocation is None:
        return [Finding(Level.FAIL, "allocations", "live, but has no allocation", where, action)]
    if context.settings.clock == "stream":
        return []  # computed_at is event time then
    age_ms = context.now_ms() - allocation.computed_at_ms
    if age_ms > 2 * record.policy.interval_ms + context.settings.settle_ms:
        return [
            Finding(
                Level.FAIL,
                "allocations",
                f"the allocation is {age_ms / 60_000:.0f} min old; the interval is"
                f" {record.policy.interval_ms / 60_000:.0f} min",
                where,
                action,
            )
        ]
    return []


async def check_dead_letters(context: Context) -> Sequence[Finding]:
    """Count the dead letters of the last hour that were not replayed."""
    if not context.has("dead-letters"):
        return []
    topic = context.settings.topic("dead-letters")
    reasons: Counter[str] = Counter()
    wanted = Filter(since_ms=context.now_ms() - HOUR_MS)
    async for stored in read_letters(context.reader, topic, wanted, []):
        if stored.replayed_at_ms is None:
            reasons[stored.letter.reason] += 1
    if not reasons:
        return [ok("dead-letters", "none in the last hour", topic)]
    return [
        Finding(
            Level.WARN,
            "dead-letters",
            f"{n} in the last hour: {reason}",
            topic,
            f"{REASON_ACTIONS.get(reason, 'look at them')};"
            f" `bandit-streams dead-letters list --reason {reason} --since 1h`",
        )
        for reason, n in reasons.most_common()
    ]
