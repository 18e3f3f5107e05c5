"""What a command waits for is told while it lasts, and what is wrong with its words before anything is waited for."""

from __future__ import annotations

import builtins
import importlib
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
import tiny

import dskprep
from dskprep.cli import commands, demo, terminal
from dskprep.cli.output import Output
from dskprep.cli.workers import Workers
from dskprep.look import comparison
from dskprep.pipeline import cluster
from dskprep.pipeline.export import ExportSummary
from dskprep.preparation import prepare
from dskprep.worker.export import Exported


class Said:
    """What is said, from whichever thread, on standard output and on standard error."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self._changed = threading.Condition()

    def echo(self, line: str, *, err: bool = False) -> None:
        with self._changed:
            (self.err if err else self.out).append(line)
            self._changed.notify_all()

    def until(self, words: str) -> None:
        """Wait until a line has these words."""
        with self._changed:
            is_said = self._changed.wait_for(
                lambda: any(words in line for line in [*self.out, *self.err]), tiny.LIMIT_S
            )
        assert is_said, (words, self.out, self.err)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """What is waited for is told at once, and then from time to time."""
    said = Said()
    monkeypatch.setattr(terminal.click, "echo", said.echo)
    monkeypatch.setattr(terminal, "TOLD_AFTER_S", 0.01)
    return said


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("waits")
    dskprep.run(tiny.write_patients(folder / "in", ["p1", "p2", "p3"]), folder / "out")
    return str(folder / "out")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that counts for what is waited for; no thread looks at it."""
    now = [0.0]
    monkeypatch.setattr(terminal._Told, "_tell_until_over", lambda _: None)
    monkeypatch.setattr(terminal, "_wait", terminal._Wait(clock=lambda: now[0]))
    monkeypatch.setattr(terminal, "TOLD_AFTER_S", 1.0)
    monkeypatch.setattr(terminal, "TOLD_EVERY_S", 30.0)
    return now


