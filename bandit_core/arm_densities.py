"""Densities of arms' means where they are log-concave and smooth: Beta, scaled Beta, Gaussian.

Beta densities are handled in the log-odds ``z = ln(θ / (1 - θ))``: smooth for every ``alpha, beta > 0``,
also below 1 where the density in θ is infinite at an end. They are taken relative to their peak, and the
peak by Stirling's series, so that nothing cancels at 10^9 trials. Each class has what
:class:`bandit_core.quadrature.Arms` asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, gammaln

from bandit_core.quadrature import CLIP, Array, Index

__all__ = ["BetaArms", "GaussianArms", "ScaledBetaArms"]

_DROP = 0.5 * CLIP * CLIP  # the log-density's fall from its peak that counts as impossible
_NEWTON_STEPS = 8
_EXPONENT_MAX = 600.0
_SOFTPLUS_SWITCH = 30.0


def _stirling_error(x: Array) -> Array:
    """``ln Γ(x) - ((x - 1/2) ln x - x + ln(2π)/2)`` without cancellation (Abramowitz and Stegun 6.1.41)."""
    large = np.maximum(x, 10.0)
    inverse_square = 1.0 / (large * large)
    series = (
        1 / 12 + inverse_square * (-1 / 360 + inverse_square * (1 / 1260 - inverse_square / 1680))
    ) / large
    small = np.minimum(x, 10.0)
    direct = gammaln(small) - ((small - 0.5) * np.log(small) - small + 0.5 * np.log(2 * np.pi))
    return np.where(x >= 10.0, series, direct)


@dataclass(frozen=True, slots=True, eq=False)
class BetaArms:
    """Beta posteriors in log-odds; parameters (n_arms, n_experiments)."""

    a: Array
    b: Array
    total: Array
    mode: Array  # ln(a / b)
    log_peak: Array  # ln density in z at the mode

    @classmethod
    def of(cls, a: Array, b: Array) -> Self:
        """Make arms from parameters of shape (n_arms, n_experiments)."""
        total = a + b
        log_peak = (
            0.5 * (np.log(a) + np.log(b) - np.log(total) - np.log(2 * np.pi))
            + _stirling_error(total)
            - _stirling_error(a)
            - _stirling_error(b)
        )
        return cls(a, b, total, np.log(a) - np.log(b), log_peak)

    def take(self, columns: Index) -> Self:
        """Select (and repeat) experiments."""
        return type(self)(
            self.a[:, columns],
            self.b[:, columns],
            self.total[:, columns],
            self.mode[:, columns],
            self.log_peak[:, columns],
        )

    def log_relative(self, distance: Array) -> Array:
        """Log-density at ``mode + distance`` less that at the mode; (n_arms, n)."""
        mirrored = self.a > self.b
        smaller, larger = np.minimum(self.a, self.b), np.maximum(self.a, self.b)
        signed = np.where(mirrored, -distance, distance)
        capped = np.minimum(signed, _EXPONENT_MAX)
        fall: Array = (
            smaller * capped
            - self.total * np.log1p(smaller / self.total * np.expm1(capped))
            - larger * (signed - capped)
        )
        return fall

    def bounds(self) -> tuple[Array, Array]:
        """Return where deviations reach -CLIP and +CLIP, or somewhat beyond."""
        return self.mode - self._reach(-1.0), self.mode + self._reach(1.0)

    def _reach(self, side: float) -> Array:
        """Distance on one side of the mode to a fall of at least _DROP, by Newton's method.

        The log-density is concave: from anywhere the next iterate is at or beyond the crossing, and from
        beyond it they fall back to it, so that the result errs outwards only.
        """
        reach = CLIP * np.sqrt(1.0 / self.a + 1.0 / self.b)
        for _ in range(_NEWTON_STEPS):
            z = self.mode + side * reach
            slope = side * (self.a * expit(-z) - self.b * expit(z))
            reach = reach - (self.log_relative(side * reach) + _DROP) / np.minimum(slope, -1e-300)
        return reach

    def deviation(self, z: Array) -> Array:
        """Return the signed deviation at ``z``, clipped at ±CLIP where it is a Beta."""
        distance = z - self.mode
        fall = np.maximum(-self.log_relative(distance), 0.0)
        return np.copysign(np.minimum(np.sqrt(2.0 * fall), CLIP), distance)

    def density(self, centre: Array, offsets: Array) -> Array:
        """Return densities at ``centre + offsets``: (n_nodes, n_arms, n)."""
        # Relative to the panel's centre everything but one exponential an arm is shared by the arms.
        at_centre = self.log_peak + self.log_relative(centre - self.mode)
        mirrored = centre > 0.0
        shared = _softplus_change(-np.abs(centre), np.where(mirrored, -offsets, offsets))
        signed = np.where(mirrored, -offsets, offsets)
        rising = np.where(mirrored, self.b, self.a)
        result = np.empty((len(offsets), *self.a.shape))
        for k in range(len(offsets)):
            np.exp(at_centre + rising * signed[k] - self.total * shared[k], out=result[k])
        return result

    def bending(self, left: Array, right: Array) -> Array:
        """Return the change of the log-density's slope times the width."""
        return self.total * ((expit(right) - expit(left)) * (right - left))

    def value(self, z: Array) -> Array:
        """Return the value whose maximum counts."""
        return np.asarray(expit(z), dtype=np.float64)


