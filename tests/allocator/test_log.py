"""The rule of the allocation log: newest claim, foreign records, reading from the middle."""

import msgspec
import pytest

from streams.allocations import Allocation, decode_allocation, encode_allocation
from streams.allocator.log import Claim, LogState, Outcome, decode_claim, encode_claim, versioned
from streams.errors import RecordError

CLAIM = Claim(owner="w1", generation=7, claimed_at_ms=1000)


def table(experiment_id: str, claim: int, *, version: int = 0, status: str = "live") -> bytes:
    return encode_allocation(
        Allocation(
            experiment_id=experiment_id,
            version=version,
            claim=claim,
            trigger="interval",
            interval_id=1,
            boundary_ms=3_600_000,
            computed_at_ms=3_600_001,
            algorithm="thompson",
            seed=1,
            definition_version=1,
            definition_revision=3,
            status=status,
            sticky="unit",
            control="a",
            default_arm="a",
            comparison=0.0,
            holdout=0.0,
            arms=(),
        )
    )


def test_golden_bytes_of_a_claim() -> None:
    raw = b'{"owner":"w1","generation":7,"claimed_at_ms":1000}'
    assert encode_claim(CLAIM) == raw
    assert decode_claim(raw) == CLAIM
    with pytest.raises(RecordError, match="log-0@4: claim does not decode"):
        decode_claim(b"x", where="log-0@4")


def test_an_allocation_holds_under_the_newest_claim_only() -> None:
    log = LogState()
    assert log.apply(0, None, encode_claim(CLAIM)) is Outcome.CLAIM
    assert log.apply(1, b"e", table("e", 0)) is Outcome.HOLDS
    assert log.apply(2, None, encode_claim(msgspec.structs.replace(CLAIM, generation=8))) is Outcome.CLAIM
    assert (log.claim, log.generation) == (2, 8)
    assert log.apply(3, b"e", table("e", 0)) is Outcome.FOREIGN, "a zombie's late write"
    assert log.newest["e"].version == 1
    assert log.apply(4, b"e", table("e", 2)) is Outcome.HOLDS
    assert log.newest["e"].version == 4
    assert log.foreign_records == 1


def test_a_record_written_twice_holds_twice_and_the_later_is_the_version() -> None:
    log = LogState()
    log.apply(0, None, encode_claim(CLAIM))
    log.apply(1, b"e", table("e", 0))
    log.apply(2, b"e", table("e", 0))
    assert log.newest["e"].version == 2


def test_reading_from_the_middle_takes_the_claim_from_the_records() -> None:
    log = LogState()
    assert log.apply(50, b"e", table("e", 40)) is Outcome.HOLDS
    assert log.claim == 40
    assert log.apply(51, b"e", table("e", 30)) is Outcome.FOREIGN
    assert log.apply(52, None, encode_claim(CLAIM)) is Outcome.CLAIM
    assert log.apply(53, b"e", table("e", 40)) is Outcome.FOREIGN


def test_what_does_not_decode_changes_nothing() -> None:
    log = LogState()
    log.apply(0, None, encode_claim(CLAIM))
    for key, value in ((None, b"x"), (b"e", b"x"), (b"e", None), (None, None)):
        with pytest.raises(RecordError):
            log.apply(1, key, value)
    assert log.claim == 0
    assert log.newest == {}


def test_seeds_come_from_the_compacted_topic_and_the_log_goes_on_from_them() -> None:
    log = LogState()
    log.seed(table("e", 3, version=9))
    log.seed(table("e", 3, version=5))
    assert log.newest["e"].version == 9
    log.apply(9, b"e", table("e", 3))
    assert log.newest["e"].version == 9
    log.apply(12, b"e", table("e", 3, status="archived"))
    assert log.newest["e"].version == 12
    assert log.newest["e"].archived


@pytest.mark.parametrize(
    "experiment_id", ["e", 'odd","version":0,"claim', "a\\", "\N{SNOWMAN}", ',"version":0,']
)
def test_only_the_version_differs_between_the_two_topics(experiment_id: str) -> None:
    raw = table(experiment_id, 5)
    assert versioned(versioned(raw, 7), 0) == raw
    slow = encode_allocation(msgspec.structs.replace(decode_allocation(raw), version=1234))
    assert versioned(raw, 1234) == slow
    of_another_release = b" " + raw
    assert versioned(of_another_release, 1234) == slow
