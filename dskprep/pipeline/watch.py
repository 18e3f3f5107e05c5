"""A run as it is watched: its figures, told to the page while it goes on, and Dask's performance report."""

from __future__ import annotations

import contextlib
import html
import json
import logging
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Client, performance_report

from dskprep.pipeline import page
from dskprep.pipeline.account import Summary

log = logging.getLogger("dskprep")

TELL_EVERY_S = 1.0

JOIN_S = 5.0
"""How long a request that hangs may hold up the end of a run."""

REMOTE_ICON = re.compile(r'<link rel="shortcut icon"[^>]*>')
"""All that a performance report asks the network for."""

DOCUMENT = re.compile(r'(<script type="application/json"[^>]*>)')
"""The start of all that it shows."""

LOG_TABS = ("Scheduler Logs",)
"""Whatever a library logs may hold lines of code, or worse."""


class Watch:
    """Shows a run: its figures go to the page, and `report` is Dask's own report on it, at its end."""

    def __init__(self, client: Client | None, summary: Summary) -> None:
        self.report = b""
        self._client = client
        self._summary = summary

    @contextlib.contextmanager
    def over(self) -> Iterator[None]:
        """Show what is done in the block, once a second. Without a client there is nobody to show it to."""
        if self._client is None:
            yield
            return
        with contextlib.ExitStack() as reports:
            if problem := page.install(self._client):
                log.warning(f"no dskprep page on the dashboard: {problem}")
            else:  # the page bounds what the scheduler keeps for a report
                reports.enter_context(self._reported(self._client))
            ended = threading.Event()
            telling = threading.Thread(target=self._tell_until, args=(ended,), name="watch", daemon=True)
            telling.start()
            state = "stopped"
            try:
                yield
                state = "done"
            except KeyboardInterrupt:
                state = "interrupted"
                raise
            finally:
                ended.set()
                telling.join(JOIN_S)
                self._tell(state)

    def _tell_until(self, ended: threading.Event) -> None:
        self._tell("running")
        while not ended.wait(TELL_EVERY_S):
            self._tell("running")

    def _tell(self, state: str) -> None:
        if self._client and self._client.status == "running":
            summary = self._summary
            run = {"run_id": summary.run_id, "source": summary.source, "target": summary.target, "state": state}
            with contextlib.suppress(Exception):  # a lost scheduler is noticed by the run itself
                self._client.log_event(page.RUN_TOPIC, run | summary.account.figures())

    @contextlib.contextmanager
    def _reported(self, client: Client) -> Iterator[None]:
        """Keep Dask's performance report over the block, one HTML file that needs no network."""
        with tempfile.TemporaryDirectory() as folder, client.as_current():
            path = Path(folder, "performance.html")
            # no frame is that deep, so no source code of a caller gets into it
            report = performance_report(str(path), stacklevel=10**6, mode="inline")
            report.__enter__()
            report.start = client.run_on_scheduler(time.time)  # this host's clock may be ahead of the scheduler's
            try:
                yield
            finally:
                if client.status == "running":
                    with contextlib.suppress(OSError, TimeoutError):
                        report.__exit__(None, None, None)
                        self.report = without_secrets(path.read_text())


def without_secrets(report: str) -> bytes:
    """A performance report of Dask's that asks nothing of the network, and holds no source code and no logs."""

    def is_log(value: Any) -> bool:
        return (
            isinstance(value, dict) and value.get("name") == "TabPanel" and value["attributes"].get("title") in LOG_TABS
        )

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
