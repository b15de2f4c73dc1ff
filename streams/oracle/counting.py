"""Cells computed in SQL from the accepted events of whole topics; the rules stand next to each query."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streams.errors import ConfigError
from streams.events import Conversion, Exposure, value_micros
from streams.experiments.definition import Counting, ExperimentRecord
from streams.join.cells import Cell, CellKey, LagCounts
from streams.join.ledger import Limits
from streams.oracle.log import EventRow, JudgedEvent, Position, judge

if TYPE_CHECKING:
    import duckdb

_CHUNK_ROWS = 50_000
_ESCAPES = str.maketrans({"%": "%25", "|": "%7C", "=": "%3D"})
_MAX_MICROS = 2**63 - 1


def compute_cells(
    exposures: Iterable[EventRow],
    conversions: Iterable[EventRow],
    experiments: Iterable[ExperimentRecord],
    excluded: Collection[Position],
    limits: Limits,
) -> dict[CellKey, Cell]:
    """Cells of all experiments that are not archived, summed over partitions.

    Parameters
    ----------
    exposures, conversions
        All records of the two topics, rejected ones and markers included: they move the running maxima, on
        which it depends for how long an id is remembered.
    experiments
        Definitions with all their versions.
    excluded
        Records that have a verdict.
    limits
        The worker's settings.

    Returns
    -------
    dict
        Cells that hold anything; lags that hold nothing are left out.

    Raises
    ------
    ConfigError
        If duckdb is not installed.
    """
    records = [record for record in experiments if record.status not in ("archived", "draft")]
    shown = _accepted(judge("exposures", exposures, limits), excluded)
    done = _accepted(judge("conversions", conversions, limits), excluded)
    connection = _connect()
    try:
        _load_definitions(connection, records)
        _load_exposures(connection, records, shown)
        _load_conversions(connection, done)
        for statement in (_BIND, *_ATTRIBUTE, _REPORT):
            connection.execute(statement)
        return _read_cells(connection)
    finally:
        connection.close()


def _connect() -> "duckdb.DuckDBPyConnection":
    try:
        import duckdb  # noqa: PLC0415 - an optional package, needed by nothing else
    except ImportError as error:
        raise ConfigError(
            "the oracle needs the package duckdb, which is not installed",
            action="pip install 'bandit-streams[demo]'",
        ) from error
    connection = duckdb.connect(":memory:")
    connection.execute(_TABLES)
    return connection


def _insert(
    connection: "duckdb.DuckDBPyConnection", table: str, n_columns: int, rows: Sequence[Sequence[Any]]
) -> None:
    columns = ", ".join(["unnest(?)"] * n_columns)
    statement = f"INSERT INTO {table} SELECT {columns}"
    for start in range(0, len(rows), _CHUNK_ROWS):
        chunk = rows[start : start + _CHUNK_ROWS]
        connection.execute(statement, [list(column) for column in zip(*chunk, strict=True)])


def _load_definitions(connection: "duckdb.DuckDBPyConnection", records: Sequence[ExperimentRecord]) -> None:
    versions: list[tuple[Any, ...]] = []
    rewards: list[tuple[Any, ...]] = []
    roles: dict[tuple[str, int, str], str | None] = {}
    for record in records:
        for counting in record.versions:
            place = (record.experiment_id, counting.version)
            versions.append(
                (
                    *place,
                    counting.effective_from_ms,
                    counting.conversion_window_ms,
                    counting.trial_window,
                    counting.touch,
                    counting.count_test,
                )
            )
            named: dict[str, str | None] = {}
            for reward in (counting.reward, *(guardrail.reward for guardrail in counting.guardrails)):
                if reward.metric not in named:
                    cap = round(reward.cap * 1_000_000) if reward.kind == "value" else 1_000_000
                    rewards.append((*place, reward.metric, min(cap, _MAX_MICROS)))
                    gate = reward.click_metric if reward.kind == "conversion_after_click" else None
                    named[reward.metric] = gate
            clicks = [gate for gate in named.values() if gate is not None]
            named.update(dict.fromkeys(clicks, None))
            roles.update({(*place, metric): gate for metric, gate in named.items()})
    _insert(connection, "versions", 7, versions)
    _insert(connection, "rewards", 4, rewards)
    _insert(connection, "roles", 4, [(*key, gate) for key, gate in roles.items()])


def _load_exposures(
    connection: "duckdb.DuckDBPyConnection",
    records: Sequence[ExperimentRecord],
    accepted: Sequence[JudgedEvent],
) -> None:
    known = {record.experiment_id: record for record in records}
    rows: list[tuple[Any, ...]] = []
    for number, item in enumerate(accepted):
        event = item.event
        if not isinstance(event, Exposure) or event.experiment_id not in known:
            continue
        is_default = event.reason is not None and event.reason.startswith("default")
        group = "comparison" if event.group == "comparison" else "default" if is_default else "bandit"
        allocation = -1 if event.allocation_version is None else event.allocation_version
        segments = {
            counting.version: _segment(counting, event.context)
            for counting in known[event.experiment_id].versions
        }
        rows.append(
            (
                number,
                event.unit_id,
                event.experiment_id,
                item.timestamp_ms,
                event.exposure_id,
                event.arm_id or "",
                group,
                allocation,
                event.test,
                segments,
            )
        )
    _insert(connection, "shown", 9, [row[:9] for row in rows])
    segment_rows = [
        (row[0], version, segment) for row in rows for version, segment in row[9].items() if segment
    ]
    _insert(connection, "segments", 3, segment_rows)


def _segment(counting: Counting, context: Mapping[str, str] | None) -> str:
    parts = []
    for feature in sorted(counting.features, key=lambda feature: feature.name):
        level = (context or {}).get(feature.name, "other")
        level = level if level in feature.levels else "other"
        parts.append(f"{feature.name.translate(_ESCAPES)}={level.translate(_ESCAPES)}")
    return "|".join(parts)


def _load_conversions(connection: "duckdb.DuckDBPyConnection", accepted: Sequence[JudgedEvent]) -> None:
    rows = [
        (
            number,
            item.event.unit_id,
            item.event.metric,
            item.timestamp_ms,
            item.event.conversion_id,
            value_micros(item.event),
            item.event.experiment_id,
            item.event.exposure_id,
            item.event.test,
        )
        for number, item in enumerate(accepted)
        if isinstance(item.event, Conversion)
    ]
    _insert(connection, "done", 9, rows)


def _read_cells(connection: "duckdb.DuckDBPyConnection") -> dict[CellKey, Cell]:
    cells: dict[CellKey, Cell] = {}
    for *key, trials, crossovers in connection.execute(_READ_TRIALS).fetchall():
        cells[CellKey(*key)] = Cell(trials, crossovers, {})
    for *key, lag, successes, value, square in connection.execute(_READ_LAGS).fetchall():
        if successes or value or square:
            cells[CellKey(*key)].lags[lag] = LagCounts(successes, value, square)
    return cells


_TABLES = """
CREATE TABLE versions (e VARCHAR, v INTEGER, effective_ms BIGINT, window_ms BIGINT, trial_window VARCHAR,
                       touch VARCHAR, count_test BOOLEAN);
