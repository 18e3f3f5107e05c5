"""Seconds by stage, and a limit on them for work in a thread, which cannot be stopped but given up."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

CHECK_EVERY_S = 1.0


class Overdue(Exception):
    """A stage took longer than its limit; `stack` is where it was."""

    def __init__(self, message: str, stack: str) -> None:
        super().__init__(message)
        self.stack = stack


class Stopwatch:
    """Adds up the wall seconds spent in named stages; those of a stage within another are the inner one's.

    `on_change` is called when one begins.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], object] = lambda: None
        self.seconds: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._within_s = [0.0]
        self._is_given_up = False

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.check()
        start = self._running[stage] = time.perf_counter()
        self._within_s.append(0.0)
        self.on_change()
        try:
            yield
        finally:
            del self._running[stage]
            took_s = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took_s - self._within_s.pop()
            self._within_s[-1] += took_s

    def check(self) -> None:
        """Raise Overdue if this work was given up."""
        if self._is_given_up:
            raise Overdue("this patient was given up", "")

    def longest(self) -> tuple[str, float]:
        """The stage that has run longest by now, and its seconds so far."""
        stage, start = min(self._running.copy().items(), key=lambda item: item[1], default=("", time.perf_counter()))
        return stage, time.perf_counter() - start

    def latest(self) -> str:
        """The innermost stage that is running now."""
        return max(self._running.copy().items(), key=lambda item: item[1], default=("", 0.0))[0]

    def give_up(self) -> None:
        """Let no further stage begin."""
        self._is_given_up = True


class CpuMeter:
    """Shares the CPU seconds of this process out among those who ask, so that nothing is counted twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until_s = time.process_time()

    def since_last(self) -> float:
        """CPU seconds of all threads since this was last asked."""
        with self._lock:
            now = time.process_time()
            seconds, self._until_s = now - self._until_s, now
        return seconds


_HERE = threading.local()


def within(limit_s: float, clock: Stopwatch, work: Callable[[], T]) -> T:
    """What `work` returns; it runs in a thread that belongs to the calling one.

    Raises Overdue when one of the stages it times with `clock` takes longer than `limit_s`. The thread goes
    on with that stage, and whatever it holds is lost to this process.
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
