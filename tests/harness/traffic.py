"""Seeded traffic: experiments of many kinds, exposures and conversions, good, bad, doubled, late and early.

Times are laid out over simulated hours that end in the past: nothing is dated in the future by accident.
"""

import json
import random
from collections.abc import Iterator
from typing import NamedTuple

from streams.experiments.definition import (
    Arm,
    Counting,
    ExperimentRecord,
    Feature,
    Guardrail,
    Policy,
    Reward,
)
from streams.partitioning import partition_of

HOUR_MS = 3_600_000


class Sent(NamedTuple):
    """One record to produce."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None


def experiments(start_ms: int) -> list[ExperimentRecord]:
    """Four experiments over the kinds of reward, trial window and touch."""

    def record(name: str, counting: Counting, policy: Policy | None = None) -> ExperimentRecord:
        return ExperimentRecord(
            experiment_id=name,
            revision=1,
            status="live",
            arms=tuple(Arm(arm_id=arm) for arm in ("a", "b", "c")),
            control="a",
            versions=(counting,),
            policy=policy or Policy(),
        )

    since_ms = start_ms - 10 * HOUR_MS
    return [
        record(
            "display",
            Counting(
                reward=Reward(metric="order"),
                guardrails=(Guardrail(reward=Reward(metric="complaint", lower_is_better=True)),),
                conversion_window_ms=2 * HOUR_MS,
                features=(Feature(name="country", levels=("de", "fr")),),
                version=1,
                effective_from_ms=since_ms,
            ),
        ),
        record(
            "clicks",
            Counting(
                reward=Reward(metric="order", kind="conversion_after_click", click_metric="click"),
                conversion_window_ms=3 * HOUR_MS,
                trial_window="experiment",
                touch="first",
                version=1,
                effective_from_ms=since_ms,
            ),
        ),
        record(
            "revenue",
            Counting(
                reward=Reward(metric="revenue", kind="value", cap=100.0),
                conversion_window_ms=HOUR_MS,
                trial_window="exposure",
                touch="all",
                version=1,
                effective_from_ms=since_ms,
            ),
        ),
        record(
            "clicked",
            Counting(
                reward=Reward(metric="click", kind="click"),
                trial_window="hour",
                version=1,
                effective_from_ms=since_ms,
            ),
        ),
    ]


class Traffic:
    """Makes records from a seed.

    Parameters
    ----------
    seed
        Of all randomness.
    start_ms
        First simulated moment, epoch ms.
    n_partitions
        Of the source topics.
    n_units
        Units that events are about.
    bad_share
        Share of records that are poison, misplaced, unknown or doubled.
    """

    def __init__(
        self, *, seed: int, start_ms: int, n_partitions: int, n_units: int = 2000, bad_share: float = 0.05
    ) -> None:
        self._random = random.Random(seed)
        self._now_ms = start_ms
        self._n_partitions = n_partitions
        self._n_units = n_units
        self._bad_share = bad_share
        self._n = 0
        self._recent: list[Sent] = []

    def records(self, n: int, *, hours: float) -> Iterator[Sent]:
        """Yield ``n`` records whose times spread over the next ``hours``."""
        step_ms = hours * HOUR_MS / max(1, n)
        clock_ms = float(self._now_ms)
        for _ in range(n):
            clock_ms += step_ms
            self._now_ms = int(clock_ms)
            self._n += 1
            if self._random.random() < self._bad_share:
                yield self._bad()
                continue
            sent = self._good()
            self._recent.append(sent)
            del self._recent[:-500]
            yield sent

    def _good(self) -> Sent:
        pick = self._random
        unit = "u0" if pick.random() < 0.01 else f"u{pick.randrange(self._n_units)}"
        at_ms = self._now_ms - int(pick.expovariate(1 / 300_000))
        if pick.random() < 0.7:
            return self._placed("exposures", unit, self._exposure(unit, at_ms))
        return self._placed("conversions", unit, self._conversion(unit, at_ms))

    def _exposure(self, unit: str, at_ms: int) -> dict[str, object]:
        pick = self._random
        event: dict[str, object] = {
            "exposure_id": f"e{self._n}",
            "experiment_id": pick.choice(("display", "clicks", "revenue", "clicked")),
            "unit_id": unit,
            "timestamp": at_ms,
            "arm_id": pick.choice("abc"),
        }
        roll = pick.random()
        if roll < 0.1:
            event |= {"group": "comparison", "arm_id": None}
        elif roll < 0.15:
            event["reason"] = "default-stale"
        elif roll < 0.4:
            event["context"] = {"country": pick.choice(("de", "fr", "nl"))}
            event["allocation_version"] = pick.randrange(3)
        return event

    def _conversion(self, unit: str, at_ms: int) -> dict[str, object]:
        pick = self._random
        event: dict[str, object] = {
            "conversion_id": f"c{self._n}",
            "unit_id": unit,
            "metric": pick.choice(("order", "click", "click", "revenue", "complaint")),
            "timestamp": at_ms,
        }
        if event["metric"] == "revenue":
            event["value"] = round(pick.lognormvariate(3, 1), 2)
        if pick.random() < 0.1 and self._recent:
            event["exposure_id"] = f"e{pick.randrange(1, self._n + 1)}"
        return event

    def _placed(self, topic: str, unit: str, event: dict[str, object]) -> Sent:
        key = unit.encode()
        return Sent(topic, partition_of(key, self._n_partitions), key, json.dumps(event).encode())

    def _bad(self) -> Sent:
        pick = self._random
        topic = pick.choice(("exposures", "conversions"))
        anywhere = pick.randrange(self._n_partitions)
        unit = f"u{pick.randrange(self._n_units)}"
        kind = pick.randrange(8)
        if kind == 0:
            return Sent(topic, anywhere, b"x", b"{ not json")
        if kind == 1:
            return Sent(topic, anywhere, unit.encode(), None)
        if kind == 2:  # found on a wrong partition, without a key
            sent = self._good()
            return Sent(sent.topic, anywhere, None, sent.value)
        if kind == 3:
            event = self._exposure(unit, self._now_ms) | {"experiment_id": "nobody"}
            return self._placed("exposures", unit, event)
        if kind == 4:
            event = self._exposure(unit, self._now_ms) | {"arm_id": "z", "group": "bandit"}
            return self._placed("exposures", unit, event)
        if kind == 5:  # far too late for any grace that tests use
            return self._placed("conversions", unit, self._conversion(unit, self._now_ms - 900 * HOUR_MS))
        if kind == 6:
            return self._placed(
                "conversions", unit, self._conversion(unit, self._now_ms + 2_000_000 * HOUR_MS)
            )
        return pick.choice(self._recent) if self._recent else self._good()
