"""Validation of experiment definitions.

A document as its owner writes it becomes a :class:`Definition`, or is refused with all of its problems, each
naming the path of the value and what to do.

What an algorithm is called and which parameters it takes is asked of ``bandit_core``, never listed here.
Whether a definition may replace the record that is there is another question: see
``streams.experiments.changes``.
"""

import math
from typing import Any, Literal

from msgspec import Struct

from bandit_core.policies import POLICIES, DefinitionError, policy_from_definition
from streams.config import DAY_MS, HOUR_MS
from streams.experiments.arms import (
    ELIGIBLE,
    ArmEntry,
    check_number_of_arms,
    read_arms,
    read_factors,
    read_levels,
    read_named_arm,
)
from streams.experiments.definition import (
    Counting,
    Delay,
    Factor,
    Feature,
    Guardrail,
    Learning,
    Lifecycle,
    Policy,
    Prior,
    Proposing,
    Reward,
    RewardKind,
    Touch,
    TrialWindow,
    ValueModel,
)
from streams.experiments.end import read_end, read_instant
from streams.experiments.reader import Problems, Reader, format_duration, load_documents

SEGMENTS_MAX = 1000
OTHER_LEVEL = "other"
CELLS_MAX = 2000
INSTRUCTIONS_MAX_CHARACTERS = 10_000

DocumentStatus = Literal["draft", "live", "paused"]


class Definition(Struct, frozen=True, kw_only=True):
    """A valid definition document.

    ``counting`` has version 0 and no time; both are given when the definition is applied. ``status`` and
    ``effective_from_ms`` are ``None`` where the document does not say.
    """

    experiment_id: str
    description: str
    status: DocumentStatus | None
    arms: tuple[ArmEntry, ...]
    factors: tuple[Factor, ...]
    control: str
    default_arm: str | None
    sticky: Literal["unit", "interval"]
    counting: Counting
    policy: Policy
    proposing: Proposing
    effective_from_ms: int | None
    ends_at_ms: int | None = None


def parse_definitions(text: str, where: str = "definition") -> list[Definition]:
    """Read every definition of a YAML or JSON text.

    Parameters
    ----------
    text
        One document, several separated by ``---``, or a JSON list of them.
    where
        File name for messages.

    Raises
    ------
    DefinitionInvalid
        With all problems of all documents, or if there is no document.
    """
    documents = load_documents(text, where)
    problems = Problems()
    if not documents:
        problems.add("definition", "empty; write a mapping that begins with `id:`")
    definitions = []
    for index, document in enumerate(documents):
        own = Problems()
        definitions.append(_read_definition(document, own))
        prefix = f"document {index + 1}: " if len(documents) > 1 else ""
        problems.found += [prefix + problem for problem in own.found]
    ids = [definition.experiment_id for definition in definitions]
    for repeated in sorted({found for found in ids if found and ids.count(found) > 1}):
        problems.add("id", f"{repeated} occurs in more than one document; keep one")
    problems.raise_if_any(where)
    return definitions


def parse_definition(text: str, where: str = "definition") -> Definition:
    """Read a text that has exactly one definition.

    Raises
    ------
    DefinitionInvalid
        With all problems, or if there are more definitions than one.
    """
    definitions = parse_definitions(text, where)
    if len(definitions) > 1:
        problems = Problems()
        problems.add("definition", f"{len(definitions)} documents where one is expected")
        problems.raise_if_any(where)
    return definitions[0]


