"""The protocol: what one owner, or two, may do to a journal, and what counts of it."""

import asyncio

import pytest

from streams.join.step import StepResult
from streams.state.errors import JournalAppendError, JournalDiverged, JournalUnavailable, SourceTruncated
from streams.state.journal import Claim, encode
from streams.state.owner import Committed, Fenced, OwnerLimits, Redo, TooLarge
from streams.state.partition import Partition
from streams.state.recovery import recover
from tests.state.conftest import Open
from tests.state.doubles import (
    TOPICS,
    Fault,
    MemoryLog,
    Source,
    check,
    check_sources,
    commit_next,
    content,
    count_step,
    make_owner,
    run_to_end,
    take,
)


async def replayed(open_partition: Open, log: MemoryLog, name: str) -> Partition:
    partition = open_partition(name)
    await recover(partition, log, deadline_s=30)
    return partition


async def test_a_plain_run_counts_everything_once_and_replays_to_the_same_bytes(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition(), log)
    await take(owner, source)
    await run_to_end(owner, source)
    check(owner.partition, source)
    assert owner.partition.head.positions == dict.fromkeys(TOPICS, 40)
    assert owner.statistics.claims == 1
    assert owner.statistics.redos == 0
    copy = await replayed(open_partition, log, "copy")
    assert content(copy) == content(owner.partition)


@pytest.mark.parametrize("fault", [f for f in Fault if f is not Fault.TIME_OUT_FOREVER])
@pytest.mark.parametrize("at", range(9))
async def test_any_fault_of_any_append_neither_loses_nor_doubles(
    open_partition: Open, fault: Fault, at: int
) -> None:
    """Appends 0 to 2 are the claim and the two first positions; then batches."""
    source, log = Source(n=28), MemoryLog()
    owner = make_owner(open_partition(), log)
    log.faults = [None] * at + [fault]
    await take(owner, source)
    await run_to_end(owner, source)
    log.release()
    check(owner.partition, source)
    assert owner.partition.head.positions == dict.fromkeys(TOPICS, 28)
    copy = await replayed(open_partition, log, "copy")
    check(copy, source)
    await recover(owner.partition, log, deadline_s=30)
    assert content(copy) == content(owner.partition)


async def test_a_record_written_although_its_ack_was_lost_counts_once(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition(), log)
    await take(owner, source)
    log.faults = [Fault.ACK_LOST]
    outcome = await commit_next(owner, source, "exposures")
    assert isinstance(outcome, Redo)
    assert owner.partition.head.positions["exposures"] == 7  # read back with the new claim: it had happened
    await run_to_end(owner, source)
    check(owner.partition, source)


async def test_a_timed_out_record_that_arrives_after_the_new_claim_is_ignored(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition(), log)
    await take(owner, source)
    log.faults = [Fault.DELAYED]
    assert isinstance(await commit_next(owner, source, "exposures"), Redo)
    assert owner.partition.head.positions["exposures"] == 0
    log.release()
    assert isinstance(await commit_next(owner, source, "exposures"), Redo)  # lands behind it: odd offset
    await run_to_end(owner, source)
    check(owner.partition, source)


async def test_an_append_without_an_answer_ends_at_its_time_out(open_partition: Open) -> None:
    class Hanging(MemoryLog):
        async def append(self, data: bytes, *, timeout_s: float) -> int:
            try:
                return await asyncio.wait_for(super().append(data, timeout_s=timeout_s), timeout_s)
            except TimeoutError as error:
                raise JournalAppendError("timed out") from error

    source, log = Source(), Hanging()
    owner = make_owner(
        open_partition(),
        log,
        limits=OwnerLimits(append_timeout_s=0.05, claim_deadline_s=5, claim_backoff_s=0),
    )
    await take(owner, source)
    log.faults = [Fault.TIME_OUT_FOREVER]
    assert isinstance(await commit_next(owner, source, "exposures"), Redo)
    await run_to_end(owner, source)
    check(owner.partition, source)


