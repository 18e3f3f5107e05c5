"""The page /dskprep on the Dask dashboard: the account of a run and what the workers hold, while it goes on."""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import jinja2
from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

from dskprep.dataset.record import STATUSES
from dskprep.pipeline import metrics
from dskprep.pipeline.account import Account, in_words, time_in_words
from dskprep.plain import in_one_line
from dskprep.stopwatch import STAGES
from dskprep.worker import slots

PATH = "dskprep"
"""Path of the page on the dashboard."""
RUN_TOPIC = "dskprep-run"
"""Topic of Dask's events that hold the figures of a run."""
UPDATE_MS = 1000
"""Time between two updates of the page in a browser, in ms."""
MAX_HISTORY = 600
"""Points of the curves. When there are more, every second one is dropped."""
MAX_TASKS = 5000
"""Patients that the scheduler keeps for the performance report; Dask's own default is 100 000."""
MAX_ROWS = 100
"""Workers that the page lists."""
MAX_LETTERS = 32
"""Letters of a patient's key in the table of the workers. A longer key loses its middle."""
COLOURS = {"written": "#3b8c66", "set-aside": "#8a97a6", "refused": "#d9a441", "failed": "#c2452d", "killed": "#5b3758"}
"""Colours of the statuses."""
BLUE, GREY = "#2b5d8a", "#777777"
"""Colours of curves and bars, and of what is less important."""
NEAR = 0.9
"""A bar that shows a larger share of the memory is red."""
CHART_PX = 250
"""Least width of a chart, for its title; where four do not fit, they stand below one another."""
BOX = {"overflow": "auto", "max-height": "340px"}
"""Style of the tables."""
ANSWER_S = 2
"""How long to wait for a dashboard to answer, in seconds."""

