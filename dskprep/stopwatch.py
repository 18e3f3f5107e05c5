"""The stages of preparing a series, and the seconds spent in each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STAGES = ("read", "decode", "resample", "lungs", "normalize", "steps", "encode", "write")
"""Names of the stages, in the order in which a series goes through them.

`normalize` belongs to two recipes of 2017, `steps` to the user's own functions; `lungs` is missing where no lungs are
looked for.
"""


class GivenUp(Exception):
    """A stage was to begin although this work has been given up."""


class Stopwatch:
    """Adds up wall-clock seconds by stage, or those of another `clock`.

    Where one stage runs within another, the seconds count for the inner one only. `on_change` is called whenever a
    stage begins.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.on_change: Callable[[], object] = lambda: None
        self.seconds: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._inner_s = [0.0]
        self._is_given_up = False

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.check()
        start = self._running[stage] = self._clock()
        self._inner_s.append(0.0)
        self.on_change()
        try:
            yield
        finally:
            del self._running[stage]
            took_s = self._clock() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took_s - self._inner_s.pop()
            self._inner_s[-1] += took_s

    def check(self) -> None:
        """Raise GivenUp if this work was given up."""
        if self._is_given_up:
            raise GivenUp("this patient was given up")

    def longest(self) -> tuple[str, float]:
        """Return the stage that has been running longest, and its seconds so far."""
        stage, start = min(self._running.copy().items(), key=lambda item: item[1], default=("", self._clock()))
        return stage, self._clock() - start

    def latest(self) -> str:
        """Return the innermost running stage, or ""."""
        return max(self._running.copy().items(), key=lambda item: item[1], default=("", 0.0))[0]

    def give_up(self) -> None:
        """Let no further stage begin."""
        self._is_given_up = True
