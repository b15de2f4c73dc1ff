"""Cells and their columns: which effects a cell of (segment, arm, interval) has.

Every level of every effect has a column of its own (no reference level); Gaussian priors centred at 0 make
that identifiable, treat levels alike, and let an unseen level stand at the average (Gelman and Hill 2007,
"Data analysis using regression and multilevel models", chapter 12: partial pooling).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["OTHER", "Design", "Feature", "segment_of"]

Array = NDArray[np.float64]

OTHER = "other"

_SD_INTERCEPT = 3.0
_SD_MAIN = 0.7
_SD_INTERACTION = 0.35
_SD_INTERVAL = 0.5


@dataclass(frozen=True, slots=True)
class Feature:
    """A context feature or a design factor with its levels; a feature's unknown levels map to ``other``."""

    name: str
    levels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"feature {self.name!r}: needs levels, each once, not {self.levels}")


def segment_of(context: Mapping[str, str], features: Sequence[Feature]) -> tuple[tuple[str, ...], int]:
    """Segment of a unit: the level of every feature, and how many had to become ``other``.

    A missing value counts as unknown.
    """
    levels = tuple(
        context[feature.name] if context.get(feature.name) in feature.levels else OTHER
        for feature in features
    )
    unknown = sum(level == OTHER and OTHER not in f.levels for level, f in zip(levels, features, strict=True))
    return levels, unknown


@dataclass(frozen=True, slots=True)
class Design:
    """Which effects there are.

    Parameters
    ----------
    features : tuple of Feature
        Of the context; their product (with ``other``) gives the segments.
    factors : tuple of Feature
        Of the arms; their product gives the arms. One factor with the arms' ids if arms have no structure.
    interactions : tuple of (str, str)
        Pairs of names, e.g. a factor with a feature.
    n_intervals : int
        Interval effects (period by period levels), 0 for none.
    """

    features: tuple[Feature, ...]
    factors: tuple[Feature, ...]
    interactions: tuple[tuple[str, str], ...] = ()
    n_intervals: int = 0

    def __post_init__(self) -> None:
        names = [feature.name for feature in (*self.features, *self.factors)]
        if len(set(names)) != len(names):
            raise ValueError(f"features and factors: names must differ, not {names}")
        if not self.factors:
            raise ValueError("factors: at least one is needed to tell arms apart")
        for pair in self.interactions:
            if len(set(pair)) != 2 or not set(pair) <= set(names):
                raise ValueError(f"interactions: {pair} must be two different names of {names}")

    def segments(self, *, with_other: bool = False) -> list[tuple[str, ...]]:
        """All segments in order; with ``other`` as a level of each feature if wanted."""
        extra = (OTHER,) if with_other else ()
        levels = [(*f.levels, *(x for x in extra if x not in f.levels)) for f in self.features]
        return list(itertools.product(*levels))

    def arms(self) -> list[tuple[str, ...]]:
        """All combinations of factor levels in order."""
        return list(itertools.product(*(factor.levels for factor in self.factors)))

    def _effects(self) -> list[tuple[tuple[Feature, ...], float]]:
        by_name = {feature.name: feature for feature in (*self.features, *self.factors)}
        effects: list[tuple[tuple[Feature, ...], float]] = [((f,), _SD_MAIN) for f in by_name.values()]
        effects += [((by_name[a], by_name[b]), _SD_INTERACTION) for a, b in self.interactions]
        return effects

    def prior_sd(self) -> Array:
        """Return each column's prior standard deviation, (n_columns,); in log-odds."""
        sizes = [(_SD_INTERCEPT, 1)]
        for group, sd in self._effects():
            sizes.append((sd, int(np.prod([len(f.levels) for f in group]))))
        sizes.append((_SD_INTERVAL, self.n_intervals))
        return np.concatenate([np.full(size, sd) for sd, size in sizes])

    def columns(
        self,
        segments: Sequence[tuple[str, ...]],
        arms: Sequence[tuple[str, ...]],
        intervals: Sequence[int] | None = None,
    ) -> Array:
        """Design matrix of cells given row by row, (n_cells, n_columns).

        Levels that are not listed (``other``) have no column set: they stand at the average. So does a
        missing interval.
        """
        if len(segments) != len(arms) or (intervals is not None and len(intervals) != len(arms)):
            raise ValueError(f"{len(segments)} segments and {len(arms)} arms: want one of each a cell")
        rows = len(arms)
        values = {f.name: [segment[i] for segment in segments] for i, f in enumerate(self.features)}
        values |= {f.name: [arm[i] for arm in arms] for i, f in enumerate(self.factors)}
        blocks = [np.ones((rows, 1))]
        for group, _ in self._effects():
            block = np.ones((rows, 1))
            for feature in group:
                index = {level: i for i, level in enumerate(feature.levels)}
                one_hot = np.zeros((rows, len(feature.levels)))
                for row, level in enumerate(values[feature.name]):
                    if level in index:
                        one_hot[row, index[level]] = 1.0
                block = (block[:, :, None] * one_hot[:, None, :]).reshape(rows, -1)
            blocks.append(block)
        if self.n_intervals:
            block = np.zeros((rows, self.n_intervals))
            if intervals is not None:
                block[np.arange(rows), np.asarray(intervals)] = 1.0
            blocks.append(block)
        return np.concatenate(blocks, axis=1)
