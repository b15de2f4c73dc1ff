"""The campaign in its short form: one seed, a minute of traffic; and its schedules, which need no broker."""

import re
from pathlib import Path

import pytest

from tests.chaos.campaign import Run
from tests.chaos.nemesis import ACTIONS
from tests.chaos.schedule import KINDS, SHORT_KINDS, Schedule

ROOT = Path(__file__).parents[2]


@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_a_minute_of_faults_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    (report,) = await Run([Schedule.from_seed(1, seconds=50, kinds=SHORT_KINDS)], tmp_path / "run").run()
    assert report.ok, report.failures


def test_a_seed_gives_the_same_schedule_and_a_stored_one_comes_back(tmp_path: Path) -> None:
    one, other = Schedule.from_seed(7, seconds=240), Schedule.from_seed(7, seconds=240)
    assert one == other != Schedule.from_seed(8, seconds=240)
    one.write(tmp_path / "schedule.json")
    assert Schedule.read(tmp_path / "schedule.json") == one


def test_a_schedule_has_every_kind_and_fits_its_time() -> None:
    schedule = Schedule.from_seed(3, seconds=240)
    assert {fault.kind for fault in schedule.faults} == set(KINDS)
    assert all(0 < fault.at_s < 240 for fault in schedule.faults)
    assert [fault.at_s for fault in schedule.faults] == sorted(fault.at_s for fault in schedule.faults)


def test_an_unknown_fault_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="meteor"):
        Schedule.from_seed(1, seconds=60, kinds=["meteor"])


def test_every_promise_names_a_test_that_exists() -> None:
    assert "(reliability.md)" in (ROOT / "docs" / "operators.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 15
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(), f"{path} has no {test}"


def test_every_kind_of_fault_is_done_by_the_nemesis_and_stands_in_the_docs() -> None:
    section = (ROOT / "docs" / "reliability.md").read_text().split("## The fault campaign")[1]
    table = section.split("| fault | kinds |")[1].split("**Checks:**")[0]
    assert set(re.findall(r"`([a-z-]+)`", table)) == set(KINDS) == set(ACTIONS)