def _read_definition(document: object, problems: Problems) -> Definition:
    reader = Reader(document, "", problems)
    experiment_id = reader.identifier("id") if isinstance(document, dict) else ""
    description = reader.text("description", "")
    live: DocumentStatus = "live"
    status = reader.choice("status", live, DocumentStatus) if reader.has("status") else None
    factors = tuple(read_factors(reader))
    arms = read_arms(reader, factors)
    policy = _read_policy(reader.mapping("policy"))
    eligible = [arm.arm_id for arm in arms if arm.status is None or arm.status in ELIGIBLE]
    check_shares(policy, len(eligible), problems)
    control = read_named_arm(reader, "control", arms, eligible) or (eligible[0] if eligible else "")
    default_arm = read_named_arm(reader, "default_arm", arms, eligible)
    sticky: Literal["unit", "interval"] = reader.choice("sticky", "unit", Literal["unit", "interval"])
    counting = _read_counting(reader)
    check_context(policy, counting, len(arms), problems)
    check_interactions(policy, counting, factors, problems)
    _check_model(policy, counting, problems)
    proposing = _read_proposing(reader.mapping("proposals"))
    effective_from_ms = read_instant(reader, "effective_from")
    ends_at_ms = read_end(reader, effective_from_ms, counting, sticky)
    if isinstance(document, dict):
        check_number_of_arms(reader, arms, policy)
    reader.finish()
    return Definition(
        experiment_id=experiment_id,
        description=description,
        status=status,
        arms=arms,
        factors=factors,
        control=control,
        default_arm=default_arm,
        sticky=sticky,
        counting=counting,
        policy=policy,
        proposing=proposing,
        effective_from_ms=effective_from_ms,
        ends_at_ms=ends_at_ms,
    )


# --- counting ---


def _read_counting(reader: Reader) -> Counting:
    reward = _read_reward(reader.mapping("reward")) if reader.has("reward") else None
    if reward is None:
        reader.problem("reward", "missing; write a mapping with `metric` and `kind`")
        reward = Reward(metric="")
    guardrails = []
    for path, item in reader.items("guardrails"):
        guardrail = Reader(item, path, reader.problems)
        margin = (
            guardrail.number("margin", 0.1, low=0, high=10, low_open=True)
            if guardrail.has("margin")
            else None
        )
        guardrails.append(Guardrail(reward=_read_reward(guardrail), margin=margin))
    metrics = [reward.metric, *(guardrail.reward.metric for guardrail in guardrails)]
    for repeated in sorted({metric for metric in metrics if metric and metrics.count(metric) > 1}):
        reader.problem(
            "guardrails", f"the metric {repeated} is used twice; give each use a metric of its own"
        )
    return Counting(
        version=0,
        effective_from_ms=0,
        reward=reward,
        guardrails=tuple(guardrails),
        conversion_window_ms=reader.duration_ms(
            "conversion_window", DAY_MS, low_ms=1000, high_ms=90 * DAY_MS
        ),
        trial_window=reader.choice("trial_window", "hour", TrialWindow),
        touch=reader.choice("touch", "last", Touch),
        features=_read_features(reader),
        count_test=reader.flag("count_test", False),
    )


def _read_reward(reader: Reader) -> Reward:
    kind: RewardKind = reader.choice("kind", "conversion_after_display", RewardKind)
    metric = reader.identifier("metric")
    click_metric = reader.identifier("click_metric") if reader.has("click_metric") else None
    if kind == "conversion_after_click":
        if click_metric is None:
            reader.problem(
                "click_metric", "missing; conversion_after_click needs the metric that is the click"
            )
        elif click_metric == metric:
            reader.problem(
                "click_metric", f"{metric} is the metric itself; name the click that comes before it"
            )
    elif click_metric is not None:
        reader.problem("click_metric", f"not used by kind {kind}; remove it, or use conversion_after_click")
    if kind == "value":
        if not reader.has("cap"):
            reader.problem("cap", "missing; a value needs the most that one trial may earn, e.g. 200")
    elif reader.has("cap"):
        reader.problem("cap", f"not used by kind {kind}, which earns at most 1; remove it, or use kind value")
    reward = Reward(
        metric=metric,
        kind=kind,
        click_metric=click_metric,
        cap=reader.number("cap", 1.0, low=1e-6, high=1e9) if kind == "value" else 1.0,
        lower_is_better=reader.flag("lower_is_better", False),
    )
    reader.finish()
    return reward


