"""Sweeps: the state written again beside the batches, the journal trimmed, and rebuilt from what is left."""

import pytest

from streams.errors import StateCorrupt
from streams.state.errors import JournalReadError, JournalRefused
from streams.state.journal import SweepRecord, decode
from streams.state.owner import Committed, Fenced, Owner, OwnerLimits, Redo, Swept
from streams.state.recovery import recover
from streams.state.sweep import SweptUnit
from tests.state.conftest import Open
from tests.state.doubles import (
    TOPICS,
    Fault,
    MemoryLog,
    Source,
    check,
    commit_next,
    content,
    make_owner,
    run_to_end,
    take,
)


async def sweep_round(owner: Owner, max_bytes: int = 60) -> list[Swept]:
    """Sweep until a round is complete."""
    steps: list[Swept] = []
    while not steps or not steps[-1].completed:
        step = await owner.sweep_step(max_bytes=max_bytes)
        assert not isinstance(step, Fenced), step
        if isinstance(step, Swept):
            steps.append(step)
    return steps


@pytest.mark.parametrize("max_bytes", [1, 60, 200, 10**6])
async def test_a_round_restates_everything_trims_and_rebuilds(open_partition: Open, max_bytes: int) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await run_to_end(owner, source)
    entries = len(content(owner.partition)) - 1  # less the head
    steps = await sweep_round(owner, max_bytes)
    if max_bytes == 1:
        assert len(steps) == entries
    if max_bytes == 10**6:
        assert len(steps) == 1
    assert [cell for step in steps for cell in step.cells] == list(owner.partition.cells())
    assert log.start == steps[0].offset == owner.partition.head.sweep.completed
    rebuilt = open_partition("rebuilt")
    await recover(rebuilt, log)
    assert rebuilt.base == log.start
    assert rebuilt.complete
    assert content(rebuilt) == content(owner.partition)
    check(rebuilt, source)
    assert owner.statistics.sweeps_completed == 1
    assert owner.statistics.trims == 1
    assert owner.statistics.sweep_records == len(steps)


async def test_batches_between_the_ranges_of_a_round(open_partition: Open) -> None:
    """Also of units that the cursor has passed, is at, and has not reached."""
    source, log = Source(n=60, units=20), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    full = open_partition("full")
    await take(owner, source)
    await commit_next(owner, source, "exposures", 20)
    full_log: list[bytes] = log.records
    done = 0
    while done < 3:
        step = await owner.sweep_step(max_bytes=50)
        assert isinstance(step, Swept)
        done += step.completed
        topic = TOPICS[done % 2]
        if owner.partition.head.positions[topic] < 60:
            assert isinstance(await commit_next(owner, source, topic, 2), Committed)
    for offset, data in enumerate(full_log):
        full.apply(offset, data)
    rebuilt = open_partition("rebuilt")
    await recover(rebuilt, log)
    assert rebuilt.base > 0
    assert content(rebuilt) == content(full) == content(owner.partition)
    check(rebuilt, source)


