"""What a command says, and how it shows a run: in lines of words or of JSON, or as a live panel in a terminal."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import rich.panel
from dask.utils import format_bytes
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dskprep import endings, plain
from dskprep.cli import exits, terminal, words
from dskprep.counts import n_of
from dskprep.dataset.record import Record
from dskprep.pipeline import cluster, cluster_check, lost, page
from dskprep.pipeline.account import Summary, in_words
from dskprep.pipeline.observer import Observer
from dskprep.worker import slots

if TYPE_CHECKING:
    from distributed import Client

    from dskprep.dataset.label_record import LabelRecord
    from dskprep.pipeline.export import ExportSummary
    from dskprep.pipeline.label_account import LabelSummary
    from dskprep.worker.export import Exported

FIGURES_EVERY_S = {"lines": 60.0, "json": 10.0}
"""How often the figures of a run are written where there is no panel."""
REFRESHES_PER_SECOND = 2
"""How often the panel is drawn."""
ENDING = "ending, in some seconds: what is done stays, what is under way is given up"
RECORD_FIELDS = ("key", "status", "reason", "message", "warnings", "seconds", "cpu_s", "bytes_read")
"""What a line of JSON tells of a record."""


class Plain(Console):
    """A console for which words are words: it escapes them, and takes no `[red]`, `:bug:` or number for more.

    Rich makes every string a Text here, also those in the cells of tables. What is a Text already must be escaped.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(plain.escape(text), **(settings | {"markup": False, "emoji": False}))


class Output:
    """Prints what a command says: with `as_json` lines of JSON alone, else words."""

    def __init__(self, *, as_json: bool = False, console: Console | None = None) -> None:
        self.as_json = as_json
        self.is_lost = False
        self.console = console or Plain(soft_wrap=True)

    def say(self, *lines: RenderableType) -> None:
        """Print lines of words, and tables. Does nothing where JSON is asked for."""
        for line in () if self.as_json else lines:
            self._write(functools.partial(self.console.print, line))

    def tell(self, event: str, content: dict[str, Any], *lines: RenderableType) -> None:
        """Write an event of a run: as one line of JSON with the time, or as these lines of words."""
        if self.as_json:
            self._write(functools.partial(terminal.say_event, event, content))
        self.say(*lines)

    def _write(self, write: Callable[[], None]) -> None:
        """Write to standard output. Where nobody reads it any more (`| head`), says so and raises Unread, once."""
        if self.is_lost:
            return
        terminal.end_wait()
        try:
            write()
        except (OSError, SystemExit) as error:  # rich ends the program where a pipe is closed
            self.is_lost = True
            exits.silence()
            with contextlib.suppress(OSError):
                terminal.say("dskprep: standard output cannot be written any more, so this ends", is_error=True)
            raise exits.Unread from error

    @contextlib.contextmanager
    def observe(self, client: Client | None, *, lines: bool = False) -> Iterator[Lines]:
        """Say where the workers are, and yield an observer that shows a run over the block.

        In a terminal it is a live panel; elsewhere, or with `lines`, there is a line for each patient, and the figures
        now and then. That a signal ends the run is said at once, because the end takes a while.
        """
        observer: Lines
        if lines or self.as_json or not self.console.is_terminal:
            observer = Lines(self, FIGURES_EVERY_S["json" if self.as_json else "lines"])
        else:
            observer = Panel(self)
        with endings.told(observer.hear_ending):
            if client is not None:
                self._tell_start(client)
            terminal.end_wait()
            with observer.show(client):
                yield observer

    def _tell_start(self, client: Client) -> None:
        """Say where to watch the workers, and how many there are."""
        cluster_check.check_python(client)
        with lost.named():
            if not client.nthreads():
                terminal.wait_for("waiting for the first worker")
            limits = cluster.memory_limits(client)
            problem = page.install(client)
            has_dashboard = "dashboard" in client.scheduler_info()["services"]
        where = page.link(client) if not problem else client.dashboard_link if has_dashboard else "none"
        advice = page.way_in(client) if has_dashboard else ""
        self.tell(
            "start",
            {"dashboard": where, "workers": len(limits), "memory_bytes": sum(limits)},
            f"dashboard: {where}{advice and f' ({advice})'}",
            f"{n_of(len(limits), 'worker')} with {format_bytes(sum(limits))} of memory in all",
        )


