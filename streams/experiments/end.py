"""The end at which batched least squares may be looked at: what it must be, and that it stays.

An end chosen while looking is none, so it is fixed before the experiment starts. Nothing ends by itself then.
"""

from streams.config import HOUR_MS
from streams.experiments.definition import Counting, ExperimentRecord
from streams.experiments.reader import Problems, Reader, read_instant_ms


def read_instant(reader: Reader, key: str) -> int | None:
    """Read a time, epoch ms; ``None`` where the document does not say, or says it wrongly."""
    if reader.has(key):
        try:
            return read_instant_ms(reader.value(key))
        except ValueError as error:
            reader.problem(key, str(error))
    return None


def read_end(reader: Reader, effective_from_ms: int | None, counting: Counting, sticky: str) -> int | None:
    """Read ``ends_at``; a problem is noted if nothing could be said at that end."""
    ends_at_ms = read_instant(reader, "ends_at")
    if ends_at_ms is None:
        return None
    if ends_at_ms % HOUR_MS:
        reader.problem("ends_at", "not a whole hour; counts are told apart by the hour")
    if effective_from_ms is not None and ends_at_ms <= effective_from_ms + counting.conversion_window_ms:
        reader.problem("ends_at", "no conversion window that begins at effective_from is over by then")
    if counting.trial_window != "experiment" and sticky == "unit":
        reader.problem(
            "ends_at",
            "batched least squares needs independent batches, but a trial is a unit's"
            f" {counting.trial_window} and a returning unit keeps its arm; set trial_window: experiment, or"
            " sticky: interval",
        )
    return ends_at_ms


def check_fixed(ends_at_ms: int | None, record: ExperimentRecord, problems: Problems) -> None:
    """Note a problem if the end of an experiment that has started is another one than before."""
    if record.status == "draft" or ends_at_ms == record.ends_at_ms:
        return
    said = "missing" if ends_at_ms is None else str(ends_at_ms)
    fixed = "without an end" if record.ends_at_ms is None else f"with {record.ends_at_ms}"
    problems.add(
        "ends_at",
        f"{said}, but the experiment has started {fixed}: an end chosen while looking is none; keep what it"
        " was, or clone the experiment",
    )
