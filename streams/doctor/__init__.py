"""Looking an installation over: what is right, what is not, where, and what to do about it.

What: `diagnose` runs checks in order of dependence (address before topics, topics before lag) and yields a
`Finding` for each thing it looked at. Nothing is written, no consumer group is joined, no offset committed.

Why this way: each check is a function from a context to findings, so that one that fails says so as a
finding and does not end the others; when no broker can be reached, the rest would only repeat that, and
is left out.

Cost: a few seconds; it reads the last records of the source topics and of the journal, the topics
experiments and allocations whole, and an hour of dead letters.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

from aiokafka.errors import KafkaError

from streams.config import Settings
from streams.connection import explain
from streams.doctor.broker import check_address, check_brokers, check_topic_settings
from streams.doctor.counting import check_counting, check_counts_published, check_group
from streams.doctor.findings import Context, Finding, Level
from streams.doctor.producers import check_producers
from streams.doctor.publishing import check_allocations, check_dead_letters, check_definitions
from streams.errors import BanditError
from streams.log_reader import LogReader

__all__ = ["CHECKS", "Context", "Finding", "Level", "diagnose"]

Check = Callable[[Context], Awaitable[Sequence[Finding]]]

CHECKS: Sequence[tuple[str, Check]] = (
    ("brokers", check_brokers),
    ("topics", check_topic_settings),
    ("definitions", check_definitions),
    ("producers", check_producers),
    ("workers", check_group),
    ("counting", check_counting),
    ("counts", check_counts_published),
    ("allocations", check_allocations),
    ("dead-letters", check_dead_letters),
)
"""Checks that need a reachable broker, in order, by the name they have in findings."""


async def diagnose(
    settings: Settings, now_ms: Callable[[], int], checks: Collection[str] = ()
) -> AsyncIterator[Finding]:
    """Run the checks.

    Parameters
    ----------
    settings
        The installation to look at, as this process would use it.
    now_ms
        Wall clock, epoch ms.
    checks
        Names of the checks to run after that of the address; all of them if empty.

    Yields
    ------
    Finding
        As each check ends.
    """
    reachable = True
    for finding in await check_address(settings):
        yield finding
        reachable = reachable and finding.check_passed
    if not reachable:
        return
    try:
        async with LogReader(settings) as reader:
            context = Context(settings, reader, now_ms, await reader.topics())
            for name, check in CHECKS:
                if checks and name not in checks:
                    continue
                for finding in await _run(name, check, context):
                    yield finding
    except BanditError as error:
        yield _failed("brokers", error)


async def _run(name: str, check: Check, context: Context) -> Sequence[Finding]:
    try:
        return await check(context)
    except (BanditError, KafkaError, OSError) as error:
        return [_failed(name, error)]


def _failed(name: str, error: BaseException) -> Finding:
    explained = explain(error)
    if explained is None:
        return Finding(Level.FAIL, name, f"the check itself failed: {error!r}", "", "report it")
    return Finding(Level.FAIL, name, explained.what, explained.where, explained.action)
