"""`simulate` and `plan` as a person runs them."""

import json
from pathlib import Path
from typing import Any

import pytest

from streams.commands import simulate

ROOT = Path(__file__).parents[2]
DEFINITION = str(ROOT / "examples" / "checkout-button.yaml")
SHORT = ("--length", "12h", "--traffic", "200", "--runs", "4", "--processes", "1")
PLAN = ("plan", "--rate", "0.1", "--lift", "0.5", "--traffic", "200", "--length", "2d", "--runs", "4")


def test_a_table_lines_and_a_picture(run: Any, tmp_path: Path) -> None:
    picture = tmp_path / "it.png"
    done = run("simulate", *SHORT, "--plot", str(picture))
    assert done.status == 0, done.err
    for name in ("uniform", "thompson", "epsilon_greedy", "ucb1_tuned"):
        assert done.out.count(name) == 2, "once in the table, once with its line"
    assert "0.25 ± 0.00" in done.out
    assert done.out.splitlines()[-1] == f"picture: {picture}"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_html_has_the_table_and_the_picture(run: Any, tmp_path: Path) -> None:
    page = tmp_path / "it.html"
    done = run("simulate", *SHORT, "--policy", "uniform", "--plot", str(page))
    assert done.status == 0, done.err
    text = page.read_text()
    assert "<td>uniform</td>" in text
    assert "<svg" in text


def test_json_is_the_same_for_a_seed_whatever_the_processes(run: Any) -> None:
    common = ("simulate", "--length", "12h", "--runs", "21", "--policy", "thompson", "--no-plot", "--json")
    one = run(*common, "--seed", "3", "--processes", "1")
    two = run(*common, "--seed", "3", "--processes", "2")
    other = run(*common, "--seed", "4", "--processes", "1")
    assert one.out == two.out
    found = json.loads(one.out)
    assert found != json.loads(other.out)
    (row,) = found["rows"]
    assert (row["scenario"], row["policy"], row["runs"]) == ("one-better", "thompson", 21)
    assert row["regret"]["mean"] > 0 < row["regret"]["error"]
    assert found["plot"] is None


def test_a_definition_is_tried_before_it_goes_live(run: Any) -> None:
    done = run(
        "simulate", *SHORT, "--experiment", DEFINITION, "--rates", "0.05,0.05,0.2", "--no-plot", "--json"
    )
    assert done.status == 0, done.err
    mine, equal = json.loads(done.out)["rows"]
    assert (mine["policy"], equal["policy"]) == ("checkout-button", "equal split")
    assert mine["best_share"]["mean"] > equal["best_share"]["mean"]
    wrong = run("simulate", *SHORT, "--experiment", DEFINITION, "--no-plot")
    assert wrong.status == 78
    assert "the definition has 3: grey, green, orange" in wrong.err
    assert "--rates" in wrong.err


