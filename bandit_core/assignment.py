r"""Deterministic assignment of units to arms: weighted rendezvous hashing, the same bytes in every language.

Recipe (version 1; binding for every implementation; ``\x1f`` is the byte 0x1F, strings are UTF-8):

1. ``hash64(key)`` = the first 8 bytes, big-endian, of SHA-256(key).
2. ``u(key)`` = ((hash64(key) >> 12) + 0.5) * 2**-52. 52 bits, so that adding one half is exact in a double:
   ``u`` is in (0, 1), never 0 or 1, and every language gets the same bits.
3. Comparison group: ``u(experiment_id \x1f "comparison" \x1f unit_id) < g``: the unit sees no arm.
4. Holdout: ``u(experiment_id \x1f "holdout" \x1f unit_id) < h``: the unit sees the control arm.
5. Else, with ``K = experiment_id \x1f "arm" \x1f unit_id`` (and ``\x1f interval_id`` appended when the
experiment
   is sticky by interval): each arm with weight ``w > 0`` has ``score = -ln(u(K \x1f arm_id)) / w``; the
   smallest score wins; equal scores go to the smaller ``arm_id`` in UTF-8 byte order.

Precision: ``ln`` and the division in IEEE 754 doubles, ``ln`` within 1 unit in the last place, as every
common maths library gives. Two conforming implementations can differ only where the two smallest scores
agree to about 4e-16 in relative terms: once in some 10^15 decisions, when either arm is a fair draw.
Nothing else depends on rounding.

Why this way: rendezvous hashing (Thaler and Ravishankar 1998, section 3; weights by exponential scores, as
in Schindelhauer and Schomaker 2005, section 3) moves only the units that must move when weights change: an
arm whose weight falls loses units, and one whose relative weight rises loses none to it. Groups use their
own salts and are tested by ``u < share``, so that a shrinking group releases units and takes none: the
groups are nested. SHA-256 because every standard library has it; blake2b is no faster on keys this short
and is not everywhere.

Cost: one SHA-256 block per arm and unit, about a microsecond each.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from bandit_core.shares import Shares

__all__ = ["Assigner", "Assignment", "Group", "derive_seed", "uniform_hash"]

_SEPARATOR = "\x1f"
_SCALE = 2.0**-52


class Group(enum.StrEnum):
    """Which of the two populations a unit belongs to."""

    BANDIT = "bandit"
    COMPARISON = "comparison"


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a unit goes.

    Attributes
    ----------
    arm : int or None
        Index of the arm; None in the comparison group.
    group : Group
    holdout : bool
        Whether the unit sees control because it is held out.
    propensity : float
        P(arm | group); 1.0 in the comparison group.
    """

    arm: int | None
    group: Group
    holdout: bool
    propensity: float


def uniform_hash(key: str) -> float:
    """``u(key)`` of the recipe: a number in (0, 1) with 52 random bits."""
    return ((int.from_bytes(sha256(key.encode()).digest()[:8], "big") >> 12) + 0.5) * _SCALE


def derive_seed(*parts: str) -> int:
    """Derive a seed of 63 bits from strings (experiment, interval, ...): the same on every machine."""
    return int.from_bytes(sha256(_SEPARATOR.join(parts).encode()).digest()[:8], "big") >> 1


class Assigner:
    """Assigns units of one experiment under one allocation.

    Parameters
    ----------
    experiment_id : str
    arm_ids : sequence of str
        In the order of ``shares``; all different.
    shares : Shares

    Raises
    ------
    ValueError
        Ids are repeated or their number differs from the shares'.
    """

    __slots__ = ("_arms", "_comparison", "_control", "_holdout", "_prefix", "_propensities")

    def __init__(self, experiment_id: str, arm_ids: Sequence[str], shares: Shares) -> None:
        if len(arm_ids) != len(shares.rest):
            raise ValueError(
                f"arm_ids: {len(arm_ids)} ids for {len(shares.rest)} shares of {experiment_id!r}"
            )
        if len(set(arm_ids)) != len(arm_ids):
            raise ValueError(f"arm_ids: repeated id in experiment {experiment_id!r}: {list(arm_ids)}")
        self._prefix = experiment_id + _SEPARATOR
        self._comparison = shares.comparison
        self._holdout = shares.holdout
        self._control = shares.control
        self._propensities = shares.propensities()
        # Sorted by bytes, and the loop below takes strictly smaller scores: ties go to the smaller id.
        live = [(arm_id, i) for i, arm_id in enumerate(arm_ids) if shares.rest[i] > 0.0]
        self._arms = tuple(
            ((_SEPARATOR + arm_id).encode(), -1.0 / shares.rest[i], i)
            for arm_id, i in sorted(live, key=lambda pair: pair[0].encode())
        )

    def assign(self, unit_id: str, *, interval_id: str | None = None) -> Assignment:
        """Assign one unit.

        Parameters
        ----------
        unit_id : str
        interval_id : str, optional
            Given when the experiment is sticky by interval: a unit may then change arms between intervals.
            The comparison group and the holdout stay the same for a unit whatever it is.
        """
        # uniform_hash is above 0, so an absent group needs no test of its own, but it would cost a hash.
        if self._comparison > 0.0 and self._position("comparison", unit_id) < self._comparison:
            return Assignment(None, Group.COMPARISON, False, 1.0)
        control = self._control
        if control is not None and self._holdout > 0.0 and self._position("holdout", unit_id) < self._holdout:
            return Assignment(control, Group.BANDIT, True, self._propensities[control])
        key = f"{self._prefix}arm{_SEPARATOR}{unit_id}"
        if interval_id is not None:
            key = f"{key}{_SEPARATOR}{interval_id}"
        arm = self._rendezvous(key.encode())
        return Assignment(arm, Group.BANDIT, False, self._propensities[arm])

    def _position(self, salt: str, unit_id: str) -> float:
        return uniform_hash(f"{self._prefix}{salt}{_SEPARATOR}{unit_id}")

    def _rendezvous(self, key: bytes) -> int:
        best_score = math.inf
        best_arm = self._arms[0][2]
        for suffix, negative_inverse, index in self._arms:
            bits = int.from_bytes(sha256(key + suffix).digest()[:8], "big") >> 12
            score = math.log((bits + 0.5) * _SCALE) * negative_inverse
            if score < best_score:
                best_score = score
                best_arm = index
        return best_arm
