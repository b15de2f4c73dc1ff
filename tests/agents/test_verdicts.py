"""Dead letters on their way: in journal order, and a bounded number of them in memory."""

import asyncio
from collections.abc import Iterable
from typing import Any

from streams.agents.verdicts import BACKLOG, VerdictEmitter
from streams.deadletters import DeadLetter
from streams.join.step import SourceRecord, Verdict
from tests.harness.workers import until


class SlowTopic:
    """Takes dead letters once it may."""

    def __init__(self) -> None:
        self.may_go_on = asyncio.Event()
        self.letters: list[DeadLetter] = []

    async def emit_all(self, letters: Iterable[DeadLetter]) -> None:
        await self.may_go_on.wait()
        self.letters += letters


async def test_a_flood_of_bad_records_waits_for_the_topic_instead_of_filling_memory() -> None:
    topic = SlowTopic()
    emitter = VerdictEmitter(0, topic, None, {"exposures": "exposures"})  # type: ignore[arg-type] # all it uses
    batch = BACKLOG // 2

    async def flood() -> None:
        for n in range(5):
            offsets = range(n * batch, (n + 1) * batch)
            verdicts = [Verdict(offset, "undecodable", "$", "bad") for offset in offsets]
            records: Any = {offset: SourceRecord(offset, None, b"x", 0) for offset in offsets}
            await emitter.put(n, "exposures", verdicts, records)

    putting = asyncio.create_task(flood())
    emitting = asyncio.create_task(emitter.run())
    _, waiting = await asyncio.wait([putting], timeout=0.2)
    assert waiting
    assert emitter._n_waiting == BACKLOG
    topic.may_go_on.set()
    await asyncio.wait_for(putting, 10)

    async def all_out() -> bool:
        return emitter.through == 5

    await until(all_out, deadline_s=10, what="all letters are out")
    assert [letter.offset for letter in topic.letters] == list(range(5 * batch))
    assert emitter._n_waiting == 0
    emitting.cancel()
