"""Applying definitions to records: what makes a new version, what does not, and what is refused."""

import json

import msgspec
import pytest

from streams.config import HOUR_MS
from streams.errors import DefinitionInvalid, LifecycleError
from streams.experiments import lifecycle
from streams.experiments.changes import Change, apply_definition
from streams.experiments.definition import ExperimentRecord, bind
from streams.experiments.document import to_document, to_yaml
from streams.experiments.validation import parse_definition

T0 = 1_700_000_000_000
LEAD = 60_000


def document(**changes: object) -> dict[str, object]:
    found: dict[str, object] = {"id": "e", "arms": ["a", "b", "c"], "reward": {"metric": "buy"}}
    return {key: value for key, value in (found | changes).items() if value is not None}


def apply(record: ExperimentRecord | None, now_ms: int = T0, /, **changes: object) -> Change:
    definition = parse_definition(json.dumps(document(**changes)))
    return apply_definition(definition, record, now_ms=now_ms, lead_ms=LEAD)


def new(**changes: object) -> ExperimentRecord:
    return apply(None, **changes).record


def test_a_new_experiment_is_live_and_counts_from_now() -> None:
    record = new()
    assert (record.revision, record.status, record.control) == (1, "live", "a")
    assert (record.created_at_ms, record.updated_at_ms) == (T0, T0)
    assert [arm.status for arm in record.arms] == ["active"] * 3
    (version,) = record.versions
    assert (version.version, version.effective_from_ms) == (1, T0)
    assert bind(record, T0 - 1) is None
    assert bind(record, T0) is version


def test_the_first_version_may_be_dated_back() -> None:
    record = new(effective_from=1000)
    assert record.versions[0].effective_from_ms == 1000


def test_applying_the_same_again_changes_nothing() -> None:
    cases: list[dict[str, object]] = [
        {},
        {"effective_from": 1000},
        {"status": "live", "sticky": "interval"},
        {"sticky": "interval", "ends_at": 7 * 24 * HOUR_MS},
    ]
    for changes in cases:
        record = new(**changes)
        assert apply(record, T0 + 9, **changes) == Change(record, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": {"metric": "sell"}},
        {"reward": {"metric": "buy", "kind": "click"}},
        {"guardrails": [{"metric": "refund"}]},
        {"conversion_window": "2d"},
        {"trial_window": "exposure"},
        {"touch": "first"},
        {"features": {"device": ["mobile"]}},
        {"count_test": True},
    ],
)
def test_what_decides_counting_makes_a_version_a_lead_ahead(changes: dict[str, object]) -> None:
    record = new()
    changed, summary = apply(record, T0 + 5000, **changes)
    assert changed.versions[0] == record.versions[0]
    assert (changed.versions[1].version, changed.versions[1].effective_from_ms) == (2, T0 + 5000 + LEAD)
    assert changed.revision == 2
    assert summary[0].startswith("new counting version 2, effective in 1m")
    at_ms = changed.versions[1].effective_from_ms
    assert bind(changed, at_ms - 1) == changed.versions[0]
    assert bind(changed, at_ms) == changed.versions[1]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"policy": {"algorithm": "uniform"}}, "policy.algorithm: thompson -> uniform"),
        ({"policy": {"interval": "2h"}}, "policy.interval_ms: 3600000 -> 7200000"),
        ({"policy": {"floor": 0.1}}, "policy.floor: none -> 0.1"),
        ({"policy": {"comparison": 0.1}}, "policy.comparison: 0.0 -> 0.1"),
        ({"policy": {"prior": {"alpha": 2}}}, "policy.prior:"),
        ({"arms": ["a", "b", "c", "d"]}, "arm d: new, incubating"),
        ({"arms": ["a", "b"]}, "arm c: active -> stopped"),
        ({"arms": ["a", "b", {"id": "c", "status": "incubating"}]}, "arm c: active -> incubating"),
        ({"control": "b"}, "control: a -> b"),
        ({"default_arm": "b"}, "default_arm: none -> b"),
        ({"sticky": "interval"}, "sticky: unit -> interval"),
        ({"description": "x"}, "description: none -> x"),
        ({"status": "paused"}, "status: live -> paused"),
    ],
)
def test_everything_else_holds_at_once(changes: dict[str, object], line: str) -> None:
    record = new()
    changed, summary = apply(record, T0 + 5000, **changes)
    assert changed.versions == record.versions
    assert (changed.revision, changed.updated_at_ms, changed.created_at_ms) == (2, T0 + 5000, T0)
    assert [found for found in summary if found.startswith(line)], summary