def _softplus_change(z: Array, change: Array) -> Array:
    """``ln(1 + e^(z + change)) - ln(1 + e^z)`` for ``z <= 0``, without cancellation for small changes."""
    capped = np.minimum(change, _SOFTPLUS_SWITCH)
    result = np.asarray(np.log1p(expit(z) * np.expm1(capped)), dtype=np.float64)
    beyond = change > _SOFTPLUS_SWITCH
    if beyond.any():
        direct = np.logaddexp(0.0, z + change) - np.logaddexp(0.0, z)
        result = np.where(beyond, direct, result)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class ScaledBetaArms:
    """Beta posteriors divided by ``scale``, seen in the log-odds ``z`` of the quotient, or in ``-z``.

    ``scale`` (n_arms, n_experiments) is positive; ``sign`` is +1 where the largest and -1 where the smallest
    quotient counts. With ``r = 1 + (1 - scale) e^z``: the arm's own log-odds are ``z + ln(scale) - ln(r)``,
    their derivative ``1 / r``; ``r <= 0`` is beyond the arm's end.
    """

    arms: BetaArms
    scale: Array
    sign: float

    def take(self, columns: Index) -> Self:
        """Select (and repeat) experiments."""
        return type(self)(self.arms.take(columns), self.scale[:, columns], self.sign)

    def bounds(self) -> tuple[Array, Array]:
        """Return where deviations reach -CLIP and +CLIP, or somewhat beyond."""
        own_low, own_high = self.arms.bounds()
        low, high = self._inverse(own_low), self._inverse(own_high)
        return (low, high) if self.sign > 0.0 else (-high, -low)

    def _inverse(self, own: Array) -> Array:
        # θ / scale / (1 - θ / scale) with θ = expit(own); quotients above 1 lie beyond every log-odds.
        ratio = self.scale * np.exp(-np.abs(own) * (own > 0)) + (self.scale - 1.0) * np.exp(
            np.minimum(own, 0.0)
        )
        bounded = np.maximum(ratio, 1e-300)
        return np.asarray(np.minimum(own, 0.0) - np.log(bounded), dtype=np.float64)

    def _own(self, z: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        remaining = 1.0 + (1.0 - self.scale) * np.exp(np.minimum(z, _EXPONENT_MAX))
        inside = remaining > 0.0
        safe = np.where(inside, remaining, 1.0)
        return z + np.log(self.scale) - np.log(safe), safe, inside

    def deviation(self, z: Array) -> Array:
        """Return the signed deviation at ``z``, clipped at ±CLIP where it is a Beta."""
        own, _, inside = self._own(self.sign * z)
        result = np.where(inside, self.arms.deviation(own), CLIP)
        return self.sign * result

    def density(self, centre: Array, offsets: Array) -> Array:
        """Return densities at ``centre + offsets``: (n_nodes, n_arms, n)."""
        result = np.empty((len(offsets), *self.scale.shape))
        for k in range(len(offsets)):
            own, slope, inside = self._own(self.sign * (centre + offsets[k]))
            log_density = self.arms.log_peak + self.arms.log_relative(own - self.arms.mode)
            result[k] = np.where(inside, np.exp(log_density) / slope, 0.0)
        return result

    def bending(self, left: Array, right: Array) -> Array:
        """Return the change of the log-density's slope times the width."""
        own_left, own_right = self._own(self.sign * left)[0], self._own(self.sign * right)[0]
        return self.arms.total * ((expit(own_right) - expit(own_left)) * self.sign * (right - left))

    def value(self, z: Array) -> Array:
        """Return the value whose maximum counts."""
        return np.asarray(expit(self.sign * z), dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class GaussianArms:
    """Gaussian posteriors in their own unit; parameters (n_arms, n_experiments)."""

    mean: Array
    sd: Array

    def take(self, columns: Index) -> Self:
        """Select (and repeat) experiments."""
        return type(self)(self.mean[:, columns], self.sd[:, columns])

    def bounds(self) -> tuple[Array, Array]:
        """Return where deviations reach -CLIP and +CLIP, or somewhat beyond."""
        return self.mean - CLIP * self.sd, self.mean + CLIP * self.sd

    def deviation(self, z: Array) -> Array:
        """Return the signed deviation at ``z``, clipped at ±CLIP where it is a Beta."""
        return (z - self.mean) / self.sd

    def density(self, centre: Array, offsets: Array) -> Array:
        """Return densities at ``centre + offsets``: (n_nodes, n_arms, n)."""
        result = np.empty((len(offsets), *self.sd.shape))
        distance = (centre - self.mean) / self.sd
        for k in range(len(offsets)):
            result[k] = np.exp(-0.5 * (distance + offsets[k] / self.sd) ** 2) / (self.sd * np.sqrt(2 * np.pi))
        return result

    def bending(self, left: Array, right: Array) -> Array:
        """Return the change of the log-density's slope times the width."""
        return np.zeros((len(self.mean), len(right - left)))

    def value(self, z: Array) -> Array:
        """Return the value whose maximum counts."""
        return z
