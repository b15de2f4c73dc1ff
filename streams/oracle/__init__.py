"""The oracle: an independent count of the same events, in SQL, to hold the join to.

What: given all records of the source topics, the definitions and the journalled verdicts, DuckDB computes
every cell from the rules in one go, over whole tables; and every verdict's own predicate is checked against
the log. Nothing of ``streams.join``'s attribution is used, only its result types: no incremental step, no
state, no eviction, another language. So a difference is an error of one of the two.

Which records count: those that decode, lie in the partition of their unit, have no verdict, and are no
duplicates; the rest follows from the definitions (archived experiments are left out, test events count where
their version says so). The definitions are taken as they are at the end: an arm or metric added while the
stream ran does not contradict an earlier verdict, see :func:`check_verdicts`.

Cost: all events in memory; about 2 s for 100,000 events of 2,000 units. Needs the package ``duckdb``.
"""

from streams.oracle.counting import compute_cells
from streams.oracle.log import EventRow, Position, read_row
from streams.oracle.verdicts import check_verdicts

__all__ = ["EventRow", "Position", "check_verdicts", "compute_cells", "read_row"]
