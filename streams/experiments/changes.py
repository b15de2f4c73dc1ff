"""Applying a definition to the record that is there: what changes, and what that makes of the record.

Pure: the present time and the lead are arguments. The rules:

- What decides counting (reward, guardrails, windows, touch, features, count_test) goes into a new counting
  version, effective at least a lead ahead, so that every worker knows it before the first exposure that it
  binds; a worker whose view is older than the lead stops. The first version may be dated back by
  ``effective_from``, for replays. While the experiment is a draft nothing was counted, and its one version is
  replaced instead.
- Everything else (policy, shares, arms, control, sticky, description, status) holds from the new revision on.
- Arms never vanish: one that the document no longer names is stopped, unless it came from a proposal, which
  no document has to know of; that one may also be named without its content. An arm's status is changed only
  by a document that states it, so that applying the same document again does not revive an arm stopped
  meanwhile.
- What an arm shows is what was measured. Other content or levels (another hash) are a new version of the arm
  with an id of its own, ``green@2``, which starts without counts; the version before it is stopped for good.
  A document asks for the same by ``version``, which is how an arm that was dropped returns.
- The end at which batched least squares may be looked at is fixed before the start: chosen while looking, it
  would be no end.
"""

from typing import NamedTuple

import msgspec

from streams.errors import LifecycleError
from streams.experiments.arms import ELIGIBLE, ArmEntry
from streams.experiments.definition import (
    Arm,
    ArmStatus,
    Counting,
    ExperimentRecord,
    ExperimentStatus,
    arm_id_of,
)
from streams.experiments.end import check_fixed
from streams.experiments.reader import Problems, format_duration
from streams.experiments.validation import Definition, check_shares


class Change(NamedTuple):
    """Outcome of applying a definition.

    ``record`` is the record to write, or the old one if ``summary`` is empty; ``summary`` has one line for
    every difference, the most consequential first.
    """

    record: ExperimentRecord
    summary: tuple[str, ...]


def apply_definition(
    definition: Definition, record: ExperimentRecord | None, *, now_ms: int, lead_ms: int
) -> Change:
    """Make a definition the newest state of an experiment.

    Parameters
    ----------
    definition
        What the owner wants.
    record
        The record that is there; ``None`` for a new experiment.
    now_ms, lead_ms
        Present time, and the least time between writing a counting version and its effect.

    Raises
    ------
    DefinitionInvalid
        If the definition contradicts the record; with all problems.
    LifecycleError
        If the experiment is over.
    """
    if record is None:
        return _create(definition, now_ms)
    if record.status in ("completed", "archived"):
        raise LifecycleError(
            f"it is {record.status}; its definition is fixed",
            where=f"experiment {record.experiment_id}",
            action="clone it under a new id and apply the change there",
        )
    problems = Problems()
    versions, version_lines = _versions(definition, record, now_ms, lead_ms, problems)
    arms = _merge_arms(definition, record, problems)
    status = _status(definition, record, problems)
    merged = msgspec.structs.replace(record, arms=arms)
    eligible = {arm.arm_id for arm in arms if arm.status in ELIGIBLE}
    check_shares(definition.policy, len(eligible), problems)
    control = _id_of(merged, definition.control) or record.control
    default_arm = _id_of(merged, definition.default_arm)
    for key, arm_id in (("control", control), ("default_arm", default_arm)):
        if arm_id is not None and arm_id not in eligible:
            problems.add(key, f"{arm_id} gets no traffic; name another arm, or state `status: active` for it")
    check_fixed(definition.ends_at_ms, record, problems)
    problems.raise_if_any(f"experiment {record.experiment_id}")
    new = msgspec.structs.replace(
        merged,
        status=status,
        control=control,
        versions=versions,
        policy=definition.policy,
        proposing=definition.proposing,
        factors=definition.factors,
        default_arm=default_arm,
        sticky=definition.sticky,
        ends_at_ms=definition.ends_at_ms,
        description=definition.description,
    )
    summary = (*version_lines, *_differences(record, new))
    if not summary:
        return Change(record, ())
    return Change(msgspec.structs.replace(new, revision=record.revision + 1, updated_at_ms=now_ms), summary)


