"""The page /dskprep on the Dask dashboard: the account of a run and what the workers hold, while it goes on."""

from __future__ import annotations

import contextlib
import functools
import html
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

from dskprep.dataset.record import STATUSES
from dskprep.pipeline.account import Account, in_words
from dskprep.pipeline.pace import time_in_words
from dskprep.stopwatch import STAGES
from dskprep.worker import slots

PATH = "dskprep"

RUN_TOPIC = "dskprep-run"
"""Of Dask's events: each holds the figures of a run."""

UPDATE_MS = 1000

SLOTS = ("read", "compute", "write")

MAX_HISTORY = 600
"""Points of the curves; when there are more, every second one goes."""

MAX_TASKS = 5000
"""Patients that the scheduler keeps for the performance report; Dask's own default is 100 000."""

MAX_ROWS = 100
"""Workers that the page lists."""

MAX_LETTERS = 32
"""Of a patient's key in the table of the workers; the middle of a longer one goes."""

COLOURS = {"written": "#3b8c66", "refused": "#d9a441", "failed": "#c2452d", "killed": "#5b3758"}
BLUE, GREY = "#2b5d8a", "#777777"

NEAR = 0.9
"""A bar of memory that is fuller than that is red."""

BOX = {"overflow": "auto", "max-height": "340px"}

ANSWER_S = 2
"""How long a dashboard may take to answer."""


def install(client: Client) -> str:
    """Put the page on the scheduler's dashboard, if it is not there yet. Returns why that cannot be, or ""."""
    try:
        client.register_plugin(Page())
    except Exception as error:  # whatever the scheduler's machine lacks: the run can do without the page
        return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    return ""


def link(client: Client) -> str:
    """Address of the page, as the dashboard's."""
    return f"{client.dashboard_link.rpartition('/')[0]}/{PATH}"


def way_in(client: Client) -> str:
    """What to do where the dashboard does not answer here, as it listens on its own host alone, or ""."""
    place = urlsplit(client.dashboard_link)
    if not (place.hostname and place.port):
        return ""
    try:
        with socket.create_connection((place.hostname, place.port), ANSWER_S):
            return ""
    except OSError:
        return f"it does not answer here; perhaps by ssh -L {place.port}:127.0.0.1:{place.port} {place.hostname}"


