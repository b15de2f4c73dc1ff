"""What a check looks at and what it finds."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple

from streams.config import Settings, TopicName
from streams.log_reader import LogReader

__all__ = ["Context", "Finding", "Level", "ok"]


class Level(StrEnum):
    """How bad it is: fine; to be looked at; broken."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """One thing that was looked at.

    Parameters
    ----------
    level
        How bad it is.
    check
        Name of the check.
    what
        What was found.
    where
        Topic, partition, experiment or address; empty if ``what`` says it.
    action
        What to do; empty for ``ok``.
    """

    level: Level
    check: str
    what: str
    where: str = ""
    action: str = ""

    @property
    def check_passed(self) -> bool:
        """Whether what comes after this check can be looked at."""
        return self.level is not Level.FAIL


class Context(NamedTuple):
    """What checks look with; ``topics`` has the number of partitions of every topic of the cluster."""

    settings: Settings
    reader: LogReader
    now_ms: Callable[[], int]
    topics: Mapping[str, int]

    def has(self, *names: TopicName) -> bool:
        """Tell whether all these topics of ours exist."""
        return all(self.settings.topic(name) in self.topics for name in names)


def ok(check: str, what: str, where: str = "") -> Finding:
    """Make a finding of something that is as it should be."""
    return Finding(Level.OK, check, what, where)