def test_outside_a_terminal_each_long_wait_is_told_once_and_then_now_and_then(
    now: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    for at_s, what, so_far in [
        (0.0, "listing in", ""),
        (0.9, "reading headers", "0 of 9"),
        (1.8, "reading headers", "1 of 9"),
        (2.0, "reading headers", "2 of 9"),  # has lasted
        (20.0, "reading headers", "3 of 9"),
        (33.0, "reading headers", "4 of 9"),
        (34.0, "preparing", lambda: "slowly"),
        (36.0, "preparing", lambda: "fast"),
    ]:
        now[0] = at_s
        terminal.wait_for(what, so_far)  # type: ignore[arg-type]
    terminal.say("p1 is prepared")
    for at_s in (40.0, 65.0, 67.0):
        now[0] = at_s
        terminal.wait_for("preparing")
    said = capfd.readouterr()
    assert said.out == "p1 is prepared\n"
    assert said.err.splitlines() == [
        "reading headers: 2 of 9",
        "reading headers: 4 of 9 (32 s so far)",
        "preparing: fast",
        "preparing (33 s so far)",  # when nothing was said for long
    ]


def test_where_json_is_asked_for_a_wait_is_an_event_now_and_then(
    now: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    with terminal.lines_of_json(True):
        for at_s in (0.0, 2.0, 29.0, 31.0):
            now[0] = at_s
            terminal.wait_for("preparing", f"{at_s:.0f} of 40")
    said = capfd.readouterr()
    assert said.err == ""
    (event,) = map(json.loads, said.out.splitlines())
    told = {"event": "waiting", "for": "preparing", "so_far": "31 of 40", "seconds": 31}
    assert event == told | {"time": event["time"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "work", "words"),
    [
        ("plan SOURCE", "dskprep.source.cases.choose", "listing SOURCE"),
        ("plan SOURCE --json", "dskprep.pipeline.plan.predict", "reading headers: 0 of 3"),
        ("plan SOURCE", "dskprep.pipeline.plan.calibrate", "preparing one patient, twice"),
        ("phantom NEW --patients 2", "dskprep.synthetic.scanner.write_patient", "making patients: 0 of 2"),
        ("show TARGET p1 -o PNG", "dskprep.look.views.draw", "drawing"),
        ("show TARGET p1 --source -o PNG", "dskprep.look.views.draw", "drawing"),
        ("show SOURCE/p1 -o PNG", "dskprep.look.views.draw", "drawing"),
        ("compare TARGET TARGET --json", "dskprep.look.comparison.compare", "comparing"),
        ("compare default default --series SOURCE/p1", "dskprep.look.comparison.compare_settings", "comparing"),
        ("verify TARGET --json", "dskprep.dataset.verification.verify", "listing the records of TARGET"),
        ("upgrade TARGET --dry-run", "dskprep.dataset.upgrade.upgrade", "listing the records of TARGET"),
        ("clean TARGET --dry-run", "dskprep.dataset.leftovers.clean", "listing TARGET"),
        ("annotate TARGET SOURCE --scheduler sync", "dskprep.pipeline.annotate.check", "looking at SOURCE and TARGET"),
        ("annotate TARGET SOURCE --scheduler sync", "dskprep.pipeline.annotate.annotate", "the first results"),
        ("run SOURCE NEW --scheduler sync", "dskprep.pipeline.checked.check", "looking at SOURCE and NEW"),
        ("run SOURCE NEW --scheduler sync", "dskprep.worker.make.prepare", "preparing: 0 of "),
    ],
)
def test_outside_a_terminal_a_long_wait_is_told_on_standard_error_while_it_lasts(
    command: str, work: str, words: str, dataset: str, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work does not go on before that is said."""
    places = {"TARGET": dataset, "SOURCE": f"{Path(dataset).parent}/in", "NEW": f"{tmp_path}/n", "PNG": f"{tmp_path}/p"}
    for name, place in places.items():
        command, words = command.replace(name, place), words.replace(name, place)
    tiny.make_small_phantoms(monkeypatch)
    module, _, name = work.rpartition(".")
    works = getattr(importlib.import_module(module), name)

    def wait_and_work(*args: Any, **options: Any) -> Any:
        said.until(words)
        return works(*args, **options)

    monkeypatch.setattr(work, wait_and_work)
    commands.run_command(command.split())
    assert any(words in line for line in said.err)
    assert not any(words in line for line in said.out)


def test_a_run_in_which_no_patient_ends_is_told_again_and_again(
    dataset: str, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dskprep.worker import make

    prepare = make.prepare

    def wait_and_prepare(*args: Any) -> Any:
        said.until("0 of 3 patients (")
        return prepare(*args)

    monkeypatch.setattr(terminal, "TOLD_EVERY_S", 0.01)
    monkeypatch.setattr(make, "prepare", wait_and_prepare)
    assert commands.run_command(["run", f"{Path(dataset).parent}/in", f"{tmp_path}/out", "--scheduler", "sync"]) == 0


def test_a_comparison_tells_how_many_patients_of_how_many(
    dataset: str, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare_labels = comparison.compare_labels

    def wait_and_compare(*args: Any) -> Any:
        said.until("comparing: 0 of 3 (")
        return compare_labels(*args)

    monkeypatch.setattr(terminal, "TOLD_EVERY_S", 0.01)
    monkeypatch.setattr(comparison, "compare_labels", wait_and_compare)
    assert commands.run_command(["compare", dataset, dataset]) == 0


def test_an_export_tells_how_many_volumes_of_how_many_are_written(said: Said) -> None:
    summary = ExportSummary("monai", "in", "out", Counter({"written": 2, "failed": 1, "already": 5}), n_asked=11)
    with Output().observe(Workers()) as observer:
        observer.on_export(summary, Exported("p1"))
        said.until("writing volumes: 3 of 11")


def words_for(command: click.Command) -> list[str]:
    """Some words that the command takes."""
    words = []
    for parameter in command.params:
        if parameter.required:
            is_choice = isinstance(parameter.type, click.Choice)
            value = parameter.type.choices[0] if is_choice else "nowhere"  # type: ignore[attr-defined]
            words += [value] if isinstance(parameter, click.Argument) else [parameter.opts[0], value]
    return words


@pytest.mark.parametrize("name", commands.main.commands)
def test_each_command_says_what_it_waits_for_before_it_loads_anything(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waited(Exception):
        pass

    def wait(*_: Any) -> NoReturn:
        raise Waited

    imported: list[str] = []
    import_: Callable[..., Any] = builtins.__import__

    def note(module: str, *args: Any, **options: Any) -> Any:
        imported.append(module)
        return import_(module, *args, **options)

    monkeypatch.setattr(terminal, "wait_for", wait)
    argv = [name, *words_for(commands.main.commands[name])]
    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", note)
        with pytest.raises(Waited):
            commands.main.main(argv, standalone_mode=False)
    assert [module for module in imported if module.startswith("dskprep")] == []


WRONG = {
    "run nowhere out --preset zuidhofff": "no preset 'zuidhofff'",
    "run nowhere out --workers 0": "workers must be 1 or more",
    "run nowhere out --memory-limit 2XB": "a size such as 1.6GiB, not '2XB'",
    "run nowhere out --memory-limit 10MB": "is too small",
    "run nowhere out --time-limit soon": "a time such as 30m",
    "run nowhere out --scheduler locall": "expected the address of a scheduler",
    "run nowhere out --scheduler sync --workers 2": "go with --scheduler local",
    "run nowhere out --config nowhere.toml": "cannot read the settings",
    "plan nowhere --preset zuidhofff": "no preset 'zuidhofff'",
    "plan nowhere --memory-limit 2XB": "a size such as 1.6GiB, not '2XB'",
    "show nowhere --preset zuidhofff": "no preset 'zuidhofff'",
    "compare default zuidhofff --series nowhere": "no preset 'zuidhofff'",
    "annotate nowhere labels --workers 0": "workers must be 1 or more",
    "annotate nowhere labels --names liver": "a value and a name",
    "annotate nowhere labels --time-limit soon": "a time such as 30m",
    "export monai nowhere out --memory-limit 2XB": "a size such as 1.6GiB, not '2XB'",
    "split nowhere v1 --shares half": "numbers such as 0.8",
}
"""Commands that cannot be, and what each is told."""


NOT_THERE = {
    "run nowhere out": "nowhere: there is no such folder; check the path",
    "plan nowhere": "nowhere: there is no such folder; check the path",
    "show nowhere": "nowhere: there is no such folder; check the path",
    "show nowhere key": "nowhere: there is no dskprep dataset here (there is no such folder)",
    "view nowhere key": "nowhere: there is no dskprep dataset here (there is no such folder)",
    "compare nowhere there": "nowhere: there is no dskprep dataset here (there is no such folder)",
    "compare default zuidhof --series nowhere": "nowhere: there is no such folder; check the path",
    "report nowhere": "nowhere: there is no dskprep dataset here (there is no such folder)",
    "annotate nowhere labels": "nowhere: there is no dskprep dataset here (there is no such folder)",
    "export monai nowhere out": "nowhere: there is no dskprep dataset here (there is no such folder)",
    "duplicates nowhere": "nowhere: there is no dskprep dataset here (there is no such folder)",
    "split nowhere v1": "nowhere: there is no dskprep dataset here (there is no such folder)",
    "status nowhere": "nowhere: there is no dskprep dataset here (there is no such folder)",
    "verify nowhere": "nowhere: there is no dskprep dataset here (there is no such folder)",
    "upgrade nowhere": "nowhere: there is no dskprep dataset here (there is no such folder)",
}
"""Commands on a place that is not there, and what each is told."""


def test_what_is_wrong_is_told_before_anything_heavy_is_loaded_or_a_place_is_looked_into() -> None:
    told = WRONG | NOT_THERE
    script = f"""
import json, sys
from dskprep.cli import commands
codes = [commands.run_command(words.split()) for words in {list(told)!r}]
print(json.dumps([codes, sorted(sys.modules)]))"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    codes, modules = json.loads(done.stdout)
    assert set(codes) == {2}
    lines = [line for line in done.stderr.splitlines() if line.startswith("dskprep: ")]
    for problem, line in zip(told.values(), lines, strict=True):
        assert problem in line
    heavy = {"numba", "zarr", "distributed", "pandas", "pyarrow", "pydicom", "scipy", "matplotlib", "fsspec", "obstore"}
    assert heavy.isdisjoint(modules)


def test_wrong_words_are_an_error_in_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run_command(["run", "nowhere", "out", "--workers", "0", "--log-json"]) == 2
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["message"], event["exit_code"]) == ("error", "workers must be 1 or more, not 0", 2)


def test_the_time_left_of_a_demo_is_that_of_patients_that_waited_for_no_code() -> None:
    """Two workers load code for 60 s, then make a patient every 5 s each."""
    made_s = [65.0, 66.0, 70.0, 71.0, 75.0, 76.0]
    told = [demo.how_far(made_s[:n], 6, 2) for n in range(7)]
    assert told[:4] == ["0 of 6", "1 of 6", "2 of 6", "3 of 6"]
    assert told[4:] == ["4 of 6, about 5 s left", "5 of 6, about 3 s left", "6 of 6"]


def test_where_nothing_is_to_be_done_no_workers_start(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"{Path(dataset).parent}/in"
    points = tiny.write(tmp_path / "points", {"points.csv": b"key,x,y,z\np1,0,0,0\n"})  # outside of its image
    dskprep.annotate(dataset, points)
    dskprep.export("monai", dataset, tmp_path / "monai", labels=())
    monkeypatch.setattr(cluster, "local_client", None)
    monkeypatch.setattr(prepare, "warm", None)
    for words, code, said in [
        (f"run {source} {dataset}", 0, "3 patients: 0 done, 3 done before"),
        (f"run {source} {dataset} --labels *.csv", 1, "3 patients: 0 done, 3 done before"),
        (f"annotate {dataset} {points}", 1, "1 label source: 0 done, 1 done before"),
        (f"annotate {dataset} {source}", 1, "no label file was found"),
        (f"export croissant {dataset} {tmp_path}/croissant", 0, "croissant: 3 written"),
    ]:
        assert commands.run_command(words.split()) == code, words
        assert said in capsys.readouterr().out