async def test_a_paused_owner_is_fenced_and_its_late_write_ignored(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    member = {"a": True}

    async def a_is_member() -> bool:
        return member["a"]

    a = make_owner(open_partition("a"), log, name="a", heartbeat_fresh=a_is_member)
    await take(a, source, generation=1)
    await commit_next(a, source, "exposures")
    stale = source.batch("exposures", 7, 7)
    late = count_step(a.partition, stale)
    member["a"] = False
    b = make_owner(open_partition("b"), log, name="b")
    await take(b, source, generation=2)
    await commit_next(b, source, "exposures", 5)
    outcome = await a.commit(late, stale)
    assert isinstance(outcome, Fenced)
    assert not a.active
    assert isinstance(await a.commit(late, stale), Fenced)
    assert isinstance(await a.sweep_step(max_bytes=1000), Fenced)
    assert isinstance(await a.skip("exposures", 99), Fenced)
    assert isinstance(await a.raise_watermark("exposures", 99), Fenced)
    assert isinstance(await commit_next(b, source, "exposures"), Redo)  # a's late write took the offset
    await run_to_end(b, source)
    check(b.partition, source)
    await recover(a.partition, log, deadline_s=30)
    assert content(a.partition) == content(b.partition)


async def test_an_owner_yields_to_a_higher_generation_read_with_its_claim(open_partition: Open) -> None:
    """The group moves on between the heartbeat and the append of the claim."""
    source, log = Source(), MemoryLog()
    fresh = iter([True, False])

    async def heartbeat() -> bool:
        return next(fresh)

    a = make_owner(open_partition("a"), log, name="a", heartbeat_fresh=heartbeat)
    log.before_append = lambda: log.records.append(
        encode(Claim(owner="b", generation=6, written_at_ms=1, journal_id=1))
    )
    assert isinstance(await a.claim(5), Fenced)
    assert not a.active
    assert a.statistics.fenced == 1
    log.before_append = lambda: None
    b = make_owner(open_partition("b"), log, name="b")
    await take(b, source, generation=6)
    await run_to_end(b, source)
    check(b.partition, source)


async def test_a_group_that_starts_again_at_generation_one_is_not_locked_out(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    old = make_owner(open_partition("a"), log, name="old")
    await take(old, source, generation=500)
    new = make_owner(open_partition("b"), log, name="new")
    await take(new, source, generation=1)
    assert new.active
    assert new.partition.head.generation == 1
    await run_to_end(new, source)
    check(new.partition, source)


async def test_no_claim_is_written_without_a_fresh_heartbeat(open_partition: Open) -> None:
    async def stale() -> bool:
        return False

    log = MemoryLog()
    owner = make_owner(open_partition(), log, heartbeat_fresh=stale)
    assert isinstance(await owner.claim(1), Fenced)
    assert log.records == []


async def test_a_claim_that_never_succeeds_ends_at_its_deadline(open_partition: Open) -> None:
    log = MemoryLog()
    limits = OwnerLimits(claim_deadline_s=0.2, claim_backoff_s=0.01)
    owner = make_owner(open_partition(), log, limits=limits)
    log.faults = [Fault.LOST] * 10_000
    with pytest.raises(JournalUnavailable, match=r"no claim within 0\.2 s; last error: .*lost"):
        await owner.claim(1)
    assert not owner.active
    log.faults.clear()
    await take(owner, Source())
    assert owner.active


async def test_two_owners_that_both_believe_in_themselves_never_count_twice(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    a = make_owner(open_partition("a"), log, name="a")
    b = make_owner(open_partition("b"), log, name="b")
    await take(a, source, generation=1)
    await take(b, source, generation=1)
    for turn in range(12):
        await commit_next((a, b)[turn % 2], source, TOPICS[turn % 3 % 2], 3)
        check(a.partition, source)
        check(b.partition, source)
    await run_to_end(a, source)
    await recover(b.partition, log, deadline_s=30)
    assert content(a.partition) == content(b.partition)
    check(b.partition, source)


async def test_a_batch_that_is_not_at_the_position_writes_nothing(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition(), log)
    await take(owner, source)
    end = len(log.records)
    lost_chunk = source.batch("exposures", 7, 7)
    outcome = await owner.commit(count_step(owner.partition, lost_chunk), lost_chunk)
    assert isinstance(outcome, Redo)
    assert "starts at 7, the journal's position is 0" in outcome.reason
    assert len(log.records) == end


async def test_too_large_says_so_and_writes_nothing(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition(), log, limits=OwnerLimits(max_record_bytes=200_000))
    await take(owner, source)
    end = len(log.records)
    batch = source.batch("exposures", 0, 7)
    big = count_step(owner.partition, batch)
    big.units[b"x"] = bytes(200_000)
    outcome = await owner.commit(big, batch)
    assert isinstance(outcome, TooLarge)
    assert outcome.size_bytes > outcome.limit_bytes == 200_000
    assert len(log.records) == end
    assert isinstance(await commit_next(owner, source, "exposures"), Committed)


async def test_limits_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="max_record_bytes must be above 131072"):
        OwnerLimits(max_record_bytes=131_072)
    with pytest.raises(ValueError, match="timeouts must be positive"):
        OwnerLimits(append_timeout_s=0)


async def test_first_positions_are_journalled_and_retention_is_a_counted_skip(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition(), log)
    await owner.claim(1)
    batch = source.batch("exposures", 0, 5)
    unpositioned = await owner.commit(count_step(owner.partition, batch), batch)
    assert isinstance(unpositioned, Redo)
    assert isinstance(await owner.check_source("exposures", 3, 40), Committed)
    assert owner.partition.head.positions == {"exposures": 3}
    assert owner.partition.head.log_start_skips == {}
    assert owner.statistics.skips == 0
    assert await owner.check_source("exposures", 3, 40) is None
    assert await owner.check_source("exposures", 2, 3) is None  # both ends inclusive
    assert isinstance(await owner.check_source("exposures", 10, 40), Committed)
    assert owner.partition.head.positions == {"exposures": 10}
    assert owner.partition.head.log_start_skips == {"exposures": 7}
    assert owner.statistics.skips == 1
    with pytest.raises(SourceTruncated, match=r"exposures ends at offset 9, .* up to 10"):
        await owner.check_source("exposures", 0, 9)
    copy = await replayed(open_partition, log, "copy")
    assert content(copy) == content(owner.partition)


async def test_idleness_raises_a_maximum_only_as_a_record(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition(), log)
    await owner.claim(1)
    with pytest.raises(ValueError, match="check_source comes before"):
        await owner.raise_watermark("exposures", 5)
    await check_sources(owner, source)
    assert owner.partition.head.watermark_ms() is None
    assert isinstance(await owner.raise_watermark("exposures", 500), Committed)
    assert owner.partition.head.watermark_ms() is None
    assert isinstance(await owner.raise_watermark("conversions", 400), Committed)
    assert owner.partition.head.watermark_ms() == 400
    assert await owner.raise_watermark("conversions", 400) is None
    assert owner.partition.head.positions == {"exposures": 0, "conversions": 0}
    copy = await replayed(open_partition, log, "copy")
    assert copy.head.watermark_ms() == 400


async def test_verdicts_wait_until_a_record_says_that_their_dead_letters_are_out(
    open_partition: Open,
) -> None:
    source, log = Source(bad_every=3), MemoryLog()
    owner = make_owner(open_partition(), log)
    await take(owner, source)
    first = await commit_next(owner, source, "exposures", 6)
    second = await commit_next(owner, source, "conversions", 3)
    assert isinstance(first, Committed)
    assert isinstance(second, Committed)
    waiting = owner.partition.pending_verdicts()
    assert [(v.journal_offset, v.topic, [x.offset for x in v.verdicts]) for v in waiting] == [
        (first.offset, "exposures", [2, 5]),
        (second.offset, "conversions", [2]),
    ]
    owner.dead_lettered(second.offset)
    assert len(owner.partition.pending_verdicts()) == 2  # not yet journalled
    third = await commit_next(owner, source, "exposures", 3)
    assert isinstance(third, Committed)
    assert [v.journal_offset for v in owner.partition.pending_verdicts()] == [second.offset, third.offset]
    owner.dead_lettered(10**9)  # never beyond what is journalled
    assert isinstance(await commit_next(owner, source, "exposures", 1), Committed)
    assert owner.partition.pending_verdicts() == []
    copy = await replayed(open_partition, log, "copy")
    assert content(copy) == content(owner.partition)


async def test_a_standby_that_applied_all_along_is_promoted_by_a_claim(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("a"), log, name="a")
    standby = open_partition("b")
    await take(owner, source)
    for topic in TOPICS:
        await commit_next(owner, source, topic)
        for offset in range(standby.head.journal_offset, len(log.records)):
            standby.apply(offset, log.records[offset])
    await commit_next(owner, source, "exposures")  # the standby is one record behind
    log.reads = 0
    promoted = make_owner(standby, log, name="b")
    await take(promoted, source, generation=2)
    assert promoted.partition.head.positions["exposures"] == 14
    await run_to_end(promoted, source)
    check(standby, source)
    assert isinstance(await commit_next(owner, source, "conversions"), Redo | Fenced)


async def test_a_journal_recreated_under_a_running_owner_stops_it(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition(), log)
    await take(owner, source)
    await commit_next(owner, source, "exposures")
    log.recreate()
    with pytest.raises(JournalDiverged, match="truncated"):
        await commit_next(owner, source, "exposures")
    assert not owner.active
    reset: list[str] = []
    owner.partition.close()
    owner = make_owner(open_partition(on_reset=reset.append), log)
    claimed = await owner.claim(2)
    assert not isinstance(claimed, Fenced)
    assert claimed.reset == "truncated"
    assert reset == ["truncated"]
    await check_sources(owner, source)
    await run_to_end(owner, source)
    check(owner.partition, source)


async def test_the_journal_id_grows_with_every_journal_even_if_the_clock_does_not(
    open_partition: Open,
) -> None:
    source, log = Source(), MemoryLog()
    first = make_owner(open_partition(), log)
    await take(first, source)
    known = first.partition.head.journal_id
    assert known == 1_700_000_000_000
    first.partition.close()
    log.recreate()
    second = make_owner(open_partition(), log)
    await take(second, source)
    assert second.partition.head.journal_id == known + 1
    third = make_owner(open_partition("other"), log)
    await take(third, source)
    assert third.partition.head.journal_id == known + 1


async def test_what_follows_a_lost_end_of_the_journal_outranks_what_was_published_of_it(
    open_partition: Open,
) -> None:
    """Readers of counts keep the greatest (journal id, claim, offset): a lost claim had a greater offset."""
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition(), log)
    await take(owner, source)
    await commit_next(owner, source, "exposures")
    cut_at = len(log.records)
    await commit_next(owner, source, "conversions")
    await take(owner, source)  # the claim that will be lost
    head = owner.partition.head
    published = (head.journal_id, head.claim, head.journal_offset)
    owner.partition.close()
    del log.records[cut_at:]
    again = make_owner(open_partition(), log)
    await take(again, source)
    head = again.partition.head
    assert head.claim < published[1]
    assert (head.journal_id, head.claim, head.journal_offset) > published
    journal_id = head.journal_id
    await take(again, source)
    assert again.partition.head.journal_id == journal_id
    await run_to_end(again, source)
    check(again.partition, source)
    assert content(again.partition) == content(await replayed(open_partition, log, "other"))


async def test_what_was_published_under_a_claim_that_the_journal_lacks_is_outranked(
    open_partition: Open,
) -> None:
    """The journal's end was lost, and every disk that knew of it; the topic counts still does."""
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("lost"), log)
    await take(owner, source)
    await commit_next(owner, source, "exposures")
    cut_at = len(log.records)
    await take(owner, source)
    head = owner.partition.head
    published = (head.journal_id, head.claim + 10)
    del log.records[cut_at:]
    again = make_owner(open_partition("fresh"), log, published=lambda: published)
    await take(again, source)
    assert (again.partition.head.journal_id, again.partition.head.claim) > published
    journal_id = again.partition.head.journal_id
    await take(again, source)
    assert again.partition.head.journal_id == journal_id
    assert len(log.records) == cut_at + 2


