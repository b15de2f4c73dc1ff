"""`bandit-streams config`."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from streams.commands.config import all_settings, to_markdown, to_toml, variable_of
from streams.config import Settings, load_settings

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"
SECRETS = {"sasl_password": "hush-hush", "keyfile_password": "hush-too"}


def secured() -> Settings:
    return load_settings(
        group='a "quoted" ü',
        security={"protocol": "SASL_SSL", "sasl_username": "u", **SECRETS, "certfile": "c", "keyfile": "k"},
    )


def test_show_prints_toml_that_is_read_again(run: Any, tmp_path: Path) -> None:
    settings = secured()
    text = to_toml(settings)
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    again = load_settings(path)
    values = settings.model_dump(exclude={"security"})
    assert again.model_dump(exclude={"security"}) == values
    assert set(values) <= set(tomllib.loads(text)) | {"rocksdb"}


def test_show_masks_secrets_in_both_forms(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BANDIT_SECURITY__PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("BANDIT_SECURITY__SASL_USERNAME", "u")
    for name, value in SECRETS.items():
        monkeypatch.setenv(f"BANDIT_SECURITY__{name.upper()}", value)
    for outcome in (run("config", "show"), run("config", "show", "--json")):
        assert outcome.status == 0
        assert "hush" not in outcome.out + outcome.err
        assert "**********" in outcome.out
    assert json.loads(run("config", "show", "--json").out)["security"]["protocol"] == "SASL_SSL"


def test_show_takes_the_file_and_notes_unknown_variables(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("partitions = 3", encoding="utf-8")
    monkeypatch.setenv("BANDIT_PARTITION", "4")
    status, out, err = run("--config", str(path), "config", "show")
    assert (status, tomllib.loads(out)["partitions"]) == (0, 3)
    assert "BANDIT_PARTITION is set but is no setting" in err


def test_a_wrong_setting_ends_with_the_status_for_configuration(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANDIT_PARTITIONS", "none")
    status, _, err = run("config", "show")
    assert status == 78
    assert "BANDIT_PARTITIONS" in err
    assert "what to do:" in err


def test_every_setting_is_documented_as_the_model_has_it(run: Any) -> None:
    """The table is generated: `bandit-streams config reference`, pasted between the two marks."""
    text = DOCS.read_text(encoding="utf-8")
    table = text.split("<!-- settings: begin (bandit-streams config reference) -->\n")[1]
    assert table.split("<!-- settings: end -->")[0] == to_markdown()
    assert run("config", "reference").out == to_markdown()
    for name, field in all_settings():
        assert field.description, f"{name} has no description"
        assert f"| `{name}` | `{variable_of(name)}` |" in text


def test_every_setting_can_be_set_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert variable_of("rocksdb.block_cache_bytes") == "BANDIT_ROCKSDB__BLOCK_CACHE_BYTES"
    for name, field in all_settings():
        default = field.get_default(call_default_factory=True, validated_data={})
        if isinstance(default, int) and not isinstance(default, bool):
            monkeypatch.setenv(variable_of(name), str(default))
    assert load_settings() == Settings()
