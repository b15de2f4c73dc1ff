"""Scenarios from YAML or JSON files, and those that are shipped.

A scenario is named by a file's path, or by the name of a shipped one. docs/statistics.md lists the fields.
"""

from importlib import resources
from pathlib import Path
from typing import Any

from bandit_core.policies import DefinitionError
from bandit_core.scenarios import scenario_from_definition
from bandit_core.simulator import Scenario
from streams.errors import ConfigError, DefinitionInvalid
from streams.experiments.reader import load_documents

__all__ = ["SHIPPED", "described", "load_scenario", "read_text"]

SHIPPED = (
    "no-difference",
    "one-better",
    "low-rates",
    "drift",
    "day-night",
    "sign-flip",
    "slow-better",
    "hourly-batches",
    "new-arm",
    "six-variants",
    "contextual",
)
"""Shipped scenarios, in the order in which the league shows them."""


def read_text(file: Path) -> str:
    """Read a file of UTF-8 text.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot be read: {error}", where=str(file), action="name a readable UTF-8 file"
        ) from error


def load_scenario(name: str, **changes: Any) -> Scenario:
    """Load a scenario.

    Parameters
    ----------
    name
        Path of a YAML or JSON file (with a suffix or a folder), or one of :data:`SHIPPED`.
    changes
        Fields that replace the document's, such as ``n_periods``; those that are None do not.

    Raises
    ------
    ConfigError
        If there is no such file or shipped scenario.
    DefinitionInvalid
        If the document is not a scenario; the problem begins with the path of the value.
    """
    document = _document(name)
    if not isinstance(document, dict):
        raise DefinitionInvalid([f"scenario: {document!r} is not a mapping of names to values"], where=name)
    try:
        given = {key: value for key, value in changes.items() if value is not None}
        return scenario_from_definition(document | given, path="")
    except DefinitionError as error:
        raise DefinitionInvalid([f"{error.path}: {error.problem}"], where=name) from error


def described() -> list[tuple[str, str]]:
    """Name and description of every shipped scenario."""
    return [(name, str(_document(name).get("description", ""))) for name in SHIPPED]


def _document(name: str) -> Any:
    if name in SHIPPED:
        text = resources.files("streams.simulation").joinpath("scenarios", f"{name}.yaml").read_text("utf-8")
    elif Path(name).suffix or len(Path(name).parts) > 1:
        text = read_text(Path(name))
    else:
        raise ConfigError(
            f"no scenario {name!r}",
            where="--scenario",
            action=f"name a file such as ./{name}.yaml, or one of {', '.join(SHIPPED)}",
        )
    documents = load_documents(text, name)
    if len(documents) != 1:
        raise DefinitionInvalid([f"scenario: {len(documents)} documents where one is expected"], where=name)
    return documents[0]
