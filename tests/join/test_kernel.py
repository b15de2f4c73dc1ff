"""The compiled kernel gives what Python gives; every step in this folder's tests is run both ways, too.

Here: that it is really used, and bytes of JSON and of state that are nearly, but not quite, usual.
"""

import json
import random
from collections.abc import Callable
from functools import cache
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import StateCorrupt
from streams.events import Conversion, Exposure
from streams.experiments.definition import Arm, Counting, ExperimentRecord, Feature, Reward
from streams.join.conversions import apply_all_conversions
from streams.join.definitions import Definitions, MissingDefinition
from streams.join.exposures import apply_all_exposures
from streams.join.kernel import KERNEL, Kernel
from streams.join.ledger import Ledger, Scope
from streams.join.reading import Reading
from streams.join.step import SourceRecord
from streams.join.unit import decode_block, decode_unit
from tests.join.partition import HOUR, LIMITS, Partition, record

pytestmark = pytest.mark.skipif(KERNEL is None, reason="the compiled kernel was not built: no C compiler")

T = 480_000 * HOUR
ARMS = ("a", "b")


def definition(name: str, **counting: Any) -> ExperimentRecord:
    return ExperimentRecord(
        experiment_id=name,
        revision=1,
        status="live",
        arms=tuple(Arm(arm_id=arm) for arm in ARMS),
        control="a",
        versions=(Counting(version=1, effective_from_ms=0, reward=Reward(metric="order"), **counting),),
    )


ONE, TWO, FEATURED = "experiment-one", "experiment-two", "experiment-with-features"
EXPERIMENTS = [
    definition(ONE),
    definition(TWO, count_test=True, trial_window="experiment"),
    definition(FEATURED, features=(Feature(name="a", levels=("b", "c")), Feature(name="d", levels=("e",)))),
]


def exposure(number: int, ms: int, unit: str = "u", **changes: Any) -> Exposure:
    fields = {"experiment_id": ONE, "arm_id": "a"} | changes
    return Exposure(exposure_id=f"x{number}", unit_id=unit, timestamp=ms, **fields)


def refuse(*_: object) -> bytes | None:
    raise AssertionError("a usual unit was given to the general way")


def scope_of(kernel: Kernel | None) -> Scope:
    return Scope(Definitions(EXPERIMENTS), LIMITS, Ledger("exposures"), 0, final=False, kernel=kernel)


