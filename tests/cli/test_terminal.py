"""What a run says while it goes on: a panel in a terminal, lines elsewhere, JSON where it is asked for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.console import Console

from dskprep.cli import commands, terminal
from dskprep.dataset.record import Record
from dskprep.pipeline.account import Account, Summary
from dskprep.worker import slots

LOSS = tiny.record("p2", "refused", reason="no-dicom", message="[nothing] found")
WRITTEN = tiny.record("p1", bytes_read=5_000_000, cpu_s=36.0, seconds={"read": 1.0})


def summary_of(*records: Record) -> Summary:
    account = Account(inputs=4, is_listed=True)
    account.pace._started_s -= 60
    account.pace._samples[0] = (account.pace._started_s, 0, 0)
    for record in records:
        account.add([record])
    return Summary("run", "source", "target", account, 0.0)


def test_a_terminal_shows_the_figures_and_the_patients_that_were_not_written() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    with terminal.shown_progress(console, None) as progress:
        progress.on_patient(summary_of(WRITTEN), [WRITTEN])
        progress.on_patient(summary_of(WRITTEN, LOSS), [LOSS])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 of 4 patients: 1 written, 1 refused" in shown
    assert "left;" in shown
    assert "0.01 CPU hours" in shown
    assert "refused  p2 no-dicom: [nothing] found" in shown
    assert "written  p1" not in shown


def test_the_panel_says_what_the_workers_hold() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    told = {"slots": {"read": ["p1", "read", 0.1], "compute": ["p2", "lungs", 3.0]}, "taken_bytes": 2**30}
    client = Scheduler([{**told, "worker": address, "total_bytes": 2**31} for address in ("a", "b", "b")])
    with terminal.shown_progress(console, client) as progress:  # type: ignore[arg-type]
        progress.on_patient(summary_of(WRITTEN), [WRITTEN])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "now 2 read, 2 computed, 0 written; 2.0 of 4.0 GiB of the workers' memory taken" in shown
    assert client.topics == []


class Scheduler:
    """In the place of a Dask client: tells at once all that it knows."""

    status = "running"

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events
        self.topics: list[str] = []

    def subscribe_topic(self, topic: str, handler: Any) -> None:
        assert topic == slots.TOPIC
        self.topics.append(topic)
        for event in self.events:
            handler((0.0, event))

    def unsubscribe_topic(self, topic: str) -> None:
        self.topics.remove(topic)


def test_outside_a_terminal_there_is_a_line_a_patient_and_the_figures_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(terminal.FIGURES_EVERY_S, "lines", 0.0)
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with terminal.shown_progress(console, None) as progress:
        progress.on_patient(summary_of(WRITTEN, LOSS), [WRITTEN, LOSS])
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[:2] == ["written  p1", "refused  p2 no-dicom: [nothing] found"]
    assert lines[2].startswith("2 of 4 patients: 1 written, 1 refused; ")


@pytest.mark.cluster
def test_the_log_is_json_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(terminal.FIGURES_EVERY_S, "json", 0.0)
    source = tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    tiny.write(source, {"p3/notes.txt": b""})
    words = ["run", source, str(tmp_path / "out"), "--log-json", "--workers", "1", "--memory-limit", "1GiB"]
    assert commands.run_command(words) == 1
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.out.splitlines()]
    assert said.err == ""
    assert events[0]["event"] == "start"
    assert events[0]["dashboard"].endswith("/dskprep")
    patients = {event["key"]: event["status"] for event in events if event["event"] == "patient"}
    assert patients == {"p1": "written", "p2": "written", "p3": "refused"}
    assert [event["counts"] for event in events if event["event"] == "figures"][-1] == {"written": 2, "refused": 1}
    assert (events[-1]["event"], events[-1]["counts"]) == ("summary", {"written": 2, "refused": 1})
    assert events[-1]["cpu_seconds"] > 0
    assert commands.run_command(["status", str(tmp_path / "out")]) == 1
    assert "3 series" in capsys.readouterr().out


def test_the_end_of_a_run_names_its_cost_and_its_slowest_and_largest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny.write(tmp_path / "in", {})
    tiny.write(f"{source}/small", tiny.series(1))
    tiny.write(f"{source}/large", tiny.series(2, n=40))
    assert commands.run_command(["run", source, str(tmp_path / "out"), "--scheduler", "sync"]) == 0
    said = capsys.readouterr().out
    assert "largest: large " in said
    assert "slowest: " in said
    assert " CPU hours, " in said
