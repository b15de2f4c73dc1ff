"""A shop with known conversion rates: who visits when, and who buys.

What: :class:`Shop` is the world that the product does not see. It draws the visits of each simulated hour,
and whether a visitor who was shown an arm converts, when, and what goes wrong on the way: an event sent
twice, a unit shown a second arm, a conversion that arrives after the grace period, bytes that are no event.

Why this way: it is pure. The generator of random numbers is the only source of chance, so a seed gives the
same world whatever the machine's speed; time is simulated and dated in the past, because the pipeline refuses
what is dated ahead of the broker's clock.

Cost: O(visits).
"""

import heapq
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from msgspec import Struct

from streams.experiments.definition import Arm, Counting, ExperimentRecord, Policy, Reward

__all__ = ["Delivery", "Mishaps", "Shop", "ShopExperiment", "Visit", "shop_experiments"]

HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000
COUNTRIES: Final = ("ch", "de", "at")
# Share of a day's visits in each hour, UTC: quiet nights, busy evenings; the mean is 1.
_DAY: Final = 1.0 - 0.6 * np.cos((np.arange(24) - 3.0) * 2.0 * np.pi / 24.0)


class ShopExperiment(Struct, frozen=True, kw_only=True):
    """One experiment and the truth about it.

    Attributes
    ----------
    experiment_id, title
        Names, for the pipeline and for people.
    rates
        Arm to probability that a visit converts; the first arm is control.
    base_rate
        The same for visitors who see no arm (the comparison group).
    metric
        What counts as a conversion.
    mean_delay_ms
        Mean of the exponential delay from visit to conversion.
    policy
        As in a definition.
    conversion_window_ms
        As in a definition.
    """

    experiment_id: str
    title: str
    rates: dict[str, float]
    base_rate: float
    metric: str
    mean_delay_ms: int
    policy: Policy
    conversion_window_ms: int

    @property
    def best_arm(self) -> str:
        """The arm with the greatest rate."""
        return max(self.rates, key=lambda arm_id: self.rates[arm_id])

    def record(self, effective_from_ms: int, created_at_ms: int) -> ExperimentRecord:
        """Make the definition as the pipeline gets it: without the rates."""
        arms = tuple(Arm(arm_id=arm_id) for arm_id in self.rates)
        return ExperimentRecord(
            experiment_id=self.experiment_id,
            revision=1,
            status="live",
            arms=arms,
            control=arms[0].arm_id,
            versions=(
                Counting(
                    version=1,
                    effective_from_ms=effective_from_ms,
                    reward=Reward(metric=self.metric),
                    conversion_window_ms=self.conversion_window_ms,
                ),
            ),
            policy=self.policy,
            created_at_ms=created_at_ms,
            updated_at_ms=created_at_ms,
            description=self.title,
        )


def shop_experiments() -> tuple[ShopExperiment, ...]:
    """Return the three experiments of the demo."""
    return (
        ShopExperiment(
            experiment_id="checkout-button",
            title="checkout button: three colours (Thompson sampling)",
            rates={"grey": 0.040, "green": 0.047, "orange": 0.058},
            base_rate=0.040,
            metric="order",
            mean_delay_ms=4 * MINUTE_MS,
            policy=Policy(algorithm="thompson", interval_ms=HOUR_MS),
            conversion_window_ms=24 * HOUR_MS,
        ),
        ShopExperiment(
            experiment_id="teaser",
            title="teaser: three texts (epsilon-greedy, 10% see no teaser)",
            rates={"plain": 0.100, "story": 0.130, "price": 0.112},
            base_rate=0.090,
            metric="product-view",
            mean_delay_ms=MINUTE_MS,
            policy=Policy(algorithm="epsilon_greedy", interval_ms=HOUR_MS, comparison=0.10),
            conversion_window_ms=HOUR_MS,
        ),
        ShopExperiment(
            experiment_id="shipping",
            title="free shipping: conversions come hours later (Thompson sampling)",
            rates={"paid": 0.050, "free-over-50": 0.065},
            base_rate=0.050,
            metric="delivery-paid",
            mean_delay_ms=6 * HOUR_MS,
            policy=Policy(algorithm="thompson", interval_ms=HOUR_MS),
            conversion_window_ms=48 * HOUR_MS,
        ),
    )


class Mishaps(Struct, frozen=True, kw_only=True):
    """Probabilities of what goes wrong on the way to Kafka.

    Attributes
    ----------
    duplicate
        An event is sent twice, under the same id.
    crossover
        A visitor is shown another arm minutes later.
    too_late
        A conversion is sent :attr:`too_late_ms` after it happened: after the grace period.
    malformed_per_hour
        Records an hour that are no events.
    """

    duplicate: float = 0.003
    crossover: float = 0.004
    too_late: float = 0.01
    too_late_ms: int = 30 * HOUR_MS
    malformed_per_hour: int = 1


