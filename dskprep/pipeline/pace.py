"""How fast a run is: patients and bytes per second of late."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 120.0
"""The pace is that of the last two minutes at most."""
SAMPLE_EVERY_S = 0.1
"""Least time between two samples of the pace, in seconds."""
N_SETTLED = 100
"""From so many patients on, the pace leaves out the first half of the time: there the workers start."""


class Pace:
    """Patients and bytes per second over the last WINDOW_S, without the start of the workers."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started_s = now()
        self._ended_s: float | None = None
        self._n_done, self._n_bytes = 0, 0
        self._samples = deque([(self._started_s, 0, 0)])

    def add(self, n_bytes: int) -> None:
        """Count one more patient, of which this many bytes were read."""
        self._n_done += 1
        self._n_bytes += n_bytes
        now = self._now()
        if now - self._samples[-1][0] >= SAMPLE_EVERY_S:
            self._samples.append((now, self._n_done, self._n_bytes))
            oldest_s = now - WINDOW_S
            if self._n_done >= N_SETTLED:
                oldest_s = max(oldest_s, (self._started_s + now) / 2)
            while self._samples[1][0] < oldest_s:
                self._samples.popleft()

    def begin(self, start_s: float) -> None:
        """Count from now on: the workers are there, and took so many seconds to start, which are none of the run."""
        self._started_s += start_s
        self._samples = deque([(self._now(), self._n_done, self._n_bytes)])

    @property
    def seconds(self) -> float:
        """Seconds since the run began, until it ended, without the start of the workers."""
        return (self._now() if self._ended_s is None else self._ended_s) - self._started_s

    def end(self) -> None:
        """Stop the clock: what is done from now on is to write the account."""
        self._ended_s = self._now()

    @property
    def per_second(self) -> tuple[float, float]:
        """Patients and bytes per second."""
        begun_s, n_done, n_bytes = self._samples[0]
        window_s = max(self._now() - begun_s, 1e-3)
        return (self._n_done - n_done) / window_s, (self._n_bytes - n_bytes) / window_s
