"""Weights by segment: from cells with segments to the arm that an edge shows."""

import msgspec
import numpy as np
import pytest

from bandit_core.policies.base import DefinitionError, Parameters
from streams.allocations import Allocation, decode_allocation, encode_allocation
from streams.allocator.compute import Computed, Job, Stamp, compute, inputs_in
from streams.allocator.contextual import Averaged, Segmented
from streams.allocator.counts_state import CountsState
from streams.allocator.inputs import gather_inputs
from streams.allocator.pool import ComputePool
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.edge.table import DecisionTable
from streams.errors import LifecycleError
from streams.experiments import lifecycle
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Factor, Feature, Policy, Reward
from streams.join.cells import Cell, CellKey, LagCounts
from streams.join.segments import segment_of

HOUR_MS = 3_600_000
HOUR = 1000
FEATURES = (
    Feature(name="device", levels=("mobile", "desktop")),
    Feature(name="country", levels=("DE", "FR")),
)
STAMP = Stamp(claim=0, trigger="interval", computed_at_ms=7)


def experiment(**fields: object) -> ExperimentRecord:
    counting = Counting(
        version=1, effective_from_ms=0, reward=Reward(metric="m", kind="click"), features=FEATURES
    )
    values: dict[str, object] = {
        "experiment_id": "e",
        "revision": 1,
        "status": "live",
        "arms": (Arm(arm_id="a"), Arm(arm_id="b")),
        "control": "a",
        "versions": (counting,),
        "policy": Policy(algorithm="contextual", comparison=0.1, holdout=0.05),
    }
    return ExperimentRecord(**(values | fields))  # type: ignore[arg-type]  # a mapping of mixed fields


def counted(rates: dict[tuple[str, str], float], trials: int = 2000) -> CountsState:
    """Per (device, arm) a rate; half of the units are from DE, half from FR."""
    state, cells = CountsState(), {}
    for (device, arm), rate in rates.items():
        for country in ("DE", "FR"):
            segment = segment_of(FEATURES, {"device": device, "country": country})
            n = round(trials * rate)
            key = CellKey("e", 1, "steering", "m", arm, segment, "bandit", 0, HOUR)
            cells[key] = Cell(trials, 0, {0: LagCounts(n, n * 10**6, n * 10**12)})
    place = CountsKey("e", 0, HOUR)
    state.absorb(encode_key(place), encode_counts(place, CountsRecord(Order(0, 0, 0), cells)))
    return state


OPPOSED = {("mobile", "a"): 0.10, ("mobile", "b"): 0.05, ("desktop", "a"): 0.05, ("desktop", "b"): 0.10}


def job(record: ExperimentRecord, state: CountsState, last: Allocation | None = None) -> Job:
    """An allocation after the first one, or after ``last``."""
    if last is None:
        (first,) = compute([Job(gather_inputs(record, HOUR * HOUR_MS, CountsState(), None), STAMP)])
        assert isinstance(first, Allocation), first
        last = first
    return Job(gather_inputs(record, (HOUR + 1) * HOUR_MS, state, last), STAMP)


def one(record: ExperimentRecord, state: CountsState, last: Allocation | None = None) -> Allocation:
    (found,) = compute([job(record, state, last)])
    assert isinstance(found, Allocation), found
    (again,) = compute([Job(inputs_in(decode_allocation(encode_allocation(found))), STAMP)])
    assert isinstance(again, Allocation)
    assert encode_allocation(again) == encode_allocation(found)
    return found


def test_every_segment_has_its_own_winner_and_the_table_their_average() -> None:
    found = one(experiment(), counted(OPPOSED))
    assert len(found.segments) == 9, "every level, and `other`, of both features"
    for country in ("DE", "FR", "other"):
        assert found.segments[f"country={country}|device=mobile"][0] > 0.95
        assert found.segments[f"country={country}|device=desktop"][1] > 0.95
    for weights in found.segments.values():
        assert sum(weights) == pytest.approx(1, abs=1e-11)
    assert [arm.assignment_weight for arm in found.arms] == pytest.approx([0.5, 0.5], abs=0.05)
    assert found.state == "trained"
    assert found.segment_best == {
        segment: max(zip(weights, "ab", strict=True))[1] for segment, weights in found.segments.items()
    }


