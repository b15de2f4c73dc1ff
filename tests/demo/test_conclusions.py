"""What is concluded from counts, on tables that can be checked by hand."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from streams.demo.conclusions import Arm, Conclusions, conclude, sentences


def arms(*rows: tuple[int, int], best: int = 0) -> list[Arm]:
    return [
        Arm(f"{i}", trials, clicks, 0.0, 0.0, 1.0, 0.9 if i == best else 0.1 / len(rows))
        for i, (trials, clicks) in enumerate(rows)
    ]


def concluded(*rows: tuple[int, int]) -> Conclusions:
    return conclude(arms(*rows), np.random.default_rng(1))


@pytest.mark.parametrize("rows", [((10, 7), (10, 2)), ((20, 5), (10, 5)), ((50, 3), (50, 3))])
def test_for_two_arms_the_permutation_test_is_fishers(rows: tuple[tuple[int, int], ...]) -> None:
    (n0, k0), (n1, k1) = rows
    exact = float(fisher_exact(np.array([[k0, n0 - k0], [k1, n1 - k1]])).pvalue)
    assert concluded(*rows).p_equal == pytest.approx(exact, abs=0.03)


def test_arms_that_differ_plainly_are_told_apart_and_equal_ones_are_not() -> None:
    assert concluded((1000, 10), (1000, 100)).p_equal < 0.001
    assert concluded((1000, 50), (1000, 50)).p_equal == 1.0


def test_under_the_null_the_p_value_is_uniform() -> None:
    rng = np.random.default_rng(4)
    found = []
    for _ in range(200):
        clicks = rng.binomial(300, 0.02, size=8)
        found.append(conclude(arms(*[(300, int(k)) for k in clicks]), rng).p_equal)
    assert 0.0 <= np.mean(np.array(found) < 0.05) <= 0.10
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)


def test_trials_needed_is_the_textbook_figure() -> None:
    # 10% against 12%, two-sided 5%, 80% power: 3,841 a group.
    assert concluded((500, 50), (500, 50)).trials_needed == pytest.approx(3841, abs=2)


def test_totals_rate_and_overlap_are_counted() -> None:
    rows = [
        Arm("a", 100, 10, 0.1, 0.05, 0.17, 0.8),
        Arm("b", 100, 2, 0.02, 0.01, 0.06, 0.15),
        Arm("c", 100, 0, 0.01, 0.0, 0.04, 0.05),
    ]
    found = conclude(rows, np.random.default_rng(1))
    assert (found.trials, found.clicks) == (300, 12)
    assert found.rate == pytest.approx(0.04)
    assert (found.best.arm_id, found.n_overlapping) == ("a", 1)
    assert found.detectable_rate > found.rate


def test_sentences_hold_back_when_the_data_do() -> None:
    text = " ".join(sentences(concluded((300, 3), (300, 2)), 2))
    assert "do not show that the arms differ" in text
    assert "guessing" in text
    text = " ".join(sentences(concluded((1000, 100), (1000, 10)), 2))
    assert "there is evidence that the arms differ" in text


def test_an_arm_that_leads_for_want_of_data_is_called_that() -> None:
    text = " ".join(sentences(conclude(arms((3, 0), (1000, 5), (1000, 5)), np.random.default_rng(1)), 3))
    assert "shown so rarely (3 times)" in text


@pytest.mark.parametrize("rows", [((10, 0), (10, 0)), ((0, 0), (0, 0))])
def test_without_clicks_nothing_is_claimed(rows: tuple[tuple[int, int], ...]) -> None:
    found = concluded(*rows)
    assert (found.p_equal, found.trials_needed) == (1.0, 0)
    assert sentences(found, 2) == ["There was no click: nothing can be said about the arms."]


def test_one_arm_is_compared_with_nothing() -> None:
    lines = sentences(concluded((100, 3)), 1)
    assert lines[-1] == "With one arm alone there is nothing to compare."


def test_no_arms_is_an_error() -> None:
    with pytest.raises(ValueError, match="none given"):
        conclude([], np.random.default_rng(1))
