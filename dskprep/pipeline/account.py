"""What became of the cases of a run: each input counts once. Its pace, and how it ended."""

from __future__ import annotations

import heapq
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dskprep.counts import format_bytes, n_of
from dskprep.dataset import record as of_dataset
from dskprep.dataset.record import GOOD, Record
from dskprep.errors import InfrastructureError
from dskprep.pipeline.label_account import LabelSummary
from dskprep.pipeline.pace import Pace

N_LATEST = 10
"""How many of the latest patients that were not written are kept with their reason."""
N_EXTREME = 5
"""How many of the slowest, and of the largest, patients are named."""
MAX_MESSAGE = 300
"""Letters of a message that are kept with a patient that was not written."""


@dataclass
class Account:
    """What became of the cases: their `counts` by status, and the `reasons` of those not written.

    `already` counts, by status, the cases that an earlier run had finished; they are in `counts` too. `elsewhere`
    counts in the same way those that another run did while this one ran. `left` is the number of those that another
    run has under way or has done, and that are in no count yet. `further_series` were found beside the main series of a
    case. `split_series` are groups of keys, of the whole dataset, whose volumes seem to be parts of one series.
    `damaged_records` has the keys of the records, of the whole dataset, that cannot be read, and why.
    `labels_deleted` counts the labels that were deleted with images whose files have changed. `largest_need_bytes` is
    what the largest patient refused as too large needs. `inputs` grows until `is_listed`, by a thread that lists ahead
    of the work.
    `stage_s` are wall seconds by stage, `cpu_s` CPU seconds of the workers. `latest` are the last patients not written;
    `slowest` and `largest` hold (seconds, key) and (bytes read, key).
    """

    counts: Counter[str] = field(default_factory=Counter)
    already: Counter[str] = field(default_factory=Counter)
    elsewhere: Counter[str] = field(default_factory=Counter)
    left: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    further_series: Counter[str] = field(default_factory=Counter)
    split_series: list[list[str]] = field(default_factory=list)
    damaged_records: dict[str, str] = field(default_factory=dict)
    inputs: int = 0
    labels_deleted: int = 0
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
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def n_new(self) -> int:
        """How many cases this run has done."""
        return self.counts.total() - self.already.total() - self.elsewhere.total()

    @property
    def n_left(self) -> int:
        """How many of the cases that were found have no status yet, and are not another run's."""
        return self.inputs - self.counts.total() - self.left

    @property
    def is_complete(self) -> bool:
        """Whether every input has a status."""
        return self.inputs == self.counts.total()

    @property
    def is_clean(self) -> bool:
        """Whether every input and every further series is written or set aside, and none is split or damaged."""
        are_good = set(self.counts) | set(self.further_series) <= GOOD
        return self.is_complete and are_good and not (self.split_series or self.damaged_records)

    def add_before(self, status: str, further: Sequence[str]) -> None:
        """Count one input that an earlier run has done, and the further series in its folder. For any thread."""
        with self._lock:
            self.inputs += 1
            self.counts[status] += 1
            self.already[status] += 1
            self.further_series.update(further)

    def add_elsewhere(self, status: str, further: Sequence[str]) -> None:
        """Count one case that another run has done, and the further series in its folder."""
        with self._lock:
            self.counts[status] += 1
            self.elsewhere[status] += 1
            self.further_series.update(further)

    def add(self, records: Sequence[Record]) -> None:
        """Count one case. `records` are those of its series, its own last."""
        *further, own = records
        with self._lock:
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

    def as_dict(self) -> dict[str, Any]:
        """Return the account so far as plain JSON values. Other threads may call this while the run adds to it."""
        return {
            "inputs": self.inputs,
            "is_listed": self.is_listed,
            "counts": dict(self.counts),
            "already": dict(self.already),
            "elsewhere": dict(self.elsewhere),
            "left": self.left,
            "reasons": dict(self.reasons),
            "warnings": dict(self.warnings),
            "further_series": dict(self.further_series),
            "split_series": self.split_series,
            "damaged_records": self.damaged_records,
            "labels_deleted": self.labels_deleted,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "stage_seconds": {stage: round(stage_s, 2) for stage, stage_s in dict(self.stage_s).items()},
            "cpu_seconds": round(self.cpu_s, 2),
            "slowest": [list(each) for each in self.slowest],
            "largest": [list(each) for each in self.largest],
        }

    def figures(self) -> dict[str, Any]:
        """Return the account so far with its pace: for the page, the terminal and the log.

        `known` are those found by now. `total` and `seconds_left` are None as long as they are not known.
        """
        patients_per_s, bytes_per_s = self.pace.per_second
        return self.as_dict() | {
            "done": self.counts.total(),
            "known": self.inputs,
            "total": self.inputs if self.is_listed else None,
            "seconds": round(self.pace.seconds, 1),
            "patients_per_minute": round(60 * patients_per_s, 1),
            "read_mib_per_second": round(bytes_per_s / 2**20, 1),
            "seconds_left": round(self.n_left / patients_per_s) if self.is_listed and patients_per_s else None,
            "latest": list(self.latest),
        }


