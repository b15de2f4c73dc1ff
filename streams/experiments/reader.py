"""Reading definition documents: YAML or JSON text to plain values, and values with every problem collected.

A document is written by a person, so a reader never stops at the first mistake: it notes what is wrong with
the path of the value, goes on with a stand-in, and the caller refuses the whole when there are problems. YAML
is read without its surprises: a key that occurs twice is an error, and dates stay text (they are read as RFC
3339 where a time is expected).
"""

import difflib
import json
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, get_args

import yaml

from streams.errors import DefinitionInvalid

C = TypeVar("C", bound=str)

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DURATION = re.compile(r"(?:\d+(?:ms|[smhdw]))+")
_DURATION_PART = re.compile(r"(\d+)(ms|[smhdw])")
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MISSING: Any = object()


class _Loader(yaml.SafeLoader):
    """Safe YAML without implicit dates and without keys that occur twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def load_documents(text: str, where: str = "definition") -> list[Any]:
    """Read all documents of a YAML or JSON text; empty ones are left out.

    Raises
    ------
    DefinitionInvalid
        If the text is neither, with line and column of what is wrong.
    """
    try:
        if text.lstrip().startswith(("{", "[")):
            with suppress(json.JSONDecodeError):  # else it is YAML that begins like JSON
                found = json.loads(text, object_pairs_hook=_unique_keys)
                return list(found) if isinstance(found, list) else [found]
        return [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DefinitionInvalid([f"neither YAML nor JSON: {reason}"], where=where) from error


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def read_duration_ms(value: object) -> int:
    """Return milliseconds of ``"24h"``, ``"1d12h"``, ``"500ms"``, or of a whole number, which is that.

    Raises
    ------
    ValueError
        Saying what is expected.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return sum(int(count) * _UNITS_MS[unit] for count, unit in _DURATION_PART.findall(value))
    raise ValueError(f'{value!r} is not a duration; write e.g. "24h", "1d12h", "30m", or whole milliseconds')