def test_two_definitions_of_one_id_are_told_apart(run: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(Path(DEFINITION).read_text().replace("thompson", "uniform"))
    rates = ("--rates", "0.05,0.05,0.2", "--no-plot", "--json")
    done = run("simulate", *SHORT, "--experiment", DEFINITION, "--experiment", str(other), *rates)
    names = [row["policy"] for row in json.loads(done.out)["rows"]]
    assert names == [f"checkout-button ({DEFINITION})", f"checkout-button ({other})", "equal split"]


def test_values_are_for_definitions(run: Any, tmp_path: Path) -> None:
    scenario, definition = tmp_path / "scenario.yaml", tmp_path / "definition.yaml"
    scenario.write_text("name: values\nrates: [0.1, 0.1]\nmean_values: [10, 30]\nn_periods: 12")
    definition.write_text("id: e\narms: [a, b]\nreward: {metric: revenue, kind: value, cap: 50}")
    common = ("simulate", "--scenario", str(scenario), "--runs", "2", "--processes", "1", "--no-plot")
    done = run(*common, "--experiment", str(definition), "--json")
    assert done.status == 0, done.err
    mine, equal = json.loads(done.out)["rows"]
    assert mine["regret"]["mean"] < equal["regret"]["mean"]
    for wrong, said in (((*common, "--policy", "thompson"), "learns rates"), ((*common,), "learns rates")):
        refused = run(*wrong)
        assert refused.status == 78
        assert said in refused.err


def test_every_policy_where_it_can_learn(run: Any) -> None:
    short = ("--length", "2h", "--runs", "2", "--processes", "1", "--no-plot", "--json")
    done = run("simulate", "--policy", "all", "--scenario", "contextual", "--scenario", "drift", *short)
    names = [(row["scenario"], row["policy"]) for row in json.loads(done.out)["rows"]]
    assert ("contextual", "contextual") in names
    assert ("drift", "contextual") not in names
    assert len(names) == 17
    rows = {row["policy"]: row for row in json.loads(done.out)["rows"][:9]}
    assert rows["contextual"]["coverage"]["mean"] is None, (
        "no arm is compared where weights differ by segment"
    )


def test_scenarios_are_listed(run: Any) -> None:
    done = run("simulate", "--list")
    assert done.out.splitlines()[0].startswith("no-difference ")
    assert len(done.out.splitlines()) == 11


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--scenario", "nope"), 78, "one of no-difference"),
        (("--plot", "it.gif"), 78, ".png"),
        (("--plot", "no/such/folder/it.png"), 78, "folder"),
        (("--rates", "0.1,x"), 2, "numbers with commas"),
        (("--rates", "0.1,2"), 65, "rates[1]: 2"),
        (("--length", "90m"), 2, "whole number of hours"),
        (("--length", "soon"), 2, "not a duration"),
        (("--policy", "best"), 2, "not one of"),
        (("--experiment", "none.yaml"), 78, "cannot be read"),
    ],
)
def test_what_is_wrong_is_told_before_the_work(
    run: Any, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = run("simulate", *arguments)
    assert done.status == status, done.err
    assert said in done.err


def test_without_matplotlib_only_a_named_picture_is_an_error(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulate, "find_spec", lambda _name: None)
    monkeypatch.setattr("streams.simulation.report.find_spec", lambda _name: None)
    quiet = run("simulate", *SHORT, "--policy", "uniform")
    assert quiet.status == 0, quiet.err
    assert quiet.out.splitlines()[-1] == "no picture was drawn"
    named = run("simulate", *SHORT, "--plot", "it.png")
    assert named.status == 78
    assert "bandit-streams[demo]" in named.err


def test_a_plan_says_days_for_every_way(run: Any) -> None:
    done = run(*PLAN, "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert (found["arms"], found["better"], found["days_simulated"]) == (2, "arm 2", 2)
    ways = {each["way"]: each for each in found["ways"]}
    # 10% against 15% at 2,400 an arm and day: z = 5.2 after a day.
    assert ways["equal split, one look at a fixed end"]["days"] == 1
    assert ways["equal split, daily looks"]["days"] >= 1
    assert run(*PLAN, "--json").out == done.out


def test_a_plan_as_a_table_says_when_it_takes_too_long(run: Any) -> None:
    done = run("plan", "--rate", "0.05", "--lift", "0.02", "--traffic", "50", "--length", "1d", "--runs", "4")
    assert done.status == 0, done.err
    assert "2 arms at 0.05, arm 2 at 0.051" in done.out
    assert "> 1" in done.out
    assert "does not name the better arm within 1 days" in done.out


def test_a_plan_for_a_definition_uses_its_arms(run: Any) -> None:
    done = run(*PLAN, "--experiment", DEFINITION, "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert (found["arms"], found["better"]) == (3, "green")
    assert [each["way"] for each in found["ways"]] == [
        "checkout-button, daily looks",
        "equal split, daily looks",
        "equal split, one look at a fixed end",
    ]
    # Nothing is said before the conversion window of a day is over.
    assert all(each["days"] is None or each["days"] >= 2 for each in found["ways"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--experiment", DEFINITION, "--arms", "3"), "come from the definition"),
        (("--lift", "19"), "no rate"),
        (("--length", "5h"), "at least a day"),
        (("--rate", "1"), "not in the range"),
    ],
)
def test_a_contradictory_plan_is_refused(run: Any, arguments: tuple[str, ...], said: str) -> None:
    done = run(*PLAN, *arguments)
    assert done.status == 2, done.err
    assert said in done.err
