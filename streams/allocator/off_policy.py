"""What other policies would have earned, from the reporting view and the logged chances. Pure.

What: for the uniform policy, the present weights and each arm alone, the self-normalised and the doubly
robust estimate; and each arm alone less control alone. The chance of an arm is the one before any draw;
intervals are the clusters, because all units of an interval share one allocation and one draw. Units count
whose conversion window is over and whose allocation the log tells.

Where an arm of a policy had no chance, nothing is known of it: such units are left out of that policy's
estimate, their share is told, and without two intervals in which all its arms had a chance it is refused.

The doubly robust estimate's model is each arm's mean in the intervals before, drawn to the mean of all.

Cost: O(cells) for each policy; of more than 50 arms only those with most units are told.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandit_core.inference import NoOverlap, OffPolicyEstimate, off_policy, off_policy_difference
from streams.allocator.logged import Logged, propensities
from streams.allocator.observed import Observed
from streams.join.cells import HOUR_MS
from streams.results import Estimate, OffPolicy, OffPolicyContrast, OffPolicyValue

__all__ = ["Policies", "off_policy_values"]

Array = NDArray[np.float64]

ARMS_MAX = 50
MIN_CHANCE = 1e-6
PRIOR_TRIALS = 20.0  # that the mean of all is worth in an arm's prediction
METHODS: tuple[Literal["snips"], Literal["dr"]] = ("snips", "dr")
NO_CHANCE = "an arm of it had no chance in all but at most one interval"


class Policies(NamedTuple):
    """What is asked: arms with traffic now, control, the present weights, and the length of an interval."""

    eligible: Sequence[bool]
    control: int | None
    present: Sequence[float] | None
    interval_ms: int
    window_hours: int


class _Table(NamedTuple):
    """Finished units, a row a cell: arm, cluster, row of ``chances``, number and sum of rewards.

    ``chances``: of each arm, by version and segment; ``predicted``: of each arm, by cluster.
    """

    arm: NDArray[np.intp]
    cluster: NDArray[np.intp]
    row: NDArray[np.intp]
    trials: Array
    rewards: Array
    chances: Array
    predicted: Array

    def where(self, kept: NDArray[np.bool_]) -> "_Table":
        """Keep some of the rows."""
        return self._replace(
            arm=self.arm[kept],
            cluster=self.cluster[kept],
            row=self.row[kept],
            trials=self.trials[kept],
            rewards=self.rewards[kept],
        )

    @property
    def shown(self) -> Array:
        """Chance of the arm that each row's units saw."""
        return self.chances[self.row, self.arm]


def off_policy_values(
    observed: Observed, log: Mapping[int, Logged], arm_ids: Sequence[str], asked: Policies, *, cap: float
) -> OffPolicy | None:
    """Estimate what policies that did not run would have earned.

    Parameters
    ----------
    observed
        What was counted.
    log
        Allocations by version.
    arm_ids
        In the order of ``observed``.
    asked
        Which policies there are.
    cap
        Greatest reward of a trial: figures are in the metric's unit.

    Returns
    -------
    OffPolicy or None
        None if no finished unit names an allocation of the log.
    """
    table = _table(observed, log, arm_ids, asked)
    if table is None:
        return None
    units = np.bincount(table.arm, table.trials, minlength=len(arm_ids))
    told = [int(arm) for arm in np.argsort(-units, kind="stable")[:ARMS_MAX] if units[arm] > 0]
    if asked.control is not None and asked.control not in told:
        told.append(asked.control)
    told.sort()
    uniform = np.array(asked.eligible, dtype=np.float64)
    policies: list[tuple[str, str | None, Array]] = []
    if uniform.sum() > 0.0:
        policies.append(("uniform", None, uniform / uniform.sum()))
    if asked.present is not None and sum(asked.present) > 0.0:
        present = np.array(asked.present, dtype=np.float64)
        policies.append(("present", None, present / present.sum()))
    alone = np.eye(len(arm_ids))
    policies += [("arm", arm_ids[arm], alone[arm]) for arm in told]
    values = tuple(_value(table, name, arm, target, cap) for name, arm, target in policies)
    contrasts = () if asked.control is None else _contrasts(table, told, asked.control, arm_ids, cap)
    return OffPolicy(values=values, contrasts=contrasts)


