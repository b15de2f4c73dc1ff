"""Records as bytes: what a version has written, every later one reads."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams.join.step import Verdict
from streams.state.errors import JournalVersionError
from streams.state.journal import (
    BatchRecord,
    Claim,
    Head,
    Record,
    Sweep,
    SweepRecord,
    decode,
    decode_head,
    encode,
    encode_head,
    pack,
    record_hash,
    unpack,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "journal"

HEAD = Head(
    journal_id=1_700_000_000_123,
    journal_offset=77,
    last_hash=bytes(range(16)),
    claim=70,
    owner="worker-1",
    generation=12,
    seq=51,
    positions={"exposures": 1000, "conversions": 40},
    maxima={"exposures": 1_700_000_100_000, "conversions": 1_700_000_090_000},
    totals={"exposures/accepted": 990, "exposures/dead_letter/late": 10, "conversions/accepted": 40},
    pending=3,
    dead_letters_through=60,
    sweep=Sweep(
        round=2,
        completed=40,
        started_at_ms=1_700_000_050_000,
        start_bytes=90_000,
        completed_bytes=90_000,
        ended_bytes=95_000,
        ended_seq=33,
    ),
    log_start_skips={"conversions": 5},
    journal_bytes=123_456,
)
RECORDS: dict[str, Record] = {
    "claim": Claim(
        owner="worker-1", generation=12, written_at_ms=1_700_000_000_000, journal_id=1_700_000_000_123
    ),
    "batch": BatchRecord(
        journal_id=1_700_000_000_123,
        claim=70,
        seq=52,
        flag="normal",
        topic="exposures",
        start=1000,
        next=1004,
        units={b"unit-1": b"\x00state", "ünit".encode(): None},
        cells={b"cell": b"\xffvalue"},
        verdicts=[Verdict(1002, "late", "$.timestamp", "1 s before the grace ends")],
        maxima={"exposures": 1_700_000_100_000},
        totals={"exposures/accepted": 993, "exposures/dead_letter/late": 11},
        pending=3,
        dead_letters_through=66,
    ),
    "idle": BatchRecord(
        journal_id=1_700_000_000_123,
        claim=70,
        seq=52,
        flag="idle",
        topic="conversions",
        start=40,
        next=40,
        maxima={"conversions": 1_700_000_100_000},
        pending=3,
        dead_letters_through=66,
    ),
    "skip": BatchRecord(
        journal_id=1_700_000_000_123,
        claim=70,
        seq=52,
        flag="skip",
        topic="conversions",
        start=40,
        next=45,
        pending=3,
        dead_letters_through=66,
    ),
    "sweep_first": SweepRecord(
        journal_id=1_700_000_000_123,
        claim=70,
        seq=52,
        head=HEAD,
        last=False,
        from_key=b"",
        to_key=b"uunit-1\x00",
        restated={b"ccell": b"\xffvalue"},
        changed={b"uunit-0": None, b"uunit-1": b"smaller"},
        totals={"conversions/expired": 1},
        pending=2,
        dead_letters_through=66,
        written_at_ms=1_700_000_200_000,
    ),
    "sweep_last": SweepRecord(
        journal_id=1_700_000_000_123,
        claim=70,
        seq=53,
        last=True,
        from_key=b"uunit-1\x00",
        to_key=b"\xff",
        restated={b"uunit-2": b"\x00"},
        pending=2,
        dead_letters_through=66,
        written_at_ms=1_700_000_200_001,
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_golden_bytes_of_version_1_are_written_and_read(name: str) -> None:
    golden = (GOLDEN / f"v1_{name}.msgpack").read_bytes()
    assert encode(RECORDS[name]) == golden
    assert decode(golden) == RECORDS[name]


def test_golden_bytes_of_the_head_are_written_and_read() -> None:
    golden = (GOLDEN / "v1_head.msgpack").read_bytes()
    assert encode_head(HEAD) == golden
    assert decode_head(golden) == HEAD


def test_golden_bytes_of_a_packed_record_are_read() -> None:
    """What zstd makes of a record may differ from one of its releases to the next."""
    golden = (GOLDEN / "v2_packed_batch.msgpack").read_bytes()
    assert decode(unpack(golden)) == RECORDS["batch"]


def test_every_golden_file_belongs_to_a_test() -> None:
    names = {f"v1_{name}" for name in (*RECORDS, "head")}
    assert {path.stem for path in GOLDEN.iterdir()} == names | {"v2_packed_batch"}


@pytest.mark.parametrize("data", [b"", b"x", encode(RECORDS["batch"]), bytes(1_000_000)])
def test_what_is_packed_is_unpacked(data: bytes) -> None:
    assert unpack(pack(data)) == data


@pytest.mark.parametrize("name", RECORDS)
def test_records_from_before_there_were_packed_ones_are_read(name: str) -> None:
    assert unpack(encode(RECORDS[name])) == encode(RECORDS[name])


def test_a_program_that_knows_no_packed_records_refuses_them() -> None:
    with pytest.raises(JournalVersionError, match="record has version 2"):
        decode(pack(encode(RECORDS["batch"])))


def test_a_newer_packing_stops_the_reader() -> None:
    packed = msgspec.msgpack.encode({"kind": "zstd", "v": 3, "data": b"?"})
    with pytest.raises(JournalVersionError, match="record has version 3"):
        decode(unpack(packed))


@pytest.mark.parametrize("frame", [b"", b"not zstd", pack(encode(RECORDS["batch"]))[:-9]])
def test_what_is_packed_but_damaged_is_no_record(frame: bytes) -> None:
    assert decode(unpack(msgspec.msgpack.encode({"kind": "zstd", "v": 2, "data": frame}))) is None


@pytest.mark.parametrize("value", [None, b""])
def test_a_tombstone_is_no_record(value: bytes | None) -> None:
    assert decode(unpack(value)) is None


def _changed(record: Record, **fields: Any) -> bytes:
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(encode(record), strict=False), **fields})


@pytest.mark.parametrize("name", RECORDS)
def test_fields_that_a_later_program_adds_to_this_version_are_ignored(name: str) -> None:
    assert decode(_changed(RECORDS[name], added_later={"a": 1})) == RECORDS[name]


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_a_newer_version_stops_the_reader(name: str) -> None:
    with pytest.raises(JournalVersionError, match=r"journal\[3\] offset 9: record has version 2, .* knows 1"):
        decode(_changed(RECORDS[name], v=2), where="journal[3] offset 9")


def test_a_newer_kind_of_record_stops_the_reader_too() -> None:
    with pytest.raises(JournalVersionError):
        decode(msgspec.msgpack.encode({"kind": "snapshot", "v": 2}))


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"\xc1", b"not msgpack", msgspec.msgpack.encode({"kind": "batch", "v": 1}), bytes(100)],
)
def test_what_is_no_record_is_none(data: bytes) -> None:
    assert decode(data) is None


def test_equal_heads_have_equal_bytes_whatever_the_order_of_their_entries() -> None:
    turned = msgspec.structs.replace(
        HEAD,
        positions=dict(reversed(HEAD.positions.items())),
        totals=dict(reversed(HEAD.totals.items())),
    )
    assert encode_head(turned) == encode_head(HEAD)


def test_the_watermark_is_the_lesser_maximum_and_none_until_both_topics_have_one() -> None:
    assert HEAD.watermark_ms() == 1_700_000_090_000
    assert Head(maxima={"exposures": 5}).watermark_ms() is None
    assert Head().watermark_ms() is None


def test_a_hash_tells_records_apart() -> None:
    assert len(record_hash(b"a")) == 16
    assert record_hash(b"a") != record_hash(b"b")
