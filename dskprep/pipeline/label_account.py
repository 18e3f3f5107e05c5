"""What became of the label sources of a run, or of `annotate`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dskprep.counts import n_of
from dskprep.dataset import record
from dskprep.dataset.label_record import LabelRecord
from dskprep.dataset.record import GOOD
from dskprep.errors import SET_ASIDE


@dataclass(repr=False)
class LabelSummary:
    """What became of the label sources: `counts` by status, `reasons` of those that are not written.

    `already` counts those that had been done before. `labels` and `points` are what this run has written, and
    `lost_labels` counts, by reason, labels of written sources that are not. `damaged_records` has the paths of the
    records, of the whole dataset, that cannot be read, and why.
    """

    run_id: str
    target: str
    counts: Counter[str] = field(default_factory=Counter)
    already: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    lost_labels: Counter[str] = field(default_factory=Counter)
    damaged_records: dict[str, str] = field(default_factory=dict)
    labels: int = 0
    points: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    is_interrupted: bool = False

    def __repr__(self) -> str:
        how = "interrupted, " if self.is_interrupted else ""
        sources = f"{n_of(self.counts.total(), 'label source')}: {record.in_words(self.counts) or 'none done'}"
        written = f"{n_of(self.labels, 'label')} and {n_of(self.points, 'point')} written"
        return f"<LabelSummary: {how}{sources}; {written}; {self.target}>"

    def add(self, record: LabelRecord) -> None:
        """Count one source."""
        self.counts[record.status] += 1
        for counter, words in self._words(record):
            counter.update(words)
        self.labels += len(record.written)
        self.points += record.n_points
        self.cpu_s += record.cpu_s or 0.0

    def take_back(self, record: LabelRecord) -> None:
        """Count one source no more, since it is done again; its CPU seconds were spent all the same."""
        for counter, words in [(self.counts, [record.status]), *self._words(record)]:
            counter.subtract(words)
            for word in words:
                if not counter[word]:
                    del counter[word]
        self.labels -= len(record.written)
        self.points -= record.n_points

    def _words(self, record: LabelRecord) -> list[tuple[Counter[str], list[str]]]:
        lost = [str(label.reason) for label in record.labels if not label.is_written] if record.is_written else []
        reasons = [] if record.is_written else [f"{record.status}: {record.reason}"]
        return [(self.reasons, reasons), (self.lost_labels, lost), (self.warnings, list(record.warnings))]

    @property
    def exit_code(self) -> int:
        """0 if all sources are written or set aside, with all of their labels, and all records can be read; else 1.

        Nothing is lost with an empty label: most structure sets have one, such as an isocentre.
        """
        is_bad = set(self.lost_labels) - set(SET_ASIDE) or self.damaged_records or self.is_interrupted
        return 0 if set(self.counts) <= GOOD and not is_bad else 1

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        names = ("run_id", "target", "labels", "points", "is_interrupted")
        counters = ("counts", "already", "reasons", "warnings", "lost_labels")
        return (
            {name: getattr(self, name) for name in names}
            | {name: dict(getattr(self, name)) for name in counters}
            | {"damaged_records": self.damaged_records}
            | {"seconds": round(self.seconds, 2), "cpu_seconds": round(self.cpu_s, 2)}
        )