def test_effective_from_of_a_later_version() -> None:
    record = new(effective_from=1000)
    other = {"touch": "first"}
    # The first version's own time, left in the document, does not date the second one.
    assert apply(record, **other, effective_from=1000).record.versions[1].effective_from_ms == T0 + LEAD
    assert (
        apply(record, **other, effective_from=T0 + HOUR_MS).record.versions[1].effective_from_ms
        == T0 + HOUR_MS
    )
    with pytest.raises(DefinitionInvalid, match=f"use at least {T0 + LEAD}"):
        apply(record, **other, effective_from=T0 + LEAD - 1)
    with pytest.raises(DefinitionInvalid, match="nothing that decides counting has changed"):
        apply(record, effective_from=T0 + HOUR_MS)


def test_versions_stay_in_order_when_one_is_still_to_come() -> None:
    record = apply(new(), touch="first", effective_from=T0 + HOUR_MS).record
    record = apply(record, T0 + 1, touch="all").record
    times = [version.effective_from_ms for version in record.versions]
    assert times == [T0, T0 + HOUR_MS, T0 + HOUR_MS + 1]
    assert [version.version for version in record.versions] == [1, 2, 3]


def test_a_draft_counts_nothing_and_its_version_is_replaced() -> None:
    draft = new(status="draft")
    assert bind(draft, T0) is None
    changed, summary = apply(draft, T0 + 1, touch="first", arms=["a", "x"])
    assert [arm.arm_id for arm in changed.arms] == ["a", "x"]
    assert (changed.status, len(changed.versions), changed.versions[0].touch) == ("draft", 1, "first")
    assert changed.versions[0].effective_from_ms == T0
    assert summary[0] == "counting version 1 replaced: nothing was counted yet"
    live = apply(changed, T0 + 2, touch="first", arms=["a", "x"], status="live").record
    assert bind(live, T0) == live.versions[0]
    with pytest.raises(DefinitionInvalid, match="status: it is live and cannot be a draft again"):
        apply(live, touch="first", arms=["a", "x"], status="draft")


def test_arms_never_vanish_and_are_not_revived_by_accident() -> None:
    record = lifecycle.stop_arm(new(), "b", now_ms=T0 + 1)
    again = apply(record)
    assert again.summary == ()
    revived = apply(record, arms=["a", {"id": "b", "status": "active"}, "c"])
    assert revived.summary == ("arm b: stopped -> active",)
    fewer = apply(record, arms=["c", "d"], control="c").record
    assert [(arm.arm_id, arm.status) for arm in fewer.arms] == [
        ("a", "stopped"),
        ("b", "stopped"),
        ("c", "active"),
        ("d", "incubating"),
    ]


def statuses(record: ExperimentRecord) -> dict[str, str]:
    return {arm.arm_id: arm.status for arm in record.arms}


