"""Traffic shares: how a policy's weights become what each arm really gets.

What: arm ``i`` of ``n`` eligible arms gets

    (1 - g) * (h * [i is control] + (1 - h) * (f + (1 - n f) w_i))

with ``g`` the comparison group (sees no arm), ``h`` the holdout (the least share of the control arm), ``f``
the floor and ``w`` the policy's weights over the eligible arms. Incubating arms get a fixed share ``s`` of
the second stage instead of ``f + (1 - n f) w_i``; the active arms share the rest by the same formula.

Why this way: adding a floor by an affine map keeps every arm at or above it and the sum at one; clipping
and then renormalising pushes clipped arms below the floor again. Floors are spread over eligible arms
alone, so they never revive a stopped arm.

Why integers inside: shares are published as JSON and compared byte for byte. They are rounded to multiples of
1e-12 by the largest-remainder rule, so the decimals that are printed add up exactly, in any language.

Cost: O(n log n) in the number of arms.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["ArmStatus", "NoEligibleArm", "ShareSettings", "Shares", "allocate_shares"]

_UNITS = 10**12  # a share is a whole number of these parts of one


class NoEligibleArm(ValueError):
    """Every arm is pending, stopped or dropped: there is nothing to allocate."""


class ArmStatus(enum.StrEnum):
    """Where an arm stands in its life. Incubating and active arms are eligible for traffic."""

    PENDING = "pending"
    INCUBATING = "incubating"
    ACTIVE = "active"
    STOPPED = "stopped"
    DROPPED = "dropped"

    @property
    def eligible(self) -> bool:
        """Whether the arm may receive traffic."""
        return self in (ArmStatus.INCUBATING, ArmStatus.ACTIVE)


@dataclass(frozen=True, slots=True)
class ShareSettings:
    """What the definition says about shares; all are proportions.

    Parameters
    ----------
    comparison : float
        Share ``g`` in [0, 1) of units that see no arm at all.
    holdout : float
        Share ``h`` in [0, 1] of the remaining units that always see the control arm.
    floor : float
        Least share ``f`` of every eligible arm within the second stage; ``n_eligible * f <= 1``.
    incubation_share : float, optional
        Share of the second stage for each incubating arm; ``None`` means ``1 / n_eligible``.
    """

    comparison: float = 0.0
    holdout: float = 0.0
    floor: float = 0.0
    incubation_share: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.comparison < 1.0:
            raise ValueError(f"comparison: {self.comparison!r} is not in [0, 1): no unit would see an arm")
        if not 0.0 <= self.holdout <= 1.0:
            raise ValueError(f"holdout: {self.holdout!r} is not in [0, 1]")
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor: {self.floor!r} is not in [0, 1]")
        if self.incubation_share is not None and not 0.0 <= self.incubation_share <= 1.0:
            raise ValueError(f"incubation_share: {self.incubation_share!r} is not in [0, 1]")


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of one experiment, in the two stages an edge needs and as realised totals.

    Attributes
    ----------
    comparison : float
        ``g``: share of all units that see no arm.
    holdout : float
        ``h``: share of the other units that see control; 0 when the control arm is not eligible.
    control : int or None
        Index of the control arm.
    rest : tuple of float
        Weights per arm for units in neither group; they sum to 1.
    weights : tuple of float
        Realised share of all units per arm; they sum to ``1 - comparison``.
    """

    comparison: float
    holdout: float
    control: int | None
    rest: tuple[float, ...]
    weights: tuple[float, ...]

    def propensities(self) -> tuple[float, ...]:
        """P(arm | unit is not in the comparison group), per arm; sums to 1."""
        return _round_to_total([w / (1.0 - self.comparison) for w in self.weights], _UNITS)


