"""The allocation log: claims and allocations, and which of them hold. No I/O.

What: one partition of the topic ``allocation-log`` is the history of all allocations of its experiments. An
owner writes a claim first; the claim's own offset is its identity, and every allocation names the claim it
was written under. `LogState.apply` is the one rule that says what a record means; owner, new owner and
audit share it.

Rule: an allocation holds if the claim it names is the newest claim before it. So what a paused owner writes
late is ignored by everybody, whatever Kafka's group generations say. An allocation's version is its offset,
so versions of an experiment never go back.

Layout: a claim has no key and the value ``{"owner": …, "generation": …, "claimed_at_ms": …}``; an
allocation has the experiment id as key and the value of :mod:`streams.allocations` with version 0. Of an
archived experiment the last record has status ``archived`` and no arms.

Cost: O(1) a record, besides decoding it.
"""

import re
from enum import Enum, auto
from typing import NamedTuple

import msgspec
from msgspec import Struct

from streams.allocations import Allocation, AllocationState, decode_allocation, encode_allocation
from streams.errors import RecordError

__all__ = ["Claim", "LogState", "Outcome", "Published", "decode_claim", "encode_claim", "versioned"]


class Claim(Struct, frozen=True, kw_only=True):
    """Says that ``owner`` decides about this partition from here on."""

    owner: str
    generation: int  # of the consumer group when it was written
    claimed_at_ms: int


class Outcome(Enum):
    """What a record of the log was."""

    CLAIM = auto()
    HOLDS = auto()
    FOREIGN = auto()  # written under a claim that was no longer the newest


class Published(NamedTuple):
    """Newest allocation of an experiment that holds; ``raw`` is its value as it stands in its topic."""

    version: int
    boundary_ms: int
    definition_revision: int
    status: str
    raw: bytes

    @property
    def archived(self) -> bool:
        """Whether the experiment is gone from the topic ``allocations``."""
        return self.status == "archived"


_encode = msgspec.json.Encoder().encode
_claim_decoder = msgspec.json.Decoder(Claim)
_START = re.compile(rb'({"experiment_id":"(?:[^"\\]|\\.)*","version":)\d+')


def encode_claim(claim: Claim) -> bytes:
    """Bytes of a claim's value; its record has no key."""
    return _encode(claim)


def decode_claim(raw: bytes, *, where: str = "allocation-log") -> Claim:
    """Return a claim from its value.

    Raises
    ------
    RecordError
        If it does not decode.
    """
    try:
        return _claim_decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise RecordError(
            f"claim does not decode: {error}",
            where=where,
            action="find out what wrote it: only the allocator may write to this topic",
        ) from error


def versioned(raw: bytes, version: int, state: AllocationState | None = None) -> bytes:
    """Bytes for the topic ``allocations`` from those in the log: the same allocation with its version.

    While the next model trains, ``state`` says so there; the log knows no such record.
    """
    start = _START.match(raw)
    if state is None and start is not None:
        return b"%b%d%b" % (start[1], version, raw[start.end() :])
    logged = decode_allocation(raw)
    return encode_allocation(
        msgspec.structs.replace(logged, version=version, state=logged.state if state is None else state)
    )


class LogState:
    """What a partition of the log says, up to the record applied last.

    Attributes
    ----------
    claim
        Offset of the newest claim; None while none is known (the log is read from its middle).
    generation
        Group generation of that claim; -1 while it is unknown.
    newest
        Newest allocation of each experiment that holds.
    foreign_records
        Allocations ignored because their claim was no longer the newest.
    """

    def __init__(self) -> None:
        self.claim: int | None = None
        self.generation = -1
        self.newest: dict[str, Published] = {}
        self.foreign_records = 0

    def apply(self, offset: int, key: bytes | None, value: bytes | None, *, where: str = "") -> Outcome:
        """Take in the record at ``offset``; offsets ascend.

        Raises
        ------
        RecordError
            If it does not decode; the state stays as it was.
        """
        if key is None:
            self.generation = decode_claim(value or b"", where=where).generation
            self.claim = offset
            return Outcome.CLAIM
        allocation = decode_allocation(value or b"", where=where)
        if key != allocation.experiment_id.encode():
            raise RecordError(
                f"key {key!r} is not the experiment {allocation.experiment_id!r} of the value",
                where=where,
                action="find out what wrote it: only the allocator may write to this topic",
            )
        if self.claim is not None and allocation.claim < self.claim:
            self.foreign_records += 1
            return Outcome.FOREIGN
        # A claim greater than the newest known stands before where reading began.
        self.claim = allocation.claim
        self.newest[allocation.experiment_id] = _published(allocation, offset, value or b"")
        return Outcome.HOLDS

    def seed(self, raw: bytes, *, where: str = "") -> Allocation:
        """Take in a record of the topic ``allocations``, before any of the log.

        Raises
        ------
        RecordError
            If it does not decode.
        """
        allocation = decode_allocation(raw, where=where)
        known = self.newest.get(allocation.experiment_id)
        if known is None or known.version < allocation.version:
            self.newest[allocation.experiment_id] = _published(allocation, allocation.version, raw)
        return allocation


def _published(allocation: Allocation, version: int, raw: bytes) -> Published:
    return Published(version, allocation.boundary_ms, allocation.definition_revision, allocation.status, raw)