def in_words(figures: dict[str, Any]) -> list[str]:
    """Return the `figures()` of an account as three lines of text."""
    statuses, n_before = of_dataset.in_words(figures["counts"]), sum(figures["already"].values())
    n_done, known = figures["done"], n_of(figures["known"], "patient")
    done = f"{n_done} of {known}" if figures["is_listed"] else f"{n_done} of {known} found so far, still listing"
    before = f" ({n_before} of them before)" if n_before else ""
    n_elsewhere = sum(figures["elsewhere"].values()) + figures["left"]
    elsewhere = f"; {n_elsewhere} by another run" if n_elsewhere else ""
    left, rate = figures["seconds_left"], figures["patients_per_minute"]
    end = f", about {time_in_words(left)} left" if left else ""
    return [
        f"{done}: {statuses}{before}{elsewhere}" if statuses else done + elsewhere,
        f"{time_in_words(figures['seconds'])}{end}; {rate:g} {'patient' if rate == 1 else 'patients'} per minute, "
        f"{figures['read_mib_per_second']:g} MiB/s read",
        f"read {format_bytes(figures['bytes_read'])}, written {format_bytes(figures['bytes_written'])}; "
        f"{time_in_words(figures['cpu_seconds'])} of CPU",
    ]


def time_in_words(seconds: float) -> str:
    """Return a duration that is read at a glance.

    >>> time_in_words(5), time_in_words(75), time_in_words(8000)
    ('5 s', '1 min 15 s', '2 h 13 min')
    """
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole_s} s" if minutes else f"{whole_s} s"


@dataclass(repr=False)
class Summary:
    """A run, its account, and that of its labels, if it had any. `ended` is a time in ISO 8601.

    `number` counts the runs of a dataset as they ended; 0 until then. `stopped_by` says what broke it off: then not
    all inputs were seen. `is_hashed`: nobody is told the source's name. `fingerprint` is that of the dataset's key.
    """

    run_id: str
    source: str
    target: str
    account: Account
    seconds: float
    ended: str = ""
    number: int = 0
    is_interrupted: bool = False
    stopped_by: str = ""
    labels: LabelSummary | None = None
    is_hashed: bool = False
    fingerprint: str = ""

    def __repr__(self) -> str:
        how = "interrupted, " if self.is_interrupted else "stopped, " if self.stopped_by else ""
        found = n_of(self.account.inputs, "patient")
        return f"<Summary: {how}{found}: {of_dataset.in_words(self.account.counts) or 'none done'}; {self.target}>"

    @property
    def told_source(self) -> str:
        """The source, as logs, pages and files may name it."""
        return "" if self.is_hashed else self.source

    @property
    def n_new(self) -> int:
        """How many cases this run has done."""
        return self.account.n_new

    @property
    def exit_code(self) -> int:
        """0 if every series of the source is written or set aside, with the labels that were asked for, else 1."""
        lacks_labels = self.labels is not None and (self.labels.exit_code or not self.labels.counts)
        return 0 if self.account.is_clean and not self.is_interrupted and not lacks_labels else 1

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        return {
            "run_id": self.run_id,
            "source": self.told_source,
            "target": self.target,
            "seconds": round(self.seconds, 2),
            "ended": self.ended,
            "number": self.number,
            "is_interrupted": self.is_interrupted,
            "stopped_by": self.stopped_by,
            **self.account.as_dict(),
            **({"label_sources": self.labels.as_dict()} if self.labels else {}),
        }


class RunStopped(InfrastructureError):
    """The scheduler or the store was lost during a run; `summary` is its account until then. Run again to go on."""

    def __init__(self, summary: Summary) -> None:
        super().__init__(summary.stopped_by)
        self.summary = summary