def _create(definition: Definition, now_ms: int) -> Change:
    effective_from_ms = definition.effective_from_ms if definition.effective_from_ms is not None else now_ms
    arms = tuple(_new_arm(entry) for entry in definition.arms)
    ids = {arm.name: arm.arm_id for arm in arms}
    record = ExperimentRecord(
        experiment_id=definition.experiment_id,
        revision=1,
        status=definition.status or "live",
        arms=arms,
        control=ids[definition.control],
        versions=(_version(definition, 1, effective_from_ms),),
        policy=definition.policy,
        proposing=definition.proposing,
        factors=definition.factors,
        default_arm=None if definition.default_arm is None else ids[definition.default_arm],
        sticky=definition.sticky,
        ends_at_ms=definition.ends_at_ms,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
        description=definition.description,
    )
    return Change(record, (f"new experiment, {record.status}, {len(record.arms)} arms",))


def _new_arm(entry: ArmEntry, status: ArmStatus = "active", *, version: int | None = None) -> Arm:
    return Arm(
        arm_id=arm_id_of(entry.arm_id, version or entry.version or 1),
        status=entry.status or status,
        levels=entry.levels,
        content=entry.content,
    )


def _id_of(record: ExperimentRecord, name: str | None) -> str | None:
    """Id of the newest version of an arm that a document names."""
    arm = None if name is None else record.newest_arms.get(name)
    return None if arm is None else arm.arm_id


def _version(definition: Definition, number: int, effective_from_ms: int) -> Counting:
    return msgspec.structs.replace(definition.counting, version=number, effective_from_ms=effective_from_ms)


def _versions(
    definition: Definition, record: ExperimentRecord, now_ms: int, lead_ms: int, problems: Problems
) -> tuple[tuple[Counting, ...], list[str]]:
    newest = record.versions[-1]
    wanted_ms = definition.effective_from_ms
    if record.status == "draft":
        effective_from_ms = newest.effective_from_ms if wanted_ms is None else wanted_ms
        replaced = _version(definition, newest.version, effective_from_ms)
        if replaced == newest:
            return record.versions, []
        return (replaced,), [f"counting version {newest.version} replaced: nothing was counted yet"]
    same = _version(definition, newest.version, newest.effective_from_ms) == newest
    known = wanted_ms is None or wanted_ms in [version.effective_from_ms for version in record.versions]
    if same:
        if not known:
            problems.add("effective_from", "nothing that decides counting has changed; remove it")
        return record.versions, []
    earliest_ms = max(now_ms + lead_ms, newest.effective_from_ms + 1)
    if wanted_ms is not None and not known and wanted_ms < earliest_ms:
        problems.add(
            "effective_from",
            f"{wanted_ms} is too early for a new counting version, which needs {format_duration(lead_ms)} to"
            f" reach every worker; remove it, or use at least {earliest_ms}",
        )
    effective_from_ms = earliest_ms if wanted_ms is None or known else wanted_ms
    version = _version(definition, newest.version + 1, effective_from_ms)
    changed = ", ".join(_changed_fields(newest, version, without=("version", "effective_from_ms")))
    line = (
        f"new counting version {version.version}, effective in {format_duration(effective_from_ms - now_ms)}"
        f" ({changed}): learning begins anew with it"
    )
    return (*record.versions, version), [line]


def _merge_arms(definition: Definition, record: ExperimentRecord, problems: Problems) -> tuple[Arm, ...]:
    """Old arms in their old order, then new ones; an arm's place decides how its shares are rounded."""
    entries = {entry.arm_id: entry for entry in definition.arms}
    if record.status == "draft":  # nothing was counted: what there is gives way
        kept = [_new_arm(entries.pop(arm.name), arm.status) for arm in record.arms if arm.name in entries]
        return (*kept, *(_new_arm(entry) for entry in entries.values()))
    merged: list[Arm] = []
    added: list[Arm] = []
    newest = record.newest_arms
    for arm in record.arms:
        entry = entries.pop(arm.name, None) if newest[arm.name] is arm else None
        if entry is None:
            # No document has to know of an arm that came from a proposal.
            stays = arm.proposal is not None and newest[arm.name] is arm
            merged.append(arm if stays else _stopped(arm))
            continue
        version = _wanted_version(arm, entry, problems)
        if version == arm.version:
            merged.append(msgspec.structs.replace(arm, status=entry.status or arm.status))
        else:
            merged.append(_stopped(arm))
            added.append(_new_arm(entry, "incubating", version=version))
    # Nothing is known of a new arm: after Beta(1, 1) it would seem the best of all that have 5%.
    return (*merged, *added, *(_new_arm(entry, "incubating") for entry in entries.values()))


