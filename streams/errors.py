"""Errors, as a tree by what the caller does about them.

::

    BanditError                    what was wrong, where, what to do
    ├── Retry                      passes by itself or by doing the same again: back off and repeat
    │   ├── BrokerUnavailable      no answer from Kafka, or an error that Kafka calls retriable
    │   ├── DeadlineExceeded       a wait with a deadline ended before what it waited for
    │   ├── Fenced                 another owner claimed the partition: claim again or yield
    │   ├── RevisionConflict       another writer changed the record first: read it and decide again
    │   └── EndpointFailed         the endpoint that generates gave no usable answer
    ├── Skip                       one record is bad: count it, dead-letter or report it, go on with the next
    │   ├── EventError             an exposure or conversion; carries the dead letter's reason and the field
    │   └── RecordError            a record of one of our own topics that does not decode
    └── Stop                       doing the same again cannot help: stop, and show it to a person
        ├── ConfigError            settings are contradictory, unknown or unreadable
        ├── TopicsMismatch         topics are missing or differ from what the settings say
        ├── DefinitionInvalid      a definition document has problems; carries all of them
        ├── LifecycleError         an experiment cannot do that in its present state
        ├── UnknownExperiment      no such experiment
        ├── BudgetExhausted        an experiment may not spend more on generating
        └── StateCorrupt           journal, database and source topics contradict each other

A process that ends because of one exits with its ``exit_code`` (the numbers of ``sysexits.h``, so that
supervisors and scripts can tell "try again" (75) from "fix the input" (65) and "fix the configuration" (78)).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

DeadLetterReason = Literal[
    "undecodable",
    "invalid_field",
    "key_mismatch",
    "unknown_experiment",
    "unknown_arm",
    "unknown_metric",
    "not_live",
    "future",
    "late",
    "unit_limit",
    "oversize",
    "wrong_partition",
    "value_out_of_range",
]


class BanditError(Exception):
    """Base of every error that the product raises on purpose.

    Parameters
    ----------
    what
        What was wrong, with the value that was found.
    where
        Topic, partition, offset, file or field; empty if ``what`` says it.
    action
        What a person can do about it; empty if nothing needs to be done.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", action: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.action = action

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. Operator action: {self.action}" if self.action else text


class Retry(BanditError):
    """Passes by itself or by doing the same again: back off and repeat."""

    exit_code = 75


class BrokerUnavailable(Retry):
    """Kafka gave no answer, or an error that it calls retriable."""


class DeadlineExceeded(Retry):
    """A wait with a deadline ended before what it waited for."""


class Fenced(Retry):
    """Another owner claimed the partition and nothing was changed: claim again, or yield to a newer one."""


class RevisionConflict(Retry):
    """Another writer changed the record between our read and our write."""


class EndpointFailed(Retry):
    """The endpoint that generates gave no usable answer in as many attempts as are allowed."""


class Skip(BanditError):
    """One record is bad: count it, dead-letter or report it, and go on with the next."""

    exit_code = 65


class EventError(Skip):
    """An exposure or conversion that cannot be accepted.

    Parameters
    ----------
    reason
        The dead letter's reason, one of a bounded set.
    field
        Path of the field, e.g. ``$.timestamp``; ``$`` for the record as a whole.
    message
        What was found and what is expected.
    """

    def __init__(self, reason: DeadLetterReason, field: str, message: str) -> None:
        super().__init__(message, where=field)
        self.reason: DeadLetterReason = reason
        self.field = field
        self.message = message


class RecordError(Skip):
    """A record of one of our own topics that does not decode; the last good one of its key stays in force."""


class Stop(BanditError):
    """Doing the same again cannot help: stop, and show it to a person."""


class ConfigError(Stop):
    """Settings are contradictory, unknown or unreadable."""

    exit_code = 78


class TopicsMismatch(Stop):
    """Topics are missing or differ from what the settings say.

    Parameters
    ----------
    findings
        One line for every difference.
    action
        The command to run.
    """

    exit_code = 78

    def __init__(self, findings: Sequence[str], *, action: str) -> None:
        super().__init__("; ".join(findings), where="topics", action=action)
        self.findings = tuple(findings)


class DefinitionInvalid(Stop):
    """A definition document has problems.

    Parameters
    ----------
    problems
        All problems found, each as ``path: what; what to do``.
    where
        File or experiment.
    """

    exit_code = 65

    def __init__(self, problems: Sequence[str], *, where: str = "definition") -> None:
        super().__init__("\n  ".join(("", *problems)) if len(problems) > 1 else problems[0], where=where)
        self.problems = tuple(problems)


class LifecycleError(Stop):
    """An experiment cannot do that in its present state."""

    exit_code = 65


class UnknownExperiment(Stop):
    """No experiment has this id."""

    exit_code = 65


class BudgetExhausted(Stop):
    """An experiment may not spend more on generating."""

    exit_code = 65


class StateCorrupt(Stop):
    """Journal, database and source topics contradict each other; going on would lose or double counts."""