def test_other_content_is_another_version_and_the_one_before_is_over() -> None:
    record = new(arms=["a", {"id": "b", "content": "green"}])
    blue: list[object] = ["a", {"id": "b", "content": "blue"}]
    changed, summary = apply(record, arms=blue)
    assert statuses(changed) == {"a": "active", "b": "stopped", "b@2": "incubating"}
    assert summary == ("arm b: active -> stopped", "arm b@2: new version of b, incubating")
    old, present = changed.arms[1:]
    assert (old.content, present.content) == ("green", "blue")
    assert (old.name, old.version, present.name, present.version) == ("b", 1, "b", 2)
    assert old.content_hash != present.content_hash
    assert old.content_hash == record.arms[1].content_hash
    assert apply(changed, arms=blue) == Change(changed, ())
    # Back to what it was: measured at another time, so it is a version of its own, too.
    back = apply(changed, arms=["a", {"id": "b", "content": "green"}]).record
    assert statuses(back) == {"a": "active", "b": "stopped", "b@2": "stopped", "b@3": "incubating"}
    assert back.arms[3].content_hash == old.content_hash
    # Nothing that names the arm means a version that is over.
    stopped = lifecycle.stop_arm(changed, "b", now_ms=T0)
    assert statuses(stopped) == {"a": "active", "b": "stopped", "b@2": "stopped"}
    assert apply(stopped, arms=["a", {"id": "b", "content": "blue", "status": "active"}]).summary == (
        "arm b@2: stopped -> active",
    )
    draft = new(status="draft", arms=["a", {"id": "b", "content": "green", "status": "pending"}])
    changed = apply(draft, arms=blue).record
    assert [(arm.arm_id, arm.content, arm.status) for arm in changed.arms] == [
        ("a", None, "active"),
        ("b", "blue", "pending"),
    ]


def test_control_and_default_follow_their_newest_versions() -> None:
    record = new(default_arm="a", arms=[{"id": "a", "content": "1"}, "b"])
    changed = apply(record, default_arm="a", arms=[{"id": "a", "content": "2"}, "b"]).record
    assert (changed.control, changed.default_arm) == ("a@2", "a@2")
    assert lifecycle.complete(changed, winner="a", now_ms=T0).winner == "a@2"
    with pytest.raises(LifecycleError, match="it is the control arm"):
        lifecycle.stop_arm(changed, "a", now_ms=T0)
    copy = lifecycle.clone(changed, "f", now_ms=T0)
    assert [(arm.arm_id, arm.content) for arm in copy.arms] == [("a", "2"), ("b", None)]
    assert (copy.control, copy.default_arm) == ("a", "a")


def test_an_arm_that_was_dropped_returns_as_a_new_version_only() -> None:
    record = apply(new(), arms=["a", {"id": "b", "status": "dropped"}, "c"]).record
    assert apply(record).summary == ()
    for status in ("active", "incubating", "pending"):
        with pytest.raises(DefinitionInvalid, match=r"arms\.b\.status: .* state `version: 2`"):
            apply(record, arms=["a", {"id": "b", "status": status}, "c"])
    again: list[object] = ["a", {"id": "b", "version": 2}, "c"]
    changed = apply(record, arms=again).record
    assert statuses(changed) == {"a": "active", "b": "dropped", "c": "active", "b@2": "incubating"}
    assert apply(changed, arms=again).summary == ()
    assert apply(changed).summary == ()
    with pytest.raises(DefinitionInvalid, match=r"arms\.b\.version: 4 neither is the newest version, 2, nor"):
        apply(changed, arms=["a", {"id": "b", "version": 4}, "c"])
    with pytest.raises(DefinitionInvalid, match=r"arms\.b\.version: its content or levels differ .* use 3"):
        apply(changed, arms=["a", {"id": "b", "version": 2, "content": "x"}, "c"])


def test_combinations_of_factors_that_are_not_arms_yet_may_come() -> None:
    factors = {"colour": ["red", "green"], "size": ["s", "l"]}
    record = new(factors=factors, arms=["red-s", "red-l", "green-s"])
    assert [arm.levels for arm in record.arms][2] == {"colour": "green", "size": "s"}
    changed = apply(record, factors=factors, arms=["red-s", "red-l", "green-s", "green-l"])
    assert changed.summary == ("arm green-l: new, incubating",)
    assert to_document(changed.record)["arms"][3] == {"id": "green-l", "status": "incubating"}
    # Without a list all combinations are meant.
    assert apply(record, factors=factors, arms=None).summary == ("arm green-l: new, incubating",)


