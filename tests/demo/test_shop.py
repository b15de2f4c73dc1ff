"""The simulated world: repeatable, and with the rates it claims."""

import numpy as np
import pytest

from streams.demo.living_shop import Regret
from streams.demo.shop import Delivery, Mishaps, Shop, Visit, shop_experiments

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000 // 86_400_000 * 86_400_000
NO_MISHAPS = Mishaps(duplicate=0.0, crossover=0.0, too_late=0.0, malformed_per_hour=0)


def shop(seed: int = 1, mishaps: Mishaps = NO_MISHAPS) -> Shop:
    return Shop(
        np.random.default_rng(seed), shop_experiments(), visits_per_hour=300, n_edges=2, mishaps=mishaps
    )


def test_a_seed_gives_the_same_world() -> None:
    def history(seed: int) -> list[Visit | Delivery]:
        world = shop(seed, Mishaps())
        told: list[Visit | Delivery] = []
        for hour in range(5):
            visits = world.visits(START_MS + hour * HOUR_MS)
            for visit in visits:
                world.show("checkout-button", "grey", visit)
            told += [*visits, *world.due(START_MS + (hour + 1) * HOUR_MS)]
        return told

    assert history(1) == history(1)
    assert history(1) != history(2)


def test_visits_lie_in_their_hour_in_order_and_some_units_return() -> None:
    world = shop()
    seen: set[str] = set()
    returned = total = 0
    for hour in range(24):
        start_ms = START_MS + hour * HOUR_MS
        visits = world.visits(start_ms)
        times = [visit.timestamp_ms for visit in visits]
        assert times == sorted(times)
        assert all(start_ms <= ms < start_ms + HOUR_MS for ms in times)
        returned += sum(visit.unit_id in seen for visit in visits)
        seen |= {visit.unit_id for visit in visits}
        total += len(visits)
    assert total == pytest.approx(300 * 24, rel=0.1)
    assert returned / total == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("experiment", shop_experiments(), ids=lambda e: e.experiment_id)
def test_conversions_follow_the_true_rates_and_delays(experiment: object) -> None:
    (known,) = [e for e in shop_experiments() if e == experiment]
    n = 20_000
    for arm_id, rate in [*known.rates.items(), (None, known.base_rate)]:
        world = shop(3)
        for i in range(n):
            world.show(known.experiment_id, arm_id, Visit(START_MS, f"u-{i}", 0, "ch"))
        sent = list(world.due(2**60))
        assert abs(len(sent) / n - rate) < 5 * (rate * (1 - rate) / n) ** 0.5
        assert {delivery.metric for delivery in sent} == {known.metric}
        assert [d.deliver_ms for d in sent] == sorted(d.deliver_ms for d in sent)
        mean_ms = float(np.mean([delivery.timestamp_ms - START_MS for delivery in sent]))
        assert mean_ms == pytest.approx(known.mean_delay_ms, rel=0.15)


def test_what_is_due_is_what_is_sent_before_the_hour_ends() -> None:
    world = shop()
    for i in range(3_000):
        world.show("teaser", "story", Visit(START_MS + i, f"u-{i}", 0, "ch"))
    end_ms = START_MS + 60_000
    first = list(world.due(end_ms))
    assert first
    assert all(delivery.deliver_ms < end_ms for delivery in first)
    assert all(delivery.deliver_ms >= end_ms for delivery in world.due(2**60))


def test_mishaps_happen_as_often_as_they_are_said_to() -> None:
    mishaps = Mishaps(duplicate=0.1, crossover=0.2, too_late=0.3, malformed_per_hour=2)
    world = shop(5, mishaps)
    n = 10_000
    assert sum(world.is_duplicated() for _ in range(n)) / n == pytest.approx(0.1, abs=0.02)
    others = [world.second_arm("teaser", "story") for _ in range(n)]
    assert sum(other is not None for other in others) / n == pytest.approx(0.2, abs=0.02)
    assert set(others) == {None, "plain", "price"}
    for i in range(n):
        world.show("teaser", "story", Visit(START_MS, f"u-{i}", 0, "ch"))
    sent = list(world.due(2**60))
    late = sum(delivery.deliver_ms > delivery.timestamp_ms for delivery in sent)
    assert late / len(sent) == pytest.approx(0.3, abs=0.05)
    assert len(world.malformed()) == 2


def test_definitions_do_not_tell_the_rates() -> None:
    for experiment in shop_experiments():
        record = experiment.record(START_MS, START_MS)
        assert [arm.arm_id for arm in record.arms] == list(experiment.rates)
        assert str(max(experiment.rates.values())) not in repr(record)
        assert experiment.rates[experiment.best_arm] == max(experiment.rates.values())


def test_regret_adds_what_each_visit_lost() -> None:
    regret = Regret()
    rates = {"a": 0.1, "b": 0.2, "c": 0.3}
    regret.add(rates, "c")
    regret.add(rates, "a")
    assert regret.product == pytest.approx(0.2)
    assert regret.equal_split == pytest.approx(0.2)
    assert regret.visits == 2


@pytest.mark.parametrize(("visits", "edges"), [(0, 1), (1, 0)])
def test_an_empty_world_is_refused(visits: int, edges: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Shop(np.random.default_rng(1), (), visits_per_hour=visits, n_edges=edges, mishaps=NO_MISHAPS)