CREATE TABLE rewards (e VARCHAR, v INTEGER, metric VARCHAR, cap BIGINT);
CREATE TABLE roles (e VARCHAR, v INTEGER, metric VARCHAR, gate VARCHAR);
CREATE TABLE shown (n BIGINT, unit VARCHAR, e VARCHAR, ms BIGINT, id VARCHAR, arm VARCHAR, grp VARCHAR,
                    allocation BIGINT, test BOOLEAN);
CREATE TABLE segments (n BIGINT, v INTEGER, segment VARCHAR);
CREATE TABLE done (n BIGINT, unit VARCHAR, metric VARCHAR, ms BIGINT, id VARCHAR, value BIGINT, e VARCHAR,
                   exposure_id VARCHAR, test BOOLEAN);
"""

# Every exposure with its version, the newest effective at its time; then its trial, and that trial's first.
_BIND = """
CREATE TABLE effective AS
    SELECT e, effective_ms, max(v) AS v FROM versions GROUP BY e, effective_ms;
CREATE TABLE bound AS
    SELECT s.n, s.unit, s.e, s.ms, s.id, s.arm, s.grp, s.allocation, versions.v, window_ms, touch, count_test,
           coalesce(segments.segment, '') AS segment, s.ms // 3600000 AS bucket,
           CASE trial_window WHEN 'hour' THEN s.ms // 3600000 WHEN 'experiment' THEN -1 ELSE s.n END AS
           trial_key
    FROM shown s
    ASOF JOIN effective ON s.e = effective.e AND s.ms >= effective.effective_ms
    JOIN versions ON versions.e = effective.e AND versions.v = effective.v
    LEFT JOIN segments ON segments.n = s.n AND segments.v = versions.v
    WHERE count_test OR NOT s.test;