def allocate_shares(
    policy_weights: ArrayLike,
    *,
    statuses: Sequence[ArmStatus],
    control: int | None,
    settings: ShareSettings,
) -> Shares:
    """Turn a policy's weights into shares.

    Parameters
    ----------
    policy_weights : array_like, shape (n_arms,)
        Non-negative weights; those of ineligible arms are ignored, the others are scaled to sum to 1 (if
        they are all zero, eligible arms share equally).
    statuses : sequence of ArmStatus, length n_arms
    control : int or None
        Index of the control arm; needed when ``settings.holdout > 0``.
    settings : ShareSettings

    Returns
    -------
    Shares

    Raises
    ------
    NoEligibleArm
        No arm is incubating or active.
    ValueError
        Weights are negative, not finite or of the wrong number; ``n * floor > 1``; a holdout without a
        control.
    """
    weights = np.asarray(policy_weights, dtype=np.float64)
    n_arms = len(statuses)
    if weights.shape != (n_arms,):
        raise ValueError(f"policy_weights: shape {weights.shape} does not match {n_arms} arms")
    if control is not None and not 0 <= control < n_arms:
        raise ValueError(f"control: {control} is not the index of one of {n_arms} arms")
    if settings.holdout > 0.0 and control is None:
        raise ValueError("holdout: a holdout needs a control arm; name one or set holdout to 0")
    eligible = np.array([status.eligible for status in statuses], dtype=bool)
    if not eligible.any():
        raise NoEligibleArm("no arm is incubating or active; resume an arm or complete the experiment")
    if not np.all(np.isfinite(weights[eligible])) or np.any(weights[eligible] < 0.0):
        raise ValueError(f"policy_weights: {weights.tolist()} must be finite and not negative")
    incubating = np.array([status is ArmStatus.INCUBATING for status in statuses], dtype=bool)
    rest = _second_stage(weights, eligible, incubating, settings)
    comparison = _to_units(settings.comparison) / _UNITS
    holdout = 0.0
    if control is not None and eligible[control]:
        holdout = _to_units(settings.holdout) / _UNITS
    rounded = _round_to_total(rest.tolist(), _UNITS)
    total = _UNITS - _to_units(settings.comparison)
    overall = [
        (1.0 - comparison) * ((holdout if i == control else 0.0) + (1.0 - holdout) * share)
        for i, share in enumerate(rounded)
    ]
    return Shares(comparison, holdout, control, rounded, _round_to_total(overall, total))


def _second_stage(
    weights: np.ndarray, eligible: np.ndarray, incubating: np.ndarray, settings: ShareSettings
) -> np.ndarray:
    """Shares within the units that are in neither group; (n_arms,), sums to 1 up to rounding."""
    n = int(eligible.sum())
    n_incubating = int(incubating.sum())
    n_active = n - n_incubating
    if n * settings.floor > 1.0 + 1e-12:
        raise ValueError(
            f"floor: {settings.floor!r} for each of {n} eligible arms is more than all traffic; "
            f"use at most {1.0 / n:.6g}"
        )
    share = 1.0 / n if settings.incubation_share is None else settings.incubation_share
    if n_active == 0:
        return np.where(incubating, 1.0 / n, 0.0)
    reserved = n_incubating * share + n_active * settings.floor
    if reserved > 1.0 + 1e-12:
        raise ValueError(
            f"incubation_share: {n_incubating} incubating arms at {share:.6g} and {n_active} active arms at "
            f"the floor {settings.floor!r} are more than all traffic; lower one of them"
        )
    active = eligible & ~incubating
    # Scaled by the largest first: weights near the smallest double would overflow when divided by their sum.
    scaled = np.where(active, weights, 0.0) / max(float(weights[active].max()), np.finfo(np.float64).tiny)
    mass = math.fsum(scaled.tolist())
    relative = scaled / mass if mass > 0.0 else np.full(weights.shape, 1.0 / n_active)
    spread = settings.floor + max(0.0, 1.0 - reserved) * relative
    return np.where(incubating, share, np.where(active, spread, 0.0))


def _to_units(share: float) -> int:
    return round(share * _UNITS)


def _round_to_total(shares: Sequence[float], total: int) -> tuple[float, ...]:
    """Round to multiples of 1e-12 that add up to ``total`` units; zero stays zero (largest remainder)."""
    scale = total / math.fsum(shares)
    exact = [share * scale for share in shares]
    units = [math.floor(value) for value in exact]
    missing = total - sum(units)
    order = sorted(
        (i for i, share in enumerate(shares) if share > 0.0),
        key=lambda i: (units[i] - exact[i], i),
    )
    for k in range(abs(missing)):
        units[order[k % len(order)]] += 1 if missing > 0 else -1
    return tuple(value / _UNITS for value in units)
