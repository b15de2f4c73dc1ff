"""Scenarios by name and parameters: what simulations, the league and planning run on.

Definitions are plain mappings (from YAML or JSON files): ``{"name": ..., "kind": ..., "rates": [...], ...}``;
:func:`scenario_from_definition` says which kinds there are and what each needs, and names the path of what
is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandit_core.policies.base import DefinitionError
from bandit_core.simulator import Scenario

__all__ = ["KINDS", "STANDARD", "scenario_from_definition"]

Array = NDArray[np.float64]

KINDS = ("stationary", "drift", "day_night", "sign_flip")

#: The league's scenarios: low rates and small gaps, hourly batches, two weeks.
STANDARD: tuple[Mapping[str, Any], ...] = (
    {"name": "no difference", "kind": "stationary", "rates": [0.05, 0.05, 0.05, 0.05]},
    {"name": "one better", "kind": "stationary", "rates": [0.05, 0.05, 0.05, 0.055]},
    {"name": "low rates", "kind": "stationary", "rates": [0.02, 0.021, 0.022, 0.024]},
    {"name": "drift", "kind": "drift", "rates": [0.05, 0.05, 0.055], "to": 2.0},
    {"name": "day and night", "kind": "day_night", "rates": [0.05, 0.052, 0.056], "amplitude": 0.4},
    {"name": "sign flip", "kind": "sign_flip", "rates": [0.05, 0.06], "at_period": 168},
    {"name": "slow but better", "kind": "stationary", "rates": [0.05, 0.055], "mean_delay_periods": [1, 12]},
    {
        "name": "new arm midway",
        "kind": "stationary",
        "rates": [0.05, 0.05, 0.055],
        "starts": [0, 0, 168],
        "incubation_periods": 24,
    },
)


class _Reader:
    """Typed access to a mapping, with paths in messages."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self._values = values
        self._path = path
        self._read: set[str] = set()

    def text(self, name: str) -> str:
        self._read.add(name)
        value = self._values.get(name)
        if not isinstance(value, str) or not value:
            raise DefinitionError(f"{self._path}.{name}", f"{value!r} is not a text")
        return value

    def number(self, name: str, default: float | None, low: float, high: float) -> float:
        self._read.add(name)
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise DefinitionError(f"{self._path}.{name}", f"{value!r} is not a number in [{low:g}, {high:g}]")
        return float(value)

    def numbers(self, name: str, low: float, high: float, length: int | None = None) -> list[float] | None:
        self._read.add(name)
        value = self._values.get(name)
        if value is None:
            return None
        good = isinstance(value, list | tuple) and all(
            isinstance(one, int | float) and not isinstance(one, bool) and low <= one <= high for one in value
        )
        if not good or (length is not None and len(value) != length):
            wanted = "a list of" if length is None else f"a list of {length}"
            raise DefinitionError(
                f"{self._path}.{name}", f"{value!r} is not {wanted} numbers in [{low:g}, {high:g}]"
            )
        return [float(one) for one in value]

    def finish(self) -> None:
        for name in self._values:
            if name not in self._read:
                raise DefinitionError(
                    f"{self._path}.{name}", f"unknown; this kind has {', '.join(sorted(self._read))}"
                )


def scenario_from_definition(definition: Mapping[str, Any], *, path: str = "scenario") -> Scenario:
    """Make a scenario.

    Parameters
    ----------
    definition : mapping
        ``name``; ``kind``, one of :data:`KINDS`; ``rates`` per arm; optional ``n_periods`` (336),
        ``units_per_period`` (1000), ``mean_delay_periods`` and ``starts`` per arm, ``window_periods``,
        ``incubation_periods``. ``drift`` takes ``to``, the factor that all rates reach at the end;
        ``day_night`` ``amplitude`` of a daily wave; ``sign_flip`` ``at_period``, from which the arms' rates
        stand in reverse order.
    path : str
        For messages.

    Raises
    ------
    DefinitionError
        Something is missing, unknown or out of range.
    """
    reader = _Reader(definition, path)
    name, kind = reader.text("name"), reader.text("kind")
    if kind not in KINDS:
        raise DefinitionError(f"{path}.kind", f"{kind!r} is not one of {', '.join(KINDS)}")
    rates = reader.numbers("rates", 0.0, 1.0)
    if not rates:
        raise DefinitionError(f"{path}.rates", "missing; give each arm's rate")
    n_periods = int(reader.number("n_periods", 336, 1, 1e6))
    units = int(reader.number("units_per_period", 1000, 1, 1e9))
    delays = reader.numbers("mean_delay_periods", 0.01, 1e4, len(rates))
    starts = reader.numbers("starts", 0, n_periods - 1, len(rates))
    window = int(reader.number("window_periods", 72, 1, 1e4))
    incubation = int(reader.number("incubation_periods", 0, 0, n_periods))
    table = np.tile(np.array(rates), (n_periods, 1)) * _shape(kind, reader, n_periods)
    if kind == "sign_flip":
        flip = int(reader.number("at_period", n_periods // 2, 0, n_periods))
        table[flip:] = table[flip:, ::-1]
    reader.finish()
    if (table > 1.0).any():
        raise DefinitionError(f"{path}.rates", "rates pass 1 in some period")
    return Scenario(
        name,
        table,
        units,
        None if delays is None else tuple(delays),
        window,
        None if starts is None else tuple(int(start) for start in starts),
        incubation,
    )


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
