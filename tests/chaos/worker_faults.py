"""Faults of worker processes and of what they keep on disk."""

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from streams.allocator.log import decode_claim
from streams.errors import BanditError
from streams.log_reader import LogReader
from tests.chaos.crew import CLOCK_AHEAD, CLOCK_BEHIND, STOP_DEADLINE_S, Member
from tests.chaos.schedule import Fault
from tests.chaos.world import World
from tests.harness.workers import WorkerHandle, until

READY_DEADLINE_S = 30.0
SAME_FOLDER_DEADLINE_S = 45.0
SWEEPS_AWAY = 3


async def kill(world: World, fault: Fault, pick: random.Random) -> None:
    """Killed and started again on the same folder."""
    member = world.crew.members[fault.worker]
    async with member.lock:
        member.handle.kill()
        await asyncio.sleep(fault.seconds)
        member.start()


async def pause(world: World, fault: Fault, pick: random.Random) -> None:
    """Stopped for longer than the session: it wakes up as somebody whose partitions are gone."""
    await _pause(world.crew.members[fault.worker], fault.seconds)


async def _pause(member: Member, seconds: float) -> None:
    async with member.lock:
        member.handle.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            member.handle.resume()


async def allocator_pause(world: World, fault: Fault, pick: random.Random) -> None:
    """The process that published last is stopped for longer than its session."""
    newest: dict[int, str] = {}
    with contextlib.suppress(BanditError):  # the broker is away, too: any worker will do
        async with LogReader(world.settings) as reader:
            async for record in reader.read(world.settings.topic("allocation-log")):
                if record.key is None and record.value is not None:
                    newest[record.partition] = decode_claim(record.value).owner
    owners = [m for m in world.crew.running() if m.name in newest.values()]
    await _pause(pick.choice(owners or world.crew.members[:1]), fault.seconds)


async def _stop(member: Member) -> None:
    if not member.handle.running:  # another fault was here before
        return
    status = await member.stop()
    # 1: it was about to end by itself; -15: it had not come as far as to listen to signals
    if status not in (0, 1, -signal.SIGTERM):
        raise AssertionError(f"{member.name}: exit status {status} after SIGTERM\n{member.handle.tail(5)}")


async def rolling_restart(world: World, fault: Fault, pick: random.Random) -> None:
    """One after the other is told to end, ends in time, and is started again."""
    for member in world.crew.running():
        async with member.lock:
            await _stop(member)
            await asyncio.sleep(fault.seconds)
            member.start()


async def scale(world: World, fault: Fault, pick: random.Random) -> None:
    """One worker, three, two."""
    _, second, third = world.crew.members
    async with second.lock:
        second.wanted = False
        await _stop(second)
    await asyncio.sleep(fault.seconds)
    second.start()
    third.start()
    await asyncio.sleep(2 * fault.seconds)
    async with third.lock:
        third.wanted = False
        await _stop(third)


async def storm(world: World, fault: Fault, pick: random.Random) -> None:
    """The third worker comes and goes."""
    third = world.crew.members[2]
    for _ in range(3):
        async with third.lock:
            third.start()
            await asyncio.sleep(fault.seconds)
            third.wanted = False
            third.handle.signal(signal.SIGTERM if pick.random() < 0.5 else signal.SIGKILL)
            await _stop_any(third)


async def _stop_any(member: Member) -> None:
    if member.handle.process is not None:
        try:
            await asyncio.to_thread(member.handle.process.wait, STOP_DEADLINE_S)
        except Exception as error:
            member.handle.kill()
            raise AssertionError(
                f"{member.name} did not end in {STOP_DEADLINE_S:.0f} s\n{member.handle.tail(5)}"
            ) from error


def _empty(folder: Path) -> None:
    for child in folder.iterdir() if folder.exists() else ():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)
        else:
            child.unlink()


async def wipe(world: World, fault: Fault, pick: random.Random) -> None:
    """The data folder is gone."""
    member = world.crew.members[fault.worker]
    async with member.lock:
        member.handle.kill()
        _empty(member.data_dir)
        await asyncio.sleep(fault.seconds)
        member.start()


async def damage(world: World, fault: Fault, pick: random.Random) -> None:
    """A file of a partition database is cut short, or has other bytes."""
    member = world.crew.members[fault.worker]
    async with member.lock:
        member.handle.kill()
        root = member.data_dir / world.settings.group
        files = [
            path
            for path in sorted(root.glob("partition-*/*"))
            if path.suffix in (".sst", ".log") or path.name.startswith("MANIFEST")
            if path.is_file() and path.stat().st_size > 0 and "set-aside" not in path.parent.name
        ]
        if files:
            path = pick.choice(files)
            data = bytearray(path.read_bytes())
            if fault.kind == "store-truncated":
                data = data[: pick.randrange(len(data))]
            else:
                for _ in range(pick.randrange(1, 64)):
                    data[pick.randrange(len(data))] ^= pick.randrange(1, 256)
            path.write_bytes(data)
            world.note(f"{fault.kind}", file=str(path.relative_to(member.data_dir)), bytes=len(data))
        await asyncio.sleep(fault.seconds)
        member.start()


