"""What a run says while it goes on: a panel in a terminal, lines elsewhere, JSON where it is asked for."""

from __future__ import annotations

import io
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner

import dskprep
from dskprep.cli import commands, output, terminal
from dskprep.cli.console import Plain
from dskprep.cli.output import Output
from dskprep.cli.workers import Workers
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
    return Summary("1", "in", "out", account, 60.0)


def output_to(text: io.StringIO, *, is_terminal: bool) -> Output:
    return Output(console=Plain(file=text, force_terminal=is_terminal, width=140, color_system=None, soft_wrap=True))


def test_a_terminal_shows_the_figures_and_the_patients_that_were_not_written() -> None:
    text = io.StringIO()
    with output_to(text, is_terminal=True).observe(Workers()) as observer:
        observer.on_patient(summary_of(WRITTEN), [WRITTEN])
        observer.on_patient(summary_of(WRITTEN, LOSS), [LOSS])
        observer.on_note("a worker has no nanny")
    shown = text.getvalue()
    assert "2 of 4 patients: 1 written, 1 refused" in shown
    assert "left;" in shown
    assert "36 s of CPU" in shown
    assert "refused  p2 no-dicom: [nothing] found" in shown
    assert "note: a worker has no nanny" in shown
    assert "written  p1" not in shown


def test_the_summary_stands_below_the_panel() -> None:
    text = io.StringIO()
    summary = summary_of(WRITTEN, LOSS)
    with output_to(text, is_terminal=True).observe(Workers()) as observer:
        observer.on_patient(summary, [LOSS])
        observer.on_end(summary)
    panel, _, below = text.getvalue().rpartition("╯")
    assert "dskprep" in panel
    assert "4 patients: 2 done in 1 min 0 s" in below


def test_the_panel_says_what_the_workers_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    told = {"slots": {"read": ["p1", "read", 0.1], "compute": ["p2", "lungs", 3.0]}, "taken_bytes": 2**30}
    client = Scheduler([{**told, "worker": address, "total_bytes": 2**31} for address in ("a", "b", "b")])
    monkeypatch.setattr(Output, "tell_start", lambda *_: None)
    with output_to(text, is_terminal=True).observe(Workers(client)) as observer:  # type: ignore[arg-type]
        observer.on_patient(summary_of(WRITTEN), [WRITTEN])
    assert "now reading 2, computing 2, writing 0; 2.0 of 4.0 GiB for patients in use" in text.getvalue()
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


def test_outside_a_terminal_there_is_a_line_per_patient_and_the_figures_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(output.FIGURES_EVERY_S, "lines", 0.0)
    text = io.StringIO()
    with output_to(text, is_terminal=False).observe(Workers()) as observer:
        observer.on_patient(summary_of(WRITTEN, LOSS), [WRITTEN, LOSS])
    lines = text.getvalue().splitlines()
    assert lines[:2] == ["written  p1", "refused  p2 no-dicom: [nothing] found"]
    assert lines[2].startswith("2 of 4 patients: 1 written, 1 refused; ")


def test_a_line_in_which_ctrl_c_comes_is_told_once(tmp_path: Path) -> None:
    class Text(io.StringIO):
        def flush(self) -> None:
            if self.getvalue().count("\n") == 1:
                signal.raise_signal(signal.SIGINT)

    text = Text()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with output_to(text, is_terminal=False).observe(Workers()) as observer:
            dskprep.run(tiny.write_patients(tmp_path / "in", ["p1", "p2"]), tmp_path / "out", observers=[observer])
    finally:
        signal.signal(signal.SIGINT, before)
    first, second, *_ = text.getvalue().splitlines()
    assert (first[:11], second[:11]) == ("written  p1", "interrupted")
    assert "2 patients: 1 done" in text.getvalue()


def test_that_ctrl_c_was_heard_is_said_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    def is_said(*, is_terminal: bool) -> str:
        text = io.StringIO()
        with output_to(text, is_terminal=is_terminal).observe(Workers()) as observer:
            observer.on_patient(summary_of(WRITTEN), [WRITTEN])
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return text.getvalue()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert output.ENDING in is_said(is_terminal=True)
        assert capfd.readouterr().err == ""
        assert output.ENDING not in is_said(is_terminal=False)
        assert capfd.readouterr().err == f"dskprep: {output.ENDING}\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_output_in_json_says_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        out = Output(as_json=True)
        with terminal.lines_of_json(True), out.observe(Workers()) as observer:
            out.say("in words")
            observer.on_note("a worker has no nanny")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(event["event"], event["message"]) for event in events] == [
        ("note", "a worker has no nanny"),
        ("error", "interrupted"),
    ]
    assert events[-1]["exit_code"] == 1


@pytest.mark.cluster
def test_the_log_is_json_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(output.FIGURES_EVERY_S, "json", 0.0)
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
    assert re.search(r"cost: \d+ s of CPU, [\d.]+ s per patient", said)


def test_the_list_of_commands_is_not_cut_off() -> None:
    listed = CliRunner().invoke(commands.main, ["--help"], terminal_width=80).output.partition("Commands:")[2]
    assert len(listed.strip().splitlines()) == len(commands.main.commands)
    assert "..." not in listed