CREATE TABLE exposed AS
    SELECT *, first_value(n) OVER trial AS trial, first_value(arm) OVER trial AS trial_arm
    FROM bound
    WINDOW trial AS (PARTITION BY e, unit, v, trial_key ORDER BY ms, id);
CREATE TABLE trials AS SELECT * FROM exposed WHERE n = trial;
CREATE TABLE touches AS
    SELECT trial, e, v, unit, ms, id, window_ms, touch, count_test FROM exposed WHERE arm = trial_arm;
"""

# All touches in reach of a conversion, whatever their version; ``gate`` is the click metric that must come
# first.
_ATTRIBUTE = (
    """
CREATE TABLE reach AS
    SELECT done.n, done.ms AS done_ms, done.exposure_id, t.trial, t.e, t.ms, t.id, t.touch, roles.gate,
           done.metric, max(roles.gate) OVER (PARTITION BY done.metric, t.e) IS NOT NULL AS is_late_phase
    FROM done
    JOIN touches t ON t.unit = done.unit AND t.ms <= done.ms AND done.ms < t.ms + t.window_ms
    JOIN roles ON roles.e = t.e AND roles.v = t.v AND roles.metric = done.metric
    WHERE (done.e IS NULL OR done.e = t.e) AND (t.count_test OR NOT done.test);
""",
    "CREATE TABLE credits (n BIGINT, trial BIGINT, metric VARCHAR, done_ms BIGINT);",
    """
CREATE MACRO credited(phase) AS TABLE
    WITH candidates AS (SELECT * FROM reach WHERE is_late_phase = phase AND (gate IS NULL OR EXISTS (
        SELECT 1 FROM credits c WHERE c.trial = reach.trial AND c.metric = reach.gate
                                      AND c.done_ms <= reach.done_ms))),
    ranked AS (
        SELECT *, first_value(touch) OVER newest AS rule,
               row_number() OVER newest AS from_newest,
               row_number() OVER (PARTITION BY n, e ORDER BY ms, id) AS from_oldest,
               bool_or(id IS NOT DISTINCT FROM exposure_id) OVER (PARTITION BY n, e) AS is_explicit,
               row_number() OVER (PARTITION BY n, e ORDER BY id IS NOT DISTINCT FROM exposure_id DESC, ms
               DESC)
                   AS from_named
        FROM candidates WINDOW newest AS (PARTITION BY n, e ORDER BY ms DESC, id DESC))
    SELECT DISTINCT n, trial, metric, done_ms FROM ranked
    WHERE CASE WHEN is_explicit THEN from_named = 1 WHEN rule = 'last' THEN from_newest = 1
               WHEN rule = 'first' THEN from_oldest = 1 ELSE true END;
""",
    "INSERT INTO credits SELECT * FROM credited(false);",
    "INSERT INTO credits SELECT * FROM credited(true);",
)

# One trial for each unit and experiment; and both views' conversions in one table, with what each adds.
_REPORT = """
CREATE TABLE firsts AS
    SELECT * FROM bound QUALIFY row_number() OVER (PARTITION BY e, unit ORDER BY ms, id) = 1;