def test_usual_events_take_the_short_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    assert KERNEL is not None
    scope = scope_of(KERNEL)
    reading = Reading(0, -1, scope.definitions, LIMITS, scope.ledger, KERNEL)
    monkeypatch.setattr(reading, "read_exposure", refuse)
    exposures = [
        exposure(n, T + n * HOUR // 2, experiment_id=(ONE, TWO)[n % 2], arm_id=ARMS[n % 3 % 2])
        for n in range(12)
    ]
    reading.read_exposures([record(each, n) for n, each in enumerate(exposures)])
    units = KERNEL.apply_exposures(reading.exposures, {b"u": None}, scope, refuse)
    reading.read_conversions(
        [
            record(
                Conversion(conversion_id=f"c{n}", unit_id="u", metric="order", timestamp=T + 9 * HOUR + n), n
            )
            for n in range(3)
        ]
    )
    changed = KERNEL.apply_conversions(reading.conversions, units, scope, refuse)
    assert changed.keys() == {b"u"}
    assert scope.ledger.n_accepted == 15
    assert scope.ledger.n_attributed == 3


def test_more_experiments_than_a_batch_keeps_at_once_count_alike() -> None:
    names = [f"e{n}" for n in range(400)]
    shown = [
        exposure(n, T + n * 50, f"u{n % 700}", experiment_id=names[n * 7 % 400], arm_id=ARMS[n % 3 % 2])
        for n in range(3_000)
    ]
    bought = [
        Conversion(
            conversion_id=f"c{n}", unit_id=f"u{n}", metric=("order", "click")[n % 5 == 0], timestamp=ms
        )
        for n in range(700)
        for ms in (T + 150_001 + n, T + 160_000)[: 1 + n % 2]
    ]
    found = []
    for kernel in (None, KERNEL):
        scope = Scope(
            Definitions(map(definition, names)), LIMITS, Ledger("exposures"), 0, final=False, kernel=kernel
        )
        reading = Reading(0, -1, scope.definitions, LIMITS, scope.ledger, kernel)
        reading.read_exposures([record(each, n) for n, each in enumerate(shown)])
        states = apply_all_exposures(reading.exposures, dict.fromkeys(reading.exposures), scope)
        reading.read_conversions([record(each, n) for n, each in enumerate(bought)])
        states |= apply_all_conversions(reading.conversions, states, scope)
        tally = {
            stub: (own.trials, own.crossovers, own.lags) for stub, own in scope.ledger.tally.by_stub.items()
        }
        counts = (scope.ledger.n_accepted, scope.ledger.n_attributed, scope.ledger.n_pending)
        found.append((states, tally, counts, scope.ledger.outcomes))
    assert found[0] == found[1]
    assert len(found[0][1]) > 1_024


ABSENT = object()
TEXTS: list[Any] = ["", "x" * 256, "x" * 257, "ü", 'a"b', "a\\b", "a\nb", "\x7f", None, 7, {}, TWO, "default"]
VALUES: dict[str, list[Any]] = {
    **{name: [*TEXTS, ABSENT] for name in ("exposure_id", "experiment_id", "unit_id", "arm_id", "reason")},
    "group": [*TEXTS, "bandit", "comparison"],
    "timestamp": [float(T), str(T), -1, 0, 10**15 - 1, 2**53, "2024-10-05T00:00:00Z", None, True, ABSENT],
    "propensity": [0, 0.0, 1, 1.0, 1.5, 0.25, 1e-3, 5e-324, -0.1, "1", None, 2, 10, True],
    "allocation_version": [0, 7, -1, 10**17, 2**63 - 1, 2**63, 1.0, "1", None],
    "context": [{}, {"a": "b"}, {"a": "ü"}, {"a": 1}, {"a": None}, [], None, {"": ""}, {"a": {"b": "c"}}],
    "test": [True, False, None, 1],
    "unknown": [[1, {"x": None}]],
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"group": "comparison", "arm_id": ABSENT},
    {"group": "comparison", "arm_id": None},
    *({name: value} for name, values in VALUES.items() for value in values),
]
SPELLINGS: list[Callable[[bytes], bytes]] = [
    lambda raw: raw,
    lambda raw: b" \t\r\n" + raw.replace(b":", b" : ").replace(b",", b"\n, ") + b" ",
    lambda raw: raw + b"x",
    lambda raw: raw + b",",
    lambda raw: raw[:-1],
    lambda raw: raw[:-1] + b",}",
    lambda raw: raw.replace(b'"exposure_id"', b'"exposure\\u005fid"'),
    lambda raw: raw[:-1] + b',"arm_id":"b"}',
    lambda raw: raw.replace(str(T).encode(), b"0" + str(T).encode()),
    lambda raw: raw.replace(str(T).encode(), str(T).encode() + b".0"),
    lambda raw: raw.replace(str(T).encode(), str(T).encode() + b"e0"),
    lambda raw: raw.replace(str(T).encode(), b"-0"),
    lambda raw: b"\xef\xbb\xbf" + raw,
]


def read_both_ways(records: list[SourceRecord]) -> None:
    """Read records with and without the kernel; both must come to the same in every respect."""
    seen = []
    for kernel in (None, KERNEL):
        ledger = Ledger("exposures")
        reading = Reading(0, T - HOUR, Definitions(EXPERIMENTS), LIMITS, ledger, kernel)
        reading.read_exposures(records)
        items = {
            key: [(*item[:2], item[2].experiment_id, item[3].version, *item[4:]) for item in own]
            for key, own in reading.exposures.items()
        }
        seen.append(
            (
                items,
                reading.maximum_ms,
                reading.unknown,
                reading.other_levels,
                ledger.verdicts,
                ledger.outcomes,
            )
        )
    assert seen[0] == seen[1]


@pytest.mark.parametrize("spelling", range(len(SPELLINGS)))
def test_exposures_are_read_as_the_decoder_reads_them(spelling: int) -> None:
    full = {"propensity": 0.5, "allocation_version": 3, "context": {"a": "b"}, "reason": "r"}
    featured = {"experiment_id": FEATURED, "context": {"a": "c", "d": "?", "x": "y"}}
    for base in ({}, full, featured):
        for change in CHANGES:
            event = {
                "exposure_id": "x",
                "experiment_id": ONE,
                "unit_id": "u",
                "timestamp": T,
                "arm_id": "a",
            } | base
            event = {name: value for name, value in (event | change).items() if value is not ABSENT}
            raw = SPELLINGS[spelling](json.dumps(event, ensure_ascii=False).encode())
            read_both_ways([SourceRecord(0, b"u", raw, T)])


