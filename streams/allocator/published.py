"""The allocation of one experiment that is in force, for commands.

Cost: reads one partition of the topic ``allocations`` whole.
"""

from streams.allocations import Allocation, decode_allocation
from streams.config import Settings
from streams.log_reader import LogReader
from streams.partitioning import partition_of

__all__ = ["newest_allocation", "read_allocation"]


async def newest_allocation(settings: Settings, experiment_id: str) -> Allocation | None:
    """Read the newest allocation of an experiment; None if there is none."""
    async with LogReader(settings) as reader:
        return await read_allocation(reader, settings, experiment_id)


async def read_allocation(reader: LogReader, settings: Settings, experiment_id: str) -> Allocation | None:
    """Read the same with a reader that is there."""
    newest = None
    partition = partition_of(experiment_id.encode(), settings.counts_partitions)
    async for item in reader.read(settings.topic("allocations"), start={partition: 0}):
        if item.key == experiment_id.encode():
            newest = item.value
    return None if newest is None else decode_allocation(newest)