class Page(SchedulerPlugin):
    """Keeps what the runs and the workers tell, on the scheduler, and shows it to any browser."""

    name = "dskprep"
    idempotent = True

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}
        self.told_s = 0.0
        self.history: list[dict[str, float]] = []
        self.workers: dict[str, dict[str, Any]] = {}
        self._registry: Any = None

    async def start(self, scheduler: Any) -> None:
        """Mount the page on the dashboard's server, and its counts on that for Prometheus, if there is one."""
        from bokeh.application.application import Application  # noqa: F401  (asked for first, and by name)
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
        """The figures of the latest run, as Prometheus asks for them at the dashboard's /metrics; no patients' keys."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        run, workers = self.run or Account().figures(), list(self.workers.values())
        for name, words, label, values in (
            ("patients", "Patients of the run so far", "status", {s: run["counts"].get(s, 0) for s in STATUSES}),
            ("not_written", "Patients not written", "reason", run["reasons"]),
            ("stage_seconds", "Seconds of the patients", "stage", run["stage_seconds"]),
        ):
            family = CounterMetricFamily(f"dskprep_{name}", words, labels=[label])
            for value, n in values.items():
                family.add_metric([value], n)
            yield family
        yield CounterMetricFamily("dskprep_read_bytes", "Read from the source", run["bytes_read"])
        yield CounterMetricFamily("dskprep_written_bytes", "Written to the target", run["bytes_written"])
        yield CounterMetricFamily("dskprep_cpu_seconds", "CPU seconds of the workers", run["cpu_seconds"])
        yield GaugeMetricFamily("dskprep_inputs", "Patients found in the source so far", run["inputs"])
        busy = GaugeMetricFamily("dskprep_busy_slots", "Slots of the workers that hold a patient", labels=["slot"])
        for slot in SLOTS:
            busy.add_metric([slot], sum(slot in worker["slots"] for worker in workers))
        yield busy
        for name, words in (("taken", "given to patients"), ("total", "that patients may have")):
            n_bytes = sum(worker[f"{name}_bytes"] for worker in workers)
            yield GaugeMetricFamily(f"dskprep_memory_{name}_bytes", f"Memory of the workers {words}", n_bytes)

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by the scheduler for every event of every topic."""
        if topic == slots.TOPIC:
            self.workers[msg["worker"]] = {**msg, "told_s": time.monotonic()}
        elif topic == RUN_TOPIC:
            if msg["run_id"] != self.run.get("run_id"):
                self.history.clear()
            self.run, self.told_s = msg, time.monotonic()
            self.history.append(
                {
                    "minutes": msg["seconds"] / 60,
                    "patients_a_minute": msg["patients_a_minute"],
                    "read_mb_a_second": msg["read_mb_a_second"],
                    **{status: msg["counts"].get(status, 0) for status in STATUSES},
                }
            )
            if len(self.history) > MAX_HISTORY:
                del self.history[1:-1:2]

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:  # noqa: ARG002
        """Called by the scheduler when a worker is gone."""
        self.workers.pop(worker, None)

    def headline(self) -> str:
        """The run in figures, as HTML."""
        if not self.run:
            return "<b>No run yet.</b>"
        run, is_going_on = self.run, self.run["state"] == "running"
        since_s = time.monotonic() - self.told_s if is_going_on else 0.0
        title, *_ = in_words(run)
        left_s, n_done = run["seconds_left"], sum(run["counts"].values())
        tiles = {s: str(run["counts"][s]) for s in STATUSES if s in run["counts"]} | {
            "elapsed": time_in_words(run["seconds"] + since_s),
            "left": time_in_words(max(0.0, left_s - since_s)) if left_s is not None and is_going_on else "-",
            "patients a minute": f"{run['patients_a_minute']:g}",
            "MB/s read": f"{run['read_mb_a_second']:g}",
            "GB read": f"{run['bytes_read'] / 1e9:.2f}",
            "GB written": f"{run['bytes_written'] / 1e9:.2f}",
            "CPU hours": f"{run['cpu_seconds'] / 3600:.2f}",
            "CPU s a patient": f"{run['cpu_seconds'] / n_done:.1f}" if n_done else "-",
        }
        ways = f"{run['source']} → {run['target']}, run {run['run_id']}"
        parts = [(COLOURS[status], run["counts"].get(status, 0) / max(run["inputs"], 1)) for status in STATUSES]
        return "".join(
            [
                f"<div style='font-size:150%; font-weight:600'>{html.escape(title)}",
                f" <span style='color:{BLUE if is_going_on else GREY}; font-weight:400'> {run['state']} </span></div>",
                f"<div style='color:{GREY}; margin:3px 0 8px'>{html.escape(ways)}</div>",
                _bar(parts, "calc(100vw - 60px)", 10),
                "<div style='display:flex; flex-wrap:wrap; gap:10px 44px; margin:12px 0 4px'>",
                *(
                    f"<div><div style='font-size:170%; color:{COLOURS.get(name, 'inherit')}'>{value}</div>"
                    f"<div style='color:{GREY}'>{name}</div></div>"
                    for name, value in tiles.items()
                ),
                "</div>",
            ]
        )

    def stage_shares(self) -> dict[str, list[Any]]:
        """Share of each stage that there was in the patients' seconds, in percent, the last one first."""
        seconds = self.run.get("stage_seconds", {})
        names = [stage for stage in reversed(STAGES) if stage in seconds]
        shares = [100 * seconds[stage] / (sum(seconds.values()) or 1.0) for stage in names]
        words = [f"{share:.0f} %  {time_in_words(seconds[stage])}" for stage, share in zip(names, shares, strict=True)]
        return {"stage": names, "share": shares, "words": words}

    def worker_rows(self, scheduler: Any) -> list[dict[str, str]]:
        """A row of HTML for each worker that the scheduler has: its slots, its memory, its ledger."""
        rows = []
        for address, worker in sorted(scheduler.workers.items())[:MAX_ROWS]:
            told = self.workers.get(address, {})
            rows.append(
                {
                    "worker": html.escape(address.partition("://")[2]),
                    **{slot: html.escape(_slot_words(told, slot)) for slot in SLOTS},
                    "memory of its limit": _share(worker.metrics.get("memory", 0), worker.memory_limit),
                    "given to patients": _share(told.get("taken_bytes", 0), told.get("total_bytes", 0)),
                }
            )
        return rows

    def latest_rows(self) -> list[dict[str, str]]:
        """A row of HTML for each of the latest patients that were not written, the last one first."""
        losses = self.run.get("latest", [])[::-1]
        return [{name: html.escape(value) for name, value in loss.items()} for loss in losses]


