"""Which record counts: every rule, from both sides."""

from typing import Any

import pytest
from msgspec.structs import replace

from streams.state.journal import BatchRecord, Claim, Head, Record, Sweep, SweepRecord
from streams.state.replay import ignored_because, next_head

HEAD = Head(
    journal_id=9,
    journal_offset=20,
    last_hash=b"h",
    claim=15,
    owner="w",
    generation=3,
    seq=4,
    positions={"exposures": 100},
    journal_bytes=1000,
)


def batch(**changes: Any) -> BatchRecord:
    fields: dict[str, Any] = {
        "journal_id": 9,
        "claim": 15,
        "seq": 5,
        "flag": "normal",
        "topic": "exposures",
        "start": 100,
        "next": 107,
        "pending": 0,
        "dead_letters_through": 0,
    }
    return BatchRecord(**{**fields, **changes})


def sweep(**changes: Any) -> SweepRecord:
    fields: dict[str, Any] = {
        "journal_id": 9,
        "claim": 15,
        "seq": 5,
        "head": HEAD,
        "last": False,
        "from_key": b"",
        "to_key": b"m",
        "pending": 0,
        "dead_letters_through": 0,
        "written_at_ms": 77,
    }
    return SweepRecord(**{**fields, **changes})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (batch(), None),
        (None, "foreign"),
        (batch(journal_id=8), "journal_id"),
        (batch(claim=14), "claim"),
        (batch(claim=16), "claim"),
        (batch(seq=4), "seq"),
        (batch(seq=6), "seq"),
        (batch(start=99), "position"),
        (batch(start=101), "position"),
        (batch(next=100), "malformed"),
        (batch(next=99), "malformed"),
        (batch(topic="conversions", start=0), "position"),
        (batch(topic="conversions", start=-1), "malformed"),
        (batch(flag="idle", next=100), None),
        (batch(flag="idle", next=101), "malformed"),
        (batch(flag="idle", topic="conversions", start=-1, next=-1), "malformed"),
        (batch(flag="skip", next=101), None),
        (batch(flag="skip", next=100), "malformed"),
        (batch(flag="skip", start=99, next=101), "position"),
        (batch(flag="skip", topic="conversions", start=-1, next=0), None),
        (batch(flag="skip", topic="conversions", start=0, next=5), "position"),
        (batch(flag="skip", start=-1, next=5), "position"),
        (sweep(), None),
        (sweep(seq=4), "seq"),
        (sweep(head=replace(HEAD, journal_offset=19)), "position"),
        (sweep(from_key=b"a"), "position"),
        (sweep(head=None), "position"),
        (Claim(owner="x", generation=1, written_at_ms=0), None),
    ],
)
def test_reasons(record: Record | None, reason: str | None) -> None:
    assert ignored_because(HEAD, 20, record) == reason
    after = next_head(HEAD, 20, record, data_hash=b"new", data_bytes=50)
    moved = replace(HEAD, journal_offset=21, last_hash=b"new", journal_bytes=1050)
    assert (after == moved) is (reason is not None)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (sweep(), "position"),  # a round is in progress already
        (sweep(head=None), "position"),
        (sweep(head=None, from_key=b"m"), None),
        (sweep(head=None, from_key=b"n"), "position"),
    ],
)
def test_a_sweep_goes_on_where_it_was(record: SweepRecord, reason: str | None) -> None:
    head = replace(HEAD, sweep=Sweep(round=1, start=18, cursor=b"m"))
    assert ignored_because(head, 20, record) == reason


def test_a_claim_takes_over_and_may_raise_the_journal_s_id_but_never_lower_it() -> None:
    claim = Claim(owner="x", generation=4, written_at_ms=500, journal_id=600)
    first = next_head(Head(), 0, claim, data_hash=b"", data_bytes=1)
    assert (first.journal_id, first.claim, first.owner, first.generation) == (600, 0, "x", 4)
    assert first.sweep.started_at_ms == 500
    later = replace(claim, owner="y", journal_id=700, written_at_ms=900)
    second = next_head(first, 1, later, data_hash=b"", data_bytes=1)
    assert (second.journal_id, second.claim, second.owner) == (700, 1, "y")
    assert second.sweep.started_at_ms == 500
    third = next_head(second, 2, replace(later, owner="z", journal_id=650), data_hash=b"", data_bytes=1)
    assert (third.journal_id, third.owner) == (700, "z")


def test_a_first_claim_without_a_journal_id_uses_its_own_time() -> None:
    claim = Claim(owner="x", generation=4, written_at_ms=500)
    assert next_head(Head(), 0, claim, data_hash=b"", data_bytes=1).journal_id == 500


def test_a_round_from_its_first_record_to_its_last() -> None:
    first = next_head(HEAD, 20, sweep(), data_hash=b"", data_bytes=10)
    assert first.sweep == Sweep(
        round=1, start=20, cursor=b"m", completed=-1, started_at_ms=77, start_bytes=1000
    )
    record = sweep(head=None, from_key=b"m", to_key=b"\xff", last=True, seq=6, pending=2, totals={"a": 3})
    after = next_head(first, 21, record, data_hash=b"", data_bytes=10)
    assert after.sweep == Sweep(
        round=1,
        start=-1,
        cursor=b"",
        completed=20,
        started_at_ms=77,
        start_bytes=1000,
        completed_bytes=1000,
        ended_bytes=1020,
        ended_seq=6,
    )
    assert (after.pending, after.totals, after.positions) == (2, {"a": 3}, {"exposures": 100})


def test_a_batch_sets_what_it_names_and_leaves_the_rest() -> None:
    head = replace(HEAD, maxima={"conversions": 7}, totals={"x": 1}, dead_letters_through=12)
    record = batch(maxima={"exposures": 8}, totals={"y": 2}, pending=4, dead_letters_through=11)
    after = next_head(head, 20, record, data_hash=b"", data_bytes=1)
    assert after.maxima == {"conversions": 7, "exposures": 8}
    assert after.totals == {"x": 1, "y": 2}
    assert after.positions == {"exposures": 107}
    assert after.seq == 5
    assert after.pending == 4
    assert after.dead_letters_through == 12