async def disk_full(world: World, fault: Fault, pick: random.Random) -> None:
    """No space is left where the databases are: on a small disk of its own, else by a limit on files."""
    member = next((m for m in world.crew.members if m.is_mounted), world.crew.members[fault.worker])
    if not member.is_mounted:
        await _limit_files(world, member, fault)
        return
    ballast = member.data_dir / "ballast"
    try:
        _fill(ballast)
        free = shutil.disk_usage(member.data_dir).free
        world.note("disk-full", how="tmpfs", worker=member.name, free_bytes=free)
        await asyncio.sleep(fault.seconds)
    finally:
        ballast.unlink(missing_ok=True)  # a worker's whole folder may have been deleted meanwhile


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * (1 << 16))


async def _limit_files(world: World, member: Member, fault: Fault) -> None:
    process = member.handle.process
    if process is None or process.poll() is not None:
        return
    world.note("disk-full", how="RLIMIT_FSIZE", worker=member.name)
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    await asyncio.sleep(fault.seconds)
    if process.poll() is None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)


async def promote(world: World, fault: Fault, pick: random.Random) -> None:
    """One worker restores from nothing; in the middle of that the other is killed."""
    restoring, owner = world.crew.members[fault.worker], world.crew.members[1 - fault.worker]
    async with world.crew.hold_all():
        restoring.handle.kill()
        _empty(restoring.data_dir)
        restoring.start()
        await asyncio.sleep(1.5 + fault.seconds)
        owner.handle.kill()
        await asyncio.sleep(5)
        owner.start()


async def same_folder(world: World, fault: Fault, pick: random.Random) -> None:
    """A second process with the same data folder must end by itself, with a line that says why."""
    member = world.crew.members[fault.worker]
    twin = WorkerHandle(member.handle.settings, f"{member.name}-twin", world.folder)
    twin.settings = twin.settings.model_copy(update={"data_dir": member.data_dir})
    async with member.lock:
        member.start()
        try:
            await member.handle.wait_ready(READY_DEADLINE_S)
        except AssertionError:  # other faults hold it up: whoever comes first has the folder
            world.note("same-folder", skipped="the first process was not ready")
            return
        twin.start()
        try:

            async def ended() -> bool:
                return not twin.running

            await until(ended, deadline_s=SAME_FOLDER_DEADLINE_S, what="the second process has ended")
            status = twin.process.returncode if twin.process is not None else 0
            said = twin.tail(3)
            if status == 0 or "data_dir" not in said:
                raise AssertionError(f"the second process ended with {status}, and said\n{said}")
        finally:
            twin.kill()


async def away(world: World, fault: Fault, pick: random.Random) -> None:
    """A worker stays away until journals have been trimmed behind what it has."""
    member = world.crew.members[fault.worker]
    async with member.lock:
        member.handle.kill()
        before = dict(world.journal.n_sweeps)

        async def swept() -> bool:
            gained = [world.journal.n_sweeps[n] - before.get(n, 0) for n in world.journal.heads]
            return min(gained) >= SWEEPS_AWAY

        try:
            await until(swept, deadline_s=2 * fault.seconds, what=f"{SWEEPS_AWAY} sweeps")
        except AssertionError:
            world.note("away", swept="less than wanted: other faults held up the sweeps")
        member.start()


async def clock(world: World, fault: Fault, pick: random.Random) -> None:
    """A worker lives for a while with a clock that is a day early or late."""
    member = world.crew.members[fault.worker]
    async with member.lock:
        await _stop(member)
        member.extra = pick.choice((CLOCK_AHEAD, CLOCK_BEHIND))
        member.start()
    await asyncio.sleep(fault.seconds)
    async with member.lock:
        member.extra = {}
        await _stop(member)
        member.start()


def may_mount() -> bool:
    """Whether a small disk can be mounted here."""
    return os.geteuid() == 0


ACTIONS: Mapping[str, Callable[[World, Fault, random.Random], Awaitable[None]]] = MappingProxyType(
    {
        "kill": kill,
        "pause": pause,
        "allocator-pause": allocator_pause,
        "rolling-restart": rolling_restart,
        "scale": scale,
        "storm": storm,
        "wipe": wipe,
        "store-truncated": damage,
        "store-flipped": damage,
        "disk-full": disk_full,
        "promote": promote,
        "same-folder": same_folder,
        "away": away,
        "clock": clock,
    }
)