async def test_a_rebuild_is_not_complete_before_the_end_of_its_round(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await run_to_end(owner, source)
    steps = await sweep_round(owner, 100)
    rebuilt = open_partition("rebuilt")
    await recover(rebuilt, log, upto=steps[-1].offset)
    assert not rebuilt.complete
    rebuilt.close()
    again = open_partition("rebuilt")
    assert not again.complete
    await recover(again, log)
    assert again.base == steps[0].offset
    assert content(again) == content(owner.partition)
    again.close()
    assert open_partition("rebuilt").complete


async def test_a_round_without_an_end_is_no_state_to_go_on_from(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await run_to_end(owner, source)
    step = await owner.sweep_step(max_bytes=60)
    assert isinstance(step, Swept)
    log.start = step.offset  # somebody deleted what may not be deleted
    with pytest.raises(StateCorrupt, match=r"has no end before .* Operator action"):
        await recover(open_partition("rebuilt"), log)


async def test_the_next_owner_goes_on_with_the_round(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    first = make_owner(open_partition("a"), log, name="a")
    await take(first, source)
    await run_to_end(first, source)
    begun = await first.sweep_step(max_bytes=60)
    assert isinstance(begun, Swept)
    second = make_owner(open_partition("b"), log, name="b")
    await take(second, source, generation=2)
    assert second.partition.head.sweep.start == begun.offset
    rest = await sweep_round(second)
    assert log.start == begun.offset
    seen = [cell for step in (begun, *rest) for cell in step.cells]
    assert seen == list(second.partition.cells())
    rebuilt = open_partition("rebuilt")
    await recover(rebuilt, log)
    assert content(rebuilt) == content(second.partition)


@pytest.mark.parametrize("fault", [f for f in Fault if f is not Fault.TIME_OUT_FOREVER])
@pytest.mark.parametrize("at", range(4))
async def test_faults_during_a_round(open_partition: Open, fault: Fault, at: int) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await run_to_end(owner, source)
    log.faults = [None] * at + [fault]
    await sweep_round(owner, 90)
    log.release()
    await sweep_round(owner, 90)
    assert owner.partition.head.sweep.round >= 2
    rebuilt = open_partition("rebuilt")
    await recover(rebuilt, log)
    await recover(owner.partition, log)
    assert rebuilt.base > 0
    assert content(rebuilt) == content(owner.partition)
    check(rebuilt, source)


class Evictor:
    """Evicts units whose id starts with ``a``, halves the others' pending, drops the cell ``b``."""

    def unit(self, unit_id: bytes, state: bytes, watermark_ms: int | None) -> SweptUnit:
        assert watermark_ms == 1_039
        if unit_id.startswith(b"a"):
            return SweptUnit(None, pending=-2, totals={"conversions/expired": 2})
        return SweptUnit(state + b"." if unit_id.startswith(b"c") else state)

    def cell(self, key: bytes, value: bytes) -> bytes | None:
        return None if key == b"b" else value


async def test_eviction_is_in_the_record_of_its_range(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log, sweeper=Evictor())
    await take(owner, source)
    await run_to_end(owner, source)
    replica = open_partition("replica")
    await recover(replica, log)
    steps = await sweep_round(owner, 80)
    cells = dict(owner.partition.cells())
    assert b"b" not in cells
    assert [key for step in steps for key in step.dropped_cells] == [b"b"]
    assert dict(cell for step in steps for cell in step.cells) == cells
    assert owner.partition.get_units([b"a-unit", b"c-unit"])[0] is None
    assert (owner.partition.get_units([b"c-unit"])[0] or b"").endswith(b".")
    assert owner.partition.head.pending == -2
    assert owner.partition.head.totals["conversions/expired"] == 2
    for offset in range(replica.head.journal_offset, len(log.records)):
        replica.apply(offset, log.records[offset])
    rebuilt = open_partition("rebuilt")
    await recover(rebuilt, log)
    assert content(replica) == content(rebuilt) == content(owner.partition)


async def test_verdicts_that_wait_are_swept_too(open_partition: Open) -> None:
    source, log = Source(bad_every=3), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await commit_next(owner, source, "exposures", 12)
    await commit_next(owner, source, "exposures", 3)
    waiting = owner.partition.pending_verdicts()
    await owner.sweep_step(max_bytes=60)
    owner.dead_lettered(waiting[0].journal_offset + 1)  # passes one of them in the middle of the round
    await sweep_round(owner)
    rebuilt = open_partition("rebuilt")
    await recover(rebuilt, log)
    assert rebuilt.pending_verdicts() == owner.partition.pending_verdicts() == waiting[1:]


async def test_an_empty_state_can_be_swept(open_partition: Open) -> None:
    log = MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    await owner.claim(1)
    steps = await sweep_round(owner)
    assert len(steps) == 1
    rebuilt = open_partition("rebuilt")
    await recover(rebuilt, log)
    assert rebuilt.base == log.start == 1
    assert content(rebuilt) == content(owner.partition)


async def test_when_a_sweep_is_due(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    now = 1_700_000_000_000

    def due(after_ms: int = 0, max_bytes: int = 10**9) -> bool:
        return owner.sweep_due(now_ms=now + after_ms, interval_ms=1000, max_bytes=max_bytes)

    await owner.claim(1)
    assert not due(10**6)  # nothing but a claim
    await take(owner, source)
    assert not due(999)
    assert due(1000)
    grown = owner.partition.head.journal_bytes
    assert due(0, grown)
    assert not due(0, grown + 1)
    await commit_next(owner, source, "exposures", 20)
    step = await owner.sweep_step(max_bytes=50)
    assert isinstance(step, Swept)
    assert not step.completed
    assert due(0)  # in progress
    await sweep_round(owner)
    assert not due(10**6)  # nothing since
    await owner.claim(2)
    assert not due(10**6)
    await commit_next(owner, source, "exposures")
    assert due(1000)
    assert not due(999)


async def test_one_entry_greater_than_a_record_may_be_is_refused(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log, limits=OwnerLimits(max_record_bytes=140_000))
    await take(owner, source)

    class Bloating(Evictor):
        def unit(self, unit_id: bytes, state: bytes, watermark_ms: int | None) -> SweptUnit:
            return SweptUnit(unit_id + state + bytes(200_000), pending=-(watermark_ms or 0))

    await commit_next(owner, source, "exposures")
    owner = make_owner(owner.partition, log, limits=OwnerLimits(max_record_bytes=140_000), sweeper=Bloating())
    await take(owner, source, generation=2)
    with pytest.raises(JournalRefused, match=r"sweep record of \d+ bytes .* Operator action: raise"):
        await sweep_round(owner)


async def test_a_trim_that_fails_is_made_up_for_by_the_next(open_partition: Open) -> None:
    class Stubborn(MemoryLog):
        refusals = 1

        async def delete_before(self, offset: int) -> None:
            if self.refusals:
                self.refusals -= 1
                raise JournalReadError("not now")
            await super().delete_before(offset)

    source, log = Source(), Stubborn()
    owner = make_owner(open_partition("owner"), log)
    assert await owner.trim() is None
    await take(owner, source)
    await commit_next(owner, source, "exposures")
    first = await sweep_round(owner)
    assert (log.start, owner.statistics.trim_errors) == (0, 1)
    assert await owner.trim() == first[0].offset == log.start
    assert await owner.trim() is None
    second = await sweep_round(owner)
    assert log.start == second[0].offset
    assert owner.statistics.trims == 2


async def test_only_the_first_record_of_a_round_holds_the_head(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    owner = make_owner(open_partition("owner"), log)
    await take(owner, source)
    await run_to_end(owner, source)
    steps = await sweep_round(owner)
    assert len(steps) > 2
    heads = []
    for step in steps:
        record = decode(log.records[step.offset])
        assert isinstance(record, SweepRecord)
        heads.append(record.head is not None)
    assert heads == [True] + [False] * (len(steps) - 1)


async def test_a_sweep_of_a_fenced_owner_writes_nothing_that_counts(open_partition: Open) -> None:
    source, log = Source(), MemoryLog()
    a = make_owner(open_partition("a"), log, name="a")
    await take(a, source)
    await commit_next(a, source, "exposures")
    b = make_owner(open_partition("b"), log, name="b")
    await take(b, source, generation=2)
    assert isinstance(await a.sweep_step(max_bytes=60), Redo)  # a's heartbeat lies: it claims again
    assert a.partition.head.sweep.start == -1
    assert log.start == 0
