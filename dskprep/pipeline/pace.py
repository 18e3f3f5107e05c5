"""How fast a run goes, and how long it will still take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 120.0
"""The pace is that of the last two minutes."""

SAMPLE_EVERY_S = 1.0


class Pace:
    """Patients and bytes a second over the last WINDOW_S."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started_s = now()
        self._n_done, self._n_bytes = 0, 0
        self._samples = deque([(self._started_s, 0, 0)])

    def add(self, n_bytes: int) -> None:
        """One patient more is done, of which so many bytes were read."""
        now = self._now()
        if now - self._samples[-1][0] >= SAMPLE_EVERY_S:
            self._samples.append((now, self._n_done, self._n_bytes))
            while now - self._samples[1][0] > WINDOW_S:
                self._samples.popleft()
        self._n_done += 1
        self._n_bytes += n_bytes

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self._now() - self._started_s

    @property
    def patients_a_second(self) -> float:
        return (self._n_done - self._samples[0][1]) / self._over_s()

    @property
    def bytes_a_second(self) -> float:
        return (self._n_bytes - self._samples[0][2]) / self._over_s()

    def seconds_for(self, n_patients: int) -> float | None:
        """How long so many more patients take at this pace; None before the first one is done."""
        return n_patients / self.patients_a_second if self.patients_a_second else None

    def _over_s(self) -> float:
        return max(self._now() - self._samples[0][0], 1e-3)


def time_in_words(seconds: float) -> str:
    """A time that is read at a glance.

    >>> time_in_words(5), time_in_words(75), time_in_words(8000)
    ('5 s', '1 min 15 s', '2 h 13 min')
    """
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole_s} s" if minutes else f"{whole_s} s"
