"""Definitions compiled for the join, and segments."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import StateCorrupt
from streams.experiments.definition import Feature, Guardrail, Reward
from streams.join.definitions import Definitions, ExperimentPlan, MissingDefinition, VersionPlan
from streams.join.segments import Segmenter, segment_of
from tests.join.test_attribution import BUY, CLICK, REVENUE, SIGNUP, counting, experiment


def test_an_exposure_takes_the_newest_version_effective_at_its_time() -> None:
    plan = ExperimentPlan(
        experiment(
            counting(3, effective_from_ms=30),
            counting(1, effective_from_ms=10),
            counting(2, effective_from_ms=30),
        )
    )
    found = [plan.version_at(ms) for ms in (9, 10, 29, 30, 10**12)]
    assert [version and version.version for version in found] == [None, 1, 1, 3, 3]


def test_a_version_knows_its_metrics_and_their_gates() -> None:
    version = VersionPlan(counting(reward=BUY, guardrails=(Guardrail(reward=REVENUE),)))
    assert version.metrics == ("buy", "revenue")
    assert version.roles == {"buy": "click", "revenue": "", "click": ""}
    assert version.caps == {"buy": 1_000_000, "revenue": 10_000_000}


def test_of_two_rewards_of_one_metric_the_first_counts() -> None:
    again = Reward(metric="signup", kind="value", cap=5.0)
    version = VersionPlan(counting(reward=SIGNUP, guardrails=(Guardrail(reward=again),)))
    assert version.caps == {"signup": 1_000_000}


def test_a_click_metric_is_never_gated() -> None:
    gated = Reward(metric="click", kind="conversion_after_click", click_metric="view")
    version = VersionPlan(counting(reward=BUY, guardrails=(Guardrail(reward=gated),)))
    assert version.roles["click"] == ""


def test_caps_fit_the_state() -> None:
    version = VersionPlan(counting(reward=Reward(metric="m", kind="value", cap=1e30)))
    assert version.caps == {"m": 2**63 - 1}


@pytest.mark.parametrize("versions", [(counting(1), counting(1))])
def test_version_numbers_must_differ(versions: Any) -> None:
    with pytest.raises(StateCorrupt, match="different numbers"):
        ExperimentPlan(experiment(*versions))


def test_a_missing_version_is_an_error_of_its_own() -> None:
    with pytest.raises(MissingDefinition, match="version 9") as caught:
        ExperimentPlan(experiment()).by_number[9]
    assert (caught.value.experiment_id, caught.value.version) == ("e", 9)


def test_metrics_have_the_liveliest_state_of_their_experiments() -> None:
    definitions = Definitions([experiment(status="draft")])
    assert definitions.metric_state("signup") == "draft"
    definitions.put(experiment(name="f", status="archived"))
    assert definitions.metric_state("signup") == "archived"
    definitions.put(experiment(name="g", status="paused"))
    assert definitions.metric_state("signup") == "live"
    for name in "efg":
        definitions.remove(name)
    definitions.remove("g")
    assert definitions.metric_state("signup") == "unknown"


def test_test_conversions_need_a_live_experiment_that_counts_them() -> None:
    counted = experiment(counting(1), counting(2, effective_from_ms=5, count_test=True))
    definitions = Definitions(
        [experiment(), experiment(counting(count_test=True), name="x", status="archived")]
    )
    assert not definitions.counts_test("signup")
    definitions.put(counted)
    assert definitions.counts_test("signup")
    definitions.put(
        experiment(counting(1), counting(2, effective_from_ms=5, count_test=True), status="archived")
    )
    assert not definitions.counts_test("signup")


@pytest.mark.parametrize("newer", [(counting(1, reward=CLICK),), (counting(2),)])
def test_a_version_seen_once_may_not_change_or_go(newer: Any) -> None:
    definitions = Definitions([experiment()])
    with pytest.raises(StateCorrupt, match="version 1"):
        definitions.put(experiment(*newer))
    assert definitions.plans["e"].by_number[1].metrics == ("signup",)


def test_a_draft_may_change() -> None:
    definitions = Definitions([experiment(status="draft")])
    definitions.put(experiment(counting(1, reward=CLICK)))
    assert definitions.metric_state("click") == "live"
    assert definitions.metric_state("signup") == "unknown"


def test_sync_makes_them_equal_to_a_snapshot() -> None:
    kept, changed = experiment(), experiment(name="f")
    definitions = Definitions([kept, changed, experiment(name="gone")])
    plan = definitions.plans["e"]
    newer = experiment(counting(1), counting(2, effective_from_ms=9), name="f", revision=2)
    definitions.sync({"e": kept, "f": newer, "new": experiment(name="new")})
    assert sorted(definitions.plans) == ["e", "f", "new"]
    assert definitions.plans["e"] is plan
    assert definitions.plans["f"].record is newer


DEVICE = Feature(name="device", levels=("mobile", "desktop"))
COUNTRY = Feature(name="country", levels=("DE",))


@pytest.mark.parametrize(
    ("features", "context", "segment", "n_other"),
    [
        ((), {"device": "mobile"}, "", 0),
        ((DEVICE,), {"device": "mobile"}, "device=mobile", 0),
        ((DEVICE, COUNTRY), {"device": "mobile", "country": "DE"}, "country=DE|device=mobile", 0),
        ((DEVICE, COUNTRY), {"country": "FR"}, "country=other|device=other", 2),
        ((DEVICE,), None, "device=other", 1),
        ((Feature(name="a|b", levels=("c=%",)),), {"a|b": "c=%"}, "a%7Cb=c%3D%25", 0),
        ((Feature(name="a", levels=("other",)),), {}, "a=other", 0),
    ],
)
def test_segments(features: Any, context: Any, segment: str, n_other: int) -> None:
    assert Segmenter(features).segment(context) == (segment, n_other)
    assert segment_of(tuple(reversed(features)), context) == segment


@given(st.dictionaries(st.text(), st.text(), min_size=1, max_size=3))
def test_different_contexts_have_different_segments(context: dict[str, str]) -> None:
    features = [Feature(name=name, levels=(level,)) for name, level in context.items()]
    segment = segment_of(features, context)
    parts = dict(part.split("=") for part in segment.split("|"))
    plain = {
        a.replace("%7C", "|").replace("%3D", "=").replace("%25", "%"): b.replace("%7C", "|")
        .replace("%3D", "=")
        .replace("%25", "%")
        for a, b in parts.items()
    }
    assert plain == context