def _table(rows: list[dict[str, str]]) -> str:
    """Rows of HTML as a table; Bokeh's own is not drawn again when its values change, without a visible window."""
    if not rows:
        return f"<span style='color:{GREY}'>none</span>"

    def line(cells: Iterable[str], tag: str, style: str) -> str:
        style = f"text-align:left; padding:4px 20px 4px 0; white-space:nowrap; border-bottom:1px solid #e8e8e8; {style}"
        return f"<tr>{''.join(f'<{tag} style={style!r}>{cell}</{tag}>' for cell in cells)}</tr>"

    head = line(rows[0], "th", f"font-weight:400; color:{GREY}; min-width:60px")
    return (
        f"<table style='border-collapse:collapse'>{head}{''.join(line(row.values(), 'td', '') for row in rows)}</table>"
    )


def _bar(parts: Iterable[tuple[str, float]], width: str, height_px: int) -> str:
    """Coloured parts of a grey bar, each with its share of it."""
    inner = "".join(f"<div style='background:{colour}; width:{100 * share:.2f}%'></div>" for colour, share in parts)
    style = f"display:flex; background:#e8e8e8; width:{width}; height:{height_px}px; border-radius:3px; overflow:hidden"
    return f"<div style='{style}'>{inner}</div>"


def _slot_words(told: dict[str, Any], slot: str) -> str:
    if slot not in told.get("slots", {}):
        return ""
    key, stage, seconds = told["slots"][slot]
    if len(key) > MAX_LETTERS:
        key = f"{key[: MAX_LETTERS // 2 - 1]}…{key[-MAX_LETTERS // 2 :]}"
    detail = f"{stage}, " if stage and stage != slot else ""
    return f"{key} ({detail}{time_in_words(seconds + time.monotonic() - told['told_s'])})"


def _share(used_bytes: float, limit_bytes: float) -> str:
    """A bar and words."""
    if not limit_bytes:
        return f"{used_bytes / 2**30:.2f} GiB"
    share = used_bytes / limit_bytes
    words = f"{used_bytes / 2**30:.2f} of {limit_bytes / 2**30:.2f} GiB"
    return f"{_bar([(BLUE if share < NEAR else COLOURS['failed'], share)], '150px', 8)}{words}"


def _document(page: Page, scheduler: Any, extra: dict[str, Any], document: Any) -> None:
    """Build the page for one browser, and keep it up to date."""
    from bokeh.layouts import column, row
    from bokeh.models import ColumnDataSource, Div, LabelSet
    from bokeh.plotting import figure
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    def source_of(*columns: str) -> Any:
        return ColumnDataSource({column: [] for column in columns})

    def text(**styles: str) -> Any:
        return Div(sizing_mode="stretch_width", styles={"font-size": "13px", **styles})

    def plot(title: str, **more: Any) -> Any:
        made = figure(title=title, height=220, sizing_mode="stretch_width", tools="", toolbar_location=None, **more)
        made.grid.grid_line_color = "#eeeeee"
        made.outline_line_color = None
        return made

    headline, workers, latest = text(), text(**BOX), text(**BOX)
    curves = source_of("minutes", "patients_a_minute", "read_mb_a_second", *STATUSES)
    shares = source_of("stage", "share", "words")
    patients = plot("patients by status, by minute")
    patients.varea_stack(STATUSES, x="minutes", color=[COLOURS[s] for s in STATUSES], source=curves)
    pace = plot("patients a minute")
    pace.line("minutes", "patients_a_minute", color=BLUE, line_width=2, source=curves)
    flow = plot("MB/s read")
    flow.line("minutes", "read_mb_a_second", color=BLUE, line_width=2, source=curves)
    for each in (patients, pace, flow):
        each.y_range.start = 0
        each.x_range.start = 0
    stages = plot("share of the patients' seconds", y_range=[], x_range=(0, 130))
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
        workers.text = _table(page.worker_rows(scheduler))
        latest.text = _table(page.latest_rows())

    update()
    document.title = "dskprep"
    document.add_root(
        column(
            headline,
            row(patients, pace, flow, stages, sizing_mode="stretch_width"),
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