class Lines(Observer):
    """Tells each note and each series, the figures now and then, and the summary."""

    def __init__(self, output: Output, figures_every_s: float) -> None:
        self._output = output
        self._figures_every_s = figures_every_s
        self._told_s = time.monotonic()
        self._is_ending = False

    @contextlib.contextmanager
    def show(self, client: Client | None) -> Iterator[None]:  # noqa: ARG002
        """Show a run of this client over the block."""
        self._wait_for("the first results")
        try:
            yield
        finally:
            terminal.end_wait()

    def hear_ending(self) -> None:
        """Hear that a signal ends the run, in the middle of whatever the program does."""
        if not self._is_ending:
            terminal.say_at_once(f"dskprep: {ENDING}")
        self._is_ending = True

    def on_start(self, summary: Summary) -> None:
        self._wait_for("preparing", functools.partial(_so_far, summary))

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
        self._wait_for("preparing", functools.partial(_so_far, summary))

    def on_label(self, summary: LabelSummary, record: LabelRecord) -> None:
        lost = [label for label in record.labels if not label.is_written]
        content: dict[str, Any] = {
            "source": record.source,
            "status": record.status,
            "reason": record.reason,
            "message": record.message,
        }
        content |= {"labels": len(record.written), "points": record.n_points, "warnings": list(record.warnings)}
        content |= {"lost": [{"name": label.name, "reason": label.reason, "message": label.message} for label in lost]}
        self._output.tell("label", content, *words.describe_label_source(record))
        self._wait_for("giving labels", f"{n_of(summary.counts.total(), 'label source')} done")

    def on_export(self, summary: ExportSummary, volume: Exported) -> None:
        content = {"key": volume.key, "bytes": volume.n_bytes, "problem": volume.problem}
        why = f"failed   {volume.key} {volume.problem}" if volume.problem else f"written  {volume.key}"
        self._output.tell("volume", content, why)
        self._wait_for("writing volumes", f"{summary.counts['written']} written")

    def on_end(self, summary: Summary) -> None:
        self._output.tell("summary", summary.as_dict(), *words.describe_summary(summary))

    def _wait_for(self, what: str, so_far: str | Callable[[], str] = "") -> None:
        terminal.wait_for(what, so_far)


def _so_far(summary: Summary) -> str:
    """Return in a few words how far a run is."""
    first, *_ = in_words(summary.account.figures())
    return first


class Panel(Lines):
    """Shows the figures below the series that were not written, and the summary at the end."""

    def __init__(self, output: Output) -> None:
        super().__init__(output, math.inf)
        self._live = Live(self, console=output.console, refresh_per_second=REFRESHES_PER_SECOND)
        self._summary: Summary | None = None
        self._workers: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def show(self, client: Client | None) -> Iterator[None]:
        """Show the panel over the block, with what the workers of the client tell of their slots."""
        if client is not None:
            with lost.named():
                client.subscribe_topic(slots.TOPIC, self._take_slots)
        try:
            with self._live:
                yield
        finally:
            if client is not None and client.status == "running":
                client.unsubscribe_topic(slots.TOPIC)

    def hear_ending(self) -> None:
        self._is_ending = True

    def _wait_for(self, what: str, so_far: str | Callable[[], str] = "") -> None:
        """Say nothing below the panel, which shows it."""

    def on_start(self, summary: Summary) -> None:
        self._summary = summary

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
        workers = list(self._workers.values())
        if self._summary is None:
            lines = ["checking that the workers reach source and target"]
        elif (account := self._summary.account).is_listed and account.n_left == 0:
            lines = [*in_words(account.figures()), "all done; writing the index, the account and the report"]
        else:
            n = {slot: sum(slot in w["slots"] for w in workers) for slot in slots.SLOTS}
            taken, total = (sum(w[name] for w in workers) / 2**30 for name in ("taken_bytes", "total_bytes"))
            now = f"now reading {n['read']}, computing {n['compute']}, writing {n['write']}; "
            now += f"{taken:.1f} of {total:.1f} GiB for patients in use" if total else "the workers have yet to begin"
            lines = [*in_words(account.figures()), now]
        if self._is_ending:
            lines[-1] = ENDING
        texts = (Text(plain.escape(line), no_wrap=True, overflow="ellipsis") for line in lines)
        return rich.panel.Panel(Group(*texts), title="dskprep")
