"""Threads that have ended for the system too when they are joined, so that a process may fork right after."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ENDING_S = 1.0
"""How long to wait for a thread that has nothing more to do, in seconds: it takes microseconds."""


class Threads(ThreadPoolExecutor):
    """Threads for several requests at once.

    Before Python 3.13 a thread is joined when Python is done with it. OpenSSL, with which botocore and hashlib work,
    tidies up after that, and holds a lock meanwhile. A child that was forked just then, as by a data loader, never gets
    that lock: about one in fifty hung at its first connection.
    """

    def __init__(self, n_threads: int, name: str) -> None:
        ids = self._ids = list[int]()  # not by way of self, which a thread would keep
        super().__init__(n_threads, name, initializer=lambda: ids.append(threading.get_native_id()))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        last_s = time.monotonic() + ENDING_S
        for number in self._ids if wait else ():
            while Path(f"/proc/self/task/{number}").exists() and time.monotonic() < last_s:
                time.sleep(0.0001)
