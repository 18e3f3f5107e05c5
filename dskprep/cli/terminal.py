"""A run in the terminal: a live panel; elsewhere, plain lines or lines of JSON."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from dskprep.dataset.record import Record
from dskprep.pipeline.account import Account, Summary, in_words
from dskprep.pipeline.observer import Observer
from dskprep.worker import slots

if TYPE_CHECKING:
    from distributed import Client

FIGURES_EVERY_S = {"lines": 60.0, "json": 10.0}
"""How often the figures are written where there is no panel."""

REFRESH_A_SECOND = 2

Progress = Callable[[Account, Sequence[Record]], None]


@contextlib.contextmanager
def shown_progress(console: Console, client: Client | None, *, as_json: bool = False) -> Iterator[Observer]:
    """Yield an observer for a run in the block."""
    with _shown(console, client, as_json=as_json) as progress:
        yield _Shown(console, progress, as_json=as_json)


@contextlib.contextmanager
def _shown(console: Console, client: Client | None, *, as_json: bool) -> Iterator[Progress]:
    if as_json:
        yield _Lines(_write_json_patient, _write_json_figures, FIGURES_EVERY_S["json"])
    elif not console.is_terminal:
        say = _say_patient(console)
        yield _Lines(
            say, lambda figures: console.print("; ".join(in_words(figures)), markup=False), FIGURES_EVERY_S["lines"]
        )
    else:
        panel = _Panel(console)
        with _told_slots(client, panel.take_slots), Live(panel, console=console, refresh_per_second=REFRESH_A_SECOND):
            yield panel.take


def write_json(event: str, content: dict[str, Any]) -> None:
    """One line of JSON, with the time."""
    click.echo(json.dumps({"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **content}))


class _Shown(Observer):
    """Shows notes as a line each, and patients as `progress` does."""

    def __init__(self, console: Console, progress: Progress, *, as_json: bool) -> None:
        self._console, self._progress, self._as_json = console, progress, as_json

    def on_note(self, message: str) -> None:
        if self._as_json:
            write_json("note", {"message": message})
        else:
            self._console.print(f"note: {message}", markup=False)

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:
        self._progress(summary.account, records)


class _Lines:
    """A line for each patient, and the figures now and then."""

    def __init__(
        self,
        say_patient: Callable[[Record], None],
        say_figures: Callable[[dict[str, Any]], None],
        figures_every_s: float,
    ) -> None:
        self._say_patient, self._say_figures, self._every_s = say_patient, say_figures, figures_every_s
        self._said_s = time.monotonic()

    def __call__(self, account: Account, records: Sequence[Record]) -> None:
        for record in records:
            self._say_patient(record)
        if time.monotonic() - self._said_s >= self._every_s:
            self._said_s = time.monotonic()
            self._say_figures(account.figures())


def _say_patient(console: Console) -> Callable[[Record], None]:
    def say(record: Record) -> None:
        why = "" if record.is_written else f" {record.reason}: {record.message}"
        console.print(f"{record.status:8} {record.key}{why}", markup=False)

    return say


def _write_json_patient(record: Record) -> None:
    names = ("key", "status", "reason", "message", "warnings", "seconds", "cpu_s", "bytes_read")
    content = record.as_dict()
    write_json("patient", {name: content[name] for name in names if name in content})


def _write_json_figures(figures: dict[str, Any]) -> None:
    write_json("figures", figures)


class _Panel:
    """The figures as a panel below the patients that were not written."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._say = _say_patient(console)
        self._account: Account | None = None
        self._workers: dict[str, dict[str, Any]] = {}

    def take(self, account: Account, records: Sequence[Record]) -> None:
        self._account = account
        for record in records:
            if not record.is_written:
                self._say(record)

    def take_slots(self, event: tuple[float, dict[str, Any]]) -> None:
        """Called with each event of the workers, in the client's thread."""
        self._workers[event[1]["worker"]] = event[1]

    def __rich__(self) -> Panel:
        lines = in_words(self._account.figures()) if self._account else ["starting"]
        workers = list(self._workers.values())
        if workers:
            n = {slot: sum(slot in w["slots"] for w in workers) for slot in ("read", "compute", "write")}
            taken, total = (sum(w[name] for w in workers) / 2**30 for name in ("taken_bytes", "total_bytes"))
            lines.append(
                f"now {n['read']} read, {n['compute']} computed, {n['write']} written; "
                f"{taken:.1f} of {total:.1f} GiB of the workers' memory taken"
            )
        return Panel(Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)), title="dskprep")


@contextlib.contextmanager
def _told_slots(client: Client | None, take: Callable[[tuple[float, dict[str, Any]]], None]) -> Iterator[None]:
    if client is None:
        yield
        return
    client.subscribe_topic(slots.TOPIC, take)
    try:
        yield
    finally:
        if client.status == "running":
            client.unsubscribe_topic(slots.TOPIC)