def _stopped(arm: Arm) -> Arm:
    return arm if arm.status not in ELIGIBLE else msgspec.structs.replace(arm, status="stopped")


def _wanted_version(arm: Arm, entry: ArmEntry, problems: Problems) -> int:
    """Version of an arm that a document wants: the newest, or the one after it."""
    path = f"arms.{arm.name}"
    shown = arm.content if entry.content is None and arm.proposal is not None else entry.content
    changed = (shown, entry.levels) != (arm.content, arm.levels)
    version = entry.version or (arm.version + 1 if changed else arm.version)
    if version not in (arm.version, arm.version + 1):
        problems.add(
            f"{path}.version",
            f"{version} neither is the newest version, {arm.version}, nor follows it; use {arm.version + 1}"
            " for a new one",
        )
    elif changed and version == arm.version:
        problems.add(
            f"{path}.version",
            f"its content or levels differ from what was measured as version {version}; use {version + 1},"
            " or remove `version`",
        )
    elif arm.status == "dropped" and entry.status in (*ELIGIBLE, "pending") and version == arm.version:
        problems.add(
            f"{path}.status",
            f"it was dropped and does not return as it was; state `version: {version + 1}` for a new start",
        )
    return version


def _status(definition: Definition, record: ExperimentRecord, problems: Problems) -> ExperimentStatus:
    if definition.status is None or definition.status == record.status:
        return record.status
    if definition.status == "draft":
        problems.add("status", f"it is {record.status} and cannot be a draft again; use paused")
    return definition.status


def _changed_fields(old: msgspec.Struct, new: msgspec.Struct, *, without: tuple[str, ...] = ()) -> list[str]:
    return [
        name
        for name in old.__struct_fields__
        if name not in without and getattr(old, name) != getattr(new, name)
    ]


def _differences(old: ExperimentRecord, new: ExperimentRecord) -> list[str]:
    """One line for each difference other than in counting versions."""
    lines = []
    if old.status != new.status:
        lines.append(f"status: {old.status} -> {new.status}")
    before = {arm.arm_id: arm for arm in old.arms}
    for arm in new.arms:
        was = before.pop(arm.arm_id, None)
        if was is None:
            new_version = f" version of {arm.name}" if arm.version > 1 else ""
            lines.append(f"arm {arm.arm_id}: new{new_version}, {arm.status}")
        elif was.status != arm.status:
            lines.append(f"arm {arm.arm_id}: {was.status} -> {arm.status}")
        elif was != arm:
            lines.append(f"arm {arm.arm_id}: content changed")
    lines += [f"arm {arm_id}: removed" for arm_id in before]
    lines += [
        f"policy.{name}: {_shown(getattr(old.policy, name))} -> {_shown(getattr(new.policy, name))}"
        for name in _changed_fields(old.policy, new.policy)
    ]
    lines += [
        f"proposals.{name}: {_shown(getattr(old.proposing, name))} -> {_shown(getattr(new.proposing, name))}"
        for name in _changed_fields(old.proposing, new.proposing)
    ]
    lines += [
        f"{name}: {_shown(getattr(old, name))} -> {_shown(getattr(new, name))}"
        for name in ("control", "default_arm", "sticky", "ends_at_ms", "description")
        if getattr(old, name) != getattr(new, name)
    ]
    if old.factors != new.factors:
        lines.append("factors: changed")
    return lines


def _shown(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return str(msgspec.to_builtins(value))
    return "none" if value is None or value == "" else str(value)
