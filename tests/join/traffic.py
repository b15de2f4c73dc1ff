"""Seeded streams that visit every rule of the join and every kind of bad record."""

import itertools
import random
import zlib
from collections.abc import Iterator

from streams.events import Conversion, Exposure, encode_event, event_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Feature, Guardrail, Reward
from streams.join.step import Limits, SourceRecord
from tests.join.partition import HOUR

DAY = 24 * HOUR
START = 480_000 * HOUR
LIMITS = Limits(n_partitions=1, grace_ms=9 * HOUR, max_ahead_ms=300_000, unit_max_events=10_000)
WINDOWS = (HOUR // 2, 2 * HOUR, 5 * HOUR + 1, 30 * HOUR)
REWARDS = (
    Reward(metric="signup"),
    Reward(metric="click", kind="click"),
    Reward(metric="signup", kind="conversion_after_click", click_metric="click"),
    Reward(metric="revenue", kind="value", cap=7.25),
)
FEATURES = (
    Feature(name="device", levels=("mobile", "desktop")),
    Feature(name="country", levels=("DE", "a|b=c%")),
)


def experiments(rng: random.Random) -> list[ExperimentRecord]:
    """Return one experiment for every reward, trial window and touch, each with versions that change all."""
    kinds = list(itertools.product(REWARDS, ("hour", "experiment", "exposure"), ("last", "first", "all")))
    found = []
    for number, kind in enumerate(kinds):
        versions = []
        for version, (reward, trial_window, touch) in enumerate(
            (kind, rng.choice(kinds), rng.choice(kinds)), 1
        ):
            guardrails = [Guardrail(reward=other) for other in REWARDS if other.metric != reward.metric]
            versions.append(
                Counting(
                    version=version,
                    effective_from_ms=START + (version - 1) * DAY + (version > 1) * rng.randrange(DAY),
                    reward=reward,
                    guardrails=tuple(rng.sample(guardrails, rng.randrange(3))),
                    conversion_window_ms=rng.choice(WINDOWS),
                    trial_window=trial_window,  # type: ignore[arg-type]  # product() widens the literals
                    touch=touch,  # type: ignore[arg-type]  # likewise
                    features=tuple(rng.sample(FEATURES, rng.choice((0, 0, 1, 2)))),
                    count_test=rng.random() < 0.5,
                )
            )
        arms = tuple(Arm(arm_id=f"arm-{i}") for i in range(3))
        found.append(
            ExperimentRecord(
                experiment_id=f"exp-{number}",
                revision=1,
                status="live",
                arms=arms,
                control="arm-0",
                versions=tuple(versions),
            )
        )
    return found


class Traffic:
    """Events of both topics as their producers would send them, roughly in order of time.

    Parameters
    ----------
    seed
        Gives the same stream again.
    n_events, n_units, duration_ms
        Size; ``n_events`` counts good ones.
    """

    def __init__(self, seed: int, n_events: int, n_units: int, duration_ms: int = 4 * DAY) -> None:
        self.rng = random.Random(seed)
        self.experiments = experiments(self.rng)
        self.n_events = n_events
        self.n_units = n_units
        self.duration_ms = duration_ms
        self._numbers = itertools.count()
        self._shown: dict[str, list[tuple[Exposure, int]]] = {}
        self._metrics = {record.experiment_id: sorted(_metrics(record)) for record in self.experiments}

    def __iter__(self) -> Iterator[tuple[str, SourceRecord]]:
        """Yield (topic, record); offsets count up in each topic."""
        offsets = {"exposures": 0, "conversions": 0}
        earlier: list[tuple[str, bytes | None, bytes]] = []
        for number in range(self.n_events):
            now = START + self.duration_ms * number // self.n_events
            sent = [self._event(now)]
            if self.rng.random() < 0.03 and earlier:
                sent.append(self.rng.choice(earlier[-500:]))
            if self.rng.random() < 0.02:
                sent.append(self._bad(now))
            for topic, key, value in sent:
                earlier.append((topic, key, value))
                yield topic, SourceRecord(offsets[topic], key, value, now)
                offsets[topic] += 1

    def _time(self, now: int) -> int:
        draw = self.rng.random()
        if draw < 0.01:
            return max(now - self.rng.randrange(8 * HOUR, 12 * HOUR), START - HOUR)
        if draw < 0.02:
            return now + self.rng.choice((300_000, 300_001, 299_999))
        if draw < 0.06:
            return now // HOUR * HOUR - self.rng.randrange(2)
        return max(START, now - self.rng.choice((0, 0, 1, 1000, self.rng.randrange(4 * HOUR))))

    def _event(self, now: int) -> tuple[str, bytes | None, bytes]:
        unit = f"unit-{self.rng.randrange(self.n_units)}"
        event = self._conversion(unit, now) if self.rng.random() < 0.35 else self._exposure(unit, now)
        topic = "conversions" if isinstance(event, Conversion) else "exposures"
        return topic, event_key(event), encode_event(event)

    def _exposure(self, unit: str, now: int) -> Exposure:
        rng = self.rng
        # a unit meets few experiments and mostly one arm of each, so that trials have touches
        record = self.experiments[(hash_of(unit) + 7 * rng.randrange(4)) % len(self.experiments)]
        favourite = record.arms[hash_of(unit) % 3].arm_id
        is_comparison = rng.random() < 0.08
        arm = favourite if rng.random() < 0.8 else rng.choice(record.arms).arm_id
        shown = self._shown.setdefault(unit, [])
        exposure_id = f"x{rng.randrange(10)}-{next(self._numbers)}"
        if shown and rng.random() < 0.004:
            exposure_id = rng.choice(shown)[0].exposure_id
        exposure = Exposure(
            exposure_id=exposure_id,
            experiment_id=record.experiment_id,
            unit_id=unit,
            timestamp=self._time(now),
            arm_id=None if is_comparison else arm,
            group="comparison" if is_comparison else "bandit",
            reason="default:no allocation" if rng.random() < 0.05 else None,
            allocation_version=rng.choice((None, 0, 7)),
            context=rng.choice((None, {"device": "mobile"}, {"device": "fridge", "country": "a|b=c%"})),
            test=rng.random() < 0.03,
        )
        shown.append((exposure, self._window(record, exposure)))
        return exposure

    def _window(self, record: ExperimentRecord, exposure: Exposure) -> int:
        assert isinstance(exposure.timestamp, int)
        bound = [v for v in record.versions if v.effective_from_ms <= exposure.timestamp]
        return bound[-1].conversion_window_ms if bound else HOUR

    def _conversion(self, unit: str, now: int) -> Conversion:
        rng = self.rng
        shown = self._shown.get(unit, ())
        timestamp = self._time(now)
        exposure_id = experiment_id = None
        if shown and rng.random() < 0.5:
            exposure, window = rng.choice(shown[-6:])
            assert isinstance(exposure.timestamp, int)
            # the borders of its window, to the millisecond
            border = exposure.timestamp + rng.choice((0, -1, window, window - 1, rng.randrange(window)))
            timestamp = min(border, now) if now - border < 8 * HOUR else timestamp
            if rng.random() < 0.4:
                exposure_id = exposure.exposure_id if rng.random() < 0.9 else "nothing"
            if rng.random() < 0.3:
                experiment_id = exposure.experiment_id
        metric = rng.choice(("click", "click", "signup", "revenue"))
        if experiment_id is not None:
            metric = rng.choice(self._metrics[experiment_id])
        return Conversion(
            conversion_id=f"c{rng.randrange(10)}-{next(self._numbers)}",
            unit_id=unit,
            metric=metric,
            timestamp=timestamp,
            value=rng.choice((1.0, 0.0, 0.25, 3.5, 0.1)),
            experiment_id=experiment_id,
            exposure_id=exposure_id,
            test=rng.random() < 0.05,
        )

    def _bad(self, now: int) -> tuple[str, bytes | None, bytes]:
        unit = f"unit-{self.rng.randrange(self.n_units)}"
        fine = Exposure(exposure_id="bad", experiment_id="exp-0", unit_id=unit, timestamp=now, arm_id="arm-0")
        body = encode_event(fine)
        done = Conversion(conversion_id="bad", unit_id=unit, metric="click", timestamp=now)
        return self.rng.choice(
            (
                ("exposures", event_key(fine), b"{"),
                ("exposures", event_key(fine), body.replace(b'"arm-0"', b"3")),
                ("exposures", event_key(fine), body.replace(b"arm-0", b"arm-9")),
                ("exposures", event_key(fine), body.replace(b"exp-0", b"exp-none")),
                ("exposures", b"other", body),
                ("conversions", event_key(done), encode_event(done).replace(b"click", b"clack")),
                ("conversions", event_key(done), encode_event(done)[:-1] + b',"value":-1}'),
                ("conversions", None, encode_event(done).replace(b'"bad"', b'"null-%d"' % now)),
            )
        )


def hash_of(text: str) -> int:
    """Return a number that is the same in every process."""
    return zlib.crc32(text.encode())


def _metrics(record: ExperimentRecord) -> set[str]:
    rewards = [r for v in record.versions for r in (v.reward, *(g.reward for g in v.guardrails))]
    return {reward.metric for reward in rewards}
