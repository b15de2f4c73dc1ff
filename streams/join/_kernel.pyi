from collections.abc import Callable, Mapping, Sequence

from streams.join.ledger import Scope
from streams.join.reading import ConversionItem, ExposureItem, Reading, SourceRecord

def read_exposures(reading: Reading, records: Sequence[SourceRecord]) -> None: ...
def apply_exposures(
    groups: Mapping[bytes, Sequence[ExposureItem]],
    stored: Mapping[bytes, bytes | None],
    scope: Scope,
    general: Callable[[bytes | None, Sequence[ExposureItem], Scope], bytes | None],
) -> dict[bytes, bytes | None]: ...
def apply_conversions(
    groups: Mapping[bytes, Sequence[ConversionItem]],
    stored: Mapping[bytes, bytes | None],
    scope: Scope,
    general: Callable[[bytes | None, Sequence[ConversionItem], Scope], bytes | None],
) -> dict[bytes, bytes | None]: ...
