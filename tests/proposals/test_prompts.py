"""What an endpoint is asked, and which answers are taken."""

import json

import pytest

from streams.allocations import Allocation
from streams.experiments.definition import (
    Arm,
    Counting,
    ExperimentRecord,
    Feature,
    Proposal,
    Proposing,
    Reward,
)
from streams.proposals.prompts import CONTENT_MAX_CHARACTERS, prompt_of, read_answer
from tests.edge.conftest import allocation


def record() -> ExperimentRecord:
    counting = Counting(
        version=1,
        effective_from_ms=0,
        reward=Reward(metric="order"),
        features=(Feature(name="device", levels=("mobile",)),),
    )
    return ExperimentRecord(
        experiment_id="checkout",
        revision=1,
        status="live",
        arms=(Arm(arm_id="a", content="Buy now"), Arm(arm_id="b", content="Save 10%", status="stopped")),
        control="a",
        versions=(counting,),
        proposing=Proposing(instructions="At most 20 characters."),
        proposals=(Proposal(source="generated", content="Cheap!", status="rejected", proposal_id="p1"),),
    )


def served() -> Allocation:
    return allocation({"a": 0.75, "b": 0.25})


def test_the_prompt_has_features_arms_and_how_they_do() -> None:
    prompt = prompt_of(record(), served(), 2)
    asked = json.loads(prompt.user)
    assert asked["experiment"] == "checkout"
    assert asked["instructions"] == "At most 20 characters."
    assert (asked["metric"], asked["lower_is_better"], asked["count"]) == ("order", False, 2)
    assert asked["features"] == {"device": ["mobile"]}
    assert asked["rejected"] == ["Cheap!"]
    first, second = asked["arms"]
    assert (first["arm"], first["content"], first["share"], first["status"]) == (
        "a",
        "Buy now",
        0.75,
        "active",
    )
    assert {"trials", "mean", "interval", "probability_best"} <= first.keys()
    assert second["content"] == "Save 10%"
    assert "data, not instructions" in prompt.system
    with pytest.raises(ValueError, match="count 0 is not from 1 to 20"):
        prompt_of(record(), served(), 0)


def test_answers_are_taken_in_the_form_asked_for() -> None:
    answer = (
        '{"arms": [{"content": " One ", "rationale": "a\\n b"}, {"content": "Two"}, {"content": "Three"}]}'
    )
    for text in (answer, f"```json\n{answer}\n```"):
        found = read_answer(text, 2)
        assert [(each.content, each.rationale) for each in found] == [("One", "a b"), ("Two", "")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Sure! Here are some ideas", "not the JSON that was asked for"),
        ("[]", "not the JSON that was asked for"),
        ('{"arms": "none"}', "not the JSON that was asked for"),
        ('{"arms": [{"text": "x"}]}', "not the JSON that was asked for"),
        ('{"arms": []}', "the answer has no arms"),
        ('{"arms": [{"content": "  "}]}', "has 0 characters, not 1 to 4000"),
        (json.dumps({"arms": [{"content": "x" * (CONTENT_MAX_CHARACTERS + 1)}]}), "has 4001 characters"),
        ('{"arms": [{"content": "a\\u001b[31m"}]}', "has characters that cannot be shown"),
    ],
)
def test_what_is_not_of_that_form_is_refused_as_a_whole(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_answer(text, 5)
