"""What one worker process has one of: slots, a CPU meter, a ledger of its memory; and how it does a job of any kind.

A job never raises. What goes wrong in it becomes a `Loss`, and costs this job only. Work in a thread cannot be stopped.
It can be given up, and its process restarted.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import distributed

from dskprep.errors import DskprepError, name_of
from dskprep.plain import traceback_of, words_of
from dskprep.stopwatch import Stopwatch
from dskprep.worker import admission
from dskprep.worker.admission import Ledger
from dskprep.worker.slots import Slots

T = TypeVar("T")

ATTEMPTS = 3
"""Tries of a patient whose store did not answer; the store's own retries come on top."""
WAIT_S = 2.0
"""Seconds before the second try; doubled before each further one."""
DEADLINE_S = 600.0
"""Seconds after which a patient is not tried again."""
MAX_MESSAGE = 2000
"""Characters of the message of an error that are kept."""
CHECK_EVERY_S = 1.0
"""How often the limit of a stage is checked; it can be overrun by as much."""

_HERE = threading.local()
"""Of each calling thread: the executor of its one working thread, and that thread's id."""


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


SLOTS = Slots()
CPU = CpuMeter()
_LEDGERS: dict[int, Ledger] = {}
"""The ledgers of this process, by its memory limit in bytes: one, unless a test asks for more."""
_LEDGERS_LOCK = threading.Lock()


def _ledger(limit_bytes: int) -> Ledger:
    """Return the ledger of this process."""
    with _LEDGERS_LOCK:
        return _LEDGERS.setdefault(limit_bytes, Ledger(admission.usable_bytes(limit_bytes)))


def give_back_memory() -> None:
    """Let the system have the memory that is free in this process; it takes some milliseconds.

    The C library keeps what was freed in small pieces, such as the files of a patient: 60 MB by the end of the first.
    Only glibc can be told, and other libraries keep less.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclass(frozen=True)
class Loss:
    """Why a job was lost: its stage took too long, a store did not answer, or a bug.

    `stuck_worker` is the address of the process if it hangs now and has to be restarted.
    """

    reason: str
    message: str
    stack: str
    is_bug: bool = False
    stuck_worker: str = ""


def do(
    work: Callable[[Ledger, Stopwatch], T],
    lost: Callable[[Loss, Stopwatch], T],
    *,
    memory_bytes: int,
    limit_s: float | None,
) -> T:
    """Return what `work` returns, or what `lost` makes of its failure. It may use `memory_bytes` of this process.

    It is tried again where a store did not answer. With `limit_s` (seconds), which needs a Dask worker, a stage that
    takes longer is given up, and so is this process.
    """
    clock = Stopwatch()

    def attempt(ledger: Ledger) -> T:
        try:
            return _patiently(lambda: work(ledger, clock))
        except BaseException as failure:
            if limit_s is None and not isinstance(failure, Exception):
                raise  # Ctrl-C, in the user's own process; what leaves a worker's task would never be an answer
            stack, is_bug = traceback_of(failure), not isinstance(failure, DskprepError)
            return lost(Loss(name_of(failure), words_of(failure)[:MAX_MESSAGE], stack, is_bug), clock)

    if limit_s is None:
        return attempt(_ledger(memory_bytes))
    worker = distributed.get_worker()
    # a worker that came late may have less memory than those that the client asked
    ledger = _ledger(min(memory_bytes, worker.memory_manager.memory_limit or memory_bytes))
    SLOTS.tell_through(worker, ledger)
    try:
        return within(limit_s, clock, functools.partial(attempt, ledger))
    except Overdue as overdue:
        return lost(Loss("time-limit", str(overdue), overdue.stack, stuck_worker=worker.address), clock)


def _patiently(work: Callable[[], T]) -> T:
    """Return what `work` returns; try again where a store did not answer. Raises the error of the last try."""
    started = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except OSError:  # an InfrastructureError, or one of the operating system's
            if attempt == ATTEMPTS or time.monotonic() - started > DEADLINE_S:
                raise
        time.sleep(WAIT_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


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
