"""Labels of metrics whose values come from users, and ages that grow by themselves.

What: `LabelGuard` keeps a label's set of values bounded, as Prometheus wants it; `AgeGauge` computes ages
when they are scraped, so that they grow while whoever should refresh them hangs: that is when they matter.

Cost: a set look-up an observation; O(experiments) a scrape.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["OTHER", "AgeGauge", "LabelGuard"]

OTHER = "other"


class LabelGuard:
    """Bounds a label whose values come from users: the first ``limit`` values keep their name.

    Parameters
    ----------
    limit
        Most values that are told apart, >= 1. Every further one is reported as ``other``.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit of a label is {limit}; it must be at least 1")
        self._limit = limit
        self._known: set[str] = set()

    def label(self, value: str) -> str:
        """Return ``value``, or ``other`` when the limit is reached and it is not yet known."""
        if value in self._known:
            return value
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(value)
        return value

    def knows(self, value: str) -> bool:
        """Tell whether the value has a label of its own."""
        return value in self._known

    def forget(self, value: str) -> None:
        """Free the value's place for another."""
        self._known.discard(value)


class AgeGauge(Collector):
    """Seconds since something last happened, one series an experiment, computed when it is scraped.

    Experiments beyond the guard's limit share the series ``other``, which shows the oldest of them.

    Parameters
    ----------
    name, documentation
        Full name and help text.
    guard
        Bounds the experiments.
    clock
        Seconds since the epoch.
    """

    def __init__(self, name: str, documentation: str, guard: LabelGuard, clock: Callable[[], float]) -> None:
        self._name = name
        self._documentation = documentation
        self._guard = guard
        self._clock = clock
        self._since_s: dict[str, float] = {}

    def mark(self, experiment_id: str, at_s: float | None = None) -> None:
        """Say that it happened at ``at_s`` (seconds since the epoch; now by default)."""
        self._guard.label(experiment_id)
        self._since_s[experiment_id] = self._clock() if at_s is None else at_s

    def forget(self, experiment_id: str) -> None:
        """Drop the experiment's series."""
        self._since_s.pop(experiment_id, None)

    def clear(self) -> None:
        """Drop all series."""
        self._since_s.clear()

    def describe(self) -> Iterable[Metric]:
        """Yield the empty family, so that a second registration of the name is noticed."""
        yield GaugeMetricFamily(self._name, self._documentation, labels=["experiment"])

    def collect(self) -> Iterator[Metric]:
        """Yield the ages as of now; never negative."""
        now_s = self._clock()
        ages_s: dict[str, float] = {}
        for experiment_id, since_s in list(self._since_s.items()):
            label = experiment_id if self._guard.knows(experiment_id) else OTHER
            ages_s[label] = max(ages_s.get(label, 0.0), now_s - since_s)
        family = GaugeMetricFamily(self._name, self._documentation, labels=["experiment"])
        for label, age_s in ages_s.items():
            family.add_metric([label], age_s)
        yield family
