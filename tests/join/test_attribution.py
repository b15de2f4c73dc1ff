"""The rules of attribution, each border as a pair of cases: just inside and just outside."""

from typing import Any

import pytest

from streams.events import Conversion, Exposure
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Feature, Guardrail, Reward
from streams.join.cells import Cell, CellKey, LagCounts
from tests.join.partition import HOUR, Partition

T = 1000 * HOUR  # a full hour
WINDOW = 2 * HOUR
SIGNUP = Reward(metric="signup")
CLICK = Reward(metric="click", kind="click")
BUY = Reward(metric="buy", kind="conversion_after_click", click_metric="click")
REVENUE = Reward(metric="revenue", kind="value", cap=10.0)


def counting(version: int = 1, **changes: Any) -> Counting:
    fields: dict[str, Any] = {
        "version": version,
        "effective_from_ms": 0,
        "reward": SIGNUP,
        "conversion_window_ms": WINDOW,
    }
    return Counting(**{**fields, **changes})


def experiment(*versions: Counting, name: str = "e", **changes: Any) -> ExperimentRecord:
    fields: dict[str, Any] = {"revision": 1, "status": "live", "control": "a"}
    arms = tuple(Arm(arm_id=arm) for arm in "abc")
    return ExperimentRecord(
        experiment_id=name, arms=arms, versions=versions or (counting(),), **{**fields, **changes}
    )


def shown(at: int, identity: str = "x", arm: str | None = "a", **changes: Any) -> Exposure:
    fields: dict[str, Any] = {"experiment_id": "e", "unit_id": "u", "arm_id": arm}
    return Exposure(exposure_id=identity, timestamp=T + at, **{**fields, **changes})


def done(at: int, identity: str = "c", metric: str = "signup", **changes: Any) -> Conversion:
    return Conversion(conversion_id=identity, unit_id="u", metric=metric, timestamp=T + at, **changes)


def count(*events: Exposure | Conversion, of: ExperimentRecord | None = None) -> dict[CellKey, Cell]:
    """Cells of these events, produced in this order; the other order of the topics must give the same."""
    partition = Partition([of or experiment()])
    partition.events(*events)
    other = Partition([of or experiment()])
    other.events(
        *[e for e in events if isinstance(e, Conversion)], *[e for e in events if isinstance(e, Exposure)]
    )
    assert partition.cells() == other.cells()
    return partition.cells()


def view(cells: dict[CellKey, Cell], name: str = "steering", **wanted: Any) -> dict[CellKey, Cell]:
    return {
        key: cell
        for key, cell in cells.items()
        if key.view == name and all(getattr(key, field) == value for field, value in wanted.items())
    }


def successes(cells: dict[CellKey, Cell]) -> int:
    return sum(counts.successes for cell in cells.values() for counts in cell.lags.values())


def only(cells: dict[CellKey, Cell]) -> tuple[CellKey, Cell]:
    assert len(cells) == 1, cells
    return next(iter(cells.items()))


BOTH = ("steering", "reporting")


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("at", "is_counted"),
    [(-1, False), (0, True), (1, True), (WINDOW - 1, True), (WINDOW, False), (WINDOW + 1, False)],
)
def test_window_is_closed_at_the_exposure_and_open_at_its_end(name: str, at: int, is_counted: bool) -> None:
    cells = view(count(shown(5), done(5 + at)), name)
    assert only(cells)[1].trials == 1
    assert successes(cells) == is_counted


