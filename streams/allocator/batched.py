"""Batched least squares of an experiment at the end that its definition fixed. Pure.

What: before that end it is refused, with the reason; from then on it is made of what was known at the end,
so that it is the same at every later look: units whose conversion window was over by then, interval by
interval, within which the allocation did not change. Every arm against control, the level shared by all of
them.

Cost: O(hours * arms).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bandit_core.inference import batched_ols, require_independent_batches
from streams.allocator.observed import Observed
from streams.join.cells import HOUR_MS
from streams.results import Batched, Contrast, Effect

__all__ = ["batched_at_end", "batched_refusal"]

ALPHA = 0.05


def batched_refusal(
    *, ends_at_ms: int, boundary_ms: int, trial_window: str, sticky: str, by_segment: bool
) -> str | None:
    """Say why nothing may be claimed; None if something may."""
    try:
        require_independent_batches(trial_window=trial_window, sticky=sticky)
    except ValueError as error:
        return str(error)
    if by_segment:
        return "weights differ by segment, so the arms saw different kinds of units"
    if boundary_ms < ends_at_ms:
        hours = -(-(ends_at_ms - boundary_ms) // HOUR_MS)
        return f"it is good for one look, at the end fixed beforehand, which is {hours} hours away"
    return None


def batched_at_end(
    observed: Observed,
    arm_ids: Sequence[str],
    *,
    control: str,
    ends_at_ms: int,
    interval_ms: int,
    window_hours: int,
    values: bool,
    cap: float,
) -> Batched:
    """Compare every arm with control.

    Parameters
    ----------
    observed
        What was counted before the end; later hours must not be in it.
    arm_ids, control
        Arms in the order of ``observed``, and the control arm.
    ends_at_ms
        The end, epoch ms.
    interval_ms
        Between two allocations.
    window_hours
        Conversion window.
    values, cap
        Whether rewards are values, and the greatest one of a trial.
    """
    mature = observed.counts.mature(window_hours)
    hours = observed.first_hour + np.arange(mature.n_periods)
    batch = hours * HOUR_MS // interval_ms
    n, s, q = (
        _by_batch(array, batch) for array in (mature.trials, mature.totals(), mature.totals("squares"))
    )
    base = arm_ids.index(control) if control in arm_ids else None
    others = [arm for arm in range(len(arm_ids)) if arm != base and n[:, arm].sum() > 0.0]
    if base is None or not others or not n[:, base].sum() > 0.0:
        return Batched(
            ends_at_ms=ends_at_ms, refused="no two arms had units whose window was over by the end"
        )
    contrasts = []
    for arm in others:
        got = batched_ols(
            n[:, arm],
            s[:, arm],
            n[:, base],
            s[:, base],
            period=len(n),
            end_period=len(n),
            alpha=ALPHA / len(others),
            squares=(q[:, arm], q[:, base]) if values else None,
        )
        if not int(got.n_batches):
            continue  # never in one interval with control
        estimate, low, high = (float(figure) * cap for figure in (got.estimate, got.low, got.high))
        effect = Effect(estimate=estimate, low=low, high=high, claim=int(low > 0.0) - int(high < 0.0))
        contrasts.append(Contrast(arm=arm_ids[arm], other=control, effect=effect))
    refused = None if contrasts else "no arm shared an interval with control"
    return Batched(ends_at_ms=ends_at_ms, contrasts=tuple(contrasts), refused=refused)


def _by_batch(counts: NDArray[np.float64], batch: NDArray[np.intp]) -> NDArray[np.float64]:
    if not len(batch):
        return np.zeros((0, counts.shape[1]))
    starts = np.flatnonzero(np.diff(batch, prepend=batch[0] - 1))
    return np.asarray(np.add.reduceat(counts, starts, axis=0))
