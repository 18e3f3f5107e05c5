"""Who hears what happens in a run: the terminal, JSON lines, the page on the dashboard, a program's own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dskprep.dataset.label_record import LabelRecord
    from dskprep.dataset.record import Record
    from dskprep.pipeline.account import Summary
    from dskprep.pipeline.annotate import LabelSummary
    from dskprep.pipeline.export import ExportSummary
    from dskprep.worker.export import Exported


class Observer:
    """Hears the events of a run. Every method does nothing unless it is overridden.

    The methods are called in the thread of the run, one at a time. `summary.account` is the account so far; it goes on
    changing.
    """

    def on_start(self, summary: Summary) -> None:
        """The run begins; nothing is done yet."""

    def on_note(self, message: str) -> None:
        """Something that the user should know of the run as a whole, such as what the cluster lacks."""

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:
        """One patient is done; these are the records of its series, its own last."""

    def on_label(self, summary: LabelSummary, record: LabelRecord) -> None:
        """One label source is done."""

    def on_export(self, summary: ExportSummary, volume: Exported) -> None:
        """One volume of an export is written, or failed."""

    def on_end(self, summary: Summary) -> None:
        """The run is over: done, interrupted or stopped (see `summary`). Everything is written."""
