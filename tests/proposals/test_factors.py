"""Proposals of the factor model, from allocations as the allocator computes them."""

import itertools
from typing import Any

import msgspec
import pytest

from streams.allocations import Allocation, decode_allocation, encode_allocation
from streams.allocator.compute import Job, Stamp, compute
from streams.allocator.counts_state import CountsState
from streams.allocator.inputs import gather_inputs
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.experiments.definition import (
    Arm,
    Counting,
    ExperimentRecord,
    Factor,
    Feature,
    Policy,
    Proposal,
    Reward,
)
from streams.join.cells import Cell, CellKey, LagCounts
from streams.join.segments import segment_of
from streams.proposals.factors import propose_combination_of, untested, weakest

HOUR_MS = 3_600_000
HOUR = 1000
COLOURS, TEXTS = ("red", "green", "blue"), ("short", "long")
FACTORS = (Factor(name="colour", levels=COLOURS), Factor(name="text", levels=TEXTS))
FEATURES = (Feature(name="device", levels=("mobile", "desktop")),)
EFFECT = {"red": 1.0, "green": 2.0, "blue": 1.0, "short": 1.0, "long": 2.0}


def arm(colour: str, text: str) -> Arm:
    return Arm(arm_id=f"{colour}-{text}", levels={"colour": colour, "text": text})


def experiment(*without: str, **fields: Any) -> ExperimentRecord:
    arms = tuple(arm(*levels) for levels in itertools.product(COLOURS, TEXTS))
    features = fields.pop("features", ())
    reward = fields.pop("reward", Reward(metric="m", kind="click"))
    given: dict[str, Any] = {
        "experiment_id": "e",
        "revision": 1,
        "status": "live",
        "arms": tuple(each for each in arms if each.arm_id not in without),
        "control": "red-short",
        "factors": FACTORS,
        "versions": (Counting(version=1, effective_from_ms=0, reward=reward, features=features),),
    }
    return ExperimentRecord(**(given | fields))


def allocated(record: ExperimentRecord, trials: int = 2000) -> Allocation:
    """Each arm's rate is 5% times the effects of its levels; the same in all segments."""
    state, cells = CountsState(), {}
    for each, device in itertools.product(record.arms, ("mobile", "desktop")):
        segment = segment_of(record.versions[0].features, {"device": device})
        rate = 0.05
        for level in each.levels.values():
            rate *= EFFECT[level]
        n = round(trials * rate)
        key = CellKey("e", 1, "steering", "m", each.arm_id, segment, "bandit", int(device == "mobile"), HOUR)
        cells[key] = Cell(trials, 0, {0: LagCounts(n, n * 10**6, n * 10**12)})
    place = CountsKey("e", 0, HOUR)
    state.absorb(encode_key(place), encode_counts(place, CountsRecord(Order(0, 0, 0), cells)))
    last: Allocation | None = None
    for hour in (HOUR, HOUR + 200):
        (made,) = compute([Job(gather_inputs(record, hour * HOUR_MS, state, last), Stamp(0, "interval", 0))])
        assert isinstance(made, Allocation), made
        last = decode_allocation(encode_allocation(made))
    assert last is not None
    return last


@pytest.mark.parametrize("algorithm", ["thompson", "contextual"])
def test_the_untested_combination_of_the_best_levels_is_proposed(algorithm: str) -> None:
    features = FEATURES if algorithm == "contextual" else ()
    record = experiment("green-long", "blue-long", features=features, policy=Policy(algorithm=algorithm))
    allocation = allocated(record)
    assert ("context" in allocation.inputs and allocation.inputs["context"] is not None) is bool(features)
    found = propose_combination_of(record, allocation, "blue-short")
    assert found is not None
    assert (found.source, found.dropped) == ("factors", "blue-short")
    assert found.levels == {"colour": "green", "text": "long"}
    assert found.probability_best is not None
    assert found.probability_better is not None
    assert found.probability_best > 0.5, "20% expected, where the best tested arm has 10%"
    assert found.probability_better > 0.95
    assert found.mean == pytest.approx(0.18, abs=0.06)
    assert propose_combination_of(record, allocation, "blue-short") == found, "the same, whoever computes it"


def test_what_was_proposed_or_dropped_is_not_proposed_again() -> None:
    record = experiment("green-long", "blue-long")
    allocation = allocated(record)
    pending = Proposal(source="factors", proposal_id="p1", levels={"colour": "green", "text": "long"})
    second = propose_combination_of(
        msgspec.structs.replace(record, proposals=(pending,)), allocation, "blue-short"
    )
    assert second is not None
    assert second.levels == {"colour": "blue", "text": "long"}
    assert second.probability_best is not None
    assert second.probability_best < 0.3, "of all combinations, the pending one included"
    both = (pending, msgspec.structs.replace(second, proposal_id="p2", status="rejected"))
    full = msgspec.structs.replace(record, proposals=both)
    assert untested(full) == []
    assert propose_combination_of(full, allocation, "blue-short") is None


def test_lower_is_better_and_means_are_in_the_metrics_unit() -> None:
    reward = Reward(metric="m", kind="value", cap=10.0, lower_is_better=True)
    record = experiment("red-short", "blue-long", control="red-long", reward=reward)
    allocation = allocated(record)
    found = propose_combination_of(record, allocation, "green-long")
    assert found is not None
    assert found.levels == {"colour": "red", "text": "short"}
    assert found.probability_better is not None
    assert found.probability_better > 0.95
    assert found.mean == pytest.approx(0.05, abs=0.04), "values of 1 in 5% of trials"


def test_arms_that_are_no_combination_have_no_part_in_it() -> None:
    record = experiment("green-long")
    free = Arm(arm_id="free", content="text")
    record = msgspec.structs.replace(record, arms=(*record.arms, free))
    allocation = allocated(record)
    found = propose_combination_of(record, allocation, "free")
    assert found is not None
    assert (found.dropped, found.levels) == ("free", {"colour": "green", "text": "long"})
    assert propose_combination_of(msgspec.structs.replace(record, factors=()), allocation, "free") is None


def test_versions_of_an_arm_are_one_combination() -> None:
    record = experiment("green-long")
    again = msgspec.structs.replace(arm("red", "short"), arm_id="red-short@2")
    record = msgspec.structs.replace(record, arms=(*record.arms, again))
    found = propose_combination_of(record, allocated(record), "red-short@2")
    assert found is not None
    assert found.levels == {"colour": "green", "text": "long"}


def test_the_weakest_arm_is_never_control() -> None:
    record = experiment()
    allocation = allocated(record)
    name = weakest(record, allocation)
    assert name is not None
    chances = {each.arm_id: each.probability_best for each in allocation.arms if each.arm_id != "red-short"}
    assert chances[name] == min(chances.values())
    only = msgspec.structs.replace(allocation, arms=allocation.arms[:1])
    assert weakest(record, only) is None
