from collections.abc import Callable, Iterable, Mapping, Sequence

from streams.join.ledger import Scope
from streams.join.reading import ConversionItem, ExposureItem, ExposureItems, Reading, SourceRecord

def read_exposures(reading: Reading, records: Sequence[SourceRecord]) -> None: ...
def apply_exposures(
    groups: Mapping[bytes, ExposureItems],
    stored: Mapping[bytes, bytes | None],
    scope: Scope,
    general: Callable[[bytes | None, Iterable[ExposureItem], Scope], bytes | None],
) -> dict[bytes, bytes | None]: ...
def apply_conversions(
    groups: Mapping[bytes, Sequence[ConversionItem]],
    stored: Mapping[bytes, bytes | None],
    scope: Scope,
    general: Callable[[bytes | None, Sequence[ConversionItem], Scope], bytes | None],
) -> dict[bytes, bytes | None]: ...
