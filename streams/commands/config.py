"""``bandit-streams config``: the settings in force, and the reference of all settings."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import click
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from streams.commands import pass_settings
from streams.config import CONFIG_VARIABLE, Settings

MASK = "**********"


@click.group()
def command() -> None:
    """Show the settings in force, and what can be set."""


@command.command("show")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of TOML.")
@pass_settings
def show(settings: Settings, as_json: bool) -> None:
    """Print the settings in force as TOML, secrets masked.

    Sources, strongest first: environment BANDIT_..., the file of --config or BANDIT_CONFIG, defaults.
    """
    if as_json:
        click.echo(json.dumps(_plain(settings), indent=2))
    else:
        click.echo(to_toml(settings), nl=False)
    for name in unknown_variables(os.environ):
        click.echo(f"note: {name} is set but is no setting; see docs/configuration.md", err=True)


@command.command("reference")
def reference() -> None:
    """Print a Markdown table of every setting, its environment variable, default and meaning."""
    click.echo(to_markdown(), nl=False)


def to_toml(settings: Settings) -> str:
    """Return settings as TOML that ``--config`` reads; secrets masked, absent values as comments."""
    tables: list[str] = []
    lines: list[str] = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            inner = [_toml_line(key, getattr(value, key)) for key in type(value).model_fields]
            tables.append("\n".join([f"\n[{name}]", *inner]))
        else:
            lines.append(_toml_line(name, value))
    return "\n".join([*lines, *tables]) + "\n"


def _toml_line(name: str, value: object) -> str:
    # A JSON string is a TOML basic string, and JSON numbers are TOML numbers.
    return f"# {name} =" if value is None else f"{name} = {json.dumps(_plain(value))}"


def _plain(value: object) -> Any:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def all_settings() -> Iterator[tuple[str, FieldInfo]]:
    """Every setting's dotted name and its field; nested models by their parts."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for inner, inner_field in field.annotation.model_fields.items():
                yield f"{name}.{inner}", inner_field
        else:
            yield name, field


def variable_of(name: str) -> str:
    """Environment variable of a setting: ``security.protocol`` is ``BANDIT_SECURITY__PROTOCOL``."""
    return "BANDIT_" + name.upper().replace(".", "__")


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables that begin like ours and are no setting: likely misspelt."""
    known = {variable_of(name) for name, _ in all_settings()} | {CONFIG_VARIABLE}
    known |= {variable_of(name) for name in Settings.model_fields}
    return sorted(name for name in environ if name.startswith("BANDIT_") and name.upper() not in known)


def to_markdown() -> str:
    """Table of all settings; docs/configuration.md contains it."""
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    for name, field in all_settings():
        choices = [f"`{option}`" for option in get_args(field.annotation) if isinstance(option, str)]
        meaning = (field.description or "") + (f" One of {', '.join(choices)}." if choices else "")
        rows.append(f"| `{name}` | `{variable_of(name)}` | {_default(field)} | {meaning} |")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "see there"
    value = field.default
    if value is None or value == "":
        return "none"
    return f"`{json.dumps(value) if isinstance(value, bool) else _plain(value)}`"  # as in TOML
