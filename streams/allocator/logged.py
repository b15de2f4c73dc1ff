"""Chances that the allocation log says each arm had, for the units that name an allocation. No I/O.

What: of a logged allocation `Logged` keeps what a unit's chance follows from; `propensities` makes tables
of them: the realised weights, by which the sample ratio is tested, and the selection probabilities before
a policy's draw, which off-policy estimates need. Both are within the bandit group.

Cost: some 300 bytes an allocation of ten arms while it is kept.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from streams.errors import RecordError

__all__ = ["Logged", "Propensities", "decode_logged", "propensities"]


class _Arm(Struct, frozen=True):
    arm_id: str
    weight: float
    assignment_weight: float
    selection_probability: float


class Logged(Struct, frozen=True):
    """Of a logged allocation what decides a unit's chance; field names are the allocation's."""

    boundary_ms: int
    control: str
    comparison: float
    holdout: float
    arms: tuple[_Arm, ...]
    segments: dict[str, tuple[float, ...]] = {}


_decoder = msgspec.json.Decoder(Logged)


def decode_logged(raw: bytes, *, where: str = "allocation-log") -> Logged:
    """Read a logged allocation's value; what is not needed is skipped.

    Raises
    ------
    RecordError
        If it does not decode.
    """
    try:
        return _decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise RecordError(
            f"allocation does not decode: {error}", where=where, action="`bandit-streams audit` shows more"
        ) from error


class Propensities(NamedTuple):
    """P(arm | bandit group) of each combination of version and segment that cells name.

    ``row``: of each cell; ``realised`` and ``before_draw``: (n_rows, n_arms), NaN where the log
    does not say.
    """

    row: NDArray[np.intp]
    realised: NDArray[np.float64]
    before_draw: NDArray[np.float64]


def propensities(
    versions: NDArray[np.int64],
    segments: Sequence[str],
    log: Mapping[int, Logged],
    arm_ids: Sequence[str],
) -> Propensities:
    """Look up the chances of each cell's units.

    Parameters
    ----------
    versions, segments
        Allocation version and segment of each cell.
    log
        Allocations by version.
    arm_ids
        The arms, in the order of the tables' columns.
    """
    names = list(zip(versions.tolist(), segments, strict=True))
    rows = {name: row for row, name in enumerate(dict.fromkeys(names))}
    realised, before_draw = np.full((2, len(rows), len(arm_ids)), np.nan)
    for (version, segment), row in rows.items():
        if version in log:
            realised[row], before_draw[row] = _chances(log[version], segment, arm_ids)
    return Propensities(np.array([rows[name] for name in names], dtype=np.intp), realised, before_draw)


def _chances(logged: Logged, segment: str, arm_ids: Sequence[str]) -> tuple[list[float], list[float]]:
    bandit = 1.0 - logged.comparison
    weights = {arm.arm_id: (arm.weight / bandit, arm.selection_probability / bandit) for arm in logged.arms}
    if segment in logged.segments:  # such a policy draws nothing
        for arm, weight in zip(logged.arms, logged.segments[segment], strict=True):
            held = logged.holdout * (arm.arm_id == logged.control)
            weights[arm.arm_id] = (held + (1.0 - logged.holdout) * weight,) * 2
    found = [weights.get(arm_id, (0.0, 0.0)) for arm_id in arm_ids]
    return [realised for realised, _ in found], [before for _, before in found]
