"""Segment of an exposure: the levels of the context features that its definition version names.

The canonical string is ``name=level`` for each feature, features in order of their names, joined by ``|``,
e.g. ``country=DE|device=mobile``; it is empty for a version without features. A value that is not one of the
feature's levels, or a feature that the context lacks, is level ``other``. In names and levels ``%``, ``|``
and ``=`` are written ``%25``, ``%7C`` and ``%3D``, so that a segment reads back in one way only.
"""

from collections.abc import Mapping, Sequence

from streams.experiments.definition import Feature

OTHER_LEVEL = "other"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("|", "%7C").replace("=", "%3D")


class Segmenter:
    """Turns contexts into segments for one definition version; all strings are made once.

    Parameters
    ----------
    features
        Features of the version, in any order.
    """

    __slots__ = ("_parts",)

    def __init__(self, features: Sequence[Feature]) -> None:
        self._parts: list[tuple[str, dict[str, str], str]] = []
        for feature in sorted(features, key=lambda f: f.name):
            name = _escaped(feature.name)
            levels = {level: f"{name}={_escaped(level)}" for level in feature.levels}
            self._parts.append((feature.name, levels, f"{name}={OTHER_LEVEL}"))

    def segment(self, context: Mapping[str, str] | None) -> tuple[str, int]:
        """Segment of a context, and the number of its features without a known level."""
        fragments = []
        n_other = 0
        known = context or {}
        for name, levels, other in self._parts:
            fragment = levels.get(known.get(name, OTHER_LEVEL))
            if fragment is None:
                n_other += 1
                fragment = other
            fragments.append(fragment)
        return "|".join(fragments), n_other


def segment_of(features: Sequence[Feature], context: Mapping[str, str] | None) -> str:
    """Segment of one context; :class:`Segmenter` is for many.

    Examples
    --------
    >>> segment_of([Feature(name="device", levels=("mobile", "desktop"))], {"device": "mobile"})
    'device=mobile'
    >>> segment_of([Feature(name="device", levels=("mobile", "desktop"))], {"device": "fridge"})
    'device=other'
    """
    return Segmenter(features).segment(context)[0]
