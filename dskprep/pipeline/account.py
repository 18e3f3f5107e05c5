"""What became of the cases of a run: every input is in it, once. And how a run ends."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dskprep.dataset.record import STATUSES, Record
from dskprep.errors import InfrastructureError
from dskprep.pipeline.pace import Pace, time_in_words

N_LATEST = 10
"""Patients not written that are kept with their reason, the latest of them."""

N_EXTREME = 5
"""Slowest and largest patients that are named."""

MAX_MESSAGE = 300


@dataclass
class Account:
    """What became of the cases: `counts` of the statuses, `reasons` of those not written.

    `already` counts the cases that an earlier run had finished, by status; they are in `counts` too.
    `split_series` are groups of keys, of the whole dataset, whose volumes seem to be parts of one series.
    `largest_need_bytes` is the memory that the largest of the patients refused as too large needs.
    `inputs` grows until `is_listed`. `stage_s` are wall seconds by stage, `cpu_s` the workers' CPU seconds.
    `latest` are the last patients not written, `slowest` and `largest` (seconds or bytes read, key) the most extreme.
    """

    counts: Counter[str] = field(default_factory=Counter)
    already: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    further_series: Counter[str] = field(default_factory=Counter)
    split_series: list[list[str]] = field(default_factory=list)
    inputs: int = 0
    largest_need_bytes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    is_listed: bool = False
    stage_s: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    latest: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=N_LATEST))
    slowest: list[tuple[float, str]] = field(default_factory=list)
    largest: list[tuple[int, str]] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)

    @property
    def is_complete(self) -> bool:
        """Whether every input has a status."""
        return self.inputs == self.counts.total()

    @property
    def is_clean(self) -> bool:
        """Whether every input, and every further series, is written, and as a whole."""
        is_written = set(self.counts) | set(self.further_series) <= {"written"}
        return self.is_complete and is_written and not self.split_series

    def add(self, records: Sequence[Record]) -> None:
        """Count the records of one case, its own last."""
        *further, own = records
        self.counts[own.status] += 1
        self.further_series.update(record.status for record in further)
        if not own.is_written:
            self.reasons[f"{own.status}: {own.reason}"] += 1
            message = (own.message or "")[:MAX_MESSAGE]
            self.latest.append({"key": own.key, "status": own.status, "reason": own.reason or "", "message": message})
        for record in records:
            self.warnings.update(record.warnings)
            self.largest_need_bytes = max(self.largest_need_bytes, record.need_bytes or 0)
            self.bytes_written += record.bytes_written
        self.bytes_read += own.bytes_read
        self.cpu_s += own.cpu_s or 0.0
        self.stage_s.update(own.seconds)
        self.slowest = heapq.nlargest(N_EXTREME, [*self.slowest, (round(sum(own.seconds.values()), 2), own.key)])
        self.largest = heapq.nlargest(N_EXTREME, [*self.largest, (own.bytes_read, own.key)])
        self.pace.add(own.bytes_read)

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last minutes; None while the source is still being listed, or nothing is done."""
        return self.pace.seconds_for(self.inputs - self.counts.total()) if self.is_listed else None

    def as_dict(self) -> dict[str, Any]:
        """The account so far as plain JSON values. Other threads may ask while the run adds to it."""
        return {
            "inputs": self.inputs,
            "is_listed": self.is_listed,
            "counts": dict(self.counts),
            "already": dict(self.already),
            "reasons": dict(self.reasons),
            "warnings": dict(self.warnings),
            "further_series": dict(self.further_series),
            "split_series": self.split_series,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "stage_seconds": {stage: round(stage_s, 2) for stage, stage_s in dict(self.stage_s).items()},
            "cpu_seconds": round(self.cpu_s, 2),
            "slowest": [list(each) for each in self.slowest],
            "largest": [list(each) for each in self.largest],
        }

    def figures(self) -> dict[str, Any]:
        """What changes while the run is under way, too: for the page, the terminal and the log."""
        left = self.seconds_left
        return self.as_dict() | {
            "seconds": round(self.pace.seconds, 1),
            "patients_a_minute": round(60 * self.pace.patients_a_second, 1),
            "read_mb_a_second": round(self.pace.bytes_a_second / 1e6, 1),
            "seconds_left": None if left is None else round(left),
            "latest": list(self.latest),
        }


def in_words(figures: dict[str, Any]) -> list[str]:
    """An account's `figures()` in three lines."""
    counts, n_before = figures["counts"], sum(figures["already"].values())
    statuses = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts.get(status))
    done = f"{sum(counts.values())} of {figures['inputs']}{'' if figures['is_listed'] else ' so far'} patients"
    before = f" ({n_before} of them before)" if n_before else ""
    left = figures["seconds_left"]
    end = f", about {time_in_words(left)} left" if left else ""
    return [
        f"{done}: {statuses}{before}" if statuses else done,
        f"{time_in_words(figures['seconds'])}{end}; {figures['patients_a_minute']:g} patients a minute, "
        f"{figures['read_mb_a_second']:g} MB/s read",
        f"read {figures['bytes_read'] / 1e9:.2f} GB, written {figures['bytes_written'] / 1e9:.2f} GB; "
        f"{figures['cpu_seconds'] / 3600:.2f} CPU hours",
    ]


@dataclass
class Summary:
    """The end of a run. `exit_code` is 0 if every series of the source is written, else 1.

    `stopped_by` says what broke a run off: then not all inputs were seen.
    """

    run_id: str
    source: str
    target: str
    account: Account
    seconds: float
    is_interrupted: bool = False
    stopped_by: str = ""

    @property
    def n_new(self) -> int:
        """Cases that this run has done."""
        return self.account.counts.total() - self.account.already.total()

    @property
    def exit_code(self) -> int:
        return 0 if self.account.is_clean and not self.is_interrupted else 1

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain JSON values."""
        return {
            "run_id": self.run_id,
            "source": self.source,
            "target": self.target,
            "seconds": round(self.seconds, 2),
            "is_interrupted": self.is_interrupted,
            "stopped_by": self.stopped_by,
            **self.account.as_dict(),
        }


class RunStopped(InfrastructureError):
    """The scheduler or the store was lost under a run; `summary` is its account until then. Run again to go on."""

    def __init__(self, summary: Summary) -> None:
        super().__init__(summary.stopped_by)
        self.summary = summary