def _read_features(reader: Reader) -> tuple[Feature, ...]:
    features = []
    for name, levels in reader.pairs("features"):
        path = reader.at(f"features.{name}")
        reader.check_identifier(f"features.{name}", name)
        if (found := read_levels(levels, path, reader.problems)) is None:
            continue
        if OTHER_LEVEL in found:
            reader.problems.add(
                path, f"the level {OTHER_LEVEL} is there anyway, for what is not listed; remove it"
            )
        features.append(Feature(name=name, levels=found))
    segments = math.prod(len(feature.levels) + 1 for feature in features)
    if segments > SEGMENTS_MAX:
        reader.problem(
            "features",
            f"their levels, each with `other`, make {segments} segments; use at most {SEGMENTS_MAX}",
        )
    return tuple(features)


def _check_model(policy: Policy, counting: Counting, problems: Problems) -> None:
    """Note a problem if a model of values is asked for where there are none."""
    kind = counting.reward.kind
    if policy.learning.model != "hurdle" and kind != "value":
        problems.add("policy.learning.model", f"not used by kind {kind}; remove it, or use kind value")


def check_interactions(
    policy: Policy, counting: Counting, factors: tuple[Factor, ...], problems: Problems
) -> None:
    """Note a problem if a contextual model is to have effects of what is neither feature nor factor."""
    names = [feature.name for feature in counting.features] + [factor.name for factor in factors]
    names += [] if factors else ["arm"]
    pairs = policy.parameters.get("interactions") if policy.algorithm == "contextual" else None
    for at, pair in enumerate(pairs if isinstance(pairs, list | tuple) else ()):
        for name in pair if isinstance(pair, list | tuple) else ():
            if name not in names:
                problems.add(
                    f"policy.parameters.interactions[{at}]",
                    f"{name!r} is neither a feature nor a factor; there are {', '.join(names)}",
                )


def check_context(policy: Policy, counting: Counting, n_arms: int, problems: Problems) -> None:
    """Note a problem if weights by segment are asked for and cannot be had."""
    if policy.algorithm != "contextual":
        return
    n_cells = n_arms * math.prod(len(feature.levels) + 1 for feature in counting.features)
    if not counting.features:
        problems.add("features", "missing; contextual learns weights by the levels of at least one feature")
    elif n_cells > CELLS_MAX:
        problems.add(
            "features", f"segments x arms make {n_cells} cells; contextual takes {CELLS_MAX} at most"
        )
    if counting.reward.kind == "value":
        problems.add("reward.kind", "value cannot be learned by segment; use thompson, or another kind")


# --- policy ---


def _read_policy(reader: Reader) -> Policy:
    algorithm = reader.text("algorithm", "thompson")
    parameters: dict[str, Any] = dict(reader.pairs("parameters"))
    try:
        policy_from_definition(algorithm, parameters, path=reader.path)
    except DefinitionError as error:
        reader.problems.add(error.path, error.problem)
    interval_ms = reader.duration_ms("interval", HOUR_MS, low_ms=1, high_ms=30 * DAY_MS)
    if interval_ms % HOUR_MS:
        hours = max(1, round(interval_ms / HOUR_MS))
        reader.problem(
            "interval", f"{format_duration(interval_ms)} is not a whole number of hours; write e.g. {hours}h"
        )
    policy = Policy(
        algorithm=algorithm,
        parameters=parameters,
        interval_ms=interval_ms,
        floor=reader.number("floor", 0.0, low=0, high=1) if reader.has("floor") else None,
        holdout=reader.number("holdout", 0.0, low=0, high=1, high_open=True),
        comparison=reader.number("comparison", 0.0, low=0, high=1, high_open=True),
        prior=_read_prior(reader.mapping("prior")),
        learning=_read_learning(reader.mapping("learning")),
        lifecycle=_read_lifecycle(reader.mapping("lifecycle")),
    )
    reader.finish()
    return policy


