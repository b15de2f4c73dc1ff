"""What becomes of proposals: every step from record to record, and what is refused."""

import json

import msgspec
import pytest

from streams.errors import BudgetExhausted, LifecycleError
from streams.experiments import lifecycle, proposals
from streams.experiments.changes import apply_definition
from streams.experiments.definition import (
    ExperimentRecord,
    Proposal,
    Spending,
    decode_record,
    encode_record,
)
from streams.experiments.document import to_yaml
from streams.experiments.validation import parse_definition

T = 1_700_000_000_000
FACTORS = {"colour": ["red", "green"], "text": ["short", "long"]}


def document(**changes: object) -> str:
    fields: dict[str, object] = {
        "id": "e",
        "factors": FACTORS,
        "arms": ["red-short", "red-long", "green-short"],
        "reward": {"metric": "buy"},
    }
    return json.dumps({key: value for key, value in (fields | changes).items() if value is not None})


def applied(record: ExperimentRecord | None = None, **changes: object) -> ExperimentRecord:
    definition = parse_definition(document(**changes))
    return apply_definition(definition, record, now_ms=T, lead_ms=60_000).record


def combination(colour: str, text: str, **fields: object) -> Proposal:
    given = {"source": "factors", "levels": {"colour": colour, "text": text}} | fields
    return msgspec.convert(given, Proposal)


def text(content: str) -> Proposal:
    return Proposal(source="generated", content=content, model="m")


def add(record: ExperimentRecord, *new: Proposal, approve_them: bool = False) -> ExperimentRecord:
    return proposals.add(record, new, approve_them=approve_them, now_ms=T + 1)


def test_an_approved_proposal_is_an_incubating_arm() -> None:
    record = applied()
    pending = add(record, combination("green", "long", dropped="red-long"), text("A free headline"))
    assert pending.revision == record.revision + 1
    assert pending.arms == record.arms
    assert [(each.proposal_id, each.arm_id, each.status) for each in pending.proposals] == [
        ("p1", "green-long", "pending"),
        ("p2", "generated-2", "pending"),
    ]
    approved = proposals.approve(pending, "p1", now_ms=T + 2)
    arm = approved.arms[-1]
    assert (arm.arm_id, arm.status, arm.proposal) == ("green-long", "incubating", "p1")
    assert arm.levels == {"colour": "green", "text": "long"}
    assert [(each.status, each.decided_at_ms) for each in approved.proposals] == [
        ("approved", T + 2),
        ("pending", None),
    ]
    both = proposals.approve(approved, "p2", now_ms=T + 3)
    assert (both.arms[-1].arm_id, both.arms[-1].content) == ("generated-2", "A free headline")
    assert decode_record("e", encode_record(both)) == both


def test_documents_need_not_know_of_approved_proposals() -> None:
    record = proposals.approve(add(applied(), combination("green", "long")), "p1", now_ms=T)
    record = add(record, text("A free headline"), approve_them=True)
    assert [arm.arm_id for arm in record.arms[3:]] == ["green-long", "generated-2"]
    assert applied(record) is record, "the owner's document is as it was"
    own = parse_definition(to_yaml(record))
    assert apply_definition(own, record, now_ms=T, lead_ms=1).record is record
    named = applied(record, arms=["red-short", "red-long", "green-short", "green-long"])
    assert named is record
    stopped = lifecycle.stop_arm(record, "generated-2", now_ms=T)
    assert applied(stopped) is stopped
    plain = applied(factors=None, arms=["a", "b"])
    plain = add(plain, text("x"), approve_them=True)
    assert applied(plain, factors=None, arms=["a", "b", "generated-1"]) is plain, "named, without its content"
    other = applied(plain, factors=None, arms=["a", "b", {"id": "generated-1", "content": "y"}])
    assert other.arms[-1].arm_id == "generated-1@2"