def _table(
    observed: Observed, log: Mapping[int, Logged], arm_ids: Sequence[str], asked: Policies
) -> _Table | None:
    cells = observed.cells
    found = propensities(cells.version, cells.segment, log, arm_ids)
    finished = cells.hour < observed.counts.n_periods - asked.window_hours
    told = np.asarray(~np.isnan(found.before_draw).any(axis=1))
    chances = np.where(told[:, None], found.before_draw, 0.0)
    kept = finished & told[found.row] & (cells.trials > 0.0)
    kept &= chances[found.row, cells.arm] >= MIN_CHANCE
    if not kept.any():
        return None
    interval = (observed.first_hour + cells.hour) * HOUR_MS // asked.interval_ms
    _, cluster = np.unique(interval[kept], return_inverse=True)
    arm, trials, rewards = cells.arm[kept], cells.trials[kept], cells.reward[kept]
    n, s = np.zeros((2, int(cluster.max()) + 1, len(arm_ids)))
    np.add.at(n, (cluster, arm), trials)
    np.add.at(s, (cluster, arm), rewards)
    before_n, before_s = np.add.accumulate(n, axis=0) - n, np.add.accumulate(s, axis=0) - s
    overall = before_s.sum(axis=1, keepdims=True) / (before_n.sum(axis=1, keepdims=True) + 1.0)
    predicted = (before_s + PRIOR_TRIALS * overall) / (before_n + PRIOR_TRIALS)
    return _Table(arm, cluster, found.row[kept], trials, rewards, chances, predicted)


def _with_chance(table: _Table, arms: NDArray[np.bool_]) -> tuple[_Table | None, float]:
    """Rows in which all these arms had a chance, if they are of two intervals, and the others' share."""
    kept = np.asarray((table.chances[:, arms] >= MIN_CHANCE).all(axis=1))[table.row]
    left_out = float(1.0 - table.trials[kept].sum() / table.trials.sum())
    if len(np.unique(table.cluster[kept])) < 2:
        return None, left_out
    return table.where(kept), left_out


def _value(table: _Table, name: str, arm: str | None, target: Array, cap: float) -> OffPolicyValue:
    rows, left_out = _with_chance(table, target > 0.0)
    if rows is None:
        return OffPolicyValue(policy=name, arm=arm, left_out_share=left_out, refused=NO_CHANCE)
    try:
        snips, robust = (
            off_policy(
                rows.rewards,
                rows.shown,
                target[rows.arm],
                rows.cluster,
                sizes=rows.trials,
                method=method,
                predicted_logged=rows.predicted[rows.cluster, rows.arm],
                predicted_target=(rows.predicted @ target)[rows.cluster],
            )
            for method in METHODS
        )
    except NoOverlap as error:
        return OffPolicyValue(policy=name, arm=arm, left_out_share=left_out, refused=str(error))
    return OffPolicyValue(
        policy=name,
        arm=arm,
        snips=_estimate(snips, cap),
        doubly_robust=_estimate(robust, cap),
        units=snips.n_rows,
        effective_units=snips.effective_rows,
        largest_weight=snips.largest_weight,
        left_out_share=left_out,
    )


def _estimate(found: OffPolicyEstimate, cap: float) -> Estimate:
    return Estimate(estimate=found.estimate * cap, low=found.low * cap, high=found.high * cap)


def _contrasts(
    table: _Table, told: Sequence[int], control: int, arm_ids: Sequence[str], cap: float
) -> tuple[OffPolicyContrast, ...]:
    return tuple(_difference(table, arm, control, arm_ids, cap) for arm in told if arm != control)


def _difference(
    table: _Table, arm: int, control: int, arm_ids: Sequence[str], cap: float
) -> OffPolicyContrast:
    pair = np.zeros(len(arm_ids), dtype=bool)
    pair[[arm, control]] = True
    rows, _ = _with_chance(table, pair)
    difference, refused = None, "the two had a chance together in at most one interval"
    if rows is not None:
        targets = ((rows.arm == arm).astype(np.float64), (rows.arm == control).astype(np.float64))
        try:
            got = off_policy_difference(rows.rewards, rows.shown, targets, rows.cluster, sizes=rows.trials)
            difference = _estimate(got, cap)
        except NoOverlap as error:
            refused = str(error)
    return OffPolicyContrast(
        arm=arm_ids[arm],
        other=arm_ids[control],
        difference=difference,
        refused=refused if difference is None else None,
    )
