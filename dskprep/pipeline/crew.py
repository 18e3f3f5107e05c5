"""Who does the work: workers that are there, workers that start when there is a first job, or this process."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from distributed import Client

from dskprep.pipeline import cluster

Start = Callable[[], Client]
"""Starts workers, and returns a client of them."""
J = TypeVar("J")


class Crew:
    """The workers of a command. Those of a client that is given are checked now; others start when `start` is called.

    `check` says what workers lack, which `notes` then has. `client` is None while there are no workers, and for good
    where neither a client nor `starts` is given: then the work is done in this process. `start_s` is how many seconds
    the start took, which is no part of the work.
    """

    def __init__(self, client: Client | None, starts: Start | None, check: Callable[[Client], list[str]]) -> None:
        self.client = client
        self.starts = None if client else starts
        self.start_s = 0.0
        self._check = check
        self.notes = check(client) if client else []

    def start(self) -> bool:
        """Start the workers if they are still to be started; return whether that was so."""
        if self.starts is None:
            return False
        began_s = time.monotonic()
        try:
            self.client, self.starts = self.starts(), None
        finally:  # also where Ctrl-C came meanwhile
            self.start_s = time.monotonic() - began_s
        self.notes = self._check(self.client)
        return True

    def limits(self, time_limit_s: float) -> dict[str, Any]:
        """Return what a job may take: bytes of its worker, and seconds for a stage, to which only workers are held."""
        memory_bytes = cluster.least_memory(self.client)
        return {"memory_bytes": memory_bytes, "limit_s": time_limit_s if self.client else None}


def begun(jobs: Iterator[J]) -> Iterator[J] | None:
    """Return the jobs once the first of them is there; None if there are none."""
    first = next(jobs, None)
    return None if first is None else itertools.chain([first], jobs)
