"""The page on the dashboard: what it says is what was recorded, seen by a real browser while a run goes on."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import pytest
import tiny
from distributed import Client, LocalCluster, WorkerPlugin

import dskprep
from dskprep.dataset import omezarr, store
from dskprep.pipeline import account, checked, crew, executor, page, run, watch
from dskprep.pipeline.account import Account, Summary
from dskprep.pipeline.pace import Pace
from dskprep.stopwatch import Stopwatch
from dskprep.worker import slots
from dskprep.worker.admission import Ledger


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with dskprep.local_client(workers=2, memory_limit="1GiB") as client:
        yield client


@pytest.fixture
def tab() -> Iterator[browser.Browser]:
    with browser.opened() as tab:
        tab.look(width=1500, height=1000)
        yield tab


class Gate(WorkerPlugin):
    """Patients wait when they are to be encoded, until the file is there."""

    name = "gate"

    def __init__(self, opened: Path) -> None:
        self.opened = opened

    def setup(self, worker: Any) -> None:  # noqa: ARG002
        self.encode = omezarr.encode
        omezarr.encode = self._when_opened

    def teardown(self, worker: Any) -> None:  # noqa: ARG002
        omezarr.encode = self.encode

    def _when_opened(self, *arguments: Any, **settings: Any) -> Any:
        while not self.opened.exists():
            time.sleep(0.02)
        return self.encode(*arguments, **settings)


def in_thread(work: Callable[[], Summary]) -> Callable[[], Summary]:
    """Start the work beside the test; what is returned waits for its result."""
    results: list[Summary] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def result() -> Summary:
        thread.join(120)
        return results[0]

    return result


def bars(client: Client) -> dict[str, int]:
    """What Dask's progress shows: how many tasks there were of each name."""
    return client.run_on_scheduler(
        lambda dask_scheduler: {
            name: sum(prefix.states.values())
            for name, prefix in dask_scheduler.task_prefixes.items()
            if sum(prefix.states.values())
        }
    )


@pytest.mark.browser
@pytest.mark.cluster
@pytest.mark.slow
def test_a_browser_sees_the_run_live_and_at_the_end_the_numbers_of_the_records(
    client: Client, tab: browser.Browser, tmp_path: Path
) -> None:
    source = tiny.write_patients(tmp_path / "in", [f"p{i}" for i in range(7)])
    tiny.write(f"{source}/q", {"notes.txt": b""})
    target = str(tmp_path / "out")
    opened = tmp_path / "opened"
    client.register_plugin(Gate(opened))
    try:
        running = in_thread(lambda: dskprep.run(source, target, client=client))
        assert page.install(client) == ""
        tab.open(page.link(client))
        tab.wait_for_text("(encode, ")
        live = tab.wait_for_text("of 8 patients")
        assert re.search("[01] of 8 patients", live)  # the one without DICOM may be done
        assert "running" in live
        assert " of 1.00 GiB" in live  # a worker's memory against its limit
        tab.open(client.dashboard_link)
        tab.wait_for_text("Processing")
        tasks = bars(client)
        assert list(tasks) == ["patient"]
        assert tasks["patient"] in (7, 8)  # all of them, but perhaps the one without DICOM
    finally:
        opened.touch()
        client.unregister_worker_plugin("gate")
    summary = running()
    tab.open(page.link(client))
    text = tab.wait_for_text("patients: 7 written, 1 refused")
    counts = Counter(name.status for name in store.record_names(target))
    assert counts == {"written": 7, "refused": 1} == summary.account.counts
    assert f"8 of 8 patients: {counts['written']} written, {counts['refused']} refused" in text
    assert " done " in text
    assert "q refused no-dicom expected DICOM files" in text
    assert summary.run_id in text
    assert tab.errors == []