def test_a_cell_says_everything_about_its_trial() -> None:
    features = (Feature(name="b", levels=("1",)), Feature(name="a", levels=("x|y",)))
    record = experiment(counting(7, features=features))
    exposure = shown(0, arm="b", allocation_version=12, context={"a": "x|y", "b": "2"})
    cells = count(exposure, done(HOUR), of=record)
    key, cell = only(view(cells))
    assert key == CellKey("e", 7, "steering", "signup", "b", "a=x%7Cy|b=other", "bandit", 12, T // HOUR)
    assert cell == Cell(1, 0, {1: LagCounts(1, 1_000_000, 10**12)})
    assert only(view(cells, "reporting"))[0] == key._replace(view="reporting")


@pytest.mark.parametrize(
    ("exposure_at", "conversion_at", "bucket", "lag"),
    [
        (HOUR - 1, HOUR - 1, 0, 0),
        (HOUR - 1, HOUR, 0, 1),
        (HOUR, HOUR, 1, 0),
        (HOUR, 2 * HOUR - 1, 1, 0),
        (0, 2 * HOUR - 1, 0, 1),
    ],
)
def test_bucket_and_lag_are_whole_hours(exposure_at: int, conversion_at: int, bucket: int, lag: int) -> None:
    for name in BOTH:
        key, cell = only(view(count(shown(exposure_at), done(conversion_at)), name))
        assert (key.bucket, list(cell.lags)) == (T // HOUR + bucket, [lag])


@pytest.mark.parametrize(
    ("trial_window", "second_at", "n_trials"),
    [
        ("hour", HOUR - 1, 1),
        ("hour", HOUR, 2),
        ("experiment", 100 * HOUR, 1),
        ("exposure", 1, 2),
    ],
)
def test_trial_windows(trial_window: Any, second_at: int, n_trials: int) -> None:
    record = experiment(counting(trial_window=trial_window))
    cells = count(shown(0, "x1"), shown(second_at, "x2"), of=record)
    assert sum(cell.trials for cell in view(cells).values()) == n_trials
    assert sum(cell.trials for cell in view(cells, "reporting").values()) == 1


@pytest.mark.parametrize(
    ("first", "second", "arm"),
    [
        (shown(0, "x", "a"), shown(1, "w", "b"), "a"),
        (shown(1, "w", "a"), shown(0, "x", "b"), "b"),
        (shown(0, "x", "a"), shown(0, "w", "b"), "b"),
        (shown(0, "w", "a"), shown(0, "x", "b"), "a"),
    ],
)
def test_the_first_exposure_gives_the_arm(first: Exposure, second: Exposure, arm: str) -> None:
    for events in ((first, second), (second, first)):
        for name in BOTH:
            key, cell = only(view(count(*events), name))
            assert (key.arm_id, cell.trials, cell.crossovers) == (arm, 1, 1)


def test_a_crossover_is_no_touch_for_steering() -> None:
    record = experiment(counting(conversion_window_ms=1000))
    cells = count(shown(0, "x1", "a"), shown(900, "x2", "b"), shown(901, "x3", "a"), done(1899), of=record)
    assert successes(view(cells, arm_id="a")) == 1
    record = experiment(counting(conversion_window_ms=1000))
    cells = count(shown(0, "x1", "a"), shown(900, "x2", "b"), done(1899), of=record)
    assert successes(view(cells)) == 0


@pytest.mark.parametrize(("at", "n"), [(WINDOW - 1, 1), (WINDOW, 0)])
def test_reporting_crossovers_lie_in_the_window(at: int, n: int) -> None:
    record = experiment(counting(trial_window="exposure"))
    first, second = shown(0, "x1", "a"), shown(at, "x2", "b")
    for events in ((first, second), (second, first)):
        cells = count(*events, of=record)
        assert only(view(cells, "reporting"))[1].crossovers == n
        assert all(cell.crossovers == 0 for cell in view(cells).values())


TOUCHES = (shown(0, "x1", "a"), shown(HOUR, "x2", "b"), shown(HOUR + 5, "x3", "b"))


@pytest.mark.parametrize(
    ("touch", "at", "credited"),
    [
        ("last", HOUR, {"b"}),
        ("last", HOUR - 1, {"a"}),
        ("first", HOUR + 10, {"a"}),
        ("first", WINDOW - 1, {"a"}),
        ("first", WINDOW, {"b"}),
        ("all", HOUR - 1, {"a"}),
        ("all", HOUR + 10, {"a", "b"}),
        ("all", WINDOW, {"b"}),
        ("all", HOUR + 5 + WINDOW - 1, {"b"}),
        ("all", HOUR + 5 + WINDOW, set()),
    ],
)
def test_touch_rules(touch: Any, at: int, credited: set[str]) -> None:
    cells = view(count(*TOUCHES, done(at), of=experiment(counting(touch=touch))))
    assert {key.arm_id for key, cell in cells.items() if cell.lags} == credited
    assert successes(cells) == len(credited)


@pytest.mark.parametrize(("ids", "credited"), [(("x1", "x2"), "b"), (("x2", "x1"), "a")])
def test_ties_between_touches_are_broken_by_exposure_id(ids: tuple[str, str], credited: str) -> None:
    record = experiment(counting(trial_window="exposure"))
    cells = view(count(shown(0, ids[0], "a"), shown(0, ids[1], "b"), done(10), of=record))
    assert {key.arm_id for key, cell in cells.items() if cell.lags} == {credited}


@pytest.mark.parametrize(
    ("exposure_id", "at", "credited"),
    [
        ("x1", HOUR + 10, "a"),
        ("x1", WINDOW - 1, "a"),
        ("x1", WINDOW, "b"),
        ("x2", HOUR, "b"),
        ("x2", HOUR - 1, "a"),
        ("unknown", HOUR + 10, "b"),
        ("crossover", HOUR + 10, "b"),
    ],
)
def test_an_explicit_exposure_wins_inside_its_window_only(exposure_id: str, at: int, credited: str) -> None:
    events = (*TOUCHES, shown(1, "crossover", "c"))
    cells = view(count(*events, done(at, exposure_id=exposure_id)))
    assert {key.arm_id for key, cell in cells.items() if cell.lags} == {credited}


def test_an_explicit_exposure_limits_touch_all_to_its_trial() -> None:
    record = experiment(counting(touch="all"))
    cells = view(count(*TOUCHES, done(HOUR + 10, exposure_id="x1"), of=record))
    assert {key.arm_id for key, cell in cells.items() if cell.lags} == {"a"}


@pytest.mark.parametrize(("experiment_id", "n"), [(None, 1), ("e", 1), ("f", 0)])
def test_an_experiment_id_restricts_a_conversion(experiment_id: str | None, n: int) -> None:
    partition = Partition([experiment(), experiment(name="f")])
    partition.events(shown(0), done(1, experiment_id=experiment_id))
    for name in BOTH:
        assert successes(view(partition.cells(), name, experiment_id="e")) == n


def test_without_an_experiment_id_every_experiment_counts_a_conversion() -> None:
    partition = Partition([experiment(), experiment(name="f")])
    partition.events(shown(0), shown(0, experiment_id="f"), done(1))
    assert successes(view(partition.cells())) == 2
    assert partition.total("conversions/attributed") == 1


@pytest.mark.parametrize(
    ("click_at", "buy_at", "is_counted"),
    [
        (5, 10, True),
        (10, 10, True),
        (11, 10, False),
        (-1, 10, False),
        (5, WINDOW - 1, True),
        (5, WINDOW, False),
    ],
)
@pytest.mark.parametrize("name", BOTH)
def test_conversion_after_click(name: str, click_at: int, buy_at: int, is_counted: bool) -> None:
    record = experiment(counting(reward=BUY))
    events = (shown(0), done(click_at, "c1", "click"), done(buy_at, "b1", "buy"))
    assert successes(view(count(*events, of=record), name)) == is_counted


def test_the_click_must_be_on_the_same_trial() -> None:
    record = experiment(counting(reward=BUY))
    # the click goes to the second trial, whose window is over when the purchase comes; the first has none
    events = (
        shown(0, "x1", "a"),
        shown(HOUR, "x2", "b"),
        done(HOUR + 1, "c1", "click"),
        done(HOUR + 2, "b1", "buy", exposure_id="x1"),
    )
    cells = view(count(*events, of=record))
    assert {key.arm_id for key, cell in cells.items() if cell.lags} == {"b"}
    unclicked = view(
        count(events[0], events[1], done(1, "c1", "click"), done(HOUR + 2, "b1", "buy"), of=record)
    )
    assert {key.arm_id for key, cell in unclicked.items() if cell.lags} == {"a"}


def test_click_metric_has_a_cell_only_as_a_reward() -> None:
    events = (shown(0), done(1, "c1", "click"), done(2, "b1", "buy"))
    assert {key.metric for key in count(*events, of=experiment(counting(reward=BUY)))} == {"buy"}
    both = experiment(counting(reward=BUY, guardrails=(Guardrail(reward=CLICK),)))
    cells = view(count(*events, of=both))
    assert {key.metric: successes({key: cell}) for key, cell in cells.items()} == {"buy": 1, "click": 1}


def test_guardrails_have_trials_of_their_own_metric() -> None:
    record = experiment(counting(guardrails=(Guardrail(reward=CLICK), Guardrail(reward=REVENUE))))
    cells = view(count(shown(0), of=record))
    assert {key.metric: cell.trials for key, cell in cells.items()} == {"signup": 1, "click": 1, "revenue": 1}


@pytest.mark.parametrize(
    ("values", "lags"),
    [
        ((4.0,), {0: (1, 4)}),
        ((4.0, 3.0), {0: (1, 4), 1: (0, 3)}),
        ((4.0, 7.0), {0: (1, 4), 1: (0, 6)}),
        ((10.0, 3.0), {0: (1, 10)}),
        ((0.0, 3.0), {0: (1, 0), 1: (0, 3)}),
    ],
)
def test_value_is_capped_per_trial_and_dated_by_lag(
    values: tuple[float, ...], lags: dict[int, tuple[int, int]]
) -> None:
    record = experiment(counting(reward=REVENUE))
    events = [done(1 + i * HOUR, f"c{i}", "revenue", value=value) for i, value in enumerate(values)]
    for name in BOTH:
        _, cell = only(view(count(shown(0), *events, of=record), name))
        assert {lag: (c.successes, c.value_micros // 10**6) for lag, c in cell.lags.items()} == lags
        total = min(10.0, sum(values))
        assert sum(c.value_sq_micros2 for c in cell.lags.values()) == int(total**2 * 10**12)


def test_a_rate_is_at_most_one_for_each_trial() -> None:
    _, cell = only(view(count(shown(0), done(1, "c1", value=0.75), done(2, "c2", value=0.75))))
    assert cell.lags == {0: LagCounts(1, 1_000_000, 10**12)}


@pytest.mark.parametrize(("at", "version"), [(-1, 1), (0, 2)])
def test_an_exposure_takes_the_version_of_its_time(at: int, version: int) -> None:
    record = experiment(counting(1), counting(2, effective_from_ms=T))
    assert only(view(count(shown(at), of=record)))[0].version == version


def test_versions_split_a_trial_but_not_the_reporting_trial() -> None:
    record = experiment(counting(1), counting(2, effective_from_ms=T + 10, conversion_window_ms=HOUR))
    cells = count(shown(0, "x1"), shown(10, "x2"), done(HOUR + 20), of=record)
    assert {key.version: cell.trials for key, cell in view(cells).items()} == {1: 1, 2: 1}
    # the newest touch is out of its shorter window; the older version's is in reach
    assert {key.version for key, cell in view(cells).items() if cell.lags} == {1}
    key, cell = only(view(cells, "reporting"))
    assert (key.version, successes({key: cell})) == (1, 1)


@pytest.mark.parametrize(("at", "credited"), [(HOUR - 1, {1}), (HOUR, set())])
@pytest.mark.parametrize("changes", [{}, {"exposure_id": "x1"}, {"exposure_id": "unknown"}])
def test_each_version_has_its_own_window(at: int, credited: set[int], changes: dict[str, str]) -> None:
    longer = counting(2, effective_from_ms=T + 10 * HOUR, conversion_window_ms=5 * HOUR)
    record = experiment(counting(1, conversion_window_ms=HOUR), longer)
    cells = view(count(shown(0, "x1"), done(at, **changes), of=record))
    assert {key.version for key, cell in cells.items() if cell.lags} == credited


def test_the_newest_touch_in_reach_decides_the_rule() -> None:
    record = experiment(counting(1, touch="all"), counting(2, effective_from_ms=T + HOUR, touch="first"))
    cells = view(count(*TOUCHES, done(HOUR + 10), of=record))
    assert {key.version for key, cell in cells.items() if cell.lags} == {1}
    record = experiment(counting(1, touch="first"), counting(2, effective_from_ms=T + HOUR, touch="all"))
    cells = view(count(*TOUCHES, done(HOUR + 10), of=record))
    assert {key.version for key, cell in cells.items() if cell.lags} == {1, 2}


def test_a_version_that_does_not_name_the_metric_is_passed_over() -> None:
    record = experiment(counting(1), counting(2, effective_from_ms=T + HOUR, reward=CLICK))
    cells = view(count(*TOUCHES, done(HOUR + 10), of=record))
    assert {key.version for key, cell in cells.items() if cell.lags} == {1}


def test_groups_are_counted_apart() -> None:
    comparison = shown(0, "x1", None, group="comparison")
    key, cell = only(view(count(comparison, shown(1, "x2", "a"), done(5))))
    assert (key.group, key.arm_id, cell.trials, cell.crossovers) == ("comparison", "", 1, 1)
    assert successes({key: cell}) == 1
    key, _ = only(view(count(shown(0, reason="default:no allocation"))))
    assert key.group == "default"
    key, _ = only(view(count(shown(0, reason="holdout"))))
    assert key.group == "bandit"


@pytest.mark.parametrize(("count_test", "n"), [(True, 1), (False, 0)])
def test_test_conversions_count_only_where_the_version_says_so(count_test: bool, n: int) -> None:
    record = experiment(counting(count_test=count_test))
    for name in BOTH:
        cells = view(count(shown(0), done(1, test=True), of=record), name)
        assert (successes(cells), only(cells)[1].trials) == (n, 1)


def test_a_conversion_is_used_once_in_an_experiment() -> None:
    events = (*TOUCHES, done(HOUR + 10, "c1"), done(HOUR + 11, "c2"))
    cells = view(count(*events))
    assert sum(c.value_micros for cell in cells.values() for c in cell.lags.values()) == 1_000_000
    assert successes(cells) == 1