def test_before_there_is_a_model_one_table_serves_all_segments() -> None:
    record = experiment(policy=Policy(algorithm="contextual"))
    found = one(record, CountsState())
    assert (found.state, found.segments, found.segment_best) == ("created", {}, {})
    assert [arm.weight for arm in found.arms] == [0.5, 0.5]
    # Counts that are there before the first table: it does not wait for the model.
    (first,) = compute([Job(gather_inputs(record, (HOUR + 1) * HOUR_MS, counted(OPPOSED), None), STAMP)])
    assert isinstance(first, Allocation)
    assert (first.state, first.segments) == ("created", {})
    assert first.arms[0].trials == 8000
    assert one(record, counted(OPPOSED), first).state == "trained"


def test_a_pause_keeps_the_segments_and_completing_locks_each_ones_winner() -> None:
    record = experiment(policy=Policy(algorithm="contextual"))
    state = counted(OPPOSED)
    with pytest.raises(LifecycleError, match="no model has been trained yet; name the winner"):
        lifecycle.complete(record, now_ms=0)
    live = one(record, state)
    paused_record = lifecycle.pause(record, now_ms=0)
    with pytest.raises(LifecycleError, match="of revision 1, not of 2; repeat it when the next one"):
        lifecycle.complete(paused_record, allocation=live, now_ms=0)
    paused = one(paused_record, state, live)
    assert (paused.segments, paused.segment_best) == (live.segments, live.segment_best)
    completed_record = lifecycle.complete(paused_record, allocation=paused, now_ms=0)
    assert completed_record.segment_winners is not None
    completed = one(completed_record, state, paused)
    assert (completed.status, completed.comparison, completed.holdout) == ("completed", 0.0, 0.0)
    assert completed.segment_best == live.segment_best == completed_record.segment_winners.arms
    for country in ("DE", "FR", "other"):
        assert completed.segments[f"country={country}|device=mobile"] == (1.0, 0.0)
        assert completed.segments[f"country={country}|device=desktop"] == (0.0, 1.0)
    # Also when rates turn round afterwards: locked is locked.
    turned = {(device, arm): 0.15 - rate for (device, arm), rate in OPPOSED.items()}
    assert one(completed_record, counted(turned), completed).segments == completed.segments
    for records in ((completed_record, None), (completed_record, live), (completed_record, completed)):
        check_winners(*records)
    assert lifecycle.complete(record, winner="b", now_ms=0).segment_winners is None
    assert lifecycle.clone(completed_record, "f", now_ms=0).segment_winners is None


def check_winners(record: ExperimentRecord, allocation: Allocation | None) -> None:
    """An edge shows each segment its winner, whatever it has seen of the allocations."""
    table = DecisionTable(max_age_ms=1000, clock_ms=lambda: 10**9)
    table.set_experiment("e", record)
    if allocation is not None:
        table.set_allocation("e", allocation, 0)
    for device, winner in (("mobile", "a"), ("desktop", "b")):
        for country in ("DE", "US"):
            context = {"device": device, "country": country}
            shown = [table.decide("e", f"unit-{i}", context) for i in range(20)]
            assert {(d.arm_id, d.propensity, d.reason) for d in shown} == {(winner, 1.0, "default:completed")}
            segment = f"country={'DE' if country == 'DE' else 'other'}|device={device}"
            assert {decision.segment for decision in shown} == {segment}


def test_an_edge_that_knows_the_allocation_first_shows_the_winner_too() -> None:
    record = experiment(policy=Policy(), revision=1)
    completed = one(lifecycle.complete(record, winner="b", now_ms=0), counted(OPPOSED))
    table = DecisionTable(max_age_ms=1000, clock_ms=lambda: 0)
    table.set_allocation("e", completed, 0)
    assert {table.decide("e", f"unit-{i}").arm_id for i in range(20)} == {"b"}
    table.set_experiment("e", record)
    assert {table.decide("e", f"unit-{i}").arm_id for i in range(20)} == {"b"}


