"""What the statistics say of a real shop's log, which travels with the sources and not with the wheel."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from bandit_core.counts import PeriodCounts
from bandit_core.inference import off_policy, report

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
