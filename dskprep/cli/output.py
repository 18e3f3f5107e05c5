"""Where the words of a command go: a terminal, plain lines, or lines of JSON."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
from dask.utils import format_bytes
from rich.console import Console, RenderableType
from rich.progress import Progress

from dskprep.cli.exits import describe_error
from dskprep.cli.observers import Lines, Panel
from dskprep.pipeline import cluster, page

if TYPE_CHECKING:
    from distributed import Client

FIGURES_EVERY_S = {"lines": 60.0, "json": 10.0}
"""How often the figures of a run are written where there is no panel."""


class Output:
    """Prints what a command says: with `as_json` lines of JSON alone, else words.

    As a context manager it also writes the error that ends the block as a line of JSON.
    """

    def __init__(self, *, as_json: bool = False, console: Console | None = None) -> None:
        self.as_json = as_json
        self.console = console or Console(highlight=False, soft_wrap=True, markup=False)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None and self.as_json:
            message, code = describe_error(error)
            self.tell("error", {"message": message, "exit_code": code})

    def say(self, *lines: RenderableType) -> None:
        """Print lines of words, and tables. Does nothing where JSON is asked for."""
        for line in () if self.as_json else lines:
            self.console.print(line)

    def tell(self, event: str, content: dict[str, Any], *lines: RenderableType) -> None:
        """Write an event of a run: as one line of JSON with the time, or as these lines of words."""
        if self.as_json:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            click.echo(json.dumps({"event": event, "time": now, **content}))
        self.say(*lines)

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar in a terminal, over the block; yield what to call with the number of things done and of all."""
        with Progress(console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(title, total=None)
            yield lambda n_done, n_all: bar.update(task, completed=n_done, total=n_all)

    @contextlib.contextmanager
    def observe(self, client: Client | None) -> Iterator[Lines]:
        """Say where the workers are, and yield an observer that shows a run over the block.

        In a terminal it is a live panel; elsewhere there is a line for each patient, and the figures now and then.
        """
        if client is not None:
            self._tell_start(client)
        if self.as_json or not self.console.is_terminal:
            yield Lines(self, FIGURES_EVERY_S["json" if self.as_json else "lines"])
        else:
            with Panel(self).show(client) as panel:
                yield panel

    def _tell_start(self, client: Client) -> None:
        """Say where to watch the workers, and how many there are."""
        if not client.nthreads():
            self.say("no workers yet, waiting for some")
        limits = cluster.memory_limits(client)
        problem = page.install(client)
        has_dashboard = "dashboard" in client.scheduler_info()["services"]
        where = page.link(client) if not problem else client.dashboard_link if has_dashboard else "none"
        advice = page.way_in(client) if has_dashboard else ""
        self.tell(
            "start",
            {"dashboard": where, "workers": len(limits), "memory_bytes": sum(limits)},
            f"dashboard: {where}{advice and f' ({advice})'}",
            f"{len(limits)} workers, {format_bytes(sum(limits))}",
        )