def format_duration(duration_ms: int) -> str:
    """Shortest text that :func:`read_duration_ms` reads back: ``format_duration(90_000)`` is ``1m30s``."""
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        count, duration_ms = divmod(duration_ms, _UNITS_MS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0ms"


def read_instant_ms(value: object) -> int:
    """Return epoch milliseconds of RFC 3339 text with an offset, or of a whole number.

    Raises
    ------
    ValueError
        Saying what is expected.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53:
        return value
    if isinstance(value, str):
        try:
            instant = datetime.fromisoformat(value)
        except ValueError:
            instant = None
        if instant is not None and instant.tzinfo is not None and instant >= _EPOCH:
            return (instant - _EPOCH) // timedelta(milliseconds=1)
    raise ValueError(
        f'{value!r} is not a time; write e.g. "2025-03-01T00:00:00Z" (with an offset), or epoch milliseconds'
    )


class Problems:
    """Everything found wrong with one document, in the order of finding."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, path: str, text: str) -> None:
        """Note a problem: what is wrong, and what to do."""
        self.found.append(f"{path}: {text}")

    def raise_if_any(self, where: str) -> None:
        """Refuse the document if it has problems.

        Raises
        ------
        DefinitionInvalid
            With all of them.
        """
        if self.found:
            raise DefinitionInvalid(self.found, where=where)


class Reader:
    """One mapping of a document; each method reads one key and notes what is wrong with it.

    Parameters
    ----------
    values
        The mapping; anything else is a problem, and reads as an empty one.
    path
        Where it stands, ``""`` for the document itself.
    problems
        Where to note what is wrong.
    """

    def __init__(self, values: object, path: str, problems: Problems) -> None:
        self.path = path
        self.problems = problems
        self._keys: dict[str, None] = {}
        if isinstance(values, Mapping):
            self._values = {str(key): value for key, value in values.items()}
        else:
            self._values = {}
            problems.add(path or "definition", f"{_shown(values)} is not a mapping of names to values")

    def at(self, key: str) -> str:
        """Path of a key."""
        return f"{self.path}.{key}" if self.path else key

    def problem(self, key: str, text: str) -> None:
        """Note a problem with a key's value."""
        self.problems.add(self.at(key), text)

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        self._keys[key] = None
        return self._values.get(key) is not None

    def value(self, key: str) -> Any:
        """Value of a key as it is, ``None`` if it is not there."""
        self._keys[key] = None
        return self._values.get(key)

    def text(self, key: str, default: str | None = _MISSING) -> str:
        """Read text; without a default the key is required."""
        if not self.has(key):
            if default is _MISSING:
                self.problem(key, "missing; it is required")
                return ""
            return default or ""
        value = self._values[key]
        if isinstance(value, str):
            return value
        self.problem(key, f"{_shown(value)} is not text; put it in quotes")
        return ""

    def identifier(self, key: str, default: str | None = _MISSING) -> str:
        """Read text that is an identifier."""
        before = len(self.problems.found)
        value = self.text(key, default)
        if len(self.problems.found) == before and self.has(key):
            self.check_identifier(key, value)
        return value

    def check_identifier(self, key: str, value: str) -> None:
        """Note a problem if a text is not an identifier."""
        if not IDENTIFIER.fullmatch(value):
            self.problem(
                key,
                f"{_shown(value)} is not an identifier; use 1 to 128 letters, digits, '.', '_' or '-',"
                " the first a letter or digit",
            )

    def number(
        self,
        key: str,
        default: float,
        *,
        low: float,
        high: float,
        low_open: bool = False,
        high_open: bool = False,
    ) -> float:
        """Read a finite number from ``low`` to ``high``; an open end does not belong to the range."""
        if not self.has(key):
            return default
        value = self._values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.problem(key, f"{_shown(value)} is not a number; write e.g. {default or 0.05:g}")
            return default
        inside = (low < value if low_open else low <= value) and (
            value < high if high_open else value <= high
        )
        if not inside:
            brackets = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
            self.problem(key, f"{value:g} is not in {brackets}")
            return default
        return float(value)

    def whole(self, key: str, default: int, *, low: int, high: int) -> int:
        """Read a whole number within limits, both included."""
        value = self.number(key, default, low=low, high=high)
        if value != int(value):
            self.problem(key, f"{value:g} is not a whole number")
            return default
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        """Read true or false."""
        if not self.has(key):
            return default
        value = self._values[key]
        if not isinstance(value, bool):
            self.problem(key, f"{_shown(value)} is not true or false")
            return default
        return value

    def choice(self, key: str, default: C, options: Any) -> C:
        """Read one of the texts of a ``Literal`` type."""
        if not self.has(key):
            return default
        value = self._values[key]
        allowed: tuple[C, ...] = get_args(options)
        for option in allowed:
            if option == value:
                return option
        near = _near(str(value), allowed)
        self.problem(key, f"{_shown(value)} is not one of {', '.join(allowed)}{near}")
        return default

    def duration_ms(self, key: str, default: int, *, low_ms: int, high_ms: int) -> int:
        """Read a duration in milliseconds, within limits."""
        if not self.has(key):
            return default
        try:
            value = read_duration_ms(self._values[key])
        except ValueError as error:
            self.problem(key, str(error))
            return default
        if not low_ms <= value <= high_ms:
            self.problem(
                key,
                f"{format_duration(max(value, 0))} is not from {format_duration(low_ms)} to"
                f" {format_duration(high_ms)}",
            )
            return default
        return value

    def mapping(self, key: str) -> "Reader":
        """Read a mapping inside this one; an absent one is empty."""
        return Reader(self._values[key] if self.has(key) else {}, self.at(key), self.problems)

    def items(self, key: str) -> Iterator[tuple[str, Any]]:
        """Items of a list with their paths; an absent list is empty."""
        if not self.has(key):
            return
        value = self._values[key]
        if not isinstance(value, list):
            self.problem(
                key, f"{_shown(value)} is not a list; write each item on a line of its own with '- '"
            )
            return
        for index, item in enumerate(value):
            yield f"{self.at(key)}[{index}]", item

    def pairs(self, key: str) -> Iterator[tuple[str, Any]]:
        """Names and values of a mapping with names chosen by the writer; an absent one is empty."""
        if not self.has(key):
            return
        value = self._values[key]
        if not isinstance(value, Mapping):
            self.problem(key, f"{_shown(value)} is not a mapping of names to values")
            return
        yield from ((str(name), item) for name, item in value.items())

    def finish(self) -> None:
        """Note every key that nothing asked for, with the known key that looks most like it."""
        for key in self._values:
            if key not in self._keys:
                near = _near(key, self._keys)
                known = "" if near else f"; known here: {', '.join(self._keys)}"
                self.problem(key, f"unknown key{near}{known}")


def _near(word: str, options: Mapping[str, None] | Sequence[str]) -> str:
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