def test_an_edge_sees_that_a_model_trains_and_goes_on_as_before() -> None:
    record = experiment(policy=Policy(algorithm="contextual"))
    table = DecisionTable(max_age_ms=1000, clock_ms=lambda: 0)
    table.set_experiment("e", record)
    trained = msgspec.structs.replace(one(record, counted(OPPOSED)), version=7)
    table.set_allocation("e", trained, 0)
    units = [f"unit-{i}" for i in range(100)]
    context = {"device": "mobile", "country": "DE"}
    before = [table.decide("e", unit, context) for unit in units]
    assert not table.set_allocation("e", msgspec.structs.replace(trained, state="training"), 5)
    held = table.allocation("e")
    assert held == msgspec.structs.replace(trained, state="training")
    assert table.published_ms() == {"e": 0}, "it is as old as it was"
    assert [table.decide("e", unit, context) for unit in units] == before
    assert table.ignored_allocations == 0


def test_an_edge_shows_a_unit_what_its_segment_says() -> None:
    record = experiment(policy=Policy(algorithm="contextual"))
    table = DecisionTable(max_age_ms=1000, clock_ms=lambda: 0)
    table.set_experiment("e", record)
    table.set_allocation("e", one(record, counted(OPPOSED)), 0)
    for device, best in (("mobile", "a"), ("desktop", "b")):
        shown = [
            table.decide("e", f"unit-{i}", {"device": device, "country": "DE"}).arm_id for i in range(300)
        ]
        assert shown.count(best) > 270


def test_factors_carry_over_to_arms_that_were_hardly_seen() -> None:
    factors = (Factor(name="colour", levels=("red", "green")), Factor(name="text", levels=("short", "long")))
    arms = tuple(
        Arm(arm_id=f"{colour}-{text}", levels={"colour": colour, "text": text})
        for colour in factors[0].levels
        for text in factors[1].levels
    )
    rates = {
        (device, arm.arm_id): 0.05 * (2 if "green" in arm.arm_id else 1) * (2 if "long" in arm.arm_id else 1)
        for device in ("mobile", "desktop")
        for arm in arms
        if arm.arm_id != "green-long"
    }
    found = one(experiment(arms=arms, factors=factors, control="red-short"), counted(rates))
    assert found.inputs["context"]["levels"]["green-long"] == ("green", "long")
    for country in ("DE", "FR"):
        assert max(found.segments[f"country={country}|device=mobile"]) == pytest.approx(
            found.segments[f"country={country}|device=mobile"][3]
        )


def test_an_arm_that_is_no_combination_leaves_the_others_their_factors() -> None:
    factors = (Factor(name="colour", levels=("red", "green")), Factor(name="text", levels=("short", "long")))
    arms = tuple(
        Arm(arm_id=f"{colour}-{text}", levels={"colour": colour, "text": text})
        for colour in factors[0].levels
        for text in factors[1].levels
    )
    alone = (
        Arm(arm_id="free", content="x"),
        Arm(arm_id="old", status="stopped", levels={"size": "s"}),
        Arm(arm_id="extra", content="y"),
    )
    effects = {"red-short": 0.05, "red-long": 0.1, "green-short": 0.1, "free": 0.04, "old": 0.03}
    rates = {(device, arm_id): rate for device in ("mobile", "desktop") for arm_id, rate in effects.items()}
    found = one(experiment(arms=(*arms, *alone), factors=factors, control="red-short"), counted(rates))
    levels = found.inputs["context"]["levels"]
    assert {levels[arm_id] for arm_id in ("free", "old", "extra")} == {("", "")}
    assert set(found.segment_best.values()) == {"green-long"}, "never seen, and known by its levels"
    assert {weights[5] for weights in found.segments.values()} == {0.0}


