"""A run as it is shown while it goes on: in lines of words or JSON, or as a live panel in a terminal."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import rich.panel
from rich.console import Group
from rich.live import Live
from rich.text import Text

from dskprep.cli import words
from dskprep.dataset.record import Record
from dskprep.pipeline.account import Summary, in_words
from dskprep.pipeline.observer import Observer
from dskprep.worker import slots

if TYPE_CHECKING:
    from distributed import Client

    from dskprep.cli.output import Output

REFRESHES_PER_SECOND = 2
"""How often the panel is drawn."""

RECORD_FIELDS = ("key", "status", "reason", "message", "warnings", "seconds", "cpu_s", "bytes_read")
"""What a line of JSON tells of a record."""


class Lines(Observer):
    """Tells each note and each series, the figures now and then, and the summary."""

    def __init__(self, output: Output, figures_every_s: float) -> None:
        self._output = output
        self._figures_every_s = figures_every_s
        self._told_s = time.monotonic()

    def on_note(self, message: str) -> None:
        self._output.tell("note", {"message": message}, f"note: {message}")

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:
        for record in records:
            content = record.as_dict()
            known = {name: content[name] for name in RECORD_FIELDS if name in content}
            self._output.tell("patient", known, words.describe_series(record))
        if time.monotonic() - self._told_s >= self._figures_every_s:
            self._told_s = time.monotonic()
            figures = summary.account.figures()
            self._output.tell("figures", figures, "; ".join(in_words(figures)))

    def on_end(self, summary: Summary) -> None:
        self._output.tell("summary", summary.as_dict(), *words.describe_summary(summary))


class Panel(Lines):
    """Shows the figures below the series that were not written, and the summary at the end."""

    def __init__(self, output: Output) -> None:
        super().__init__(output, math.inf)
        self._live = Live(self, console=output.console, refresh_per_second=REFRESHES_PER_SECOND)
        self._summary: Summary | None = None
        self._workers: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def show(self, client: Client | None) -> Iterator[Panel]:
        """Show the panel over the block, with what the workers of the client tell of their slots."""
        if client is not None:
            client.subscribe_topic(slots.TOPIC, self._take_slots)
        try:
            with self._live:
                yield self
        finally:
            if client is not None and client.status == "running":
                client.unsubscribe_topic(slots.TOPIC)

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:
        self._summary = summary
        super().on_patient(summary, [record for record in records if not record.is_written])

    def on_end(self, summary: Summary) -> None:
        self._live.stop()
        super().on_end(summary)

    def _take_slots(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take an event of a worker; called in the client's thread."""
        self._workers[event[1]["worker"]] = event[1]

    def __rich__(self) -> rich.panel.Panel:
        lines = in_words(self._summary.account.figures()) if self._summary else ["starting"]
        workers = list(self._workers.values())
        if workers:
            n = {slot: sum(slot in w["slots"] for w in workers) for slot in ("read", "compute", "write")}
            taken, total = (sum(w[name] for w in workers) / 2**30 for name in ("taken_bytes", "total_bytes"))
            lines.append(
                f"now {n['read']} read, {n['compute']} computed, {n['write']} written; "
                f"{taken:.1f} of {total:.1f} GiB of the workers' memory taken"
            )
        texts = (Text(line, no_wrap=True, overflow="ellipsis") for line in lines)
        return rich.panel.Panel(Group(*texts), title="dskprep")
