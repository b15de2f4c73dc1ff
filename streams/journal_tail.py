"""Where the counting of each partition stands, read from the end of the journal.

What: positions and running maxima of the newest accepted batches, and who owns the partition. Consumer
positions are in the journal and nowhere else, so commands that look (doctor, replay) must read them
there.

Why only the end: a record is accepted if it names the newest claim before it, and later records name
later claims; so the end suffices to tell which of its records count, but for one whose sequence number
was already used (a record written twice), which says the same as its twin.

Cost: a few records a partition; more only where one source topic has been quiet for long.
"""

from typing import NamedTuple

from streams.config import Settings
from streams.log_reader import LogReader, Record, Span
from streams.state.journal import SOURCE_TOPICS, BatchRecord, Claim, SweepRecord, decode, unpack

__all__ = ["Progress", "read_progress"]

_WINDOWS = (4, 40, 400, 4_000)


class Progress(NamedTuple):
    """State of one partition.

    ``positions`` and ``maxima`` are by source topic without prefix; a topic that the end of the journal
    does not name is missing. ``written_at_ms`` is the append time of the newest accepted record, None if
    there is none.
    """

    partition: int
    journal: Span
    owner: str
    positions: dict[str, int]
    maxima: dict[str, int]
    pending: int
    written_at_ms: int | None


class _Fold:
    """Folds one partition's records, in offset order."""

    def __init__(self) -> None:
        self.claim = -1
        self.owner = ""
        self.positions: dict[str, int] = {}
        self.maxima: dict[str, int] = {}
        self.pending = 0
        self.written_at_ms: int | None = None

    def add(self, record: Record) -> None:
        """Take a record into account, if it counts."""
        where = f"{record.topic}[{record.partition}] offset {record.offset}"
        entry = decode(unpack(record.value), where=where)
        if isinstance(entry, Claim):
            self.claim, self.owner = record.offset, entry.owner
        elif entry is None or entry.claim < self.claim:
            return
        else:
            self.claim = entry.claim
            self.pending = entry.pending
            self._take(entry)
        self.written_at_ms = record.timestamp

    def _take(self, entry: BatchRecord | SweepRecord) -> None:
        if isinstance(entry, BatchRecord):
            self.positions[entry.topic] = entry.next
            self.maxima.update(entry.maxima)
        elif entry.head is not None:
            self.owner = entry.head.owner
            self.positions.update(entry.head.positions)
            self.maxima.update(entry.head.maxima)

    @property
    def complete(self) -> bool:
        return all(topic in self.positions for topic in SOURCE_TOPICS)


async def read_progress(reader: LogReader, settings: Settings) -> dict[int, Progress]:
    """Read where every partition stands.

    Raises
    ------
    TopicsMismatch
        If there is no journal.
    """
    topic = settings.topic("journal")
    spans = await reader.spans(topic)
    folds: dict[int, _Fold] = {}
    for window in _WINDOWS:
        starts = {
            p: span.end - window for p, span in spans.items() if p not in folds or not folds[p].complete
        }
        folds |= {p: _Fold() for p in starts}
        async for record in reader.read(topic, start=starts):
            folds[record.partition].add(record)
        if all(folds[p].complete or spans[p].end - window <= spans[p].start for p in spans):
            break
    return {
        p: Progress(
            partition=p,
            journal=spans[p],
            owner=fold.owner,
            positions=fold.positions,
            maxima=fold.maxima,
            pending=fold.pending,
            written_at_ms=fold.written_at_ms,
        )
        for p, fold in folds.items()
    }
