"""What became of the cases of a run: every input is in it, once. And how a run ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dskprep.errors import InfrastructureError
from dskprep.store import Record


@dataclass
class Account:
    """What became of the cases: `counts` of the statuses, `reasons` of those not written.

    `already` counts the cases that an earlier run had finished, by status; they are in `counts` too.
    `split_series` are groups of keys, of the whole dataset, whose volumes seem to be parts of one series.
    `largest_need_bytes` is the memory that the largest of the patients refused as too large needs.
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

    @property
    def is_complete(self) -> bool:
        """Whether every input has a status."""
        return self.inputs == self.counts.total()

    @property
    def is_clean(self) -> bool:
        """Whether every input, and every further series, is written, and as a whole."""
        is_written = set(self.counts) | set(self.further_series) <= {"written"}
        return self.is_complete and is_written and not self.split_series

    def add(self, records: list[Record]) -> None:
        """Count the records of one case, its own last."""
        *further, own = records
        self.counts[own["status"]] += 1
        for record in further:
            self.further_series[record["status"]] += 1
        if own["status"] != "written":
            self.reasons[f"{own['status']}: {own['reason']}"] += 1
        for record in records:
            self.warnings.update(record.get("warnings", []))
            self.largest_need_bytes = max(self.largest_need_bytes, record.get("need_bytes", 0))
            self.bytes_written += sum(o["bytes"] for o in record.get("objects", {}).values())
        self.bytes_read += own["bytes_read"]


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
        account = self.account
        return {
            "run_id": self.run_id,
            "source": self.source,
            "target": self.target,
            "seconds": round(self.seconds, 2),
            "is_interrupted": self.is_interrupted,
            "stopped_by": self.stopped_by,
            "inputs": account.inputs,
            "counts": dict(account.counts),
            "already": dict(account.already),
            "reasons": dict(account.reasons),
            "warnings": dict(account.warnings),
            "further_series": dict(account.further_series),
            "split_series": account.split_series,
            "bytes_read": account.bytes_read,
            "bytes_written": account.bytes_written,
        }


class RunStopped(InfrastructureError):
    """The scheduler or the store was lost under a run; `summary` is its account until then. Run again to go on."""

    def __init__(self, summary: Summary) -> None:
        super().__init__(summary.stopped_by)
        self.summary = summary
