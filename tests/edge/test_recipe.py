"""The assignment recipe: golden vectors, and an implementation in another language that agrees with them."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bandit_core.assignment import Assigner, uniform_hash
from bandit_core.shares import Shares

GOLDEN = Path(__file__).parents[1] / "golden" / "edge_v1.json"
DOCUMENT: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", DOCUMENT["hashes"], ids=lambda vector: repr(vector["key"]))
def test_hash_gives_the_golden_uniform(vector: dict[str, Any]) -> None:
    assert uniform_hash(vector["key"]) == vector["u"]
    assert ((int(vector["hash64"], 16) >> 12) + 0.5) / 2**52 == vector["u"]


@pytest.mark.parametrize("case", DOCUMENT["cases"], ids=lambda case: case["name"])
def test_assigner_gives_the_golden_arms_and_propensities(case: dict[str, Any]) -> None:
    arms = case["arms"]
    shares = Shares(
        case["comparison"],
        case["holdout"],
        arms.index(case["control"]),
        tuple(case["assignment_weights"]),
        tuple(case["weights"]),
    )
    assigner = Assigner(case["experiment_id"], arms, shares)
    for unit_id, arm_id, holdout in case["assignments"]:
        found = assigner.assign(unit_id, interval_id=case["interval_id"])
        assert (None if found.arm is None else arms[found.arm], found.holdout) == (arm_id, holdout), unit_id
        if found.arm is not None:
            assert found.propensity == case["propensities"][found.arm]
    assert any(row[1] is None for row in case["assignments"]) == (case["comparison"] > 0)


def test_an_implementation_in_javascript_agrees() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the recipe was not checked in a second language")
    script = Path(__file__).with_name("rendezvous.mjs")
    done = subprocess.run([node, script, GOLDEN], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["differences"] == []
    expected = 2 * len(DOCUMENT["hashes"]) + sum(len(case["assignments"]) for case in DOCUMENT["cases"])
    assert report["checks"] == expected
