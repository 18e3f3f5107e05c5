"""Who hears what happens in a run: the terminal, JSON lines, the page on the dashboard, a program's own code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dskprep.dataset.label_record import LabelRecord
    from dskprep.dataset.record import Record
    from dskprep.pipeline.account import Summary
    from dskprep.pipeline.export import ExportSummary
    from dskprep.pipeline.label_account import LabelSummary
    from dskprep.worker.export import Exported

log = logging.getLogger("dskprep")


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


class LoggedNotes(Observer):
    """Logs notes, where no observer hears them."""

    def on_note(self, message: str) -> None:
        log.warning(message)


def tell(observers: list[Observer], event: str, *arguments: Any) -> None:
    """Call a method of all observers. One that raises an exception is logged, and hears no more."""
    for observer in [*observers]:
        try:
            getattr(observer, event)(*arguments)
        except KeyboardInterrupt:
            raise
        except BaseException:  # what a user's own code raises, also SystemExit
            log.exception(f"the observer {type(observer).__name__} failed and hears no more of this run")
            observers.remove(observer)
