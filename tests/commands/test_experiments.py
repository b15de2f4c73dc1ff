"""`bandit-streams experiments`: files without a broker, and everything else on a real cluster."""

import json
from pathlib import Path
from typing import Any

import pytest

from streams.experiments.validation import parse_definition

DOCUMENT = """
id: checkout-button
arms: [control, green, blue]
reward: {metric: purchase}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "checkout.yaml"
    path.write_text(DOCUMENT, encoding="utf-8")
    return path


def test_validate_needs_no_broker(run: Any, file: Path) -> None:
    assert run("experiments", "validate", str(file)) == (0, "checkout-button: valid, 3 arms\n", "")


def test_validate_names_the_problems_of_all_files(run: Any, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"id": "x", "arms": ["a"]}', encoding="utf-8")
    file.write_text(DOCUMENT + "policy: {floor: 0.5}", encoding="utf-8")
    status, _, err = run("experiments", "validate", str(file), str(other))
    assert status == 65
    assert f"{file}: policy.floor: 0.5 x 3 arms exceeds 1; lower it to at most 0.3333" in err
    assert f"{other}: reward: missing" in err
    assert f"{other}: arms: one arm alone" in err


def test_a_missing_file_is_said(run: Any, tmp_path: Path) -> None:
    status, _, err = run("experiments", "validate", str(tmp_path / "none.yaml"))
    assert status == 78
    assert "none.yaml" in err


@pytest.fixture
def ready(cluster: Any) -> Any:
    """The command line, with topics."""
    assert cluster("topics", "create").status == 0
    return cluster


@pytest.mark.integration
def test_a_whole_life(ready: Any, file: Path) -> None:
    apply = ("experiments", "apply", str(file))
    status, out, _ = ready(*apply, "--dry-run")
    assert (status, out.splitlines()[0]) == (0, "checkout-button: would become revision 1")
    assert ready("experiments", "list").out == "0 experiments\n"
    assert ready(*apply).out.splitlines()[0] == "checkout-button: is now revision 1"
    assert ready(*apply).out == "checkout-button: unchanged at 1\n"

    file.write_text(DOCUMENT + "touch: first\npolicy: {floor: 0.02}\n", encoding="utf-8")
    change = json.loads(ready(*apply, "--json").out)
    assert (change["revision"], change["changed"], change["written"]) == (2, True, True)
    assert change["summary"][0].startswith("new counting version 2")
    assert change["summary"][1] == "policy.floor: none -> 0.02"

    for arguments, expected in [
        (("stop-arm", "checkout-button", "blue"), "checkout-button: live, revision 3\n"),
        (("pause", "checkout-button"), "checkout-button: paused, revision 4\n"),
        (("resume", "checkout-button"), "checkout-button: live, revision 5\n"),
        (("complete", "checkout-button", "--winner", "green"), "checkout-button: completed, revision 6\n"),
        (("archive", "checkout-button", "--yes"), "checkout-button: archived, revision 7\n"),
    ]:
        assert ready("experiments", *arguments).out == expected

    assert ready("experiments", "list").out == "0 experiments; 1 archived not shown, see --all\n"
    (listed,) = map(json.loads, ready("experiments", "list", "--all", "--json").out.splitlines())
    assert (listed["experiment_id"], listed["status"], listed["winner"]) == (
        "checkout-button",
        "archived",
        "green",
    )


@pytest.mark.integration
def test_show_and_clone(ready: Any, file: Path) -> None:
    ready("experiments", "apply", str(file))
    shown = ready("experiments", "show", "checkout-button").out
    assert "# checkout-button: live, revision 1\n" in shown
    assert "# arm blue: active, content " in shown
    assert "# counting version 1: from " in shown
    assert parse_definition(shown).experiment_id == "checkout-button"
    document = ready("experiments", "show", "checkout-button", "--document").out
    assert not document.startswith("#")
    file.write_text(document, encoding="utf-8")
    assert ready("experiments", "apply", str(file)).out == "checkout-button: unchanged at 1\n"
    assert json.loads(ready("experiments", "show", "checkout-button", "--json").out)["revision"] == 1

    assert "draft made from checkout-button" in ready("experiments", "clone", "checkout-button", "copy").out
    copy = ready("experiments", "show", "copy", "--document").out
    assert parse_definition(copy).status == "draft"
    file.write_text(copy.replace("status: draft", "status: live"), encoding="utf-8")
    assert "  status: draft -> live\n" in ready("experiments", "apply", str(file)).out
    listed = ready("experiments", "list").out.splitlines()
    assert [line.split()[:3] for line in listed[1:-1]] == [
        ["checkout-button", "live", "3"],
        ["copy", "live", "3"],
    ]
    assert listed[-1] == "2 experiments"
    status, _, err = ready("experiments", "clone", "checkout-button", "copy")
    assert (status, "experiment copy exists already" in err) == (65, True)


@pytest.mark.integration
def test_refusals_have_their_status(ready: Any, file: Path) -> None:
    ready("experiments", "apply", str(file))
    for arguments, message in [
        (("stop-arm", "checkout-button", "control"), "it is the control arm"),
        (("resume", "checkout-button"), "only a paused experiment can be resumed"),
        (("archive", "checkout-button", "--yes"), "complete it first"),
        (("pause", "nothing"), "no experiment 'nothing'"),
        (("show", "nothing"), "no experiment 'nothing'"),
    ]:
        status, _, err = ready("experiments", *arguments)
        assert status == 65
        assert message in err
        assert "what to do:" in err


@pytest.mark.integration
def test_of_several_files_none_is_written_if_one_contradicts_its_record(
    ready: Any, file: Path, tmp_path: Path
) -> None:
    ready("experiments", "apply", str(file))
    other = tmp_path / "other.yaml"
    other.write_text(DOCUMENT.replace("checkout-button", "another"), encoding="utf-8")
    file.write_text(DOCUMENT + "status: draft", encoding="utf-8")
    status, _, err = ready("experiments", "apply", str(other), str(file))
    assert status == 65
    assert "status: it is live and cannot be a draft again" in err
    assert ready("experiments", "list").out.splitlines()[-1] == "1 experiment"