PARTS: Any = (
    jinja2.Environment(
        loader=jinja2.PackageLoader("dskprep", "pipeline"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    .get_template("page.html")
    .module
)
"""The macros of page.html."""


def install(client: Client) -> str:
    """Put the page on the scheduler's dashboard, unless it is there. Return the reason if that failed, or ""."""
    try:
        client.register_plugin(Page())
    except Exception as error:  # whatever the scheduler's machine lacks: the run can do without the page
        return f"{type(error).__name__}: {in_one_line(error, 150)}"
    return ""


def link(client: Client) -> str:
    """Return the address of the page."""
    return f"{client.dashboard_link.rpartition('/')[0]}/{PATH}"


def way_in(client: Client) -> str:
    """Return what to do if the dashboard does not answer from here, as it listens on its own host only, or ""."""
    place = urlsplit(client.dashboard_link)
    if not (place.hostname and place.port):
        return ""
    try:
        with socket.create_connection((place.hostname, place.port), ANSWER_S):
            return ""
    except OSError:
        return f"it does not answer here; perhaps by ssh -L {place.port}:127.0.0.1:{place.port} {place.hostname}"


class Page(SchedulerPlugin):
    """Keeps the events of runs and workers, on the scheduler, and shows them to any browser."""

    name = "dskprep"
    idempotent = True

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}
        self.history: list[dict[str, float]] = []
        self.workers: dict[str, dict[str, Any]] = {}
        self._registry: Any = None

    async def start(self, scheduler: Any) -> None:
        """Add the page to the server of the dashboard, and its figures to /metrics if Prometheus is installed."""
        from bokeh.application.application import Application  # noqa: F401  (first, so that an error names it)
        from distributed.dashboard.core import BokehApplication
        from distributed.dashboard.scheduler import template_variables
        from distributed.diagnostics.task_stream import TaskStreamPlugin
        from tornado.ioloop import IOLoop

        if TaskStreamPlugin.name not in scheduler.plugins:
            scheduler.add_plugin(TaskStreamPlugin(scheduler, maxlen=MAX_TASKS))
        variables = template_variables(scheduler)
        prefix = next((a.prefix for a in scheduler.http_application.applications if hasattr(a, "prefix")), "/")
        application = BokehApplication({f"/{PATH}": functools.partial(_document, self)}, scheduler, prefix, variables)
        variables["pages"].insert(0, PATH)  # the list is shared with Dask's own pages, which link to this one
        scheduler.http_application.add_application(application)
        application.initialize(IOLoop.current())
        application.start()
        with contextlib.suppress(ImportError):
            import prometheus_client

            prometheus_client.REGISTRY.register(self)
            self._registry = prometheus_client.REGISTRY

    async def close(self) -> None:
        """Called by the scheduler at its end."""
        if self._registry is not None:
            self._registry.unregister(self)

    def collect(self) -> Iterator[Any]:
        """Called by Prometheus, which asks at /metrics."""
        return metrics.collect(self.run or Account().figures(), list(self.workers.values()))

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by the scheduler for every event of every topic."""
        if topic == slots.TOPIC:
            self.workers[msg["worker"]] = {**msg, "told_s": time.monotonic()}
        elif topic == RUN_TOPIC:
            if msg["run_id"] != self.run.get("run_id"):
                self.history.clear()
            self.run = msg
            self.history.append(
                {
                    "minutes": msg["seconds"] / 60,
                    "patients_per_minute": msg["patients_per_minute"],
                    "read_mib_per_second": msg["read_mib_per_second"],
                    **{status: msg["counts"].get(status, 0) for status in STATUSES},
                }
            )
            if len(self.history) > MAX_HISTORY:
                del self.history[1:-1:2]

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:  # noqa: ARG002
        """Called by the scheduler when a worker is gone."""
        self.workers.pop(worker, None)

    def headline(self) -> str:
        """Return the run in figures, as HTML."""
        if not self.run:
            return "<b>No run yet.</b>"
        run, left_s, n_done = self.run, self.run["seconds_left"], sum(self.run["counts"].values())
        tiles = {s: run["counts"][s] for s in STATUSES if s in run["counts"]} | {
            "known" if run["total"] is None else "in all": run["known"],
            "elapsed": time_in_words(run["seconds"]),
            "left": time_in_words(left_s) if left_s is not None and run["state"] == "running" else "-",
            "patients per minute": f"{run['patients_per_minute']:g}",
            "MiB/s read": f"{run['read_mib_per_second']:g}",
            "GiB read": f"{run['bytes_read'] / 2**30:.2f}",
            "GiB written": f"{run['bytes_written'] / 2**30:.2f}",
            "CPU time": time_in_words(run["cpu_seconds"]),
            "CPU s per patient": f"{run['cpu_seconds'] / n_done:.1f}" if n_done else "-",
        }
        parts = [(COLOURS[status], run["counts"].get(status, 0) / max(run["inputs"], 1)) for status in STATUSES]
        return str(PARTS.headline(run, in_words(run)[0], tiles, parts, colour=COLOURS.get, blue=BLUE, grey=GREY))

    def stage_shares(self) -> dict[str, list[Any]]:
        """Return the share of each stage in the patients' seconds, in percent, the last stage first."""
        seconds = self.run.get("stage_seconds", {})
        names = [stage for stage in reversed(STAGES) if stage in seconds]
        shares = {stage: 100 * seconds[stage] / (sum(seconds.values()) or 1.0) for stage in names}
        words = [f"{share:.0f} %  {time_in_words(seconds[stage])}" for stage, share in shares.items()]
        return {"stage": names, "share": [*shares.values()], "words": words}

    def worker_table(self, scheduler: Any) -> str:
        """Return a table, as HTML: for each worker of the scheduler its slots, its memory, its ledger."""
        rows = []
        for address, worker in sorted(scheduler.workers.items())[:MAX_ROWS]:
            told = self.workers.get(address, {})
            rows.append(
                {
                    "worker": address.partition("://")[2],
                    **{slot: _slot_in_words(told, slot) for slot in slots.SLOTS},
                    "memory of its limit": _share(worker.metrics.get("memory", 0), worker.memory_limit),
                    "given to patients": _share(told.get("taken_bytes", 0), told.get("total_bytes", 0)),
                }
            )
        return str(PARTS.table(rows, GREY))

    def latest_table(self) -> str:
        """Return a table, as HTML: the latest patients that were not written, the last one first."""
        return str(PARTS.table(self.run.get("latest", [])[::-1], GREY))


def _slot_in_words(told: dict[str, Any], slot: str) -> str:
    if slot not in told.get("slots", {}):
        return ""
    key, stage, seconds = told["slots"][slot]
    if len(key) > MAX_LETTERS:
        key = f"{key[: MAX_LETTERS // 2 - 1]}…{key[-MAX_LETTERS // 2 :]}"
    detail = f"{stage}, " if stage and stage != slot else ""
    return f"{key} ({detail}{time_in_words(seconds + time.monotonic() - told['told_s'])})"


def _share(used_bytes: float, limit_bytes: float) -> str:
    """Return a bar with words, as HTML."""
    if not limit_bytes:
        return f"{used_bytes / 2**30:.2f} GiB"
    share = used_bytes / limit_bytes
    words = f"{used_bytes / 2**30:.2f} of {limit_bytes / 2**30:.2f} GiB"
    return PARTS.bar([(BLUE if share < NEAR else COLOURS["failed"], share)], "150px", 8) + words  # type: ignore[no-any-return]


def _document(page: Page, scheduler: Any, extra: dict[str, Any], document: Any) -> None:
    """Build the page for one browser, and keep it up to date."""
    from bokeh.layouts import column, row
    from bokeh.models import BasicTicker, ColumnDataSource, Div, LabelSet
    from bokeh.plotting import figure
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    def source_of(*columns: str) -> Any:
        return ColumnDataSource({column: [] for column in columns})

    def text(**styles: str) -> Any:
        return Div(sizing_mode="stretch_width", styles={"font-size": "13px", **styles})

    def plot(title: str, **more: Any) -> Any:
        size = {"height": 220, "min_width": CHART_PX, "sizing_mode": "stretch_width"}
        made = figure(title=title, tools="", toolbar_location=None, **size, **more)
        made.grid.grid_line_color = "#eeeeee"
        made.outline_line_color = None
        return made

    headline, workers, latest = text(), text(**BOX), text(**BOX)
    curves = source_of("minutes", "patients_per_minute", "read_mib_per_second", *STATUSES)
    shares = source_of("stage", "share", "words")
    patients = plot("patients by status")
    patients.yaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    patients.varea_stack(STATUSES, x="minutes", color=[COLOURS[s] for s in STATUSES], source=curves)
    pace = plot("patients per minute")
    pace.line("minutes", "patients_per_minute", color=BLUE, line_width=2, source=curves)
    flow = plot("MiB/s read")
    flow.line("minutes", "read_mib_per_second", color=BLUE, line_width=2, source=curves)
    for each in (patients, pace, flow):
        each.xaxis.axis_label = "minutes"
        each.y_range.start = 0
        each.x_range.start = 0
    stages = plot("seconds by stage", y_range=[], x_range=(0, 130))
    stages.hbar(y="stage", right="share", height=0.7, color=BLUE, source=shares)
    stages.xaxis.visible = stages.grid.visible = False
    stages.add_layout(
        LabelSet(x="share", y="stage", text="words", x_offset=5, y_offset=-7, source=shares, text_font_size="12px")
    )

    def update() -> None:
        headline.text = page.headline()
        curves.data = {name: [point[name] for point in page.history] for name in curves.data}
        shares.data = page.stage_shares()
        stages.y_range.factors = shares.data["stage"]
        workers.text = page.worker_table(scheduler)
        latest.text = page.latest_table()

    update()
    document.title = "dskprep"
    document.add_root(
        column(
            headline,
            row(patients, pace, flow, stages, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"}),
            Div(text="<b>In the slots of the workers</b>"),
            workers,
            Div(text="<b>Latest patients not written</b>"),
            latest,
            sizing_mode="stretch_width",
            margin=(8, 24, 8, 24),
        )
    )
    document.template = env.get_template("simple.html")
    document.template_variables.update(extra)
    document.theme = BOKEH_THEME
    document.add_periodic_callback(update, UPDATE_MS)
