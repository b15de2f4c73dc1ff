"""Loaded by the workers of a run (it is on their PYTHONPATH): SIGUSR1 prints where every task waits."""

import asyncio
import faulthandler
import gc
import signal
import sys
from types import FrameType


def _print_tasks(_number: int, _frame: FrameType | None) -> None:
    faulthandler.dump_traceback(file=sys.stderr)
    for each in gc.get_objects():
        if isinstance(each, asyncio.Task) and not each.done():
            each.print_stack(limit=12, file=sys.stderr)
    sys.stderr.flush()


signal.signal(signal.SIGUSR1, _print_tasks)
