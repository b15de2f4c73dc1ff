"""Scenarios by name and parameters: what simulations, the league and planning run on.

Definitions are plain mappings (from YAML or JSON files): ``{"name": ..., "kind": ..., "rates": [...], ...}``;
:func:`scenario_from_definition` says which kinds there are and what each needs, and names the path of what
is wrong. docs/statistics.md lists every field.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandit_core.contextual import Feature
from bandit_core.policies.base import DefinitionError
from bandit_core.simulator import Scenario, Segments

__all__ = ["KINDS", "scenario_from_definition"]

Array = NDArray[np.float64]

KINDS = ("stationary", "drift", "day_night", "sign_flip", "contextual")


class _Reader:
    """Typed access to a mapping, with paths in messages."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        if not isinstance(values, Mapping):
            raise DefinitionError(path or "scenario", f"{values!r} is not a mapping of names to values")
        self._values = values
        self._path = path
        self._read: set[str] = set()

    def at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def refuse(self, name: str, problem: str) -> DefinitionError:
        return DefinitionError(self.at(name), problem)

    def text(self, name: str, default: str | None = None) -> str:
        self._read.add(name)
        value = self._values.get(name, default)
        if not isinstance(value, str) or not (value or default == ""):
            raise self.refuse(name, f"{value!r} is not a text; write one in quotes")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        self._read.add(name)
        return self._checked(self._values.get(name, default), self.at(name), low, high)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.number(name, default, low, high)
        if value != int(value):
            raise self.refuse(name, f"{value:g} is not a whole number")
        return int(value)

    def numbers(self, name: str, low: float, high: float, length: int | None = None) -> list[float] | None:
        self._read.add(name)
        value = self._values.get(name)
        return None if value is None else self._list(value, self.at(name), low, high, length)

    def table(self, name: str, low: float, high: float, n_rows: int) -> list[list[float]]:
        """Rows of equally many numbers."""
        self._read.add(name)
        rows = self._values.get(name)
        if not isinstance(rows, list | tuple) or len(rows) != n_rows:
            found = f"{len(rows)} of them" if isinstance(rows, list | tuple) else repr(rows)
            raise self.refuse(
                name, f"want {n_rows} rows, one a segment, each with every arm's rate; not {found}"
            )
        first = rows[0] if isinstance(rows[0], list | tuple) else []
        return [self._list(row, f"{self.at(name)}[{i}]", low, high, len(first)) for i, row in enumerate(rows)]

    def levels(self, name: str) -> tuple[Feature, ...]:
        """Names with their levels."""
        self._read.add(name)
        found = self._values.get(name, {})
        if not isinstance(found, Mapping):
            raise self.refuse(name, f"{found!r} is not a mapping of names to lists of levels")
        features = []
        for key, levels in found.items():
            if not isinstance(levels, list | tuple) or not all(isinstance(one, str) for one in levels):
                raise self.refuse(f"{name}.{key}", f"{levels!r} is not a list of texts")
            try:
                features.append(Feature(str(key), tuple(levels)))
            except ValueError as error:
                raise self.refuse(f"{name}.{key}", str(error)) from error
        return tuple(features)

    def _list(self, value: object, path: str, low: float, high: float, length: int | None) -> list[float]:
        if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
            wanted = "a list" if length is None else f"a list of {length}, one for each arm"
            raise DefinitionError(path, f"{value!r} is not {wanted}")
        return [self._checked(one, f"{path}[{i}]", low, high) for i, one in enumerate(value)]

    def _checked(self, value: object, path: str, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise DefinitionError(path, f"{value!r} is not a number in [{low:g}, {high:g}]")
        return float(value)

    def finish(self) -> None:
        for name in self._values:
            if name not in self._read:
                near = difflib.get_close_matches(str(name), sorted(self._read), n=1, cutoff=0.4)
                hint = (
                    f"did you mean {near[0]}?" if near else f"this kind has {', '.join(sorted(self._read))}"
                )
                raise self.refuse(name, f"unknown; {hint}")


def scenario_from_definition(definition: Mapping[str, Any], *, path: str = "scenario") -> Scenario:
    """Make a scenario.

    Parameters
    ----------
    definition : mapping
        ``name``; ``kind``, one of :data:`KINDS`; ``rates`` per arm; optional ``description``, ``n_periods``
        (336), ``units_per_period`` (1000), ``mean_delay_periods`` and ``starts`` per arm, ``window_periods``
        (72), ``incubation_periods``; ``mean_values`` per arm, for rewards by value. ``drift`` takes ``to``,
        the factor that all rates reach at the end;
        ``day_night`` ``amplitude`` of a daily wave; ``sign_flip`` ``at_period``, from which the arms' rates
        stand in reverse order. ``contextual`` takes ``features`` (name to levels; their product, in this
        order, gives the segments), optional ``factors`` (their product gives the arms),
        optional ``segment_shares``, and ``rates`` as one row of all arms for each segment; it has neither
        delays nor starts.
    path : str
        For messages; empty for the document itself.

    Raises
    ------
    DefinitionError
        Something is missing, unknown or out of range.
    """
    reader = _Reader(definition, path)
    name, kind = reader.text("name"), reader.text("kind", "stationary")
    reader.text("description", "")
    if kind not in KINDS:
        raise reader.refuse("kind", f"{kind!r} is not one of {', '.join(KINDS)}")
    n_periods = reader.whole("n_periods", 336, 1, 1_000_000)
    units = reader.whole("units_per_period", 1000, 1, 1_000_000_000)
    if kind == "contextual":
        segments = _segments(reader)
        reader.finish()
        overall = (segments.shares[:, None] * segments.rates).sum(axis=0)
        return Scenario(name, np.tile(overall, (n_periods, 1)), units, segments=segments)
    rates = reader.numbers("rates", 0.0, 1.0)
    if not rates:
        raise reader.refuse("rates", "missing; give each arm's rate, e.g. [0.05, 0.055]")
    delays = reader.numbers("mean_delay_periods", 0.01, 1e4, len(rates))
    starts = reader.numbers("starts", 0, n_periods - 1, len(rates))
    if starts is not None and min(starts) > 0:
        raise reader.refuse("starts", "no arm starts at 0; there must be something to show at first")
    values = reader.numbers("mean_values", 1e-6, 1e9, len(rates))
    window = reader.whole("window_periods", 72, 1, 10_000)
    incubation = reader.whole("incubation_periods", 0, 0, n_periods)
    table = np.tile(np.array(rates), (n_periods, 1)) * _shape(kind, reader, n_periods)
    if kind == "sign_flip":
        flip = reader.whole("at_period", n_periods // 2, 0, n_periods)
        table[flip:] = table[flip:, ::-1]
    reader.finish()
    if (table > 1.0).any():
        raise reader.refuse("rates", "rates pass 1 in some period; lower them, or the factor")
    return Scenario(
        name,
        table,
        units,
        None if delays is None else tuple(delays),
        window,
        None if starts is None else tuple(int(start) for start in starts),
        incubation,
        mean_values=None if values is None else tuple(values),
    )


def _segments(reader: _Reader) -> Segments:
    features, factors = reader.levels("features"), reader.levels("factors")
    if not features:
        raise reader.refuse("features", "missing; give at least one feature with its levels")
    n_segments = math.prod(len(feature.levels) for feature in features)
    rates = reader.table("rates", 0.0, 1.0, n_segments)
    n_arms = len(rates[0])
    shares = reader.numbers("segment_shares", 0.0, 1.0)
    if shares is not None and (len(shares) != n_segments or abs(sum(shares) - 1.0) > 1e-6):
        raise reader.refuse("segment_shares", f"want {n_segments} shares that sum to 1, not {shares}")
    if factors and math.prod(len(factor.levels) for factor in factors) != n_arms:
        product = math.prod(len(factor.levels) for factor in factors)
        raise reader.refuse("factors", f"their product gives {product} arms, but rates has {n_arms}")
    equal = np.full(n_segments, 1.0 / n_segments)
    return Segments(features, factors, equal if shares is None else np.array(shares), np.array(rates))


def _shape(kind: str, reader: _Reader, n_periods: int) -> Array:
    """Factor of all rates in each period, (n_periods, 1)."""
    period = np.arange(n_periods, dtype=np.float64)[:, None]
    if kind == "drift":
        factor: Array = 1.0 + (reader.number("to", 2.0, 0.0, 100.0) - 1.0) * period / max(n_periods - 1, 1)
        return factor
    if kind == "day_night":
        wave: Array = 1.0 + reader.number("amplitude", 0.4, 0.0, 1.0) * np.sin(2.0 * np.pi * period / 24.0)
        return wave
    return np.ones((n_periods, 1))