@pytest.mark.parametrize(
    ("parameters", "is_told_apart"),
    [({}, True), ({"interactions": [["device", "arm"]]}, True), ({"interactions": []}, False)],
)
def test_only_chosen_interactions_have_effects(parameters: dict[str, object], is_told_apart: bool) -> None:
    policy = Policy(algorithm="contextual", parameters=parameters)
    found = one(experiment(policy=policy), counted(OPPOSED))
    for device, best in (("mobile", 0), ("desktop", 1)):
        weight = found.segments[f"country=DE|device={device}"][best]
        assert (weight > 0.9) is is_told_apart, weight


@pytest.mark.parametrize(("interval_days", "is_misled"), [(0, True), (1, False)])
def test_days_have_effects_of_their_own_where_wanted(interval_days: int, is_misled: bool) -> None:
    """Equal arms; the day on which most saw b was a better one for both."""
    state = CountsState()
    for bucket, rate, trials in ((HOUR - 24, 0.05, (4000, 500)), (HOUR, 0.15, (500, 4000))):
        cells = {}
        for arm, n in zip("ab", trials, strict=True):
            for segment in ("country=DE|device=mobile", "country=FR|device=desktop"):
                key = CellKey("e", 1, "steering", "m", arm, segment, "bandit", 0, bucket)
                won = round(n * rate)
                cells[key] = Cell(n, 0, {0: LagCounts(won, won * 10**6, won * 10**12)})
        place = CountsKey("e", 0, bucket)
        state.absorb(encode_key(place), encode_counts(place, CountsRecord(Order(0, 0, 0), cells)))
    policy = Policy(algorithm="contextual", parameters={"interval_days": interval_days})
    found = one(experiment(policy=policy), state)
    assert len(found.inputs["context"]["days"]) == (interval_days + 1 if interval_days else 0)
    weight = found.segments["country=DE|device=mobile"][1]
    assert (weight > 0.97) is is_misled, weight


@pytest.mark.parametrize("mode", ["laplace", "gibbs"])
def test_an_allocation_says_how_far_its_model_can_be_trusted(mode: str) -> None:
    policy = Policy(algorithm="contextual", parameters={"mode": mode})
    found = one(experiment(policy=policy), counted(OPPOSED, trials=200))
    assert found.model_fit.keys() == {"r_hat", "ess"}
    assert 0.99 < found.model_fit["r_hat"] < 1.05
    assert found.model_fit["ess"] > 100
    assert not [text for text in found.warnings if "chains" in text]


def test_chains_that_have_not_settled_are_told() -> None:
    settled = Segmented({}, {}, np.ones(2), {"r_hat": 1.01, "ess": 400.0})
    assert settled.warnings() == ()
    for fit in ({"r_hat": 1.2, "ess": 400.0}, {"r_hat": 1.0, "ess": 20.0}):
        (said,) = settled._replace(fit=fit).warnings()
        assert f"R-hat {fit['r_hat']:.3f}" in said


def test_a_stopped_arm_has_no_weight_in_any_segment() -> None:
    arms = (Arm(arm_id="a"), Arm(arm_id="b"), Arm(arm_id="c", status="stopped"))
    found = one(experiment(arms=arms), counted(OPPOSED))
    assert {weights[2] for weights in found.segments.values()} == {0.0}


def test_an_average_is_made_of_no_definition() -> None:
    with pytest.raises(DefinitionError, match="an average of segments has no parameters"):
        Averaged.from_parameters(Parameters({}, "policy"))


async def test_models_are_fitted_in_another_process_with_the_same_bytes() -> None:
    pool = ComputePool(max_workers=1)
    try:
        work = [job(experiment(), counted(OPPOSED))]
        (found,) = await pool.compute(work)
        assert pool.started
        (here,) = compute(work)
        assert isinstance(found, Computed)
        assert isinstance(here, Allocation)
        assert found.raw == encode_allocation(here)
    finally:
        pool.close()
