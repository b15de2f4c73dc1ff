"""Definitions compiled for the join: what an exposure binds to, and what a conversion may credit.

:class:`Definitions` is the join's view of the topic ``experiments``. Its owner tells it of changes (``put``,
``remove``, or ``sync`` with a whole snapshot); looking up is one dictionary access. Compiling an experiment
is O(versions x (metrics + feature levels)).

A version that counted once must go on counting the same way: what has been counted for a unit is computed
again from the unit's events when new ones arrive, and subtracted. So a record that changes a version already
seen here is refused with :class:`StateCorrupt` instead of silently counting half of a unit in one way and
half in another.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from streams.errors import Retry, StateCorrupt
from streams.experiments.definition import Counting, ExperimentRecord, Reward
from streams.join.cells import HOUR_MS, NEVER_MS
from streams.join.segments import Segmenter

MICRO: Final = 1_000_000
_MAX_MICROS: Final = 2**63 - 1
PLAIN: Final = ""
"""Role of a metric whose conversions need no earlier click."""


class MissingDefinition(Retry):
    """A unit's event is bound to an experiment or a version that the definitions do not hold (yet).

    Parameters
    ----------
    experiment_id, version
        What is missing; None for the experiment as a whole.
    """

    def __init__(self, experiment_id: str, version: int | None = None) -> None:
        what = f"experiment {experiment_id!r}" if version is None else f"its version {version}"
        super().__init__(
            f"a unit's state was bound to {what}, which is not among the definitions",
            where=f"experiment {experiment_id!r}",
            action="read the topic experiments to its end; if it is not there, restore the record",
        )
        self.experiment_id = experiment_id
        self.version = version


MetricState = Literal["live", "archived", "draft", "unknown"]


class RewardPlan:
    """One metric of a version: what a trial may earn by it.

    Attributes
    ----------
    metric : str
    cap_micros : int
        Most that one trial earns, in micro-units; 1,000,000 for rate kinds. At most 2**63 - 1.
    click_metric : str
        Metric that must come first on the trial; ``PLAIN`` if none must.
    """

    __slots__ = ("cap_micros", "click_metric", "metric")

    def __init__(self, reward: Reward) -> None:
        self.metric = reward.metric
        cap = round(reward.cap * MICRO) if reward.kind == "value" else MICRO
        self.cap_micros = min(cap, _MAX_MICROS)
        self.click_metric = PLAIN
        if reward.kind == "conversion_after_click" and reward.click_metric is not None:
            self.click_metric = reward.click_metric


class VersionPlan:
    """One counting version, ready for use.

    Attributes
    ----------
    rewards : tuple of RewardPlan
        Decision metric first, then guardrails; of two rewards of one metric the first counts.
    roles : dict
        Metric -> ``PLAIN`` or the click metric that gates it, for every metric that the version names: its
        rewards' and their click metrics. A click metric is never gated itself.
    """

    __slots__ = (
        "caps",
        "count_test",
        "counting",
        "effective_from_ms",
        "has_features",
        "metrics",
        "rewards",
        "roles",
        "segmenter",
        "touch",
        "trial_window",
        "version",
        "window_ms",
    )

    def __init__(self, counting: Counting) -> None:
        self.counting = counting
        self.version = counting.version
        self.effective_from_ms = counting.effective_from_ms
        self.window_ms = counting.conversion_window_ms
        self.trial_window = counting.trial_window
        self.touch = counting.touch
        self.count_test = counting.count_test
        self.has_features = bool(counting.features)
        self.segmenter = Segmenter(counting.features)
        rewards: dict[str, RewardPlan] = {}
        for reward in (counting.reward, *(guardrail.reward for guardrail in counting.guardrails)):
            rewards.setdefault(reward.metric, RewardPlan(reward))
        self.rewards = tuple(rewards.values())
        self.metrics = tuple(rewards)
        self.caps = {plan.metric: plan.cap_micros for plan in self.rewards}
        self.roles = {plan.metric: plan.click_metric for plan in self.rewards}
        for plan in self.rewards:
            if plan.click_metric != PLAIN:
                self.roles[plan.click_metric] = PLAIN

    def trial_span_ms(self, timestamp_ms: int) -> tuple[int, int]:
        """Interval, open at its end, in which a trial begins that an exposure of this time can join."""
        if self.trial_window == "hour":
            start_ms = timestamp_ms - timestamp_ms % HOUR_MS
            return start_ms, start_ms + HOUR_MS
        return (0, NEVER_MS) if self.trial_window == "experiment" else (0, 0)


class VersionPlans(dict[int, VersionPlan]):
    """Version number -> plan; a number that is not there raises :class:`MissingDefinition`.

    Parameters
    ----------
    experiment_id
        For the error.
    versions
        All versions.
    """

    __slots__ = ("_experiment_id",)

    def __init__(self, experiment_id: str, versions: Iterable[VersionPlan]) -> None:
        super().__init__((version.version, version) for version in versions)
        self._experiment_id = experiment_id

    def __missing__(self, number: int) -> VersionPlan:
        raise MissingDefinition(self._experiment_id, number)


class ExperimentPlan:
    """One experiment, ready for use.

    Attributes
    ----------
    arms : dict
        Arm id -> the same string, so that equal ids are one object.
    is_live, is_archived : bool
        Whether it counts (running, paused or completed); whether it is over for good; a draft is neither.
    by_number : VersionPlans
        Version number -> plan.
    newest : VersionPlan
        The version effective last.
    max_window_ms : int
        Longest conversion window of all versions.
    metrics : frozenset of str
        Metrics that any version names.
    """

    __slots__ = (
        "arms",
        "by_number",
        "effective_from_ms",
        "experiment_id",
        "has_gates",
        "is_archived",
        "is_live",
        "max_window_ms",
        "metrics",
        "newest",
        "record",
        "test_metrics",
        "versions",
    )

    def __init__(self, record: ExperimentRecord) -> None:
        self.record = record
        self.experiment_id = record.experiment_id
        self.is_archived = record.status == "archived"
        self.is_live = record.status not in ("draft", "archived")
        self.arms: dict[str | None, str] = {arm.arm_id: arm.arm_id for arm in record.arms}
        ordered = sorted(record.versions, key=lambda v: (v.effective_from_ms, v.version))
        self.versions = tuple(VersionPlan(counting) for counting in ordered)
        self.effective_from_ms = [plan.effective_from_ms for plan in self.versions]
        self.by_number = VersionPlans(record.experiment_id, self.versions)
        if len(self.by_number) != len(self.versions) or not self.versions:
            raise StateCorrupt(
                f"experiment {record.experiment_id!r} has {len(self.versions)} versions with "
                f"{len(self.by_number)} different numbers",
                where="topic experiments",
                action="write a correct record of the experiment with `bandit-streams experiments apply`",
            )
        self.newest = self.versions[-1]
        self.max_window_ms = max(plan.window_ms for plan in self.versions)
        self.metrics = frozenset(metric for plan in self.versions for metric in plan.roles)
        self.test_metrics = frozenset(
            metric for plan in self.versions if plan.count_test for metric in plan.roles
        )
        self.has_gates = any(gate != PLAIN for plan in self.versions for gate in plan.roles.values())

    @property
    def state(self) -> MetricState:
        """What a metric named by this experiment only is worth."""
        return "live" if self.is_live else "archived" if self.is_archived else "draft"

    def version_at(self, timestamp_ms: int) -> VersionPlan | None:
        """Version that an exposure of this time binds to; None before the first."""
        if timestamp_ms >= self.newest.effective_from_ms:
            return self.newest
        index = bisect_right(self.effective_from_ms, timestamp_ms)
        return self.versions[index - 1] if index else None


class Definitions:
    """All experiments known to a worker.

    Parameters
    ----------
    records
        Experiments to begin with.
    """

    __slots__ = ("_metrics", "_test_metrics", "plans")

    def __init__(self, records: Iterable[ExperimentRecord] = ()) -> None:
        self.plans: dict[str, ExperimentPlan] = {}
        self._metrics: dict[str, Counter[MetricState]] = {}
        self._test_metrics: Counter[str] = Counter()
        for record in records:
            self.put(record)

    def put(self, record: ExperimentRecord) -> None:
        """Add an experiment, or replace it by a newer record.

        Raises
        ------
        StateCorrupt
            If the record changes or drops a version that the previous one had, unless that was a draft.
        """
        plan = ExperimentPlan(record)
        old = self.plans.get(record.experiment_id)
        if old is not None:
            if old.record is record:
                return
            for number, version in ({} if old.state == "draft" else old.by_number).items():
                kept = plan.by_number.get(number)
                if kept is None or kept.counting != version.counting:
                    raise StateCorrupt(
                        f"experiment {record.experiment_id!r}, revision {record.revision}: version {number} "
                        f"{'is gone' if kept is None else 'differs from what it was'}",
                        where="topic experiments",
                        action="restore the version as it was and put the change into a new version",
                    )
            self.remove(record.experiment_id)
        self.plans[record.experiment_id] = plan
        for metric in plan.metrics:
            self._metrics.setdefault(metric, Counter())[plan.state] += 1
        if plan.state == "live":
            self._test_metrics.update(plan.test_metrics)

    def remove(self, experiment_id: str) -> None:
        """Forget an experiment; its units are treated as those of an archived one."""
        plan = self.plans.pop(experiment_id, None)
        if plan is None:
            return
        for metric in plan.metrics:
            states = self._metrics[metric]
            states[plan.state] -= 1
            if not states.total():
                del self._metrics[metric]
        if plan.state == "live":
            self._test_metrics.subtract(plan.test_metrics)

    def sync(self, catalog: Mapping[str, ExperimentRecord]) -> None:
        """Make this equal to a snapshot; O(experiments), and compiles only records that are new objects."""
        for experiment_id in self.plans.keys() - catalog.keys():
            self.remove(experiment_id)
        for record in catalog.values():
            self.put(record)

    def metric_state(self, metric: str) -> MetricState:
        """Whether any experiment names a metric: the liveliest state among those that do."""
        states = self._metrics.get(metric)
        if states is None:
            return "unknown"
        return "live" if states["live"] else "archived" if states["archived"] else "draft"

    def counts_test(self, metric: str) -> bool:
        """Whether a version of any live experiment counts test conversions of a metric."""
        return self._test_metrics[metric] > 0
