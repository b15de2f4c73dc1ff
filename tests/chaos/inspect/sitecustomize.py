"""Loaded by the workers of a run (it is on their PYTHONPATH): what a test does to a process from within.

SIGUSR1 prints where every task waits. With ``CHAOS_CLOCK_SHIFT_S`` the wall clock is that many seconds off,
from the first line of the program on; the monotonic clock is not, as on a machine whose clock is wrong.
"""

import asyncio
import faulthandler
import gc
import os
import signal
import sys
import time
from types import FrameType


def _print_tasks(_number: int, _frame: FrameType | None) -> None:
    faulthandler.dump_traceback(file=sys.stderr)
    for each in gc.get_objects():
        if isinstance(each, asyncio.Task) and not each.done():
            each.print_stack(limit=12, file=sys.stderr)
    sys.stderr.flush()


def _shift_clock(shift_s: int) -> None:
    right_s, right_ns = time.time, time.time_ns
    time.time = lambda: right_s() + shift_s
    time.time_ns = lambda: right_ns() + shift_s * 1_000_000_000


signal.signal(signal.SIGUSR1, _print_tasks)
if _shift := int(os.environ.get("CHAOS_CLOCK_SHIFT_S", "0")):
    _shift_clock(_shift)
