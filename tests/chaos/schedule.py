"""The plan of a run: which faults, when, for how long, on whom; made from a seed, kept as JSON.

Everything random in a run comes from here: a fault carries a seed of its own for what it draws (which file,
which bytes, how long). Processes and the network are not deterministic, so a run repeats the plan, not
every interleaving.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

N_WORKERS = 3


class Kind(NamedTuple):
    """What a fault is, and the least and greatest number of seconds it lasts."""

    text: str
    least_s: float
    most_s: float


KINDS: dict[str, Kind] = {
    "kill": Kind("kill -9 of a worker, started again later", 0, 4),
    "pause": Kind("SIGSTOP past the session time-out, then SIGCONT: the zombie writes", 8, 12),
    "rolling-restart": Kind("SIGTERM and restart of one worker after the other", 0, 1),
    "scale": Kind("one worker, then three, then two", 4, 6),
    "storm": Kind("a third worker joins and leaves again and again", 2, 4),
    "wipe": Kind("kill -9, the data folder deleted", 0, 2),
    "store-truncated": Kind("kill -9, a RocksDB file cut short", 0, 2),
    "store-flipped": Kind("kill -9, bytes of a RocksDB file flipped", 0, 2),
    "disk-full": Kind("no space left in a worker's data folder", 4, 8),
    "promote": Kind("the owner killed while the other worker restores", 1, 3),
    "same-folder": Kind("a second process on the data folder of a worker", 0, 0),
    "away": Kind("a worker away while its journal is swept and trimmed", 12, 18),
    "clock": Kind("a worker whose clock is a day off", 10, 15),
    "allocator-pause": Kind("the allocator's owner stopped across boundaries", 11, 14),
    "cut": Kind("connections between a worker and the broker cut", 1, 10),
    "delay": Kind("connections between a worker and the broker slow", 5, 12),
    "blackhole": Kind("connections between a worker and the broker silent, not closed", 3, 10),
    "slow-leader": Kind("the leader of one partition slow or silent, those of the others not", 6, 12),
    "broker-kill": Kind("kill -9 of the broker in the middle of produces", 0, 3),
    "broker-pause": Kind("SIGSTOP of the broker", 3, 10),
    "resend": Kind("a producer repeats and reorders what it sent", 3, 6),
    "ahead": Kind("one topic hours ahead of the other", 5, 8),
    "poison": Kind("bursts of poison, oversized, null and future records", 1, 3),
    "redefine": Kind("a new counting version of an experiment", 0, 0),
    "complete": Kind("an experiment completed", 0, 0),
    "archive": Kind("an experiment archived", 0, 0),
    "journal-truncated": Kind("the end of a journal partition lost, as by an unclean election", 0, 1),
    "journal-anew": Kind("the journal deleted and created again while workers run", 0, 2),
    "retention": Kind("source records deleted before stopped workers had read them", 4, 6),
}
SHORT_KINDS = ("kill", "pause", "broker-kill", "cut", "wipe", "rolling-restart", "poison", "resend")
SETTLE_S = 6.0
"""Before the first fault: workers own partitions and have counted something."""


def some_kinds(seed: int, least: int, most: int) -> list[str]:
    """Draw ``least`` to ``most`` kinds, for runs too short for all."""
    pick = random.Random(seed)
    return pick.sample(sorted(KINDS), pick.randint(least, most))


class Fault(Struct, frozen=True, kw_only=True):
    """One fault; ``worker`` is a number from 0 for those that need one."""

    at_s: float
    kind: str
    seconds: float
    worker: int
    seed: int


class Schedule(Struct, frozen=True, kw_only=True):
    """The whole plan of a run; ``seconds`` is how long traffic and faults last, without start and checks."""

    seed: int
    seconds: float
    standby_replicas: int
    faults: tuple[Fault, ...]

    @classmethod
    def from_seed(
        cls, seed: int, *, seconds: float, kinds: Sequence[str] = (), every_s: float = 6.0
    ) -> "Schedule":
        """Draw a plan: every kind once in random order, as far as the time goes, then kinds at random.

        Parameters
        ----------
        kinds
            Kinds to draw from; all by default.
        every_s
            Mean time between the beginnings of two faults; shorter where all kinds must have their turn.
        """
        unknown = set(kinds) - KINDS.keys()
        if unknown:
            raise ValueError(f"unknown faults: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
        pick = random.Random(seed)
        wanted = sorted(kinds or KINDS)
        span_s = max(1.0, seconds - SETTLE_S - 4.0)
        n = max(len(wanted), int(span_s / every_s))
        drawn = pick.sample(wanted, len(wanted)) + [pick.choice(wanted) for _ in range(n - len(wanted))]
        times = sorted(SETTLE_S + span_s * (i + pick.random()) / n for i in range(n))
        faults = tuple(
            Fault(
                at_s=round(at_s, 2),
                kind=kind,
                seconds=round(pick.uniform(KINDS[kind].least_s, KINDS[kind].most_s), 2),
                worker=pick.randrange(2),
                seed=pick.randrange(2**31),
            )
            for at_s, kind in zip(times, drawn, strict=True)
        )
        return cls(seed=seed, seconds=seconds, standby_replicas=pick.randrange(2), faults=faults)

    @classmethod
    def read(cls, path: Path) -> "Schedule":
        """Read a stored plan."""
        return msgspec.json.decode(path.read_bytes(), type=cls)

    def write(self, path: Path) -> None:
        """Store the plan."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
