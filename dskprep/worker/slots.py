"""The three slots of a worker process with one patient in each, and reports of them to the scheduler."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, get_args

from dskprep.stopwatch import Stopwatch
from dskprep.worker.admission import Ledger

if TYPE_CHECKING:
    from distributed import Worker

TOPIC = "dskprep-slots"
"""Topic of the Dask events that hold the state of one worker process (see `Slots.state`)."""
EVERY_S = 1.0
"""Least seconds between two events of one process, so that their cost does not grow with the number of patients."""

Slot = Literal["read", "compute", "write"]
SLOTS: tuple[str, ...] = get_args(Slot)


class Slots:
    """Which patient is read, which is computed and which is written in this process."""

    def __init__(self) -> None:
        self._free = {slot: threading.Lock() for slot in SLOTS}
        self._held: dict[str, tuple[str, Stopwatch, float]] = {}
        self._changed = threading.Event()
        self._worker: Worker | None = None
        self._ledger: Ledger | None = None

    @contextmanager
    def __call__(self, slot: Slot, key: str, clock: Stopwatch) -> Iterator[None]:
        """Wait until a slot is free, and hold it for the patient `key`, whose stage `clock` knows."""
        with self._free[slot]:
            clock.on_change = self._changed.set
            self._held[slot] = (key, clock, time.monotonic())
            self._changed.set()
            try:
                yield
            finally:
                del self._held[slot]
                self._changed.set()

    def tell_through(self, worker: Worker, ledger: Ledger) -> None:
        """From now on, send the state to the scheduler of this worker when it changes, at most once every EVERY_S."""
        is_first = self._worker is None
        self._worker, self._ledger = worker, ledger
        if is_first:  # it sends what changed before at once
            threading.Thread(target=self._tell, name="slots", daemon=True).start()

    def state(self) -> dict[str, Any]:
        """Return patient, stage and seconds so far of each slot in use, and the bytes that the ledger has given out."""
        now = time.monotonic()
        return {
            "worker": self._worker.address if self._worker else "",
            "pid": os.getpid(),
            "slots": {
                slot: [key, clock.latest(), round(now - since_s, 2)]
                for slot, (key, clock, since_s) in self._held.copy().items()
            },
            "taken_bytes": self._ledger.taken_bytes if self._ledger else 0,
            "total_bytes": self._ledger.total_bytes if self._ledger else 0,
        }

    def _tell(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            with suppress(RuntimeError):  # the worker's loop has ended
                self._worker.log_event(TOPIC, self.state())  # type: ignore[union-attr]
            time.sleep(EVERY_S)
