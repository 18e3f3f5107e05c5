"""Ctrl-C in commands with workers, and a reader that goes: said at once, in a line, and never a traceback."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import tiny
from distributed import Client, LocalCluster

import dskprep
from dskprep.cli import commands, terminal
from dskprep.cli.output import AT_ONCE, ENDING, Lines, Output
from dskprep.cli.workers import STOPPING, Workers, told_that_workers_stop, workers_of
from dskprep.dataset import store
from dskprep.pipeline import cluster
from dskprep.preparation import prepare

TOLD = f"dskprep: {STOPPING}\n"


@pytest.fixture(autouse=True)
def as_python_has_it() -> Iterator[None]:
    """SIGINT is as Python has it; dask_jobqueue, once imported, has it end the process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    us = threading.main_thread().ident
    assert us is not None
    signal.pthread_kill(us, signal.SIGINT)  # another thread, where it is not held back, could take it from the process


def test_ctrl_c_while_workers_start_is_said_at_once(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def connect(address: str) -> Iterator[str]:
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
        assert capfd.readouterr().err == TOLD
        yield address

    monkeypatch.setattr(cluster, "connect", connect)
    with click.Context(commands.main), workers_of("tcp://there", None, None):
        pass


def test_ctrl_c_while_workers_of_this_machine_start_stops_them_when_they_have(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another thread gets the signal, as that which tells what is waited for."""
    done: list[Any] = []

    @contextlib.contextmanager
    def local_client(*_: Any) -> Iterator[None]:
        press_ctrl_c()
        done.append(capfd.readouterr().err.splitlines()[-1])
        try:
            yield
        finally:
            done.append("stopped")

    monkeypatch.setattr(cluster, "local_client", local_client)
    monkeypatch.setattr(prepare, "warm", lambda *_: None)
    with (
        pytest.raises(KeyboardInterrupt),
        click.Context(commands.main),
        workers_of("local", 1, None) as workers,
        told_that_workers_stop(),
    ):
        done.append(workers.start())
    assert done == [TOLD.rstrip(), "stopped"]


@pytest.mark.parametrize("n", [1, 2])
def test_each_ctrl_c_while_workers_start_for_a_first_job_is_told_once(
    n: int, capfd: pytest.CaptureFixture[str]
) -> None:
    told = []

    @contextlib.contextmanager
    def opening() -> Iterator[Any]:
        try:
            for _ in range(n):
                press_ctrl_c()
            told.append("started")  # half of them could not be stopped
            yield "client"
        finally:
            told.append("over")

    workers = Workers(opening=opening)
    with contextlib.suppress(KeyboardInterrupt), Output().observe(workers) as observer:
        assert observer.starts
        observer.starts()
        told.append("never")
    workers.close()
    assert told == ["started", "over"]
    assert capfd.readouterr().err.splitlines() == [f"dskprep: {ENDING}", f"dskprep: {AT_ONCE}"][:n]
    terminal.end_command()


def test_the_account_is_told_also_where_workers_do_not_stop(capfd: pytest.CaptureFixture[str]) -> None:
    @contextlib.contextmanager
    def opening() -> Iterator[Any]:
        yield "client"
        raise TimeoutError("a nanny does not answer")

    workers = Workers(opening=opening)
    workers.start()
    with pytest.raises(TimeoutError):
        Lines(Output(), workers, 60.0).tell_end({}, "the account")
    assert capfd.readouterr().out == "the account\n"
    terminal.end_command()


def test_ctrl_c_while_workers_stop_is_said_at_once_and_waits_for_them(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = []

    @contextlib.contextmanager
    def connect(address: str) -> Iterator[str]:
        yield address
        press_ctrl_c()
        stopped.append(capfd.readouterr().err)

    monkeypatch.setattr(cluster, "connect", connect)
    with (
        pytest.raises(KeyboardInterrupt),
        click.Context(commands.main),
        workers_of("tcp://there", None, None),
    ):
        pass
    assert stopped == [TOLD]


@pytest.mark.parametrize("n", [1, 2])
def test_ctrl_c_when_all_is_done_and_workers_stop_is_told_and_changes_nothing_but_a_second_does(
    n: int, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped = []

    @contextlib.contextmanager
    def opening() -> Iterator[Any]:
        yield "client"
        for _ in range(n):
            press_ctrl_c()
        stopped.append(capfd.readouterr().err.count(TOLD))

    workers = Workers(opening=opening)
    workers.start()
    with pytest.raises(KeyboardInterrupt) if n > 1 else contextlib.nullcontext():
        workers.stop()
    assert stopped == [1] * (n == 1)
    terminal.end_command()


def test_the_account_of_a_run_is_told_when_its_workers_have_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And with the exit code of what is done, though Ctrl-C came while they stopped."""
    told = []

    @contextlib.contextmanager
    def local_client(*_: Any) -> Iterator[Client]:
        with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as there:
            with Client(there) as client:
                yield client
            press_ctrl_c()
            told.append(capfd.readouterr().out)

    monkeypatch.setattr(cluster, "local_client", local_client)
    monkeypatch.setattr(prepare, "warm", lambda *_: None)
    source = tiny.write_patients(tmp_path / "in", ["p1"])
    assert commands.run_command(["run", source, str(tmp_path / "out"), "--workers", "1"]) == 0
    assert [("written  p1" in text, "1 patient: 1 done" in text) for text in told] == [(True, False)]
    assert "1 patient: 1 done" in capfd.readouterr().out


def test_a_second_ctrl_c_says_what_it_does_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def press_twice(*_: Any) -> None:
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
        assert capfd.readouterr().err.splitlines()[-1] == f"dskprep: {ENDING}"
        press_ctrl_c()

    monkeypatch.setattr(store, "write_run", press_twice)
    source, target = tiny.write_patients(tmp_path / "in", ["p1"]), str(tmp_path / "out")
    assert commands.run_command(["run", source, target, "--scheduler", "sync"]) == 1
    said = capfd.readouterr()
    assert said.err.splitlines() == [f"dskprep: {AT_ONCE}", "", "dskprep: interrupted"]
    assert said.out.splitlines()[-1] == f"to go on: dskprep run {source} {target} --scheduler sync"
    assert "1 patient" not in said.out


class Presses(dskprep.Observer):
    """Presses Ctrl-C so many times at the first that is done."""

    def __init__(self, n: int) -> None:
        self._n, self.heard = n, list[str]()

    def on_patient(self, *_: Any) -> None:
        for _ in range(self._n):
            press_ctrl_c()

    on_label = on_export = on_patient

    def on_end(self, *_: Any) -> None:
        self.heard.append("end")


def test_a_run_has_an_account_after_one_ctrl_c_and_none_after_two(tmp_path: Path) -> None:
    source, target = tiny.write_patients(tmp_path / "in", ["p1", "p2", "p3"]), str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        dskprep.run(source, target, observers=[twice := Presses(2)])
    assert not [*Path(target).glob("runs/*/summary.json")]
    assert not twice.heard
    summary = dskprep.run(source, target, observers=[once := Presses(1)])
    assert summary.is_interrupted
    assert [*Path(target).glob("runs/*/summary.json")]
    assert once.heard == ["end"]


def test_labels_and_exports_have_an_account_after_one_ctrl_c_and_none_after_two(tmp_path: Path) -> None:
    source, target = tiny.write_patients(tmp_path / "in", ["p1"]), str(tmp_path / "out")
    dskprep.run(source, target)
    labels = tiny.write(tmp_path / "labels", {f"{n}.csv": b"key,x,y,z\np1,0,0,0\n" for n in (1, 2, 3)})
    with pytest.raises(KeyboardInterrupt):
        dskprep.annotate(target, labels, observers=[Presses(2)])
    assert dskprep.annotate(target, labels, observers=[Presses(1)]).is_interrupted
    with pytest.raises(KeyboardInterrupt):
        dskprep.export("monai", target, tmp_path / "two", labels=(), observers=[Presses(2)])
    assert dskprep.export("monai", target, tmp_path / "one", labels=(), observers=[Presses(1)]).is_interrupted


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("is_hurried", "is_pressed", "exit_code"),
    [
        pytest.param(True, False, -signal.SIGKILL, id="a second Ctrl-C"),
        pytest.param(False, True, -signal.SIGKILL, id="one as they are stopped"),
        pytest.param(False, False, 0, id="none"),
    ],
)
def test_workers_of_this_machine_are_killed_only_where_ctrl_c_says_that_nobody_waits_for_them(
    is_hurried: bool, is_pressed: bool, exit_code: int
) -> None:
    @contextlib.contextmanager
    def opening() -> Iterator[Client]:
        with cluster.local_client(1) as client:
            yield client
            if is_pressed:
                press_ctrl_c()

    workers = Workers(opening=opening)
    client = workers.start()
    pid = client.submit(os.getpid).result()
    (process,) = (child for child in multiprocessing.active_children() if child.pid == pid)
    if is_hurried:
        workers.hurry()
    workers.stop()
    workers.close()
    assert process.exitcode == exit_code


def test_ctrl_c_while_workers_start_ends_them_when_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    class Cluster:
        def __init__(self, **_: Any) -> None:
            press_ctrl_c()
            done.append("started")

        def __enter__(self) -> Cluster:
            return self

        def __exit__(self, *_: object) -> None:
            done.append("stopped")

    monkeypatch.setattr(cluster, "LocalCluster", Cluster)
    monkeypatch.setattr(prepare, "warm", lambda *_: None)
    with pytest.raises(KeyboardInterrupt), dskprep.local_client(1):
        pass
    assert done == ["started", "stopped"]


@pytest.mark.parametrize(("n", "code"), [(1, 0), (2, -signal.SIGINT)])
def test_ctrl_c_at_the_very_end_changes_nothing_and_a_second_one_is_no_traceback(n: int, code: int) -> None:
    script = f"""
import atexit, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from dskprep.cli import commands
for _ in range({n}):
    atexit.register(signal.raise_signal, signal.SIGINT)  # as while Dask closes what was left open
commands.main.commands["status"].callback = lambda **_: None
commands.sys.argv = ["dskprep", "status", "x"]
commands.run_and_exit()
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.slow
@pytest.mark.cluster
def test_ctrl_c_twice_ends_annotate_with_its_account_and_no_traceback(tmp_path: Path) -> None:
    source, target, labels = tiny.write_patients(tmp_path / "in", ["p1"]), str(tmp_path / "out"), str(tmp_path / "it's")
    assert commands.run_command(["run", source, target, "--scheduler", "sync"]) == 0
    tiny.write(labels, {f"{n}.csv": b"key,x,y,z\np1,0,0,0\n" for n in range(300)})
    words = ["annotate", target, labels, "--workers", "1"]
    command = ["env", "--default-signal=INT", sys.executable, "-m", "dskprep", *words]
    with subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True, start_new_session=True) as process:
        assert process.stdout
        said = [next(line for line in process.stdout if re.match("written|refused", line))]
        os.killpg(process.pid, signal.SIGINT)
        for line in process.stdout:
            said.append(line)
            if line.startswith("to go on"):
                os.killpg(process.pid, signal.SIGINT)  # while the workers stop
    assert process.returncode
    assert "interrupted\n" in said
    assert f"to go on: dskprep annotate {target} '{tmp_path}/it'\"'\"'s' --workers 1\n" in said
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize("words", ["plan", "plan --json"])
def test_a_command_that_only_shows_ends_in_silence_where_its_reader_goes(tmp_path: Path, words: str) -> None:
    tiny.write(tmp_path / "in", {f"p{n}{'long' * 45}/notes.txt": b"" for n in range(300)})
    command = [sys.executable, "-m", "dskprep", *words.split(), str(tmp_path / "in")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 1
    assert not [line for line in told.splitlines() if not line.startswith(("loading", "listing", "reading headers"))]


def test_a_full_disk_is_told_by_a_command_that_only_shows(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in", {"p1/notes.txt": b""})
    command = [sys.executable, "-m", "dskprep", "plan", str(tmp_path / "in")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode
    assert "dskprep: standard output" in done.stderr


@pytest.mark.parametrize(("moment", "code"), [("terminal.end_command", 1), ("exits.end_soon", 0)])
def test_a_signal_that_comes_when_all_was_said_is_no_traceback(moment: str, code: int) -> None:
    """As on a busy machine a second Ctrl-C, between the last word of a command and the end of Python."""
    program = f"""
import os, signal, sys
from dskprep.cli import commands, exits, terminal

def interrupted(*args):
    {moment} = last
    os.kill(os.getpid(), signal.SIGINT)
    last(*args)

last, {moment} = {moment}, interrupted
sys.argv = ["dskprep", "--version"]
commands.run_and_exit()
"""
    command = ["env", "--default-signal=INT", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("dskprep, version")