async def test_a_new_journal_outranks_what_a_clock_ahead_has_published(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    tomorrow_ms = 1_900_000_000_000
    owner = make_owner(open_partition(), log, clock_ms=lambda: 5, published=lambda: (tomorrow_ms, 7))
    await take(owner, source)
    assert owner.partition.head.journal_id == tomorrow_ms + 1
    await run_to_end(owner, source)
    check(owner.partition, source)


async def test_a_record_of_another_life_of_the_journal_does_not_count(open_partition: Open) -> None:
    """Same claim offset, seq and position as in the old journal; only the journal's id differs."""
    source, log = Source(), MemoryLog()
    old = make_owner(open_partition("old"), log)
    await take(old, source)
    batch = source.batch("exposures", 0, 7)
    await old.commit(count_step(old.partition, batch), batch)
    zombie = log.records[-1]
    log.recreate()
    new = make_owner(open_partition("new"), log, clock_ms=lambda: 1_800_000_000_000)
    await take(new, source)
    applied = new.partition.apply(len(log.records), zombie)
    assert applied == (False, "batch", "journal_id")


async def test_results_of_a_step_that_changes_nothing_still_move_the_position(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition(), log)
    await take(owner, source)
    empty = StepResult(
        units={},
        cells={},
        verdicts=[],
        reroutes=[],
        maxima={},
        totals={},
        pending=3,
        unknown_experiments=set(),
    )
    assert isinstance(await owner.commit(empty, source.batch("exposures", 0, 5)), Committed)
    assert owner.partition.head.positions["exposures"] == 5
    assert owner.partition.head.pending == 3
