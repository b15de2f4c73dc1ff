"""Alert rules and dashboard speak only of metrics, labels and label values that the product exports."""

import functools
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams.edge.decision import REASONS
from streams.metrics import (
    JOURNAL_KINDS,
    OUTCOMES,
    SOURCE_TOPICS,
    TRIGGERS,
    EdgeMetrics,
    MetricInfo,
    Metrics,
    PartitionState,
)

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULE_TESTS = ROOT / "deploy" / "prometheus" / "alerts_test.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "bandit.json"

SERIES = re.compile(r"\b((?:bandit|process)_[a-z_]+)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'([a-z_]+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\bby \(([^)]*)\)")
TARGET_LABELS = {"job", "instance", "le"}  # put there by Prometheus
CLOSED = {
    "outcome": {*OUTCOMES, "sent", "dropped", "failed"},
    "state": {state.value for state in PartitionState},
    "kind": set(JOURNAL_KINDS),
    "topic": set(SOURCE_TOPICS),
    "trigger": set(TRIGGERS),
}


@functools.cache
def described() -> dict[str, MetricInfo]:
    return {info.name: info for info in Metrics().described + EdgeMetrics().described}


@functools.cache
def exported() -> dict[str, tuple[str, ...]]:
    """Every series name that /metrics can show, with its labels."""
    names: dict[str, tuple[str, ...]] = {}
    for info in described().values():
        suffixes = ("_bucket", "_sum", "_count") if info.kind == "histogram" else ("",)
        names |= {info.name + suffix: info.labels for suffix in suffixes}
    process = (sample.name for family in Metrics().registry.collect() for sample in family.samples)
    return names | {name: () for name in process if name.startswith("process_")}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Every query in deploy/, with a name for it."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel.get("targets", []):
            yield f"panel {panel['title']} {target['refId']}", target["expr"]
    dashboard = json.loads(DASHBOARD.read_text())
    for variable in dashboard["templating"]["list"]:
        yield f"variable {variable['name']}", variable["query"]["query"]
    for case in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for series in case["input_series"]:
            yield f"rule test {case['name']}", series["series"]


@pytest.mark.parametrize(("name", "expression"), list(expressions()))
def test_every_name_exists(name: str, expression: str) -> None:
    known = exported()
    found = SERIES.findall(expression)
    assert found or "up{" in expression or "ALERTS" in expression, f"{name}: no series in {expression}"
    for series, selector in found:
        assert series in known, f"{name}: the product exports no {series}; see streams/metrics.py"
        for label, operator, value in MATCHER.findall(selector):
            allowed = {*known[series], *TARGET_LABELS}
            assert label in allowed, f"{name}: {series} has no label {label}, only {sorted(allowed)}"
            if operator == "=" and label in CLOSED:
                assert value in CLOSED[label], f"{name}: {label} is never {value!r}"
    labels = TARGET_LABELS.union(*(known[series] for series, _ in found))
    for grouping in GROUPING.findall(expression):
        for label in filter(None, re.split(r",\s*", grouping)):
            assert label in labels, f"{name}: grouped by {label}, which none of its series has"


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {
        series
        for name, text in expressions()
        if name.startswith("panel")
        for series, _ in SERIES.findall(text)
    }
    missing = [
        info.name
        for info in described().values()
        if not shown & {info.name, *(info.name + suffix for suffix in ("_bucket", "_sum", "_count"))}
    ]
    assert not missing, f"add a panel to {DASHBOARD.name} for {missing}"


def test_default_reasons_of_the_edge_match_the_alert() -> None:
    rule = next(rule for rule in alerts() if rule["alert"] == "BanditEdgeDefaults")
    pattern = re.search(r'reason=~"([^"]*)"', rule["expr"])
    assert pattern is not None
    assert {reason for reason in REASONS if re.fullmatch(pattern[1], reason)} == {
        "default:missing_allocation",
        "default:no_eligible_arm",
        "default:stale_allocation",
        "default:unknown_experiment",
    }


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: str(rule["alert"]))
def test_alert_says_how_urgent_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ +(.*)$", (ROOT / path).read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    assert anchor in anchors, f"{rule['alert']}: {path} has no section for #{anchor}; write one"
    assert anchor == rule["alert"].lower()


def test_every_alert_is_tested_quiet_and_firing() -> None:
    cases = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    tests = [test for case in cases for test in case["alert_rule_test"]]
    names = {rule["alert"] for rule in alerts()}
    assert {test["alertname"] for test in tests if test["exp_alerts"]} == names
    assert {test["alertname"] for test in tests if not test["exp_alerts"]} == names


def test_panels_have_their_own_place_and_an_explanation() -> None:
    taken: dict[tuple[int, int], str] = {}
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} covers {taken[x, y]}"
                taken[x, y] = panel["title"]
        assert panel["type"] == "row" or panel["description"], panel["title"]


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "--lint=all", "--lint-fatal", "deploy/prometheus.yml"],
        ["check", "rules", "--lint=all", "--lint-fatal", "deploy/prometheus/alerts.yml"],
        ["test", "rules", "deploy/prometheus/alerts_test.yml"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool(promtool: str, arguments: list[str]) -> None:
    done = subprocess.run([promtool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_queries_parse(promtool: str) -> None:
    rules = []
    for index, (name, expression) in enumerate(expressions()):
        if name.startswith("panel"):
            query = re.sub(r"\$__(rate_interval|range)", "5m", expression).replace("$experiment", ".*")
            rules.append({"record": f"panel:{index}", "expr": query})
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
        file.flush()
        done = subprocess.run(
            [promtool, "check", "rules", file.name], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
