"""All experiments, as workers and edges see them: the topic ``experiments`` read whole and followed.

Of several records with the same revision the first in the log holds, so that of two writers who raced exactly
one has won and every reader agrees which; the store puts the winner's record back behind the loser's.
"""

import time
from collections.abc import Callable

from streams.compacted import CompactedView
from streams.config import Settings
from streams.experiments.definition import ExperimentRecord, decode_record


class ExperimentsView(CompactedView[str, ExperimentRecord]):
    """Newest record of every experiment, by experiment id.

    Parameters
    ----------
    settings
        Addresses, security and topic names.
    monotonic
        Clock for ages, in seconds.
    """

    def __init__(self, settings: Settings, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__(
            settings,
            "experiments",
            decode_key=lambda key: key.decode("utf-8"),
            decode_value=decode_record,
            supersedes=lambda new, old: new.revision > old.revision,
            monotonic=monotonic,
        )
