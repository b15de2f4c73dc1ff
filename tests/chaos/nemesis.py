"""The nemesis: does the faults of a schedule, each for real, and takes them back."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from tests.chaos import data_faults, worker_faults
from tests.chaos.proxy import Mode
from tests.chaos.schedule import Fault, Schedule
from tests.chaos.world import World

FAULT_DEADLINE_S = 90.0
SLOW_BROKER = 2
SLOW_PARTITION = 1
Action = Callable[[World, Fault, random.Random], Awaitable[None]]


async def broker_kill(world: World, fault: Fault, pick: random.Random) -> None:
    """Records in flight may be written and not acknowledged: producers write them again."""
    async with world.broker_lock:
        await asyncio.to_thread(world.kafka.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(world.kafka.start)


async def broker_pause(world: World, fault: Fault, pick: random.Random) -> None:
    """Connections stay open and nothing answers."""
    async with world.broker_lock:
        world.kafka.pause()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            world.kafka.resume()


async def network(world: World, fault: Fault, pick: random.Random) -> None:
    """Cut, slow or silent connections of one worker."""
    member = world.crew.members[fault.worker]
    if fault.kind == "delay":
        member.link.set("delay", delay_s=pick.uniform(0.05, 0.4))
    else:
        member.link.set("cut" if fault.kind == "cut" else "blackhole")
    try:
        await asyncio.sleep(fault.seconds)
    finally:
        member.link.set("pass")


async def slow_leader(world: World, fault: Fault, pick: random.Random) -> None:
    """The leader of one partition answers late, or not at all."""
    mode: Mode = pick.choice(("delay", "blackhole"))
    world.note("slow-leader", mode=mode)
    world.network.slow(SLOW_BROKER, mode, delay_s=pick.uniform(0.5, 2.0))
    try:
        await asyncio.sleep(fault.seconds)
    finally:
        world.network.slow(SLOW_BROKER, "pass")


async def resend(world: World, fault: Fault, pick: random.Random) -> None:
    """Whatever is sent is sent again, in another order."""
    world.shop.repeats = True
    try:
        await asyncio.sleep(fault.seconds)
    finally:
        world.shop.repeats = False


async def ahead(world: World, fault: Fault, pick: random.Random) -> None:
    """One topic is kept back for simulated hours, then comes all at once."""
    topic = pick.choice(("exposures", "conversions"))
    world.shop.held.add(topic)
    try:
        await asyncio.sleep(fault.seconds)
    finally:
        world.shop.held.discard(topic)


async def poison(world: World, fault: Fault, pick: random.Random) -> None:
    """Three bursts of records that are good for nothing."""
    for _ in range(3):
        await world.shop.poison(pick, pick.randrange(20, 150))
        await asyncio.sleep(fault.seconds / 3)


ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "broker-kill": broker_kill,
        "broker-pause": broker_pause,
        "cut": network,
        "delay": network,
        "blackhole": network,
        "slow-leader": slow_leader,
        "resend": resend,
        "ahead": ahead,
        "poison": poison,
        **worker_faults.ACTIONS,
        **data_faults.ACTIONS,
    }
)


async def do(world: World, fault: Fault) -> None:
    """Do one fault; what goes wrong with it is a problem of the run."""
    details = {"worker": world.crew.members[fault.worker].name, "seconds": fault.seconds}
    world.note(f"{fault.kind} begins", **details)
    try:
        async with asyncio.timeout(FAULT_DEADLINE_S):
            await ACTIONS[fault.kind](world, fault, random.Random(fault.seed))
    except TimeoutError:
        world.problems.append(f"{fault.kind} at {fault.at_s} s: not done within {FAULT_DEADLINE_S:.0f} s")
    except Exception as error:  # noqa: BLE001 - goes into the report
        world.problems.append(f"{fault.kind} at {fault.at_s} s: {type(error).__name__}: {error}")
    world.note(f"{fault.kind} ends")


async def run(world: World, schedule: Schedule) -> None:
    """Do all faults at their times; they overlap where they touch different things."""
    began_s = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for fault in schedule.faults:
            await asyncio.sleep(max(0.0, began_s + fault.at_s - asyncio.get_running_loop().time()))
            group.create_task(do(world, fault))
        await asyncio.sleep(max(0.0, began_s + schedule.seconds - asyncio.get_running_loop().time()))


def heal(world: World) -> None:
    """Take back whatever a fault may have left."""
    world.shop.held.clear()
    world.shop.repeats = False
    world.kafka.resume()
    world.crew.heal()
    for member in world.crew.members:
        member.handle.signal(signal.SIGCONT)