def test_contradictions_with_the_record_are_all_named() -> None:
    record = lifecycle.stop_arm(new(), "b", now_ms=T0)
    with pytest.raises(DefinitionInvalid) as caught:
        apply(record, control="b", default_arm="b", status="draft", effective_from=5)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "effective_from",
        "status",
        "control",
        "default_arm",
    ]


def test_floors_are_checked_with_the_arms_that_stay() -> None:
    record = new(arms=["a", "b"])
    arms = ["a", "b", {"id": "c", "status": "incubating"}]
    with pytest.raises(DefinitionInvalid, match=r"policy\.floor: 0\.4 x 3 arms exceeds 1"):
        apply(record, arms=arms, policy={"floor": 0.4})


@pytest.mark.parametrize("end", ["completed", "archived"])
def test_what_is_over_is_fixed(end: str) -> None:
    record = msgspec.structs.replace(new(), status=end)
    with pytest.raises(LifecycleError, match="clone it"):
        apply(record, touch="first")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"status": "paused", "description": "Größe & mehr: yes", "sticky": "interval", "count_test": True},
        {"arms": None, "factors": {"colour": ["red", "green"], "size": ["s", "l"]}, "default_arm": "green-l"},
        {"arms": ["a-x", "b-y"], "factors": {"one": ["a", "b"], "two": ["x", "y"]}},
        {
            "arms": ["a-x", {"id": "b-y", "version": 3}, {"id": "free", "content": "text"}],
            "factors": {"one": ["a", "b"], "two": ["x", "y"]},
        },
        {"arms": ["on", {"id": "1", "content": "null"}, {"id": "x", "status": "incubating"}], "control": "1"},
        {
            "reward": {"metric": "revenue", "kind": "value", "cap": 12.5, "lower_is_better": True},
            "guardrails": [
                {"metric": "refund", "margin": 0.1},
                {"metric": "sale", "kind": "conversion_after_click", "click_metric": "open"},
            ],
            "features": {"device": ["mobile", "yes"], "country": ["DE", "NO"]},
            "conversion_window": "36h",
            "trial_window": "exposure",
            "touch": "all",
        },
        {
            "policy": {
                "algorithm": "epsilon_greedy",
                "interval": "1d",
                "floor": 0,
                "holdout": 0.125,
                "comparison": 0.1,
                "prior": {"alpha": 0.5, "beta": 20},
            }
        },
    ],
)
def test_the_document_of_a_record_changes_nothing(changes: dict[str, object]) -> None:
    record = new(**changes)
    definition = parse_definition(to_yaml(record))
    assert apply_definition(definition, record, now_ms=T0 + 1, lead_ms=LEAD) == Change(record, ())
    # It is complete, too: as a new experiment it makes the same record.
    assert apply_definition(definition, None, now_ms=T0, lead_ms=LEAD).record == record


def test_the_document_of_a_changed_record_changes_nothing() -> None:
    record = apply(new(), touch="first", arms=["a", "c", {"id": "d", "version": 2}]).record
    for state in (record, lifecycle.pause(record, now_ms=T0), lifecycle.stop_arm(record, "c", now_ms=T0)):
        definition = parse_definition(json.dumps(to_document(state)))
        assert apply_definition(definition, state, now_ms=T0, lead_ms=LEAD).summary == ()


@pytest.mark.parametrize("ends_at", [None, 8 * 24 * HOUR_MS])
def test_an_end_is_fixed_before_the_start(ends_at: int | None) -> None:
    end: dict[str, object] = {"sticky": "interval", "ends_at": 7 * 24 * HOUR_MS}
    other: dict[str, object] = {"sticky": "interval"} | ({} if ends_at is None else {"ends_at": ends_at})
    draft = new(status="draft", **end)
    assert apply(draft, **other).record.ends_at_ms == ends_at
    live = new(**end)
    assert live.ends_at_ms == 7 * 24 * HOUR_MS
    with pytest.raises(DefinitionInvalid, match=r"ends_at: .* an end chosen while looking is none"):
        apply(live, **other)
    assert lifecycle.clone(live, "again", now_ms=T0).ends_at_ms is None
