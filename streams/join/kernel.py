"""The compiled kernel: short ways for usual events, where a C compiler was there to build them.

The kernel is optional. Without it, or with the setting ``compiled_kernel`` off, the same results come from
Python alone, some four times slower; nothing that is stored or published tells one from the other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from streams.join.ledger import Scope
    from streams.join.reading import ConversionItem, ExposureItem, ExposureItems, Reading, SourceRecord

try:
    from streams.join import _kernel as _compiled
except ImportError:  # not built: no C compiler, or a pure wheel
    _compiled = None  # type: ignore[assignment]  # a module, or none

__all__ = ["KERNEL", "Kernel"]

States = dict[bytes, bytes | None]
"""New state by unit id; None removes the unit."""


class Kernel(Protocol):
    """What is compiled. Every function gives exactly what the Python function does that is named in it."""

    def read_exposures(self, reading: "Reading", records: Sequence["SourceRecord"]) -> None:
        """Read as ``Reading.read_exposures``; records that are not usual go to ``Reading.read_exposure``."""

    def apply_exposures(
        self,
        groups: Mapping[bytes, "ExposureItems"],
        stored: Mapping[bytes, bytes | None],
        scope: "Scope",
        general: Callable[[bytes | None, Iterable["ExposureItem"], "Scope"], bytes | None],
    ) -> States:
        """Apply as ``exposures.apply_all_exposures``; units that are not usual go to ``general``.

        ``groups`` are what :meth:`read_exposures` has made.
        """

    def apply_conversions(
        self,
        groups: Mapping[bytes, Sequence["ConversionItem"]],
        stored: Mapping[bytes, bytes | None],
        scope: "Scope",
        general: Callable[[bytes | None, Sequence["ConversionItem"], "Scope"], bytes | None],
    ) -> States:
        """Apply as ``conversions.apply_all_conversions``; units that are not usual go to ``general``."""


_module: Any = _compiled
KERNEL: Final[Kernel | None] = _module
"""The kernel; None where it was not built."""
