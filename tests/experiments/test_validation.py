"""Definition documents: what they become, and what is said about wrong ones."""

import json

import pytest

from streams.config import DAY_MS, HOUR_MS
from streams.errors import DefinitionInvalid
from streams.experiments.changes import apply_definition
from streams.experiments.definition import Feature, Guardrail, Policy, Prior, Reward
from streams.experiments.document import to_yaml
from streams.experiments.reader import format_duration, read_duration_ms, read_instant_ms
from streams.experiments.validation import (
    Definition,
    algorithms,
    parse_definition,
    parse_definitions,
)

SMALL = "{id: e, arms: [a, b], reward: {metric: buy}}"

FULL = """
id: checkout-button
description: Which button sells?
status: paused
arms:
  - control
  - id: green
    content: "#0a0"
    status: incubating
control: control
default_arm: green
sticky: interval
reward: {metric: revenue, kind: value, cap: 200, lower_is_better: true}
guardrails:
  - {metric: refund, lower_is_better: true, margin: 0.2}
  - {metric: signup, kind: conversion_after_click, click_metric: open}
conversion_window: 2d12h
trial_window: experiment
touch: all
features:
  device: [mobile, desktop]
count_test: true
effective_from: 2025-03-01T02:00:00+02:00
policy:
  algorithm: epsilon_greedy
  interval: 2h
  floor: 0.05
  holdout: 0.1
  comparison: 0.2
  prior: {alpha: 2, beta: 3.5}
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(DefinitionInvalid) as caught:
        parse_definitions(text)
    return list(caught.value.problems)


def small(**changes: object) -> str:
    """Return a valid document with keys replaced; JSON is YAML."""
    document: dict[str, object] = {"id": "e", "arms": ["a", "b"], "reward": {"metric": "buy"}}
    return json.dumps({key: value for key, value in (document | changes).items() if value is not None})


def test_defaults() -> None:
    definition = parse_definition(SMALL)
    assert definition.experiment_id == "e"
    assert [(arm.arm_id, arm.status) for arm in definition.arms] == [("a", None), ("b", None)]
    assert (definition.control, definition.default_arm, definition.status) == ("a", None, None)
    assert definition.policy == Policy(algorithm="thompson", interval_ms=HOUR_MS, floor=None)
    assert definition.counting.reward == Reward(metric="buy", kind="conversion_after_display")
    assert definition.counting.conversion_window_ms == DAY_MS
    assert definition.effective_from_ms is None


def test_every_field() -> None:
    definition = parse_definition(FULL)
    counting = definition.counting
    assert [(arm.arm_id, arm.status, arm.content) for arm in definition.arms] == [
        ("control", None, None),
        ("green", "incubating", "#0a0"),
    ]
    assert (definition.status, definition.default_arm, definition.sticky) == ("paused", "green", "interval")
    assert counting.reward == Reward(metric="revenue", kind="value", cap=200.0, lower_is_better=True)
    assert counting.guardrails == (
        Guardrail(reward=Reward(metric="refund", lower_is_better=True), margin=0.2),
        Guardrail(reward=Reward(metric="signup", kind="conversion_after_click", click_metric="open")),
    )
    assert counting.conversion_window_ms == 60 * HOUR_MS
    assert (counting.trial_window, counting.touch, counting.count_test) == ("experiment", "all", True)
    assert counting.features == (Feature(name="device", levels=("mobile", "desktop")),)
    assert definition.effective_from_ms == 1_740_787_200_000  # 2025-03-01T00:00:00Z
    assert definition.policy == Policy(
        algorithm="epsilon_greedy",
        interval_ms=2 * HOUR_MS,
        floor=0.05,
        holdout=0.1,
        comparison=0.2,
        prior=Prior(alpha=2.0, beta=3.5),
    )


def test_factors_give_the_arms_of_their_product_in_order() -> None:
    definition = parse_definition(
        small(arms=None, factors={"colour": ["red", "green"], "size": ["s", "l"]}, control="red-l")
    )
    assert [arm.arm_id for arm in definition.arms] == ["red-s", "red-l", "green-s", "green-l"]
    assert definition.arms[2].levels == {"colour": "green", "size": "s"}
    assert [factor.name for factor in definition.factors] == ["colour", "size"]


def test_json_and_several_documents() -> None:
    both = f"{SMALL}\n---\n{small(id='f')}\n---\n"
    assert [found.experiment_id for found in parse_definitions(both)] == ["e", "f"]
    assert [found.experiment_id for found in parse_definitions(f"[{small()}, {small(id='f')}]")] == ["e", "f"]


@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_of_the_registry_is_known(name: str) -> None:
    text = small(policy={"algorithm": name}, features={"device": ["mobile"]})
    assert parse_definition(text).policy.algorithm == name


def test_weights_by_segment_need_features_few_cells_and_a_rate() -> None:
    policy = {"algorithm": "contextual"}
    missing = "features: missing; contextual learns weights by the levels of at least one feature"
    assert problems_of(small(policy=policy)) == [missing]
    features = {f"f{i}": list("abcdefghi") for i in range(3)}
    (found,) = problems_of(small(policy=policy, features=features, arms=list("abc")))
    assert found == "features: segments x arms make 3000 cells; contextual takes 2000 at most"
    reward = {"metric": "m", "kind": "value", "cap": 5}
    (found,) = problems_of(small(policy=policy, features={"device": ["a"]}, reward=reward))
    assert found.startswith("reward.kind: value cannot be learned by segment")


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"interactions": [["device", "text"]]}, "interactions[0]: 'text' is neither a feature nor a factor"),
        ({"interactions": [["device", "arm"], ["device"]]}, "interactions[1]: ['device'] is not a pair"),
        ({"interactions": [["device", "device"]]}, "interactions[0]: ['device', 'device'] is not a pair"),
        (
            {"interactions": [["device", "arm"], ["arm", "device"]]},
            "interactions[1]: ['arm', 'device'] stands",
        ),
        ({"interactions": "all"}, "interactions: 'all' is not a list of pairs of names"),
        ({"interval_days": 29}, "interval_days: 29 is not in [0, 28]"),
        ({"interval_days": 1.5}, "interval_days: 1.5 is not a whole number"),
    ],
)
def test_effects_of_a_contextual_model_are_of_what_there_is(
    parameters: dict[str, object], problem: str
) -> None:
    policy = {"algorithm": "contextual", "parameters": parameters}
    (found,) = problems_of(small(policy=policy, features={"device": ["mobile"]}))
    assert found.startswith(f"policy.parameters.{problem}")


def test_effects_of_a_contextual_model_may_be_chosen() -> None:
    parameters = {"interactions": [["device", "colour"], ["device", "country"]], "interval_days": 7}
    text = small(
        policy={"algorithm": "contextual", "parameters": parameters},
        features={"device": ["mobile"], "country": ["DE"]},
        factors={"colour": ["red", "green"]},
        arms=None,
        control="red",
    )
    assert parse_definition(text).policy.parameters == parameters


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (
            {"learning": {"delay": "guess"}},
            "policy.learning.delay: 'guess' is not one of estimate, gate, none",
        ),
        (
            {"learning": {"half_life": "90m"}},
            "policy.learning.half_life: 1h30m is not a whole number of hours",
        ),
        ({"learning": {"half_life": "10d"}}, "policy.learning.half_life: 10d is not from 1h to 9d"),
        ({"learning": {"stratify": 1}}, "policy.learning.stratify: 1 is not true or false"),
        ({"lifecycle": {"max_step": 0}}, "policy.lifecycle.max_step: 0 is not in (0, 1]"),
        ({"lifecycle": {"min_trials": 20000}}, "policy.lifecycle.min_trials: 20000 exceeds max_trials 10000"),
        ({"lifecycle": {"dropp": True}}, "policy.lifecycle.dropp: unknown key; did you mean drop?"),
        ({"prior": {"mean": 0.1}}, "policy.prior.strength: missing; a prior by its mean needs"),
        (
            {"prior": {"mean": 0.1, "strength": 9, "alpha": 1}},
            "policy.prior.mean: given beside alpha and beta",
        ),
        ({"prior": {"pooled": True, "alpha": 1}}, "policy.prior.pooled: the arms themselves give this prior"),
    ],
)
def test_messages_about_learning_and_lifecycle(policy: dict[str, object], problem: str) -> None:
    found = problems_of(small(policy=policy))
    assert any(text.startswith(problem) for text in found), found


def test_a_prior_by_its_mean_and_what_is_learned_come_back_as_a_document() -> None:
    policy = {
        "prior": {"mean": 0.25, "strength": 8},
        "learning": {"delay": "gate", "half_life": "36h", "window": "3d", "stratify": True},
        "lifecycle": {"drop": True, "max_step": 0.2},
    }
    definition = parse_definition(small(policy=policy))
    assert definition.policy.prior == Prior(alpha=2.0, beta=6.0)
    record = apply_definition(definition, None, now_ms=1, lead_ms=1).record
    assert parse_definition(to_yaml(record)).policy == definition.policy


def test_all_problems_are_named_at_once_each_with_its_path() -> None:
    text = """
