"""Assignment: golden vectors by an independent implementation, stability, frequencies."""

import hashlib
import json
from decimal import Decimal, getcontext
from pathlib import Path

import numpy as np
import pytest

from bandit_core.assignment import Assigner, Assignment, Group, derive_seed, uniform_hash
from bandit_core.shares import ArmStatus, Shares, ShareSettings, allocate_shares

GOLDEN = Path(__file__).parents[1] / "golden" / "assignment_v1.json"
CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]


def shares_of(
    rest: list[float], *, comparison: float = 0.0, holdout: float = 0.0, control: int | None = 0
) -> Shares:
    return allocate_shares(
        rest,
        statuses=[ArmStatus.ACTIVE if weight > 0 else ArmStatus.STOPPED for weight in rest],
        control=control,
        settings=ShareSettings(comparison=comparison, holdout=holdout),
    )


def second_implementation(case: dict[str, object]) -> tuple[str | None, str, Decimal]:
    """The recipe again, in decimals of 40 digits; and the relative margin between the two best scores."""
    getcontext().prec = 40

    def u(*parts: object) -> Decimal:
        digest = hashlib.new("sha256", b"\x1f".join(str(part).encode("utf-8") for part in parts)).hexdigest()
        return (Decimal(int(digest[:13], 16)) + Decimal("0.5")) / Decimal(2**52)

    experiment, unit = case["experiment_id"], case["unit_id"]
    if u(experiment, "comparison", unit) < Decimal(str(case["comparison"])):
        return None, "comparison", Decimal(1)
    if u(experiment, "holdout", unit) < Decimal(str(case["holdout"])):
        return str(case["control"]), "holdout", Decimal(1)
    key = [experiment, "arm", unit] + ([case["interval_id"]] if case["interval_id"] is not None else [])
    arms: dict[str, float] = case["rest"]  # type: ignore[assignment]  # JSON object of the golden file
    scores = sorted(
        (-u(*key, arm).ln() / Decimal(str(weight)), arm.encode(), arm)
        for arm, weight in arms.items()
        if weight > 0
    )
    margin = (scores[1][0] - scores[0][0]) / scores[1][0] if len(scores) > 1 else Decimal(1)
    return scores[0][2], "bandit", margin


def assign(case: dict[str, object]) -> Assignment:
    arms: dict[str, float] = case["rest"]  # type: ignore[assignment]  # JSON object of the golden file
    ids = list(arms)
    shares = Shares(
        comparison=float(str(case["comparison"])),
        holdout=float(str(case["holdout"])),
        control=ids.index(str(case["control"])),
        rest=tuple(arms.values()),
        weights=shares_of(list(arms.values())).weights,
    )
    interval = case["interval_id"]
    return Assigner(str(case["experiment_id"]), ids, shares).assign(
        str(case["unit_id"]), interval_id=None if interval is None else str(interval)
    )


def test_golden_vectors_cover_every_branch() -> None:
    reasons = {case["reason"] for case in CASES}
    assert reasons == {"comparison", "holdout", "bandit"}
    assert len(CASES) >= 60
    assert any(case["interval_id"] for case in CASES)
    assert any(not case["unit_id"].isascii() for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_golden_vector(case: dict[str, object]) -> None:
    arm, reason, margin = second_implementation(case)
    assert (arm, reason) == (case["arm"], case["reason"])
    assert margin > Decimal("1e-9")
    got = assign(case)
    arms: dict[str, float] = case["rest"]  # type: ignore[assignment]  # JSON object of the golden file
    assert (None if got.arm is None else list(arms)[got.arm]) == case["arm"]
    assert got.holdout == (case["reason"] == "holdout")
    assert (got.group is Group.COMPARISON) == (case["reason"] == "comparison")


def test_the_hash_by_hand() -> None:
    # SHA-256("abc") begins ba7816bf 8f01cfea (FIPS 180-2, appendix B.1).
    assert uniform_hash("abc") == (0xBA7816BF8F01C + 0.5) / 2**52
    assert derive_seed("abc") == 0xBA7816BF8F01CFEA >> 1
    assert derive_seed("a", "b") != derive_seed("ab")


def test_units_fall_in_proportion_to_the_shares() -> None:
    shares = shares_of([0.6, 0.3, 0.1, 0.0], comparison=0.1, holdout=0.2)
    assigner = Assigner("frequencies", ["a", "b", "c", "stopped"], shares)
    n = 20_000
    counts = np.zeros(5)
    for i in range(n):
        arm = assigner.assign(f"unit-{i}").arm
        counts[4 if arm is None else arm] += 1
    want = np.array([*shares.weights, shares.comparison])
    assert counts[3] == 0
    live = want > 0
    chi_square = ((counts[live] - n * want[live]) ** 2 / (n * want[live])).sum()
    assert chi_square < 16.3  # 0.1% point for 3 degrees of freedom


def test_a_falling_weight_moves_only_its_own_units() -> None:
    ids = ["a", "b", "c"]
    before = Assigner("e", ids, shares_of([0.5, 0.3, 0.2]))
    after = Assigner("e", ids, shares_of([0.45, 0.33, 0.22]))
    moved = 0
    for i in range(5_000):
        old, new = before.assign(str(i)).arm, after.assign(str(i)).arm
        if old != new:
            moved += 1
            assert old == 0  # b and c keep their ratio: nothing moves between them
    assert moved == pytest.approx(250, abs=60)


def test_groups_are_nested_and_independent_of_interval() -> None:
    def members(holdout: float, comparison: float, interval: str | None) -> tuple[set[int], set[int]]:
        assigner = Assigner("e", ["a", "b"], shares_of([0.5, 0.5], holdout=holdout, comparison=comparison))
        got = [assigner.assign(str(i), interval_id=interval) for i in range(3_000)]
        return (
            {i for i, one in enumerate(got) if one.holdout},
            {i for i, one in enumerate(got) if one.group is Group.COMPARISON},
        )

    wide, comparison = members(0.3, 0.1, "0")
    narrow, _ = members(0.2, 0.1, "1")
    assert narrow < wide
    assert members(0.3, 0.1, "7") == (wide, comparison)
    assert not wide & comparison
    assert len(wide) == pytest.approx(0.9 * 0.3 * 3_000, abs=110)


def test_intervals_redraw_the_arm() -> None:
    assigner = Assigner("e", ["a", "b"], shares_of([0.5, 0.5]))
    arms = {assigner.assign("u", interval_id=str(i)).arm for i in range(20)}
    assert arms == {0, 1}


def test_propensities_are_of_the_group() -> None:
    assigner = Assigner("e", ["a", "b"], shares_of([0.8, 0.2], holdout=0.5, comparison=0.2))
    for i in range(200):
        got = assigner.assign(str(i))
        want = 1.0 if got.arm is None else [0.9, 0.1][got.arm]
        assert got.propensity == pytest.approx(want, abs=1e-12)


def test_ids_must_fit_the_shares() -> None:
    with pytest.raises(ValueError, match="3 ids for 2 shares"):
        Assigner("e", ["a", "b", "c"], shares_of([0.5, 0.5]))
    with pytest.raises(ValueError, match="repeated id"):
        Assigner("e", ["a", "a"], shares_of([0.5, 0.5]))
