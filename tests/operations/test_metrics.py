"""Metrics: names, bounded labels, ages, and the table in docs/operators.md."""

import re
from pathlib import Path

import pytest

from streams.labels import OTHER, AgeGauge, LabelGuard
from streams.metrics import (
    DEAD_LETTER_REASONS,
    OUTCOMES,
    PREFIX,
    SOURCE_TOPICS,
    EdgeMetrics,
    MetricInfo,
    Metrics,
    PartitionState,
)

ROOT = Path(__file__).parents[2]
OPERATORS = ROOT / "docs" / "operators.md"
ALL = [*Metrics().described, *EdgeMetrics().described]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def value(metrics: Metrics | EdgeMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_declared_metric_is_exported_under_its_name_and_kind() -> None:
    for metrics in (Metrics(), EdgeMetrics()):
        exported = {family.name: family.type for family in metrics.registry.collect()}
        for info in metrics.described:
            family = info.name.removesuffix("_total") if info.kind == "counter" else info.name
            assert exported[family] == info.kind, info


@pytest.mark.parametrize("info", ALL, ids=lambda info: info.name)
def test_names_follow_the_rules(info: MetricInfo) -> None:
    name, kind, labels, documentation = info
    assert name.startswith(PREFIX)
    assert re.fullmatch(r"[a-z_]+", name)
    assert (kind == "counter") == name.endswith("_total")
    assert not re.search(r"_(ms|millis|kb|mb|percent)(_|$)", name), "base units only"
    assert documentation.endswith(".")
    allowed = {
        "topic", "outcome", "reason", "partition", "stage", "kind", "state", "trigger",
        "experiment", "arm", "version", "source",
    }  # fmt: skip
    assert set(labels) <= allowed


def test_attribute_names_are_metric_names() -> None:
    for metrics in (Metrics(), EdgeMetrics()):
        for info in metrics.described:
            assert hasattr(metrics, info.name.removeprefix(PREFIX)), info.name


def test_every_metric_is_fed() -> None:
    """A metric that is declared, documented and on the dashboard, but never set, would be a lie."""
    sources = ROOT.joinpath("streams").rglob("*.py")
    text = "\n".join(path.read_text() for path in sources if path.name != "metrics.py")
    by_method = {
        "events_total": "count_events(",
        "dead_letters_total": "count_dead_letters(",
        "partition_state": "set_partition_state(",
        "allocations_published_total": "allocation_published(",
        "allocation_age_seconds": "allocation_published(",
        "allocation_weight": "allocation_published(",
        "exploration_share": "allocation_published(",
        "allocation_model_state": "allocation_state(",
        "build_info": "version=version(",
    }
    names = [info.name.removeprefix(PREFIX) for info in ALL]
    assert not [name for name in names if by_method.get(name, f".{name}") not in text]


def test_names_are_unique() -> None:
    names = [info.name for info in ALL]
    assert len(names) == len(set(names))


def test_two_workers_in_one_process_do_not_share_a_registry() -> None:
    one, two = Metrics(), Metrics()
    one.count_events("exposures", "accepted", 5)
    assert value(one, "bandit_events_total", topic="exposures", outcome="accepted") == 5
    assert value(two, "bandit_events_total", topic="exposures", outcome="accepted") == 0


def test_closed_label_sets_start_at_zero() -> None:
    metrics = Metrics()
    for topic in SOURCE_TOPICS:
        for outcome in OUTCOMES:
            assert value(metrics, "bandit_events_total", topic=topic, outcome=outcome) == 0
    for reason in DEAD_LETTER_REASONS:
        assert value(metrics, "bandit_dead_letters_total", reason=reason) == 0


def test_unknown_values_of_closed_labels_become_other() -> None:
    metrics = Metrics()
    metrics.count_events("surprise", "lost", 2)
    metrics.count_dead_letters("cosmic_ray", 3)
    assert value(metrics, "bandit_events_total", topic=OTHER, outcome=OTHER) == 2
    assert value(metrics, "bandit_dead_letters_total", reason=OTHER) == 3


def test_exactly_one_partition_state_is_one() -> None:
    metrics = Metrics()
    metrics.set_partition_state(3, PartitionState.RECOVERING)
    metrics.set_partition_state(3, PartitionState.ACTIVE)
    states = {
        s: value(metrics, "bandit_partition_state", partition="3", state=s.value) for s in PartitionState
    }
    assert states == {s: float(s is PartitionState.ACTIVE) for s in PartitionState}


def test_forgetting_a_partition_drops_all_its_series_and_no_other() -> None:
    metrics = Metrics()
    partitioned = [info.name.removeprefix(PREFIX) for info in metrics.described if "partition" in info.labels]
    for partition in ("3", "4"):
        for name in partitioned:
            gauge = getattr(metrics, name)
            labels = {"partition": partition, "topic": "exposures", "state": "active"}
            gauge.labels(**{k: labels[k] for k in gauge._labelnames}).set(1)
    metrics.forget_partition(3)
    left = {
        s.labels["partition"]
        for f in metrics.registry.collect()
        for s in f.samples
        if "partition" in s.labels
    }
    assert left == {"4"}


def test_label_guard_keeps_the_first_and_frees_places() -> None:
    guard = LabelGuard(2)
    assert [guard.label(v) for v in ("a", "b", "c", "a")] == ["a", "b", OTHER, "a"]
    guard.forget("a")
    assert guard.label("c") == "c"
    with pytest.raises(ValueError, match="at least 1"):
        LabelGuard(0)


def test_ages_grow_by_themselves_and_other_shows_the_oldest() -> None:
    clock = Clock()
    gauge = AgeGauge("age_seconds", "Age.", LabelGuard(1), clock)
    gauge.mark("first")
    gauge.mark("second", at_s=900.0)
    gauge.mark("third", at_s=950.0)
    clock.now_s += 10
    (family,) = gauge.collect()
    assert {s.labels["experiment"]: s.value for s in family.samples} == {"first": 10.0, OTHER: 110.0}
    gauge.forget("second")
    (family,) = gauge.collect()
    assert {s.labels["experiment"]: s.value for s in family.samples} == {"first": 10.0, OTHER: 60.0}


def test_an_age_is_never_negative() -> None:
    clock = Clock()
    gauge = AgeGauge("age_seconds", "Age.", LabelGuard(1), clock)
    gauge.mark("a", at_s=clock.now_s + 60)
    (family,) = gauge.collect()
    assert [s.value for s in family.samples] == [0.0]


def test_a_published_allocation_sets_weights_exploration_and_age() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    metrics.allocation_published("e", trigger="interval", weights={"a": 0.81, "b": 0.045, "c": 0.045})
    clock.now_s += 7
    assert value(metrics, "bandit_allocation_weight", experiment="e", arm="a") == 0.81
    assert value(metrics, "bandit_exploration_share", experiment="e") == pytest.approx(0.1)
    assert value(metrics, "bandit_allocation_age_seconds", experiment="e") == 7
    assert value(metrics, "bandit_allocations_published_total", trigger="interval") == 1
    metrics.allocation_published("e", trigger="change", weights={"b": 0.9})
    assert value(metrics, "bandit_allocation_weight", experiment="e", arm="a") is None
    assert value(metrics, "bandit_exploration_share", experiment="e") == 0
    assert value(metrics, "bandit_allocation_age_seconds", experiment="e") == 0


def test_one_state_of_a_model_holds() -> None:
    metrics = Metrics()
    metrics.allocation_published("e", trigger="interval", weights={"a": 1.0})
    for now in ("created", "training", "trained"):
        metrics.allocation_state("e", now)
        states = {
            state: value(metrics, "bandit_allocation_model_state", experiment="e", state=state)
            for state in ("created", "training", "trained")
        }
        assert [state for state, is_it in states.items() if is_it] == [now]
    metrics.forget_experiment("e")
    assert value(metrics, "bandit_allocation_model_state", experiment="e", state="trained") is None


def test_all_arms_at_zero_is_no_exploration_and_no_error() -> None:
    metrics = Metrics()
    metrics.allocation_published("e", trigger="interval", weights={"a": 0.0})
    assert value(metrics, "bandit_exploration_share", experiment="e") == 0


def test_experiments_and_arms_are_bounded() -> None:
    metrics = Metrics(max_experiments=2, max_arms=2)
    for n in range(5):
        metrics.allocation_published(f"e{n}", trigger="interval", weights={f"a{k}": 0.2 for k in range(5)})
    series = [
        s.labels
        for f in metrics.registry.collect()
        for s in f.samples
        if f.name == "bandit_allocation_weight"
    ]
    assert len(series) == 4
    assert metrics.experiment_label("e4") == OTHER
    metrics.forget_experiment("e0")
    metrics.allocation_published("e4", trigger="interval", weights={"a": 1.0})
    assert value(metrics, "bandit_allocation_weight", experiment="e4", arm="a") == 1.0
    assert value(metrics, "bandit_allocation_weight", experiment="e0", arm="a0") is None


def test_operators_page_has_a_row_for_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| `(bandit_[a-z_]+)` \| (\w+) \| ([^|]*) \|", OPERATORS.read_text(), re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == {info.name: (info.kind, info.labels) for info in ALL}