id: a b
arms: [a, b, 3, a, {id: x, statu: active}]
control: q
polcy: {}
policy: {floor: 0.3, interval: 90m, algorithm: thomson, holdout: much}
reward: {kind: value}
conversion_window: 1 day
features: {device: [mobile, other, yes]}
guardrails:
  - {metric: refund, kind: conversion_after_click}
effective_from: 2024-01-01
"""
    paths = [problem.split(": ")[0] for problem in problems_of(text)]
    assert paths == [
        "id",
        "arms[2]",
        "arms[4].statu",
        "arms",
        "policy.algorithm",
        "policy.interval",
        "policy.holdout",
        "policy.floor",
        "control",
        "reward.metric",
        "reward.cap",
        "guardrails[0].click_metric",
        "conversion_window",
        "features.device[2]",
        "features.device",
        "effective_from",
        "polcy",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"policy": {"floor": 0.3}, "arms": list("abcd")},
            "policy.floor: 0.3 x 4 arms exceeds 1; lower it to at most 0.25",
        ),
        (
            {"policy": {"floor": 0.34}, "arms": list("abc")},
            "policy.floor: 0.34 x 3 arms exceeds 1; lower it to at most 0.3333",
        ),
        (
            {"policy": {"interval": "90m"}},
            "policy.interval: 1h30m is not a whole number of hours; write e.g.",
        ),
        ({"policy": {"interval": 0}}, "policy.interval: 0ms is not from 1ms to 30d"),
        ({"policy": {"comparison": 1}}, "policy.comparison: 1 is not in [0, 1)"),
        ({"policy": {"prior": {"alpha": 0}}}, "policy.prior.alpha: 0 is not in (0, 1e+06]"),
        ({"policy": {"prior": {"gamma": 1}}}, "policy.prior.gamma: unknown key; known here: pooled, mean"),
        ({"arms": ["a"]}, "arms: one arm alone has nothing to be compared with; add an arm, or"),
        ({"arms": []}, "arms: empty; give at least two arms"),
        ({"arms": None}, "arms: missing; list the arms, or give factors whose product they are"),
        ({"arms": ["a", "b", "a"]}, "arms: the id a occurs twice; remove or rename one"),
        ({"control": "c"}, "control: c is not an arm; the arms are a, b"),
        (
            {"arms": ["a", {"id": "b", "status": "stopped"}], "default_arm": "b"},
            "default_arm: b gets no traffic by its status; name an active arm",
        ),
        ({"reward": None}, "reward: missing; write a mapping with `metric` and `kind`"),
        ({"reward": {"metric": "m", "cap": 3}}, "reward.cap: not used by kind conversion_after_display"),
        ({"reward": {"metric": "m", "kind": "value"}}, "reward.cap: missing; a value needs the most"),
        ({"reward": {"metric": "m", "kind": "clicks"}}, "reward.kind: 'clicks' is not one of"),
        ({"reward": {"metric": "m", "click_metric": "c"}}, "reward.click_metric: not used by kind"),
        ({"guardrails": [{"metric": "buy"}]}, "guardrails: the metric buy is used twice"),
        ({"guardrails": [{"metric": "x", "margin": 0}]}, "guardrails[0].margin: 0 is not in (0, 10]"),
        ({"conversion_window": "100d"}, "conversion_window: 100d is not from 1s to 90d"),
        ({"conversion_window": 1.5}, "conversion_window: 1.5 is not a duration"),
        ({"trial_window": "day"}, "trial_window: 'day' is not one of hour, experiment, exposure"),
        ({"status": "archived"}, "status: 'archived' is not one of draft, live, paused"),
        (
            {"features": {f"f{i}": list("abcdefghi") for i in range(4)}},
            "features: their levels, each with `other`, make 10000 segments",
        ),
        ({"count_test": "yes"}, "count_test: 'yes' is not true or false"),
        ({"arm": ["a"]}, "arm: unknown key; did you mean arms?"),
        (
            {"factors": {"c": ["x", "y"], "d": ["1", "2"]}, "arms": ["x-1", "y"]},
            "arms[1]: y is no combination of the factors' levels; join one level of each of c, d by '-'",
        ),
        ({"factors": {"c": ["x", "y"]}, "arms": ["x", "x"]}, "arms: the id x occurs twice"),
        ({"factors": {"c": ["x", "y"]}, "arms": []}, "arms: empty; give at least two arms"),
        ({"arms": ["a", {"id": "b@2"}]}, "arms[1].id: 'b@2' is not an identifier"),
        ({"arms": ["a", {"id": "b", "version": 0}]}, "arms[1].version: 0 is not in [1, 1000]"),
        ({"arms": ["a", {"id": "b", "version": 1.5}]}, "arms[1].version: 1.5 is not a whole number"),
        (
            {"arms": None, "factors": {"a": ["x", "x-y"], "b": ["y-z", "z"]}},
            "factors: two combinations of levels give the arm id x-y-z",
        ),
        ({"arms": None, "factors": {"a": ["x y"]}}, "factors.a: 'x y' is not an identifier"),
        ({"arms": None, "factors": {"a": "xy"}}, "factors.a: 'xy' is not a list of levels"),
        ({"arms": None, "factors": {"a": []}}, "factors.a: [] is not a list of levels"),
        ({"arms": None, "factors": ["a"]}, "factors: ['a'] is not a mapping of names to values"),
        (
            {"arms": None, "factors": {name: list("abcdefghijk") for name in "xyz"}},
            "factors: their product exceeds 1000 arms; use fewer levels",
        ),
        ({"arms": [f"arm-{index}" for index in range(1001)]}, "arms: 1001 arms exceed 1000; use fewer"),
        ({"arms": "a, b"}, "arms: 'a, b' is not a list; write each item on a line"),
        ({"arms": [{"id": "a", "status": "stopped"}, {"id": "b", "status": "pending"}]}, "arms: no arm gets"),
        ({"arms": ["a b", "c"]}, "arms[0]: 'a b' is not an identifier"),
        ({"arms": ["", "c"]}, "arms[0]: '' is not an identifier"),
        ({"features": {"device": ["a", "a"]}}, "features.device: the level 'a' occurs twice"),
        ({"features": {"device": ["a" * 129]}}, "features.device[0]: 'aaa"),
        ({"features": {"device": ["a\n"]}}, "features.device[0]: 'a\\n' is not 1 to 128 printable"),
        ({"features": {"my device": ["a"]}}, "features.my device: 'my device' is not an identifier"),
        (
            {"reward": {"metric": "m", "kind": "conversion_after_click", "click_metric": "m"}},
            "reward.click_metric: m is the metric itself",
        ),
        ({"policy": 3}, "policy: 3 is not a mapping of names to values"),
        ({"id": 7}, "id: 7 is not text; put it in quotes"),
        ({"policy": {"parameters": {"power": 99}}}, "policy.parameters.power: 99 is not in (0, 10]"),
        ({"effective_from": "2025-03-01T00:00:00"}, "effective_from: '2025-03-01T00:00:00' is not a time"),
        (
            {"policy": {"learning": {"model": "gaussian"}}},
            "policy.learning.model: not used by kind",
        ),
        ({"ends_at": "2025-03-01"}, "ends_at: '2025-03-01' is not a time"),
        ({"ends_at": "2025-03-01T00:30:00Z", "sticky": "interval"}, "ends_at: not a whole hour"),
        ({"ends_at": 7_200_000}, "ends_at: batched least squares needs independent batches, but a trial is"),
        (
            {"ends_at": 86_400_000, "effective_from": 0, "trial_window": "experiment"},
            "ends_at: no conversion window that begins at effective_from is over by then",
        ),
    ],
)
def test_messages(changes: dict[str, object], problem: str) -> None:
    found = problems_of(small(**changes))
    assert any(text.startswith(problem) for text in found), found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "definition: empty"),
        ("just text", "definition: 'just text' is not a mapping"),
        ("id: e\nid: f", "neither YAML nor JSON: the key 'id' occurs twice in \"<unicode string>\", line 2"),
        ('{"id": "e", "id": "f"}', "neither YAML nor JSON: the key 'id' occurs twice"),
        ("id: [", "neither YAML nor JSON"),
        ("id: !!python/object:os.system x", "neither YAML nor JSON"),
    ],
)
def test_texts_that_are_no_documents(text: str, problem: str) -> None:
    assert problems_of(text)[0].startswith(problem)


def test_problems_of_several_documents_say_which() -> None:
    text = f"[{small()}, {small(id='f', status='over')}, {small()}]"
    assert problems_of(text) == [
        "document 2: status: 'over' is not one of draft, live, paused",
        "id: e occurs in more than one document; keep one",
    ]


def test_one_document_is_expected_where_one_is_asked_for() -> None:
    with pytest.raises(DefinitionInvalid, match="2 documents where one is expected"):
        parse_definition(f"[{small()}, {small(id='f')}]")


def test_numbers_with_an_exponent_are_numbers() -> None:
    text = "{id: e, arms: [a, b], reward: {metric: m}, policy: {holdout: 1e-2, floor: 5E-2}}"
    policy = parse_definition(text).policy
    assert (policy.holdout, policy.floor) == (0.01, 0.05)


def test_one_arm_with_a_comparison_group_is_an_experiment() -> None:
    definition: Definition = parse_definition(small(arms=["a"], policy={"comparison": 0.5}))
    assert definition.control == "a"


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [("24h", DAY_MS), ("1d", DAY_MS), ("1w", 7 * DAY_MS), ("1d12h", 36 * HOUR_MS), ("500ms", 500), (7, 7)],
)
def test_durations(text: object, duration_ms: int) -> None:
    assert read_duration_ms(text) == duration_ms
    assert read_duration_ms(format_duration(duration_ms)) == duration_ms


@pytest.mark.parametrize("text", ["1.5h", "h", "1 h", "-1h", "1y", True, None, 1.0])
def test_not_durations(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        read_duration_ms(text)


@pytest.mark.parametrize(
    ("text", "instant_ms"),
    [("1970-01-01T00:00:00.999999Z", 999), ("1970-01-01T01:00:00+01:00", 0), (5, 5), (2**53 - 1, 2**53 - 1)],
)
def test_instants(text: object, instant_ms: int) -> None:
    assert read_instant_ms(text) == instant_ms


@pytest.mark.parametrize("text", ["1969-12-31T23:59:59Z", "yesterday", -1, 2**53, True, 1.0])
def test_not_instants(text: object) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        read_instant_ms(text)