@pytest.mark.browser
@pytest.mark.cluster
def test_a_few_patients_are_counted_in_whole_numbers(client: Client, tab: browser.Browser, tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    dskprep.run(source, str(tmp_path / "out"), client=client)
    tab.open(page.link(client))
    tab.wait_for_text("patients: 2 written")
    ticks = """(() => {
      const axes = [...Bokeh.index.query(view => view.model.type === "LinearAxis" && view.dimension === 1)]
      const axis = axes.find(view => view.parent.model.title.text === "patients by status")
      return ["major", "minor"].map(kind => axis?.tick_coords[kind][1])
    })()"""
    tab.wait_for(f"{ticks}[0].at(-1) >= 2")
    assert tab.evaluate(ticks) == [[0, 1, 2], []]


def test_the_page_shows_a_hostile_source_as_text() -> None:
    shown = page.Page()
    summary = Summary("run", "<script>alert(1)</script>", "out", Account(), 0.0)
    shown.log_event(
        page.RUN_TOPIC, {"run_id": "r", "source": summary.source, "target": "", "state": "running"} | figures()
    )
    assert "<script>" not in shown.headline()
    assert "&lt;script&gt;" in shown.headline()


def test_the_tables_of_the_page_show_hostile_words_as_text() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    shown = page.Page()
    latest = [{"key": hostile, "status": "refused", "reason": hostile, "message": hostile}]
    run = {"run_id": hostile, "source": hostile, "target": hostile, "state": hostile}
    shown.log_event(page.RUN_TOPIC, figures(latest=latest, stage_seconds={hostile: 1.0}) | run)
    told = {"slots": {"read": [hostile, hostile, 1.0]}, "taken_bytes": 1, "total_bytes": 2}
    shown.log_event(slots.TOPIC, {"worker": f"tcp://{hostile}", **told})
    worker = SimpleNamespace(metrics={"memory": 1}, memory_limit=2)
    table = shown.worker_table(SimpleNamespace(workers={f"tcp://{hostile}": worker}))
    for part in (shown.headline(), shown.latest_table(), table):
        assert "<img" not in part
        assert "&lt;img" in part
    assert hostile not in str(shown.stage_shares())


def figures(**changed: Any) -> dict[str, Any]:
    return Account().figures() | changed


def test_a_long_run_keeps_no_more_of_its_history_than_can_be_drawn() -> None:
    shown = page.Page()
    for second in range(20_000):
        shown.log_event(page.RUN_TOPIC, {"run_id": "r"} | figures(seconds=float(second)))
    minutes = [point["minutes"] for point in shown.history]
    assert len(minutes) <= page.MAX_HISTORY
    assert minutes == sorted(minutes)
    assert (minutes[0] < 1, minutes[-1]) == (True, 19_999 / 60)
    shown.log_event(page.RUN_TOPIC, {"run_id": "another"} | figures())
    assert len(shown.history) == 1


@pytest.mark.cluster
def test_the_performance_report_can_be_read_without_a_network_and_holds_no_secrets(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key")
    monkeypatch.setattr("distributed.client.time", lambda: time.time() + 3600)  # a clock that is an hour ahead
    source = tiny.write_patients(tmp_path / "in", [f"p{n}" for n in range(40)])
    summary = dskprep.run(source, str(tmp_path / "out"), client=client)
    report = (tmp_path / "out" / "runs" / summary.run_id / "performance.html").read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=", report)
    (content,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', report, re.DOTALL)
    text = json.dumps(json.loads(html.unescape(content)))
    assert "Dask Performance Report" in text
    (n_tasks,) = re.findall(r"number of tasks: (\d+) ", text)
    assert 30 <= int(n_tasks) <= 50  # Dask knows the clocks of busy workers to a part of a second
    ours = [
        line for file in (__file__, run.__file__, executor.__file__) for line in Path(file).read_text().splitlines()
    ]
    lines_of_code = {json.dumps(line.strip())[1:-1] for line in ours if "(" in line and len(line.strip()) > 30}
    assert [line for line in lines_of_code if line in text] == []
    for secret in ("a-very-secret-key", *tiny.IDENTITY):
        assert secret not in report


@pytest.mark.browser
@pytest.mark.cluster
def test_a_performance_report_that_cannot_begin_leaves_nothing_behind(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> float:
        raise OSError("the scheduler does not answer")

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(client, "run_on_scheduler", lost)

    with pytest.raises(OSError, match="does not answer"):
        watch.PerformanceReport(client).on_start(Summary("run", "in", "out", Account(), 0.0))

    assert list(scratch.iterdir()) == []


def test_a_browser_draws_the_performance_report_offline(client: Client, tab: browser.Browser, tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    summary = dskprep.run(source, str(tmp_path / "out"), client=client)
    tab.go_offline()
    tab.open(f"file://{tmp_path}/out/runs/{summary.run_id}/performance.html")
    assert "number of tasks: " in tab.wait_for_text("Task Stream")
    assert tab.errors == []


def scrape(client: Client) -> dict[str, float]:
    """What Prometheus would read."""
    address = f"{client.dashboard_link.rpartition('/')[0]}/metrics"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith("dskprep"))}


@pytest.mark.cluster
def test_prometheus_reads_the_counts_of_the_records_and_no_names(client: Client, tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    tiny.write(f"{source}/q", {"notes.txt": b""})
    summary = dskprep.run(source, str(tmp_path / "out"), client=client)
    told = scrape(client)
    assert told['dskprep_patients_total{status="written"}'] == 2
    assert told['dskprep_patients_total{status="failed"}'] == 0
    assert told['dskprep_not_written_total{reason="refused: no-dicom"}'] == 1
    assert told["dskprep_inputs"] == 3
    assert told["dskprep_read_bytes_total"] == summary.account.bytes_read
    assert told["dskprep_written_bytes_total"] == summary.account.bytes_written
    assert not re.search(r"\bp1\b|\bq\b|in/", " ".join(told))


def test_of_a_performance_report_no_line_of_code_and_no_log_is_kept() -> None:
    def panel(title: str, content: Any) -> dict[str, Any]:
        return {"name": "TabPanel", "attributes": {"title": title, "child": content}}

    profile = {"data": {"type": "map", "entries": [["line", ["password = 1", ""]], ["name", ["f", "g"]]]}}
    document = {"tabs": [panel("Scheduler Logs", "password & all"), panel("Worker Profile", profile)]}
    report = f'<b>before</b><script type="application/json" id="x">{html.escape(json.dumps(document))}</script>after'
    clean = watch.without_secrets(report).decode()
    assert "password" not in clean
    kept = json.loads(html.unescape(re.findall(r'id="x">(.*)</script>after', clean)[0]))
    assert kept == {
        "tabs": [
            panel("Worker Profile", {"data": {"type": "map", "entries": [["line", ["", ""]], ["name", ["f", "g"]]]}})
        ]
    }


@pytest.mark.cluster
def test_a_profile_in_the_report_shows_functions_but_not_their_code(client: Client, tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1"])
    opened = tmp_path / "opened"
    client.register_plugin(Gate(opened))
    timer = threading.Timer(2.5, opened.touch)  # Dask takes samples of what runs, and keeps them by the second
    timer.start()
    try:
        summary = dskprep.run(source, str(tmp_path / "out"), client=client)
    finally:
        timer.join()
        client.unregister_worker_plugin("gate")
    report = (tmp_path / "out" / "runs" / summary.run_id / "performance.html").read_text()
    shown = html.unescape(report)
    assert '"within"' in shown  # the function that waits for the thread of a patient
    assert "while not wait(" not in shown


@pytest.mark.cluster
@pytest.mark.slow
def test_a_scheduler_without_dskprep_runs_it_and_the_missing_page_is_said_in_a_line(
    tmp_path: Path,
) -> None:
    source, file = tiny.write_patients(tmp_path / "in", ["p1", "p2"]), tmp_path / "scheduler.json"
    without = "import sys; sys.modules['dskprep'] = None; from distributed.cli.dask_scheduler import main; main()"
    settings = str(Path(__file__).parents[2] / "cluster" / "dask.yaml")
    places = f"--host 127.0.0.1 --port 0 --dashboard-address 127.0.0.1:0 --scheduler-file {file}".split()
    options = f"--nthreads 3 --memory-limit 1.5GiB --local-directory {tmp_path} --scheduler-file {file}".split()
    with contextlib.ExitStack() as ends:
        for words in (["-c", without, *places], ["-m", "dask", "worker", "--host", "127.0.0.1", *options]):
            started = subprocess.Popen(
                [sys.executable, *words],
                env=os.environ | {"DASK_CONFIG": settings},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            ends.callback(started.wait, 30)
            ends.callback(started.terminate)
            end = time.monotonic() + 60
            while not (file.exists() and file.stat().st_size):
                assert time.monotonic() < end, "the scheduler did not start"
                time.sleep(0.05)
        words = [*tiny.PROGRAM, "run", source, str(tmp_path / "out"), "--scheduler", str(file)]
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = (line for line in done.stdout.splitlines() if "page" in line)
    assert line.startswith("note: no dskprep page on the dashboard: ModuleNotFoundError: ")
    assert "2 patients: 2 done" in done.stdout


@pytest.mark.cluster
def test_where_the_scheduler_lacks_bokeh_a_run_goes_on_without_page_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1"])
    monkeypatch.setitem(sys.modules, "bokeh.application.application", None)
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as bare,
        Client(bare) as client,
    ):
        assert page.install(client).startswith("ModuleNotFoundError: import of bokeh")
        summary = dskprep.run(source, str(tmp_path / "out"), client=client)
    assert summary.account.counts == {"written": 1}
    assert not list((tmp_path / "out" / "runs").rglob("performance.html"))


def test_why_there_is_no_page_is_told_without_secrets() -> None:
    class Refuses:
        def register_plugin(self, _: Any) -> None:
            raise OSError("refused\nhttps://a.blob.core.windows.net/c?sig=aGVsbG8%3D")

    client: Any = Refuses()
    assert page.install(client) == "OSError: refused https://a.blob.core.windows.net/c?sig=[withheld]"


@pytest.mark.cluster
def test_two_runs_share_the_page_and_the_later_one_is_shown(client: Client, tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1"])
    for name in ("a", "b"):
        summary = dskprep.run(source, str(tmp_path / name), client=client)
    shown = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["dskprep"].run)
    assert (shown["run_id"], shown["state"], shown["counts"]) == (summary.run_id, "done", {"written": 1})


# what the workers tell


class Listener:
    """In the place of a Dask worker."""

    address = "tcp://worker:1"

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.heard = threading.Event()

    def log_event(self, topic: str, state: dict[str, Any]) -> None:
        assert topic == slots.TOPIC
        self.told.append(state)
        self.heard.set()


def test_many_patients_in_a_second_are_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "EVERY_S", 60.0)
    listener, held = Listener(), slots.Slots()
    held.tell_through(listener, Ledger(1000))  # type: ignore[arg-type]
    clock = Stopwatch()
    for i in range(100):
        with held("compute", f"p{i}", clock), clock("lungs"):
            listener.heard.wait(10)
            state = held.state()
            assert (state["slots"]["compute"][:2], state["total_bytes"]) == ([f"p{i}", "lungs"], 1000)
    assert held.state()["slots"] == {}
    assert len(listener.told) == 1


# the figures


def test_what_changed_before_anybody_listened_is_told() -> None:
    listener, held = Listener(), slots.Slots()
    with held("compute", "p", Stopwatch()):
        held.tell_through(listener, Ledger(1000))  # type: ignore[arg-type]
        assert listener.heard.wait(10)
    assert listener.told[0]["worker"] == listener.address


def test_the_figures_speak_of_an_end_only_when_all_inputs_are_known() -> None:
    now = [0.0]
    counted = Account(inputs=10)
    counted.pace = Pace(lambda: now[0])
    for _ in range(4):
        now[0] += 15
        counted.add([tiny.record("p", bytes_read=30_000_000)])
    assert counted.figures()["seconds_left"] is None
    assert account.in_words(counted.figures())[0] == "4 of 10 patients found so far, still listing: 4 written"
    counted.is_listed = True
    told = counted.figures()
    assert (told["patients_per_minute"], told["read_mib_per_second"], told["seconds_left"]) == (4.0, 1.9, 90)
    assert account.in_words(told)[1] == "1 min 0 s, about 1 min 30 s left; 4 patients per minute, 1.9 MiB/s read"


def test_the_pace_is_that_of_the_last_minutes() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    for _ in range(100):  # one every ten seconds, and then ten times as fast
        now[0] += 10
        pace.add(0)
    assert pace.per_second[0] == pytest.approx(0.1, rel=0.1)
    for _ in range(300):
        now[0] += 1
        pace.add(0)
    assert pace.per_second[0] == pytest.approx(1.0, rel=0.02)
    now[0] += 60
    assert pace.per_second[0] < 0.8


def test_the_account_names_the_slowest_and_the_largest() -> None:
    counted = Account()
    for i in (3, 9, 1, 7, 5, 8, 2):
        counted.add([tiny.record(f"p{i}", bytes_read=100 - i, seconds={"read": i, "lungs": 0.5}, cpu_s=0.25)])
    assert [key for _, key in counted.slowest] == ["p9", "p8", "p7", "p5", "p3"]
    assert [key for _, key in counted.largest] == ["p1", "p2", "p3", "p5", "p7"]
    assert (counted.cpu_s, counted.stage_s["read"]) == (1.75, 35)


def test_the_clock_of_a_run_stops_when_it_has_ended() -> None:
    times = iter([0.0, 5.0, 7.0, 9.0])
    pace = Pace(lambda: next(times))
    assert pace.seconds == 5.0
    pace.end()
    assert (pace.seconds, pace.seconds) == (7.0, 7.0)


def test_the_time_of_a_run_is_without_the_start_of_its_workers_in_its_figures_and_in_its_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of who starts them they take a thousand seconds: so much is taken off both."""
    told: list[float] = []

    class Told(dskprep.Observer):
        def on_patient(self, summary: Summary, _: Any) -> None:
            told.append(summary.account.figures()["seconds"])

    clock = iter([0.0, 1000.0])
    monkeypatch.setattr(crew, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    source = tiny.write_patients(tmp_path / "in", ["p1"])
    task = checked.check(source, str(tmp_path / "out"), settings=dskprep.PrepConfig(lungs=False, check_hu=False))
    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as there, Client(there) as client:
        summary = run.execute(task, starts=lambda: client, observers=[Told()], at_end=())
    assert (told[0] < 0, summary.seconds < 0) == (True, True)
