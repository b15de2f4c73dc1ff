"""Scenario files: the shipped ones, and messages that name file and path."""

from pathlib import Path

import pytest

from bandit_core.scenarios import KINDS
from streams.errors import ConfigError, DefinitionInvalid
from streams.experiments.reader import load_documents
from streams.simulation import files
from streams.simulation.files import SHIPPED, described, load_scenario, read_text

FOLDER = Path(files.__file__).parent / "scenarios"


def test_every_shipped_file_is_listed_described_and_named_as_its_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(SHIPPED)
    assert [name for name, _ in described()] == list(SHIPPED)
    for name, text in described():
        assert load_scenario(name).name == name
        assert len(text) > 10


def test_shipped_scenarios_are_what_is_promised() -> None:
    found = {name: load_scenario(name) for name in SHIPPED}
    kinds = {load_documents((FOLDER / f"{name}.yaml").read_text())[0]["kind"] for name in SHIPPED}
    assert kinds == set(KINDS)
    equal = found["no-difference"].rates
    assert (equal == equal[0, 0]).all()
    low = found["low-rates"].rates
    assert 0.02 <= low.min() <= low.max() <= 0.05
    assert found["low-rates"].rates[0].max() - found["low-rates"].rates[0].min() < 0.005
    assert found["drift"].rates[-1, 0] == pytest.approx(2 * found["drift"].rates[0, 0])
    assert found["sign-flip"].rates[0].argmax() != found["sign-flip"].rates[-1].argmax()
    assert found["slow-better"].mean_delay_periods == (1.0, 12.0)
    assert found["hourly-batches"].units_per_period >= 10_000
    assert found["new-arm"].starts == (0, 0, 168)
    assert (
        found["six-variants"].n_arms,
        found["six-variants"].units_per_period * found["six-variants"].n_periods,
    ) == (6, 300)
    segments = found["contextual"].segments
    assert segments is not None
    assert segments.rates.shape == (12, 10)


def test_changes_replace_fields_and_are_checked_with_the_rest() -> None:
    found = load_scenario("drift", rates=[0.1, 0.2], units_per_period=7, n_periods=None)
    assert (found.n_arms, found.units_per_period, found.n_periods) == (2, 7, 336)
    with pytest.raises(DefinitionInvalid, match="starts"):
        load_scenario("new-arm", rates=[0.1, 0.2])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rates: [0.1, 2]\nname: x", r"rates\[1\]: 2 is not a number in \[0, 1\]"),
        ("rates: [0.1]\nname: x\nunits: 5", "units: unknown; did you mean units_per_period"),
        ("rates: [0.1]\nrates: [0.2]", "the key 'rates' occurs twice"),
        ("- 1\n- 2", "not a mapping"),
        ("a: 1\n---\nb: 2", "2 documents where one is expected"),
        ("name: [", "neither YAML nor JSON"),
        ("", "0 documents where one is expected"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_path(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(DefinitionInvalid, match=said) as caught:
        load_scenario(str(file))
    assert str(file) in str(caught.value)


def test_json_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"name": "mine", "rates": [0.1, 0.2]}')
    assert load_scenario(str(file)).n_arms == 2


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one-better"):
        load_scenario("one-beter")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(tmp_path / "none.yaml")
