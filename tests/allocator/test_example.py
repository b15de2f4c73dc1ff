"""The example with 12 segments and 10 arms: valid, counted by the join, and learned by one model."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streams.allocations import Allocation
from streams.allocator.compute import Job, Stamp, compute
from streams.allocator.counts_state import CountsState
from streams.allocator.inputs import gather_inputs
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.edge.table import DecisionTable
from streams.events import Exposure
from streams.experiments.changes import apply_definition
from streams.experiments.definition import ExperimentRecord
from streams.experiments.validation import parse_definitions
from streams.join.cells import Cell, CellKey, LagCounts
from streams.join.segments import segment_of
from tests.join.partition import HOUR, Partition

EXAMPLES = sorted(Path(__file__).resolve().parents[2].joinpath("examples").glob("*.yaml"))
T = 1000 * HOUR
COUNTRIES, DEVICES = ("DE", "FR", "GB", "US"), ("mobile", "desktop", "tablet")


def rate(country: str, device: str, levels: dict[str, str]) -> float:
    """Rate of a cell: 5%; phones like another headline than the others, the US another button."""
    odds = -3.0 + 0.7 * (levels["headline"] == ("number" if device == "mobile" else "question"))
    odds += 0.4 * ((levels["button"] == "learn") == (country == "US"))
    return float(1 / (1 + np.exp(-odds)))


def best(country: str, device: str) -> str:
    headline = "number" if device == "mobile" else "question"
    return f"{headline}-{'learn' if country == 'US' else 'buy'}"


def example() -> ExperimentRecord:
    path = next(path for path in EXAMPLES if path.stem == "headlines-by-segment")
    (definition,) = parse_definitions(path.read_text(encoding="utf-8"), str(path))
    return apply_definition(definition, None, now_ms=T, lead_ms=1).record


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    for definition in parse_definitions(path.read_text(encoding="utf-8"), str(path)):
        assert definition.experiment_id == path.stem


def segments() -> Iterator[tuple[str, str]]:
    yield from itertools.product(COUNTRIES, DEVICES)


def allocated(record: ExperimentRecord, trials: int, without: tuple[str, str] | None = None) -> Allocation:
    """Allocate from counts drawn from the truth, ``trials`` a cell of segment and arm."""
    rng = np.random.default_rng(7)
    state, cells = CountsState(), {}
    hour = T // HOUR
    for country, device in segments():
        segment = segment_of(record.versions[0].features, {"country": country, "device": device})
        for arm in record.arms:
            n = int(rng.binomial(trials, rate(country, device, arm.levels)))
            if (country, device) != without:
                key = CellKey(
                    record.experiment_id, 1, "steering", "signup", arm.arm_id, segment, "bandit", 0, hour
                )
                cells[key] = Cell(trials, 0, {0: LagCounts(n, n * 10**6, n * 10**12)})
    place = CountsKey(record.experiment_id, 0, hour)
    state.absorb(encode_key(place), encode_counts(place, CountsRecord(Order(0, 0, 0), cells)))
    last: Allocation | None = None
    for boundary in (hour, hour + 48):
        (made,) = compute([Job(gather_inputs(record, boundary * HOUR, state, last), Stamp(0, "interval", 0))])
        assert isinstance(made, Allocation), made
        last = made
    assert last is not None
    return last


def test_every_segment_gets_its_best_arm_and_learning_is_shared() -> None:
    record = example()
    assert len(record.arms) == 10
    silent = ("GB", "tablet")
    found = allocated(record, 300, without=silent)
    assert found.state == "trained"
    assert len(found.segments) == 5 * 4, "with `other` of both features"
    right = [
        best(country, device) == found.segment_best[f"country={country}|device={device}"]
        for country, device in segments()
    ]
    assert sum(right) >= 11, (
        "of 12; 300 trials and some 20 successes a cell say little, all cells together more"
    )
    # Nothing was seen of one segment: what others say of country and device is all that is known of it.
    assert found.segment_best["country=GB|device=tablet"] == best(*silent)


def test_unknown_levels_are_other_and_counted_and_get_weights_of_their_own() -> None:
    record = example()
    join = Partition([record])
    contexts = [{"country": "DE", "device": "mobile"}, {"country": "BR", "device": "mobile"}, {}]
    join.events(
        *[
            Exposure(
                exposure_id=f"x{number}",
                experiment_id=record.experiment_id,
                unit_id=f"u{number}",
                arm_id="plain-buy",
                timestamp=T + 1,
                context=context,
            )
            for number, context in enumerate(contexts)
        ]
    )
    assert not join.verdicts
    assert join.other_levels == {record.experiment_id: 3}, "one level, and two"
    assert {key.segment for key in join.cells() if key.view == "steering"} == {
        "country=DE|device=mobile",
        "country=other|device=mobile",
        "country=other|device=other",
    }
    table = DecisionTable(max_age_ms=1000, clock_ms=lambda: 0)
    table.set_experiment(record.experiment_id, record)
    found = msgspec.structs.replace(allocated(record, 300), version=1)
    table.set_allocation(record.experiment_id, found, 0)
    decision = table.decide(record.experiment_id, "unit", {"country": "BR", "device": "mobile"})
    assert decision.segment == "country=other|device=mobile"
    assert found.segment_best[decision.segment].startswith("number-")
