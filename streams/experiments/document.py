"""An experiment record as the definition document that would make it: for editing and applying again.

``parse_definition(to_yaml(record))`` applied to ``record`` changes nothing; a test holds this for every kind
of record. Values at their default are left out.
"""

import itertools
from typing import Any

import msgspec
import yaml

from streams.experiments.definition import (
    Counting,
    ExperimentRecord,
    Learning,
    Lifecycle,
    Policy,
    Reward,
    name_of,
)
from streams.experiments.reader import format_duration


def to_document(record: ExperimentRecord) -> dict[str, Any]:
    """Return the document as plain values, keys in the order in which owners write them."""
    document: dict[str, Any] = {"id": record.experiment_id}
    if record.description:
        document["description"] = record.description
    if record.status in ("draft", "live", "paused"):
        document["status"] = record.status
    document |= _arms(record)
    document["control"] = name_of(record.control)
    if record.default_arm is not None:
        document["default_arm"] = name_of(record.default_arm)
    if record.sticky != "unit":
        document["sticky"] = record.sticky
    if record.ends_at_ms is not None:
        document["ends_at"] = record.ends_at_ms
    document |= _counting(record.versions[-1]) | _policy(record.policy)
    if proposing := msgspec.to_builtins(record.proposing):
        document["proposals"] = proposing
    return document


def to_yaml(record: ExperimentRecord) -> str:
    """Return the document as YAML."""
    return yaml.safe_dump(to_document(record), sort_keys=False, allow_unicode=True, width=100)


def _arms(record: ExperimentRecord) -> dict[str, Any]:
    """Newest version of each arm; only factors where their product, as it would be by itself, is meant."""
    document: dict[str, Any] = {}
    arms: list[Any] = []
    if record.factors:
        document["factors"] = {factor.name: list(factor.levels) for factor in record.factors}
    combinations = set(itertools.product(*(factor.levels for factor in record.factors)))
    for name, arm in record.newest_arms.items():
        levels = tuple(arm.levels.get(factor.name, "") for factor in record.factors)
        if record.factors and arm.content is None and levels not in combinations:
            continue  # of factors that there are no longer; it is stopped, and stays so
        # An arm whose status is not stated keeps the one it has.
        fields = {
            "id": name,
            "version": None if arm.version == 1 else arm.version,
            "content": arm.content,
            "status": None if arm.status == "active" else arm.status,
        }
        stated = {key: value for key, value in fields.items() if value is not None}
        arms.append(name if len(stated) == 1 else stated)
    if record.factors and len(arms) == len(combinations) and all(isinstance(arm, str) for arm in arms):
        return document
    return document | {"arms": arms}


def _reward(reward: Reward) -> dict[str, Any]:
    document: dict[str, Any] = {"metric": reward.metric, "kind": reward.kind}
    if reward.click_metric is not None:
        document["click_metric"] = reward.click_metric
    if reward.kind == "value":
        document["cap"] = reward.cap
    if reward.lower_is_better:
        document["lower_is_better"] = True
    return document


def _counting(counting: Counting) -> dict[str, Any]:
    document: dict[str, Any] = {"reward": _reward(counting.reward)}
    if counting.guardrails:
        document["guardrails"] = [
            _reward(guardrail.reward) | ({} if guardrail.margin is None else {"margin": guardrail.margin})
            for guardrail in counting.guardrails
        ]
    document["conversion_window"] = format_duration(counting.conversion_window_ms)
    document["trial_window"] = counting.trial_window
    document["touch"] = counting.touch
    if counting.features:
        document["features"] = {feature.name: list(feature.levels) for feature in counting.features}
    if counting.count_test:
        document["count_test"] = True
    return document


def _policy(policy: Policy) -> dict[str, Any]:
    document: dict[str, Any] = {"algorithm": policy.algorithm}
    if policy.parameters:
        document["parameters"] = msgspec.to_builtins(policy.parameters)
    document["interval"] = format_duration(policy.interval_ms)
    if policy.floor is not None:
        document["floor"] = policy.floor
    if policy.holdout:
        document["holdout"] = policy.holdout
    if policy.comparison:
        document["comparison"] = policy.comparison
    prior = {"alpha": policy.prior.alpha, "beta": policy.prior.beta}
    document["prior"] = {"pooled": True} if policy.prior.pooled else prior
    if learning := _learning(policy.learning):
        document["learning"] = learning
    usual = msgspec.structs.asdict(Lifecycle())
    given = msgspec.structs.asdict(policy.lifecycle)
    if changed := {key: value for key, value in given.items() if value != usual[key]}:
        document["lifecycle"] = changed
    return {"policy": document}


def _learning(learning: Learning) -> dict[str, Any]:
    document = msgspec.to_builtins(learning)
    for key in ("half_life", "window"):
        if (value_ms := document.pop(f"{key}_ms", None)) is not None:
            document[key] = format_duration(value_ms)
    found: dict[str, Any] = document
    return found