class Visit(NamedTuple):
    """A page view; the page shows every experiment."""

    timestamp_ms: int
    unit_id: str
    edge: int
    country: str


class Delivery(NamedTuple):
    """A conversion on its way: sent at ``deliver_ms``, dated ``timestamp_ms``."""

    deliver_ms: int
    conversion_id: str
    unit_id: str
    metric: str
    timestamp_ms: int
    is_duplicated: bool


class Shop:
    """The world of the demo.

    Parameters
    ----------
    rng
        The only source of chance.
    experiments
        What the pages show.
    visits_per_hour
        Mean over the day.
    n_edges
        Edge services among which visits are spread.
    mishaps
        What goes wrong.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        experiments: tuple[ShopExperiment, ...],
        *,
        visits_per_hour: int,
        n_edges: int,
        mishaps: Mishaps,
    ) -> None:
        if visits_per_hour < 1 or n_edges < 1:
            raise ValueError(f"visits_per_hour {visits_per_hour} and n_edges {n_edges} must be at least 1")
        self._rng = rng
        self._experiments = {experiment.experiment_id: experiment for experiment in experiments}
        self._visits_per_hour = visits_per_hour
        self._n_edges = n_edges
        self._mishaps = mishaps
        self._n_units = 0
        self._n_conversions = 0
        self._deliveries: list[Delivery] = []

    def visits(self, start_ms: int) -> list[Visit]:
        """Draw the visits of the hour from ``start_ms`` on, in order of time; a third are of known units."""
        rng = self._rng
        hour_of_day = start_ms // HOUR_MS % 24
        count = int(rng.poisson(self._visits_per_hour * _DAY[hour_of_day]))
        times = np.sort(rng.integers(0, HOUR_MS, count))
        returns = rng.random(count) < 1 / 3
        known = rng.random(count)
        edges = rng.integers(0, self._n_edges, count)
        visits = []
        for offset_ms, is_return, which, edge in zip(
            times.tolist(), returns.tolist(), known.tolist(), edges.tolist(), strict=True
        ):
            if is_return and self._n_units:
                number = int(which * self._n_units)
            else:
                number = self._n_units
                self._n_units += 1
            country = COUNTRIES[number % len(COUNTRIES)]
            visits.append(Visit(start_ms + offset_ms, f"visitor-{number:07d}", edge, country))
        return visits

    def show(self, experiment_id: str, arm_id: str | None, visit: Visit) -> None:
        """Let a visitor see an arm (or none); schedules the conversion if there will be one."""
        experiment = self._experiments[experiment_id]
        rate = experiment.base_rate if arm_id is None else experiment.rates[arm_id]
        if self._rng.random() >= rate:
            return
        delay_ms = int(self._rng.exponential(experiment.mean_delay_ms)) + 1
        timestamp_ms = visit.timestamp_ms + delay_ms
        too_late = self._rng.random() < self._mishaps.too_late
        deliver_ms = timestamp_ms + (self._mishaps.too_late_ms if too_late else 0)
        self._n_conversions += 1
        heapq.heappush(
            self._deliveries,
            Delivery(
                deliver_ms,
                f"conversion-{self._n_conversions:07d}",
                visit.unit_id,
                experiment.metric,
                timestamp_ms,
                self.is_duplicated(),
            ),
        )

    def due(self, end_ms: int) -> Iterator[Delivery]:
        """Yield the conversions that are sent before ``end_ms``, in order of sending."""
        while self._deliveries and self._deliveries[0].deliver_ms < end_ms:
            yield heapq.heappop(self._deliveries)

    @property
    def is_waiting(self) -> bool:
        """Whether conversions are still under way."""
        return bool(self._deliveries)

    def is_duplicated(self) -> bool:
        """Draw whether an event is sent twice."""
        return bool(self._rng.random() < self._mishaps.duplicate)

    def second_arm(self, experiment_id: str, arm_id: str) -> str | None:
        """Draw whether a visitor is shown another arm in the same hour, and which."""
        if self._rng.random() >= self._mishaps.crossover:
            return None
        others = [other for other in self._experiments[experiment_id].rates if other != arm_id]
        return others[int(self._rng.integers(len(others)))]

    def malformed(self) -> list[tuple[str, bytes, bytes]]:
        """Return records that are no events: ``(topic, key, value)``."""
        unit = f"visitor-{int(self._rng.integers(max(1, self._n_units))):07d}"
        return [("exposures", unit.encode(), b'{"experiment_id": "checkout-button", ')] * (
            self._mishaps.malformed_per_hour
        )
