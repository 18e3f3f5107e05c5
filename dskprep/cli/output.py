"""What a command says, and how it shows a run: in lines of words or of JSON, or as a live panel in a terminal."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import rich.panel
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dskprep import endings, plain
from dskprep.cli import exits, terminal, words
from dskprep.cli.console import Plain
from dskprep.counts import format_bytes, n_of
from dskprep.dataset.record import Record
from dskprep.pipeline import cluster, cluster_check, lost, page
from dskprep.pipeline.account import Summary, in_words
from dskprep.pipeline.observer import Observer
from dskprep.worker import slots

if TYPE_CHECKING:
    from distributed import Client

    from dskprep.cli.workers import Workers
    from dskprep.dataset.label_record import LabelRecord
    from dskprep.pipeline.export import ExportSummary
    from dskprep.pipeline.label_account import LabelSummary
    from dskprep.worker.export import Exported

FIGURES_EVERY_S = {"lines": 60.0, "json": 10.0}
"""How often the figures of a run are written where there is no panel."""
REFRESHES_PER_SECOND = 2
"""How often the panel is drawn."""
ENDING = "ending, in some seconds: what is done stays, also what workers still finish"
AT_ONCE = "ending without the account, when the workers have stopped: some seconds"
RECORD_FIELDS = ("key", "status", "reason", "message", "warnings", "seconds", "cpu_s", "bytes_read")
"""What a line of JSON tells of a record."""


class Output:
    """Prints what a command says: with `as_json` lines of JSON alone, else words."""

    def __init__(self, *, as_json: bool = False, console: Console | None = None) -> None:
        self.as_json = as_json
        self.is_lost = self.is_of_work = False
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
        """Write to standard output. Where nobody reads it any more (`| head`), raises Unread, once.

        It is said where that ends a run; a command that only shows ends in silence, as other programs do.
        """
        if self.is_lost:
            return
        terminal.end_wait()
        try:
            write()
        except (OSError, SystemExit) as error:  # rich ends the program where a pipe is closed
            self.is_lost = True
            exits.silence()
            is_closed = isinstance(error, (BrokenPipeError, SystemExit))
            with contextlib.suppress(OSError):
                if self.is_of_work or not is_closed:
                    terminal.say("dskprep: standard output cannot be written any more, so this ends", is_error=True)
            raise exits.Unread from error

    @contextlib.contextmanager
    def observe(self, workers: Workers, *, lines: bool = False) -> Iterator[Lines]:
        """Yield an observer that shows a run on these workers over the block, and says where they are when they are.

        In a terminal it is a live panel; elsewhere, or with `lines`, there is a line for each patient, and the figures
        now and then. That a signal ends the run is said at once, because the end takes a while.
        """
        self.is_of_work = True
        every_s = FIGURES_EVERY_S["json" if self.as_json else "lines"]
        is_panel = self.console.is_terminal and not (lines or self.as_json)
        observer = Panel(self, workers) if is_panel else Lines(self, workers, every_s)
        with endings.told(observer.hear_ending):
            if workers.client is not None:
                self.tell_start(workers.client)
            with observer.show():
                yield observer

    def tell_start(self, client: Client) -> None:
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

    def __init__(self, output: Output, workers: Workers, figures_every_s: float) -> None:
        self._output = output
        self._workers = workers
        self._figures_every_s = figures_every_s
        self._told_s = time.monotonic()
        self._n_endings, self._is_over = 0, False

    @property
    def starts(self) -> Callable[[], Client] | None:
        """What starts the workers and says where they are; None if there are none to be started."""
        return self._start if self._workers.can_start else None

    def _start(self) -> Client:
        self._output.tell_start(client := self._workers.start())
        self._meet(client)
        self._wait_for("waiting for the first results")
        return client

    def _meet(self, client: Client) -> None:
        """Take these workers for those of the run."""

    @contextlib.contextmanager
    def show(self) -> Iterator[None]:
        """Show a run over the block."""
        if self._workers.client:
            self._meet(self._workers.client)
        self._wait_for("waiting for the first results")
        try:
            yield
        finally:
            terminal.end_wait()

    def hear_ending(self) -> None:
        """Hear that a signal ends the run, in the middle of whatever the program does."""
        self._n_endings += 1
        if self._n_endings > 1:
            self._workers.hurry()
        if not self._is_over and self._n_endings < 3:
            self._tell_ending(ENDING if self._n_endings == 1 else AT_ONCE)

    def _tell_ending(self, words: str) -> None:
        terminal.say_at_once(f"dskprep: {words}")

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
        content: dict[str, Any] = {name: getattr(record, name) for name in ("source", "status", "reason", "message")}
        content |= {"labels": len(record.written), "points": record.n_points, "warnings": list(record.warnings)}
        content |= {"lost": [{"name": label.name, "reason": label.reason, "message": label.message} for label in lost]}
        self._output.tell("label", content, *words.describe_label_source(record))
        self._wait_for("giving labels", f"{n_of(summary.counts.total(), 'label source')} done")

    def on_export(self, summary: ExportSummary, volume: Exported) -> None:
        content = {"key": volume.key, "bytes": volume.n_bytes, "problem": volume.problem}
        why = f"failed   {volume.key} {volume.problem}" if volume.problem else f"written  {volume.key}"
        self._output.tell("volume", content, why)
        n = summary.counts["written"] + summary.counts["failed"]
        self._wait_for("writing volumes", f"{n} of {summary.n_asked}")

    def on_end(self, summary: Summary) -> None:
        self.tell_end(summary.as_dict(), *words.describe_summary(summary))

    def tell_end(self, content: dict[str, Any], *lines: RenderableType) -> None:
        """Tell the summary: the last word, after which nobody has to wait."""
        if self._n_endings > 1:  # it was said that there is none
            return
        self._is_over = True
        try:
            self._workers.stop()
        finally:  # whatever becomes of them
            self._output.tell("summary", content, *lines)

    def _wait_for(self, what: str, so_far: str | Callable[[], str] = "") -> None:
        terminal.wait_for(what, so_far)


def _so_far(summary: Summary) -> str:
    """Return in a few words how far a run is."""
    first, *_ = in_words(summary.account.figures())
    return first


class Panel(Lines):
    """Shows the figures below the series that were not written, and the summary at the end.

    The panel is there from when the workers are, or the first patient is done; before, a line says what is waited for.
    """

    def __init__(self, output: Output, workers: Workers) -> None:
        super().__init__(output, workers, math.inf)
        self._live = Live(self, console=output.console, refresh_per_second=REFRESHES_PER_SECOND)
        self._summary: Summary | None = None
        self._told: dict[str, dict[str, Any]] = {}
        self._met: Client | None = None
        self._ending = ""

    @contextlib.contextmanager
    def show(self) -> Iterator[None]:
        try:
            with super().show():
                yield
        finally:
            self._live.stop()
            if self._met is not None and self._met.status == "running":
                self._met.unsubscribe_topic(slots.TOPIC)

    def _meet(self, client: Client) -> None:
        self._met = client
        with lost.named():
            client.subscribe_topic(slots.TOPIC, self._take_slots)
        self._open()

    def _open(self) -> None:
        if not self._live.is_started:
            terminal.end_wait()
            self._live.start()

    def _tell_ending(self, words: str) -> None:
        self._ending = words
        if not self._live.is_started:
            super()._tell_ending(words)

    def _wait_for(self, what: str, so_far: str | Callable[[], str] = "") -> None:
        """Say nothing below the panel, which shows it."""
        if not self._live.is_started:
            super()._wait_for(what, so_far)

    def on_start(self, summary: Summary) -> None:
        self._summary = summary
        super().on_start(summary)

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:
        self._summary = summary
        self._open()
        super().on_patient(summary, [record for record in records if not record.is_written])

    def on_end(self, summary: Summary) -> None:
        self._live.stop()
        super().on_end(summary)

    def _take_slots(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take an event of a worker; called in the client's thread."""
        self._told[event[1]["worker"]] = event[1]

    def __rich__(self) -> rich.panel.Panel:
        workers = list(self._told.values())
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
        if self._ending:
            lines[-1] = self._ending
        texts = (Text(plain.escape(line), no_wrap=True, overflow="ellipsis") for line in lines)
        return rich.panel.Panel(Group(*texts), title="dskprep")
