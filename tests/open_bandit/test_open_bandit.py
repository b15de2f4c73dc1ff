"""What the statistics say of a real shop's log, which travels with the sources and not with the wheel."""

import csv
import gzip
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from bandit_core.counts import PeriodCounts
from bandit_core.inference import off_policy, report
from streams.allocator.logged import decode_logged
from streams.allocator.observed import Observation
from streams.allocator.reporting import ResultsJob, make_results
from streams.counts import CountsKey, CountsRecord, Order, encode_counts, encode_key
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Reward
from streams.join.cells import HOUR_MS, Cell, CellKey, LagCounts

DATA = Path(__file__).parents[2] / "data"


def test_the_uniform_policy_s_click_rate_from_the_thompson_log_of_a_real_shop() -> None:
    def read(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        clicks = np.array([float(row["click"]) for row in rows])
        propensity = np.array([float(row["propensity_score"]) for row in rows])
        return clicks, propensity, [row["timestamp"][:13] for row in rows]

    clicks, propensity, hours = read("open_bandit_men_bts.csv.gz")
    random_clicks, random_propensity, _ = read("open_bandit_men_random.csv.gz")
    assert random_propensity == pytest.approx(np.full(len(random_propensity), 1 / 34), rel=1e-3)
    got = off_policy(clicks, propensity, np.full(len(clicks), 1 / 34), np.array(hours))
    assert got.low <= random_clicks.mean() <= got.high
    assert got.n_clusters > 100
    assert got.effective_rows < len(clicks)


def test_forty_six_clicks_conclude_nothing() -> None:
    with gzip.open(DATA / "open_bandit_men_random.csv.gz", "rt", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    hours = sorted({row["timestamp"][:13] for row in rows})
    trials, successes = np.zeros((len(hours), 34)), np.zeros((len(hours), 34))
    for row in rows:
        t, arm = hours.index(row["timestamp"][:13]), int(row["item_id"])
        trials[t, arm] += 1
        successes[t, arm] += int(row["click"])
    counts = PeriodCounts.of(trials, successes)
    got = report(counts, propensities=np.full(trials.shape, 1 / 34), control=0, window_periods=0)
    assert successes.sum() == 46
    assert got.winner is None
    assert all(contrast.claim == 0 for contrast in got.contrasts)
    assert not got.stop.safe
    assert not got.sample_ratio_alarm


def test_results_give_the_same_estimate_from_counts_and_logged_allocations() -> None:
    """The Thompson log as the product would have it: each row an allocation, its hour a counts record."""
    with gzip.open(DATA / "open_bandit_men_bts.csv.gz", "rt", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    arms = [str(i) for i in range(34)]
    log, cells = {}, dict[int, dict[CellKey, Cell]]()
    hours = [int(datetime.fromisoformat(row["timestamp"]).timestamp()) // 3600 for row in rows]
    for version, (row, hour) in enumerate(zip(rows, hours, strict=True)):
        # The log tells the chance of the arm that was shown; what is left is shared by the others.
        shown = float(row["propensity_score"])
        chances = dict.fromkeys(arms, (1.0 - shown) / 33) | {row["item_id"]: shown}
        table = {"boundary_ms": hour * HOUR_MS, "control": "0", "comparison": 0.0, "holdout": 0.0}
        each = [
            {"arm_id": arm, "weight": p, "assignment_weight": p, "selection_probability": p}
            for arm, p in chances.items()
        ]
        log[version] = decode_logged(json.dumps(table | {"arms": each}).encode())
        key = CellKey("men", 1, "reporting", "click", row["item_id"], "", "bandit", version, hour)
        lags = {0: LagCounts(1, 10**6, 10**12)} if row["click"] == "1" else {}
        cells.setdefault(hour, {})[key] = Cell(1, 0, lags)
    observation = Observation()
    for hour, counted in cells.items():
        place = CountsKey("men", 0, hour)
        observation.absorb(encode_key(place), encode_counts(place, CountsRecord(Order(0, 0, hour), counted)))
    reward = Reward(metric="click", kind="click")
    counting = Counting(version=1, effective_from_ms=0, reward=reward, conversion_window_ms=HOUR_MS)
    record = ExperimentRecord(
        experiment_id="men",
        revision=1,
        status="live",
        arms=tuple(Arm(arm_id=arm) for arm in arms),
        control="0",
        versions=(counting,),
    )
    end_ms = (max(hours) + 2) * HOUR_MS
    found = make_results(ResultsJob(record, counting, observation.records(), log, None, end_ms, 0)).inference
    assert found is not None
    assert found.off_policy is not None
    uniform = found.off_policy.values[0]
    assert (uniform.policy, uniform.units) == ("uniform", 10_000)
    assert uniform.snips is not None
    direct = off_policy(
        [float(row["click"]) for row in rows],
        [float(row["propensity_score"]) for row in rows],
        np.full(len(rows), 1 / 34),
        hours,
    )
    assert uniform.snips.estimate == pytest.approx(direct.estimate)
    assert (uniform.snips.low, uniform.snips.high) == pytest.approx((direct.low, direct.high))
    assert uniform.effective_units == pytest.approx(direct.effective_rows)
    assert uniform.snips.low < 46 / 10_000 < uniform.snips.high, "the random log's own click rate"
