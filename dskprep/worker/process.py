"""What one worker process has one of: slots, a CPU meter, a ledger of its memory; and how patient it is."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from dskprep.worker import admission
from dskprep.worker.admission import Ledger
from dskprep.worker.slots import Slots
from dskprep.worker.time_limit import CpuMeter

T = TypeVar("T")

ATTEMPTS = 3
"""Tries of a patient whose store did not answer; the store's own retries come on top."""
WAIT_S = 2.0
"""Seconds before the second try; doubled before each further one."""
DEADLINE_S = 600.0
"""Seconds after which a patient is not tried again."""

SLOTS = Slots()
CPU = CpuMeter()
_LEDGERS: dict[int, Ledger] = {}
"""The ledgers of this process, by its memory limit in bytes: one, unless a test asks for more."""
_LEDGERS_LOCK = threading.Lock()


def ledger(limit_bytes: int) -> Ledger:
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


def patiently(work: Callable[[], T]) -> T:
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
