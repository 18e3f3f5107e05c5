"""What a newcomer meets first: something to read at once, errors before anything is started, and commands that work."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tiny

import dskprep
from dskprep.cli import commands, terminal
from dskprep.pipeline import cluster
from dskprep.preparation import prepare
from dskprep.settings import PrepConfig
from dskprep.volume import Volume


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of two volumes and a series that was refused."""
    folder = tmp_path_factory.mktemp("first")
    source = tiny.write_patients(folder / "in", ["p1", "p2"])
    tiny.write(f"{source}/p3", tiny.series(3, n=3))
    dskprep.run(source, folder / "out")
    return str(folder / "out")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("status TARGET", "loading"),
        ("verify TARGET", "reading every object again: 1 record so far"),
        ("clean TARGET --dry-run", "listing TARGET"),
        ("duplicates TARGET", "reading the index of TARGET"),
        ("plan SOURCE", "reading headers: 0 of 3"),
        ("plan SOURCE --json", "preparing one patient"),
        ("run SOURCE NEW --scheduler sync", "looking at SOURCE and NEW"),
        ("show TARGET p1 -o PNG", "drawing"),
        ("compare TARGET TARGET", "comparing"),
        ("report TARGET --json", "reading TARGET"),
        ("export croissant TARGET NEW", "reading the index of TARGET"),
        ("phantom NEW --patients 1", "making patients: 0 of 1"),
    ],
)
def test_a_command_says_in_a_terminal_what_it_waits_for(
    command: str,
    words: str,
    dataset: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On standard error, so that standard output can be read by a program."""
    places = {"TARGET": dataset, "SOURCE": f"{Path(dataset).parent}/in", "NEW": f"{tmp_path}/n", "PNG": f"{tmp_path}/p"}
    for name, place in places.items():
        command, words = command.replace(name, place), words.replace(name, place)
    for name, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "500"}.items():
        monkeypatch.setenv(name, value)
    tiny.make_small_phantoms(monkeypatch)
    commands.run_command(command.split())
    said = capfd.readouterr()
    assert words in said.err
    assert words not in said.out
    if "--json" in command:
        json.loads(said.out)
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    monkeypatch.delenv("FORCE_COLOR")
    commands.run_command(command.replace(f"{tmp_path}/", f"{tmp_path}/again").split())
    assert words not in capfd.readouterr().err


def test_what_is_waited_for_gives_way_to_what_is_said(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    terminal.wait_for("the \x1b[31mworkers")
    terminal.say("there they are")
    said = capfd.readouterr()
    assert said.out == "there they are\n"
    assert r"the \x1b[31mworkers" in said.err
    assert said.err.endswith("\x1b[2K")  # the line is empty again


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("run SOURCE TARGET --preset zuidhof", "holds a dataset of other settings"),
        ("run SOURCE SOURCE/p1", "lies inside the source"),
        ("run SOURCE NEW --only nobody", "no patient of"),
        ("run NOWHERE NEW", "there is no such folder"),
        ("run SOURCE SOURCE/../full", "expected an empty or a new place"),
        ("run SOURCE NEW --workers 1000000", "workers leave each"),
        ("annotate TARGET NOWHERE", "there is no such folder or file"),
        ("annotate NOWHERE SOURCE", "there is no dskprep dataset here"),
        ("annotate TARGET SOURCE --names liver", "must be a value and a name"),
        ("export nnunet TARGET NEW --labels GTV", "GTV"),
        ("export nnunet TARGET NEW --split v7", "v7"),
    ],
)
def test_what_is_wrong_is_said_before_workers_are_started(
    command: str,
    problem: str,
    dataset: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(*_: Any) -> NoReturn:
        raise AssertionError("workers were started")

    monkeypatch.setattr(cluster, "_started", start)
    tiny.write(Path(dataset).parent / "full", {"notes.txt": b""})
    source = str(Path(dataset).parent / "in")
    places = {"TARGET": dataset, "SOURCE": source, "NEW": f"{tmp_path}/new", "NOWHERE": f"{tmp_path}/nowhere"}
    for name, place in places.items():
        command = command.replace(name, place)
    assert commands.run_command(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("is_warm", [False, True])
def test_compiling_is_told_where_it_happens_and_nowhere_else(
    dataset: str, is_warm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(terminal, "wait_for", lambda what, _="": told.append(what))
    monkeypatch.setattr(prepare, "is_warm", lambda: is_warm)
    source = str(Path(dataset).parent / "in/p1")
    assert commands.run_command(["show", source, "-o", f"{tmp_path}/p.png"]) == 0
    assert any("compiled" in line for line in told) == (not is_warm)
    told.clear()
    assert commands.run_command(["show", dataset, "p1", "-o", f"{tmp_path}/q.png"]) == 0
    assert commands.run_command(["compare", dataset, dataset]) == 0
    assert "drawing" in told
    assert not any("compil" in line for line in told)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("CALL", "line 2: worker processes import this script"),
        ("def work():\n    CALL\nwork()", "line 4: worker processes import this script"),
        ("for _ in range(1):\n    CALL", "line 3: worker processes import this script"),
        ('if __name__ == "__main__":\n    CALL', ""),
        ('def work():\n    CALL\nif __name__ == "__main__":\n    work()', ""),
        ('if "__main__" == __name__:\n    for _ in "1":\n        CALL', ""),
    ],
)
def test_a_script_without_its_guard_is_told_so_in_one_line(script: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("from dskprep.pipeline import main_guard\n" + script.replace("CALL", "main_guard.check()"))
    done = subprocess.run([sys.executable, path], check=False, capture_output=True, text=True)
    assert done.returncode == bool(problem)
    *_, last = done.stderr.splitlines() or [""]
    assert problem in last
    assert done.stderr.count("Traceback") == bool(problem)
    assert len(done.stderr.splitlines()) < 20  # frames of the script alone; Python 3.13 marks each with two lines more


def test_what_no_worker_imports_needs_no_guard_and_standard_input_is_told_so(tmp_path: Path) -> None:
    line = "from dskprep.pipeline import main_guard; main_guard.check()"
    assert subprocess.run([sys.executable, "-c", line], check=False, capture_output=True).stderr == b""
    tiny.write(tmp_path / "package", {"__main__.py": line.encode()})
    done = subprocess.run([sys.executable, "-m", "package"], cwd=tmp_path, check=False, capture_output=True)
    assert done.stderr == b""
    done = subprocess.run([sys.executable, "-"], input=line, check=False, capture_output=True, text=True)
    assert "save it to a file" in done.stderr.splitlines()[-1]


def test_local_workers_ask_for_the_guard(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("import dskprep\nwith dskprep.local_client(1) as client:\n    pass\n")
    done = subprocess.run([sys.executable, path], check=False, capture_output=True, text=True)
    assert "line 2: worker processes import this script" in done.stderr.splitlines()[-1]


def test_warnings_stand_beside_the_written_volume(dataset: str, tmp_path: Path, capsys: Any) -> None:
    commands.run_command(["run", f"{Path(dataset).parent}/in", str(tmp_path / "out"), "--scheduler", "sync"])
    said = capsys.readouterr().out
    assert "written  p1 (warnings: lungs-not-found)\n" in said
    (page,) = re.findall(r"^report: +(.*)$", said, re.MULTILINE)
    assert Path(page).read_text().startswith("<!doctype html>")


def test_what_an_interrupted_run_leaves_is_said(
    dataset: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("dskprep.worker.make.prepare", interrupted)
    commands.run_command(["run", f"{Path(dataset).parent}/in", str(tmp_path / "out"), "--scheduler", "sync"])
    said = capsys.readouterr().out
    assert "interrupted: what is written stays" in said
    assert "dskprep clean deletes it" in said
    assert "report:" not in said


def test_verify_and_report_print_json(dataset: str, capsys: Any, tmp_path: Path) -> None:
    whole = tmp_path / "copy"
    subprocess.run(["cp", "-r", dataset, whole], check=True)
    assert commands.run_command(["verify", str(whole), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["volumes"], told["faulty_volumes"], told["findings"]) == (2, 0, [])
    (whole / "volumes/p1.zarr/0/zarr.json").unlink()
    assert commands.run_command(["verify", str(whole), "--json", "--forget"]) == 1
    told = json.loads(capsys.readouterr().out)
    found = {"key": "p1", "faults": ["0/zarr.json is missing"], "additions": [], "unrecorded": []}
    assert told["findings"] == [found]
    assert any(name.startswith("records/written/p1.") for name in told["deleted"])
    assert commands.run_command(["report", dataset, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["counts"]["written"], told["reasons"]) == (2, {"refused: too-few-slices": 1})
    assert told["distributions"][0]["title"] == "Slice step"
    assert commands.run_command(["report", dataset, "--json", "-o", str(tmp_path / "r.html")]) == 2


def die_once(image: Volume) -> Volume:
    """A step that kills its process the first time."""
    if (marker := Path(os.environ["DSKPREP_TEST_MARKER"])).exists():
        marker.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return image


@pytest.mark.slow
@pytest.mark.cluster
def test_a_workers_death_is_told_and_a_run_with_nothing_to_do_leaves_no_performance_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, marker = tiny.write_patients(tmp_path / "in", ["p1", "p2"]), tmp_path / "marker"
    marker.touch()
    monkeypatch.setenv("DSKPREP_TEST_MARKER", str(marker))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    notes: list[str] = []

    class Notes(dskprep.Observer):
        def on_note(self, message: str) -> None:
            notes.append(message)

    settings = PrepConfig(steps=("test_first_minute:die_once",))
    with dskprep.local_client(1, "1GiB") as client:
        first, second = (
            dskprep.run(source, tmp_path / "out", settings=settings, client=client, observers=[Notes()])
            for _ in range(2)
        )
    assert (first.account.counts["written"], second.n_new) == (2, 0)
    (told,) = [note for note in notes if "died" in note]
    assert re.search(r"the worker tcp://\S+ died; its patients are tried again: p", told.replace("tls://", "tcp://"))
    assert (tmp_path / "out/runs" / first.run_id / "performance.html").exists()
    assert [path.name for path in (tmp_path / "out/runs" / second.run_id).iterdir()] == ["summary.json"]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.s3
def test_the_commands_that_the_demo_names_work_as_printed(tmp_path: Path) -> None:
    """Also where the program is not on the path, as after `make demo`."""
    program = Path(sys.executable).with_name("dskprep")
    if not program.exists():
        pytest.skip("dskprep is not installed as a program: make test")
    plain = {**os.environ, "PATH": "/usr/bin:/bin"}
    words = [program, "demo", "--patients", "2", "-o", "made"]
    done = subprocess.run(words, cwd=tmp_path, env=plain, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = re.findall(r"^  (\S*dskprep (?:status|show) .*)$", done.stdout, re.MULTILINE)
    assert len(named) == 2
    for command in named:
        again = subprocess.run(shlex.split(command), cwd=tmp_path, env=plain, check=False, capture_output=True)
        assert again.returncode in (0, 1), again.stderr  # 1: a patient is refused on purpose
        assert again.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["made"]  # nothing is left beside it
    assert re.search(r"^making 2 synthetic patients in s3://\S+$", done.stdout, re.MULTILINE)
    (page,) = re.findall(r"^  (\S+qc\.html) ", done.stdout, re.MULTILINE)
    assert (tmp_path / page).exists()