def test_nothing_is_proposed_twice() -> None:
    record = applied()
    assert add(record, combination("red", "long")) is record, "it is an arm"
    record = add(record, combination("green", "long"), combination("green", "long"), text("x"), text("x"))
    assert len(record.proposals) == 2
    rejected = proposals.reject(record, "p1", now_ms=T)
    assert add(rejected, combination("green", "long"), text("x")) is rejected
    dropped = applied(record, arms=["red-short", {"id": "red-long", "status": "dropped"}, "green-short"])
    assert add(dropped, combination("red", "long")) is dropped, "it was one"


def test_what_is_refused() -> None:
    record = add(applied(), combination("green", "long"))
    with pytest.raises(LifecycleError, match="it has no proposal 'p7'; pending: p1"):
        proposals.approve(record, "p7", now_ms=T)
    rejected = proposals.reject(record, "p1", now_ms=T)
    with pytest.raises(LifecycleError, match="proposal p1 is rejected already"):
        proposals.approve(rejected, "p1", now_ms=T)
    with pytest.raises(LifecycleError, match="pending: none"):
        proposals.find(rejected, "p9")
    over = lifecycle.complete(record, now_ms=T)
    with pytest.raises(LifecycleError, match="it is completed; only a live or paused one gets new arms"):
        add(over, text("x"))
    with pytest.raises(LifecycleError, match="it is completed; only a live or paused one gets new arms"):
        proposals.approve(over, "p1", now_ms=T)
    fewer = applied(record, factors={"colour": ["red", "green"], "text": ["short"]}, arms=None)
    with pytest.raises(LifecycleError, match="the factors have changed since p1; reject it"):
        proposals.approve(fewer, "p1", now_ms=T)
    by_hand = applied(record, arms=None)
    with pytest.raises(LifecycleError, match="there is an arm green-long by now; reject p1"):
        proposals.approve(by_hand, "p1", now_ms=T)
    full = applied(record, policy={"floor": 0.3})
    with pytest.raises(LifecycleError, match=r"with one arm more: policy\.floor: 0\.3 x 4 arms exceeds 1"):
        proposals.approve(full, "p1", now_ms=T)
    assert add(full, text("x"), approve_them=True).proposals[-1].status == "pending", "it stays for a person"


def test_only_decided_proposals_give_way() -> None:
    record = add(applied(), text("first"))
    for number in range(2, proposals.PROPOSALS_MAX + 1):
        record = add(record, text(str(number)))
        record = proposals.reject(record, f"p{number}", now_ms=T)
    record = add(record, text("one more"))
    kept = [each.proposal_id for each in record.proposals]
    assert (len(kept), kept[:2], kept[-1]) == (proposals.PROPOSALS_MAX, ["p1", "p3"], "p201")


def test_the_budget_is_spent_before_it_is_used() -> None:
    record = applied(proposals={"max_requests": 5, "max_tokens": 1000})
    assert proposals.affordable(record, 100) == 5
    assert proposals.affordable(record, 400) == 2
    assert proposals.affordable(record, 1001) == 0
    cost = Spending(requests=3, tokens=900)
    reserved = proposals.reserve(record, cost, now_ms=T)
    assert (reserved.spending, reserved.revision) == (cost, record.revision + 1)
    for more in (Spending(requests=3, tokens=1), Spending(requests=1, tokens=101), Spending()):
        with pytest.raises(BudgetExhausted, match="has spent 3 of 5 requests and 900 of 1000 tokens"):
            proposals.reserve(reserved, more, now_ms=T)
    settled = proposals.settle(reserved, cost, Spending(requests=1, tokens=70), now_ms=T)
    assert settled.spending == Spending(requests=1, tokens=70)
    assert lifecycle.clone(settled, "f", now_ms=T).spending == Spending()


def test_how_arms_are_proposed_is_part_of_the_document() -> None:
    wanted = {"on_drop": True, "generate": True, "auto_approve": True, "max_requests": 3, "instructions": "x"}
    record = applied(proposals=wanted)
    assert apply_definition(parse_definition(to_yaml(record)), record, now_ms=T, lead_ms=1).record is record
    changed = apply_definition(parse_definition(document()), record, now_ms=T, lead_ms=1)
    assert "proposals.on_drop: True -> False" in changed.summary
