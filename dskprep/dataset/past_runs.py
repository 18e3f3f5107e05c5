"""The runs that have ended, as their summaries tell of them. A summary may be a stranger's, or damaged."""

from __future__ import annotations

import datetime
import functools
import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from dskprep import storage
from dskprep.dataset.undisturbed import undisturbed
from dskprep.typed import converter

MAX_RUNS = 20
"""The latest runs that are read."""
LARGEST = 1 << 53
Number = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]


@dataclass(frozen=True)
class PastRun:
    """A run that has ended. Summaries of older versions do not know of all of this.

    `inputs` are the patients that it found, `counts` what became of them. Of these, `already` were done before it
    began, and `elsewhere` by another run. `left` are still another run's. `is_listed` says whether the source was
    listed to its end. `number` counts the runs as they ended, whatever their clocks say; two that ended at once may
    have the same.
    """

    run_id: str
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    inputs: Number
    counts: dict[str, Number]
    already: dict[str, Number]
    elsewhere: dict[str, Number] = field(default_factory=dict)
    left: Number = 0
    is_listed: bool = True
    is_interrupted: bool = False
    stopped_by: str = ""
    ended: str = ""
    number: Number = 0
    source: str = ""

    @property
    def n_done(self) -> int:
        """How many patients have a status."""
        return sum(self.counts.values())

    @property
    def n_before(self) -> int:
        """How many of them had it before the run began."""
        return sum(self.already.values())

    @property
    def n_new(self) -> int:
        """How many of them this run has done."""
        return self.n_done - self.n_before - sum(self.elsewhere.values())

    @property
    def per_minute(self) -> float:
        """How many it did per minute."""
        return 60 * self.n_new / self.seconds if self.seconds else 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every patient of the source has a status, and has its record still as the run ended."""
        return self.is_listed and self.n_done == self.inputs and not self.stopped_by

    @property
    def ended_s(self) -> float:
        """When it ended, as seconds since 1970; 0 if what it says of that, which may be a stranger's, is no time."""
        try:
            if self.ended:
                return datetime.datetime.fromisoformat(self.ended).timestamp()
            return datetime.datetime.strptime(self.run_id[:16], "%Y%m%dT%H%M%S%z").timestamp() + self.seconds
        except (ValueError, OverflowError):
            return 0.0


_to_run: Any = converter(PastRun)


def past_runs(target: str) -> list[PastRun]:
    """Return the latest MAX_RUNS runs that have ended, newest first, without those whose summary is damaged."""
    return undisturbed(target, functools.partial(_read, storage.join(target, "runs")))


def last_run(target: str, *, of_work: bool = False) -> PastRun | None:
    """Return the run that ended last; with `of_work` of those that did a patient anew.

    Only of runs that ended at once, and of older versions, do their clocks tell.
    """
    runs = (run for run in past_runs(target) if run.n_new or not of_work)
    return max(runs, key=lambda run: (run.number, run.ended_s), default=None)


def next_number(target: str) -> int:
    """Return the number of the run that ends now."""
    return min(LARGEST, max((run.number for run in past_runs(target)), default=0) + 1)


def _read(folder: str) -> list[PastRun]:
    there = storage.listing_below(folder, follow_links=False)
    entries = sorted((e for e in there if e.name.endswith("/summary.json")), key=lambda entry: entry.name)
    found = []
    for _, content in storage.read_many_metadata(folder, entries[: -MAX_RUNS - 1 : -1]):
        try:
            found.append(_to_run(json.loads(content)))
        except (ValueError, RecursionError):
            continue
    return found
