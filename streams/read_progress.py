"""When a partition counts as read to an end, by what the broker's fetch answers prove.

A position at the end is proof; where the last records have been removed (compaction) it never gets there.
Cost: O(1) a poll.
"""

from typing import Any, NamedTuple

from aiokafka import TopicPartition

__all__ = ["FetchAnswer", "ReadProgress", "last_answer"]


class FetchAnswer(NamedTuple):
    """A fetch response as the consumer remembers it: its time, and the end of the log that it reported."""

    timestamp_ms: int
    end: int


class ReadProgress:
    """How far one partition is known.

    ``read`` is the consumer's position; everything below ``complete`` has been applied or no longer exists.
    """

    def __init__(self, position: int, now_s: float) -> None:
        self.read = position
        self.complete = position
        self.observed_s = now_s
        self.fresh_s: float | None = None
        self.answer: FetchAnswer | None = None
        self.quiet = False  # no round since the answer was first seen brought records

    def observe(self, *, position: int, answer: FetchAnswer | None, had_records: bool, now_s: float) -> None:
        """Take in one round of polling.

        An answer that the last round did not see came after that round, so that round's time is a safe
        lower bound of when. It proves the view complete up to the end it reports if the position is there.
        Where compaction has removed the last records the position never gets there: then the answer before
        it is proof, if neither the round that first saw it nor this one, which would have delivered its
        records, brought any. (An answer may arrive right after a round's records were taken; so one round
        is not enough.)
        """
        self.complete = max(self.complete, position)
        if answer is not None and answer != self.answer:
            if self.answer is not None and self.quiet and not had_records and position == self.read:
                self.complete = max(self.complete, self.answer.end)
            self.quiet = True
            if self.complete >= answer.end:
                self.fresh_s = self.observed_s
        self.quiet = self.quiet and not had_records
        self.read = position
        self.answer = answer
        self.observed_s = now_s


def last_answer(consumer: Any, partition: TopicPartition) -> FetchAnswer | None:
    """Return the newest fetch answer that an aiokafka consumer has for a partition; None before the first."""
    timestamp_ms, end = consumer.last_poll_timestamp(partition), consumer.highwater(partition)
    return FetchAnswer(timestamp_ms, end) if timestamp_ms is not None and end is not None else None