def _read_prior(reader: Reader) -> Prior:
    """Alpha and beta, or mean and strength, which say the same, or `pooled`."""
    pooled = reader.flag("pooled", False)
    by_mean = reader.has("mean") or reader.has("strength")
    by_counts = reader.has("alpha") or reader.has("beta")
    if pooled and (by_mean or by_counts):
        reader.problem("pooled", "the arms themselves give this prior; remove its other fields")
    elif by_mean and by_counts:
        reader.problem("mean", "given beside alpha and beta; use either mean and strength, or these")
    elif by_mean and not (reader.has("mean") and reader.has("strength")):
        missing = "strength" if reader.has("mean") else "mean"
        reader.problem(missing, "missing; a prior by its mean needs mean and strength (in trials)")
    mean = reader.number("mean", 0.5, low=0, high=1, low_open=True, high_open=True)
    strength = reader.number("strength", 2.0, low=0, high=1e6, low_open=True)
    alpha = reader.number("alpha", 1.0, low=0, high=1e6, low_open=True)
    beta = reader.number("beta", 1.0, low=0, high=1e6, low_open=True)
    reader.finish()
    if pooled:
        return Prior(pooled=True)
    return (
        Prior(alpha=mean * strength, beta=(1 - mean) * strength) if by_mean else Prior(alpha=alpha, beta=beta)
    )


def _read_learning(reader: Reader) -> Learning:
    estimate: Delay = "estimate"
    hurdle: ValueModel = "hurdle"
    learning = Learning(
        delay=reader.choice("delay", estimate, Delay) if reader.has("delay") else None,
        half_life_ms=_hours_ms(reader, "half_life", 9 * DAY_MS),
        window_ms=_hours_ms(reader, "window", 90 * DAY_MS),
        stratify=reader.flag("stratify", False),
        overdispersion=reader.flag("overdispersion", False),
        model=reader.choice("model", hurdle, ValueModel),
    )
    reader.finish()
    return learning


def _hours_ms(reader: Reader, key: str, high_ms: int) -> int | None:
    if not reader.has(key):
        return None
    value = reader.duration_ms(key, HOUR_MS, low_ms=HOUR_MS, high_ms=high_ms)
    if value % HOUR_MS:
        hours = max(1, round(value / HOUR_MS))
        reader.problem(key, f"{format_duration(value)} is not a whole number of hours; write e.g. {hours}h")
    return value


def _read_lifecycle(reader: Reader) -> Lifecycle:
    lifecycle = Lifecycle(
        adaptive_holdout=reader.flag("adaptive_holdout", False),
        adaptive_floor=reader.flag("adaptive_floor", False),
        drop=reader.flag("drop", False),
        drop_intervals=reader.whole("drop_intervals", 24, low=1, high=10_000),
        min_trials=reader.whole("min_trials", 100, low=0, high=10**9),
        max_trials=reader.whole("max_trials", 10_000, low=1, high=10**9),
        max_step=reader.number("max_step", 0.1, low=0, high=1, low_open=True)
        if reader.has("max_step")
        else None,
    )
    if lifecycle.min_trials > lifecycle.max_trials:
        reader.problem(
            "min_trials", f"{lifecycle.min_trials} exceeds max_trials {lifecycle.max_trials}; lower it"
        )
    reader.finish()
    return lifecycle


def _read_proposing(reader: Reader) -> Proposing:
    usual = Proposing()
    proposing = Proposing(
        on_drop=reader.flag("on_drop", False),
        generate=reader.flag("generate", False),
        auto_approve=reader.flag("auto_approve", False),
        max_requests=reader.whole("max_requests", usual.max_requests, low=0, high=1_000_000),
        max_tokens=reader.whole("max_tokens", usual.max_tokens, low=0, high=10**12),
        instructions=reader.text("instructions", ""),
    )
    if len(proposing.instructions) > INSTRUCTIONS_MAX_CHARACTERS:
        reader.problem("instructions", f"longer than {INSTRUCTIONS_MAX_CHARACTERS} characters; shorten it")
    reader.finish()
    return proposing


def check_shares(policy: Policy, n_eligible: int, problems: Problems) -> None:
    """Note a problem if the floors of all arms that get traffic exceed one together."""
    if policy.floor is None or policy.floor * n_eligible <= 1:
        return
    most = math.floor(10_000 / n_eligible) / 10_000
    problems.add(
        "policy.floor", f"{policy.floor:g} x {n_eligible} arms exceeds 1; lower it to at most {most:g}"
    )


def algorithms() -> tuple[str, ...]:
    """Names that ``policy.algorithm`` can have."""
    return tuple(sorted(POLICIES))
