"""Errors of a partition's journal and store, by what the caller does about them.

::

    streams.errors
    ├── Retry
    │   ├── BrokerUnavailable
    │   │   ├── JournalAppendError         the outcome of an append is unknown: the owner claims again
    │   │   ├── JournalReadError           the journal could not be read: read again
    │   │   └── JournalUnavailable         claiming failed until its deadline
    │   ├── DeadlineExceeded
    │   │   └── RecoveryDeadline           replay was not done in time
    │   └── JournalDiverged                recreated or truncated under a running owner: restart the worker
    └── Stop
        ├── JournalRefused                 Kafka refuses for good: rights, record size, missing topic
        ├── JournalVersionError            written by a newer version of this program
        ├── StoreLocked                    another process has this data folder open
        ├── StoreUnavailable               disk full, no permission
        └── StateCorrupt
            ├── StoreCorrupt               set aside and rebuild: ``Partition.reset``
            ├── JournalGap                 set aside and rebuild: ``Partition.reset``
            ├── JournalStartsInTheMiddle   the beginning is gone: a person must decide
            └── SourceTruncated            the source ends before what the journal has counted
"""

from streams.errors import BrokerUnavailable, DeadlineExceeded, Retry, StateCorrupt, Stop


class JournalAppendError(BrokerUnavailable):
    """An append failed or timed out; the record may be in the journal, may come later, or never."""


class JournalReadError(BrokerUnavailable):
    """The journal could not be read."""


class JournalUnavailable(BrokerUnavailable):
    """A claim could not be written and read back before its deadline."""


class RecoveryDeadline(DeadlineExceeded):
    """Replay of a journal was not done before its deadline."""


class JournalDiverged(Retry):
    """The journal was recreated or truncated under a running owner: a restart compares and rebuilds."""


class JournalRefused(Stop):
    """Kafka refuses for good: no right, a record over the topic's limit, no such topic or partition."""


class JournalVersionError(Stop):
    """A journal record or a store was written by a newer version of this program."""


class StoreLocked(Stop):
    """Another process, or another part of this one, has the partition's database open."""


class StoreUnavailable(Stop):
    """The operating system does not let the database be opened or written."""


class StoreCorrupt(StateCorrupt):
    """The database's files are damaged; its content can be had from the journal again."""


class JournalGap(StateCorrupt):
    """A record came that is not the next one: those between were never seen."""


class JournalStartsInTheMiddle(StateCorrupt):
    """The journal neither starts at offset 0 nor at a sweep: its beginning is gone."""


class SourceTruncated(StateCorrupt):
    """A source partition ends before the position that the journal has reached."""