CREATE TABLE within AS
    SELECT f.n AS trial, done.n, done.metric, done.ms AS done_ms, roles.gate
    FROM firsts f
    JOIN done ON done.unit = f.unit AND done.ms >= f.ms AND done.ms < f.ms + f.window_ms
    JOIN roles ON roles.e = f.e AND roles.v = f.v AND roles.metric = done.metric
    WHERE (done.e IS NULL OR done.e = f.e) AND (f.count_test OR NOT done.test);
CREATE TABLE earned AS
    SELECT 'steering' AS view, trial, n, metric FROM credits
    UNION ALL
    SELECT 'reporting', trial, n, metric FROM within w
    WHERE gate IS NULL OR EXISTS (
        SELECT 1 FROM within c WHERE c.trial = w.trial AND c.metric = w.gate AND c.done_ms <= w.done_ms);
CREATE TABLE counted AS
    SELECT 'steering' AS view, t.*,
           (SELECT count(*) FROM exposed x WHERE x.trial = t.n AND x.arm <> t.arm) AS crossovers
    FROM (SELECT n, e, v, unit, ms, arm, segment, grp, allocation, bucket FROM trials) t
    UNION ALL
    SELECT 'reporting', f.n, f.e, f.v, f.unit, f.ms, f.arm, f.segment, f.grp, f.allocation, f.bucket,
           (SELECT count(*) FROM bound x WHERE x.e = f.e AND x.unit = f.unit AND x.arm <> f.arm
                                           AND x.ms >= f.ms AND x.ms < f.ms + f.window_ms)
    FROM firsts f;
CREATE TABLE by_lag AS
    SELECT c.view, c.n AS trial, r.metric, done.ms // 3600000 - c.bucket AS lag, any_value(r.cap) AS cap,
           sum(done.value) AS value
    FROM earned
    JOIN counted c ON c.view = earned.view AND c.n = earned.trial
    JOIN rewards r ON r.e = c.e AND r.v = c.v AND r.metric = earned.metric
    JOIN done ON done.n = earned.n
    GROUP BY ALL;
CREATE TABLE increments AS
    WITH totals AS (
        SELECT *, least(cap, sum(value) OVER so_far)::HUGEINT AS total, row_number() OVER so_far = 1 AS
        is_first FROM by_lag WINDOW so_far AS (PARTITION BY view, trial, metric ORDER BY lag))
    SELECT view, trial, metric, lag, is_first, total,
           coalesce(lag(total) OVER (PARTITION BY view, trial, metric ORDER BY totals.lag), 0) AS before
    FROM totals;
"""

_READ_TRIALS = """
SELECT c.e, c.v, c.view, r.metric, c.arm, c.segment, c.grp, c.allocation, c.bucket, count(*),
       sum(c.crossovers)::BIGINT
FROM counted c JOIN rewards r ON r.e = c.e AND r.v = c.v
GROUP BY ALL
"""

_READ_LAGS = """
SELECT c.e, c.v, c.view, i.metric, c.arm, c.segment, c.grp, c.allocation, c.bucket, i.lag,
       count(*) FILTER (i.is_first), sum(i.total - i.before), sum(i.total * i.total - i.before * i.before)
FROM increments i JOIN counted c ON c.view = i.view AND c.n = i.trial
GROUP BY ALL
"""


def _accepted(judged: Iterable[JudgedEvent], excluded: Collection[Position]) -> list[JudgedEvent]:
    """Events that count: no verdict, right partition, and the first of their id unless that is forgotten."""
    seen: dict[tuple[str, ...], int] = {}
    accepted = []
    for item in judged:
        if item.is_misplaced or item.position in excluded:
            continue
        event = item.event
        if isinstance(event, Exposure):
            identity: tuple[str, ...] = (event.unit_id, event.experiment_id, event.exposure_id)
        else:
            identity = (event.unit_id, event.conversion_id)
        newest_ms = seen.get(identity, -1)
        if 0 <= newest_ms >= item.floor_ms:
            continue
        seen[identity] = max(newest_ms, item.timestamp_ms)
        accepted.append(item)
    return accepted