@given(st.data())
def test_damaged_json_is_read_as_the_decoder_reads_it(data: st.DataObject) -> None:
    event = {
        "exposure_id": "x",
        "experiment_id": ONE,
        "unit_id": "u",
        "timestamp": T,
        "arm_id": "a",
        "test": False,
    }
    raw = bytearray(json.dumps(event | {"propensity": 0.5, "reason": None}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from(
                [b"", b"0", b"9", b'"', b"\\", b",", b"}", b"{", b":", b" ", b"e", b".", b"-", b"\xff"]
            )
        )
    read_both_ways([SourceRecord(0, b"u", bytes(raw), T)])


@pytest.mark.parametrize(
    ("ms", "append_ms"), [(T, T), (T - 26 * HOUR, T), (T - 25 * HOUR, T), (T, T - 300_001)]
)
def test_times_keys_and_headers_are_judged_alike(ms: int, append_ms: int) -> None:
    usual = record(exposure(0, ms), 0, append_ms=append_ms)
    for changed in (
        usual,
        usual._replace(key=None),
        usual._replace(key=b"v"),
        usual._replace(value=None),
        usual._replace(headers=[("trace", b"1")]),
        usual._replace(value=None, headers=[("bandit-watermark", b"end")]),
    ):
        read_both_ways([changed, record(exposure(1, T + 1), 1)])


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_what_is_read_here_and_what_in_python_stays_in_order(order: tuple[int, ...]) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"timestamp": "2024-10-04T00:00:00.004Z", "arm_id": "b"},
        {"allocation_version": 2**63},
        {"exposure_id": "ü"},
    ]
    event = {"exposure_id": "x", "experiment_id": ONE, "unit_id": "u", "timestamp": T, "arm_id": "a"}
    raws = [
        json.dumps(event | {"exposure_id": f"x{n}", "timestamp": T + n} | changes[kind]).encode()
        for n, kind in enumerate((*order, 0, 1))
    ]
    records = [SourceRecord(n, b"u", raw, T) for n, raw in enumerate(raws)]
    read_both_ways(records)
    found = []
    for kernel in (None, KERNEL):
        scope = scope_of(kernel)
        reading = Reading(0, -1, scope.definitions, LIMITS, scope.ledger, kernel)
        reading.read_exposures(records)
        states = apply_all_exposures(reading.exposures, {b"u": None}, scope)
        stubs = {stub: (n.trials, n.crossovers) for stub, n in scope.ledger.tally.by_stub.items()}
        found.append((states, stubs, scope.ledger.n_accepted, scope.ledger.outcomes))
    assert found[0] == found[1]
    assert found[0][2] == 6


@cache
def busy_unit(seed: int) -> bytes:
    """State of a unit with several blocks, trials, touches, crossovers and conversions."""
    rng = random.Random(seed)
    partition = Partition(EXPERIMENTS)
    for n in range(4 + seed):
        ms = T + n * HOUR // 3
        purchase = Conversion(conversion_id=f"c{n}", unit_id="u", metric="order", timestamp=ms + 9)
        shown = exposure(n, ms, experiment_id=rng.choice((ONE, TWO)), arm_id=rng.choice(ARMS))
        partition.events(shown, *[purchase] * rng.randrange(2))
    return partition.units[b"u"]


def meaning(raw: bytes | None) -> object:
    """What a state says, however its numbers are written."""
    if raw is None:
        return None
    unit = decode_unit(raw)
    blocks = {name: decode_block(block) for name, block in unit.blocks.items()}
    return unit, blocks


@given(st.integers(0, 7), st.data())
def test_damaged_state_is_dealt_with_as_python_does(seed: int, data: st.DataObject) -> None:
    raw = bytearray(busy_unit(seed))
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 1))] = data.draw(st.binary(max_size=2))
    outcomes: list[object] = []
    for kernel in (None, KERNEL):
        scope = scope_of(kernel)
        reading = Reading(0, -1, scope.definitions, LIMITS, scope.ledger, kernel)
        reading.read_exposures([record(exposure(99, T + 9 * HOUR), 0)])
        try:
            changed = apply_all_exposures(reading.exposures, {b"u": bytes(raw)}, scope)
            after = {unit: meaning(state) for unit, state in changed.items()}
        except (StateCorrupt, MissingDefinition) as error:
            outcomes.append(str(error))
        else:
            stubs = {stub: (n.trials, n.crossovers) for stub, n in scope.ledger.tally.by_stub.items()}
            outcomes.append((after, stubs, scope.ledger.outcomes))
    assert outcomes[0] == outcomes[1]
