"""The observers that a run on workers always has: the page on the dashboard, and Dask's performance report."""

from __future__ import annotations

import contextlib
import html
import json
import logging
import queue
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Client, performance_report

from dskprep import storage
from dskprep.errors import InfrastructureError
from dskprep.pipeline import lost, page
from dskprep.pipeline.account import Summary
from dskprep.pipeline.crew import Crew
from dskprep.pipeline.observer import Observer, tell
from dskprep.plain import in_one_line

log = logging.getLogger("dskprep")

TELL_EVERY_S = 1.0
"""Time between two updates of the page, in seconds."""
JOIN_S = 5.0
"""How long a request that hangs may hold up the end of a run, in seconds."""
REMOTE_ICON = re.compile(r'<link rel="shortcut icon"[^>]*>')
"""The only thing that a performance report loads from the network."""
DOCUMENT = re.compile(r'(<script type="application/json"[^>]*>)')
"""The tag before the JSON document that holds all that a performance report shows."""
WORKERS_TOPIC = "all"
"""Topic of Dask's events in which the scheduler says that a worker came or went."""
LOG_TABS = ("Scheduler Logs",)
"""Tabs that are left out: whatever a library logs may hold lines of code, or worse."""


def begin(crew: Crew, summary: Summary, observers: list[Observer]) -> None:
    """Tell what the workers of a run lack, if it has any, put the page on the dashboard, and add who watches them.

    These observers come before the others, and hear of the start now. Without the page there is no performance report:
    only the page bounds what the scheduler keeps for one.
    """
    for note in crew.notes:
        tell(observers, "on_note", note)
    if crew.client is None:
        return
    if problem := page.install(crew.client):
        tell(observers, "on_note", f"no dskprep page on the dashboard: {problem}")
        return
    own: list[Observer] = [PerformanceReport(crew.client), PageFeed(crew.client)]
    tell(own, "on_start", summary)
    observers[:0] = own


class Deaths:
    """The worker processes that die unasked during a run, as the scheduler tells of them."""

    def __init__(self, client: Client | None) -> None:
        self._client = client
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        if client:
            with lost.named():
                client.subscribe_topic(WORKERS_TOPIC, self._take)

    def close(self) -> None:
        """Hear no more."""
        if self._client and lost.answers(self._client):
            with contextlib.suppress(InfrastructureError), lost.named():  # it may be lost just now
                self._client.unsubscribe_topic(WORKERS_TOPIC)

    def new(self) -> Iterator[str]:
        """Yield a line for each that died since the last call."""
        while not self._told.empty():
            yield self._told.get()

    def _take(self, event: tuple[float, Any]) -> None:
        """Take an event; called in the client's thread."""
        _, said = event
        if isinstance(said, dict) and said.get("action") == "remove-worker" and not said.get("expected"):
            held = sorted(key[1] for key in said["processing-tasks"] if isinstance(key, tuple) and key[0] == "patient")
            these = f"; its patients are tried again: {', '.join(held)}" if held else ""
            self._told.put(f"the worker {said['worker']} died{these}")


class PageFeed(Observer):
    """Sends the figures of a run to the page, once per second."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def on_start(self, summary: Summary) -> None:
        self._thread = threading.Thread(target=self._send_until_end, args=(summary,), name="page", daemon=True)
        self._thread.start()

    def on_end(self, summary: Summary) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join(JOIN_S)
        state = "interrupted" if summary.is_interrupted else "stopped" if summary.stopped_by else "done"
        if lost.answers(self._client, is_ended=summary.is_interrupted):
            self._send(summary, state)

    def _send_until_end(self, summary: Summary) -> None:
        self._send(summary, "running")
        while not self._ended.wait(TELL_EVERY_S):
            self._send(summary, "running")

    def _send(self, summary: Summary, state: str) -> None:
        run = {"run_id": summary.run_id, "source": summary.told_source, "target": summary.target, "state": state}
        if self._client.status == "running":
            with contextlib.suppress(Exception):  # a lost scheduler is noticed by the run itself
                self._client.log_event(page.RUN_TOPIC, run | summary.account.figures())


class PerformanceReport(Observer):
    """Writes Dask's performance report on a run that did something: one HTML file that needs no network."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._open = contextlib.ExitStack()
        self._report: Any = None

    def on_start(self, summary: Summary) -> None:  # noqa: ARG002
        with contextlib.ExitStack() as opened:
            folder = opened.enter_context(tempfile.TemporaryDirectory())
            opened.enter_context(self._client.as_current())
            self._path = Path(folder, "performance.html")
            # no stack is that deep, so no source code of a caller gets into the report
            report = performance_report(str(self._path), stacklevel=10**6, mode="inline")
            report.__enter__()
            report.start = self._client.run_on_scheduler(time.time)  # the clock here may be ahead of that there
            self._report, self._open = report, opened.pop_all()

    def on_end(self, summary: Summary) -> None:
        with self._open:
            if self._report and summary.n_new and lost.answers(self._client, is_ended=summary.is_interrupted):
                try:
                    self._report.__exit__(None, None, None)
                    content = without_secrets(self._path.read_text())
                    storage.write_many(summary.target, {f"runs/{summary.run_id}/performance.html": content})
                except OSError as error:  # an InfrastructureError, or one of the network
                    log.warning(f"no performance report: {in_one_line(error)}")


def without_secrets(report: str) -> bytes:
    """Return Dask's performance report without source code and logs, and without what it loads from the network."""

    def is_log(value: Any) -> bool:
        is_tab = isinstance(value, dict) and value.get("name") == "TabPanel"
        return is_tab and value["attributes"].get("title") in LOG_TABS

    def cleared(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cleared(each) for name, each in value.items()}
        if not isinstance(value, list):
            return value
        if len(value) == 2 and value[0] == "line" and isinstance(value[1], list):  # a column of a profile
            return ["line", [""] * len(value[1])]
        return [cleared(each) for each in value if not is_log(each)]

    head, start, rest = DOCUMENT.split(REMOTE_ICON.sub("", report), maxsplit=1)
    document, end, tail = rest.partition("</script>")
    clean = html.escape(json.dumps(cleared(json.loads(html.unescape(document)))))
    return f"{head}{start}{clean}{end}{tail}".encode()
