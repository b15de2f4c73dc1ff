"""Faults of the topics themselves: definitions that change, journals and source records that go."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.errors import KafkaError
from aiokafka.record import MemoryRecords
from msgspec.structs import replace

from streams.errors import BanditError
from streams.experiments.definition import ExperimentRecord
from streams.state.journal import SweepRecord, decode, unpack
from streams.topics import admin_client, create_topics
from tests.chaos.schedule import Fault
from tests.chaos.shop import HOUR_S
from tests.chaos.world import World
from tests.harness.traffic import HOUR_MS
from tests.harness.workers import until

CREATE_DEADLINE_S = 45.0


async def _define(world: World, record: ExperimentRecord) -> None:
    changed = replace(record, revision=record.revision + 1, updated_at_ms=time.time_ns() // 1_000_000)
    world.definitions[record.experiment_id] = changed
    await world.installation.define([changed])


async def redefine(world: World, fault: Fault, pick: random.Random) -> None:
    """A new version that counts differently, effective after everything produced for a lead and longer."""
    record = world.definitions["display"]
    lead_hours = world.settings.definition_lead_ms / 1000 / HOUR_S
    newest = record.versions[-1]
    effective_ms = max(world.shop.now_ms, newest.effective_from_ms) + int((lead_hours + 2) * HOUR_MS)
    version = replace(
        newest,
        version=newest.version + 1,
        effective_from_ms=effective_ms,
        conversion_window_ms=pick.randrange(1, 4) * HOUR_MS,
        touch=pick.choice(("first", "last", "all")),
    )
    await _define(world, replace(record, versions=(*record.versions, version)))


async def complete(world: World, fault: Fault, pick: random.Random) -> None:
    """A completed experiment still counts."""
    await _define(world, replace(world.definitions["clicked"], status="completed"))


async def archive(world: World, fault: Fault, pick: random.Random) -> None:
    """An archived one does not, and its cells go."""
    await _define(world, replace(world.definitions["revenue"], status="archived"))


def swept_bytes(segment: Path) -> int:
    """Bytes of a journal's log up to the end of its last complete sweep; 0 without one.

    What stood before that sweep may have been trimmed, so nothing could give back what is cut off of it.
    """
    data, at, found = segment.read_bytes(), 0, 0
    while at + 12 <= len(data):
        size = 12 + int.from_bytes(data[at + 8 : at + 12], "big")
        batch = MemoryRecords(data[at : at + size]).next_batch()
        at += size
        steps = [] if batch is None else [decode(unpack(record.value)) for record in batch]
        if any(isinstance(step, SweepRecord) and step.last for step in steps):
            found = at
    return found


async def journal_truncated(world: World, fault: Fault, pick: random.Random) -> None:
    """The broker is killed, the end of a partition's log is cut off, the broker starts again.

    The last complete sweep stays: see ``docs/reliability.md``, "Not promised".
    """
    async with world.broker_lock:
        await asyncio.to_thread(world.kafka.kill)
        folders = {
            number: world.kafka.folder / "data" / f"{world.settings.topic('journal')}-{number}"
            for number in range(world.settings.partitions)
        }
        folders = {number: each for number, each in folders.items() if each.exists()}  # the others: broker 2
        with_data = [number for number, each in folders.items() if max(each.glob("*.log")).stat().st_size]
        number = pick.choice(with_data or list(folders))
        folder = folders[number]
        segment = max(folder.glob("*.log"))
        size = segment.stat().st_size
        least = max(size // 2, swept_bytes(segment))
        left = pick.randrange(least, size) if least < size else size
        with segment.open("r+b") as file:
            file.truncate(left)
        for index in (*folder.glob("*.index"), *folder.glob("*.timeindex"), *folder.glob("*.snapshot")):
            index.unlink()
        world.note("journal-truncated", partition=number, bytes=f"{size} -> {left}")
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(world.kafka.start)
    world.journal.read_again(world.settings.topic("journal"), number)


async def journal_anew(world: World, fault: Fault, pick: random.Random) -> None:
    """The journal topic is deleted while workers run, and created again as the command does."""
    name = world.settings.topic("journal")
    async with world.broker_lock:
        async with admin_client(world.settings) as admin:
            await admin.delete_topics([name])
        await asyncio.sleep(fault.seconds)

        async def created() -> bool:
            try:
                await create_topics(world.settings)
                async with admin_client(world.settings) as admin:
                    return name in await admin.list_topics()
            except (BanditError, KafkaError):
                return False

        await until(created, deadline_s=CREATE_DEADLINE_S, what="the journal is there again", poll_s=0.3)
    for number in range(world.settings.partitions):
        world.journal.read_again(name, number)


async def retention(world: World, fault: Fault, pick: random.Random) -> None:
    """All workers are down while records that nobody has read are deleted."""
    topic, number = pick.choice(("exposures", "conversions")), pick.randrange(world.settings.partitions)
    name = world.settings.topic("exposures" if topic == "exposures" else "conversions")
    tp = TopicPartition(name, number)
    async with world.crew.hold_all():
        for member in world.crew.members:
            member.handle.kill()
        await asyncio.sleep(fault.seconds)
        async with world.broker_lock:
            position = world.journal.heads[number].positions.get(topic, 0)
            end = (await world.sources.ends())[tp]

            async def followed() -> bool:
                return world.sources.read_to[tp] >= end

            await until(followed, deadline_s=20, what="the source is read before it is deleted")
            below = pick.randrange(position, end) if end > position else end
            async with admin_client(world.settings) as admin:
                await admin.delete_records({tp: RecordsToDelete(before_offset=below)})
        world.deleted_below[topic, number] = max(below, world.deleted_below.get((topic, number), 0))
        world.note("retention", partition=f"{topic}[{number}]", position=position, below=below, end=end)
        for member in world.crew.running():
            member.start()


ACTIONS: Mapping[str, Callable[[World, Fault, random.Random], Awaitable[None]]] = MappingProxyType(
    {
        "redefine": redefine,
        "complete": complete,
        "archive": archive,
        "journal-truncated": journal_truncated,
        "journal-anew": journal_anew,
        "retention": retention,
    }
)
