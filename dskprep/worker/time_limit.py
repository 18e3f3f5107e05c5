"""A limit on the seconds of a stage, and the CPU seconds of a process.

Work in a thread cannot be stopped. It can be given up, and its process restarted.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from dskprep.stopwatch import Stopwatch

T = TypeVar("T")

CHECK_EVERY_S = 1.0
"""How often the limit is checked; it can be overrun by as much."""

_HERE = threading.local()
"""Of each calling thread: the executor of its one working thread, and that thread's id."""


class Overdue(Exception):
    """A stage took longer than its limit; `stack` shows where it was."""

    def __init__(self, message: str, stack: str) -> None:
        super().__init__(message)
        self.stack = stack


def within(limit_s: float, clock: Stopwatch, work: Callable[[], T]) -> T:
    """Return what `work` returns, run in a thread that belongs to the calling one.

    Raises Overdue when a stage that `work` times with `clock` takes longer than `limit_s`. The thread finishes that
    stage all the same, and what it holds is lost to this process.
    """
    if not hasattr(_HERE, "executor"):
        _HERE.executor = ThreadPoolExecutor(1, thread_name_prefix="patient")
        _HERE.thread = _HERE.executor.submit(threading.get_ident).result()
    future: Future[T] = _HERE.executor.submit(work)
    while not wait([future], CHECK_EVERY_S).done:
        stage, seconds = clock.longest()
        if seconds > limit_s:
            clock.give_up()
            stack = "".join(traceback.format_stack(sys._current_frames()[_HERE.thread]))
            del _HERE.executor
            raise Overdue(f"the stage {stage} was not done after {seconds:.0f} s, the limit is {limit_s:g} s", stack)
    return future.result()


class CpuMeter:
    """Shares out the CPU seconds of this process among the patients, so that none is counted twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until_s = time.process_time()

    def since_last(self) -> float:
        """Return the CPU seconds of all threads since the last call."""
        with self._lock:
            now = time.process_time()
            seconds, self._until_s = now - self._until_s, now
        return seconds
