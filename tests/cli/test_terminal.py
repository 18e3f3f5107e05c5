"""What strangers wrote is shown by every command and obeyed by no terminal."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny

import dskprep
from dskprep import plain, storage
from dskprep.cli import commands, terminal
from dskprep.cli.console import Plain
from dskprep.cli.output import Output
from dskprep.cli.workers import Workers
from dskprep.dataset import store
from dskprep.dataset.facts import StoredObject
from dskprep.pipeline import cluster
from dskprep.pipeline.account import Account, Summary
from dskprep.worker import make

HOSTILE = "[p][/foo]:bug:\x1b[31;5m\x1b]0;title\x07\x9b2J\r\nwritten  forged\b\x7f\u202egnp\u2066\u2028\x00"
FORCED = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color", "COLUMNS": "120"}
BY_RICH = re.compile(r"\x1b\[(\?25[lh]|[0-9;]*[mKAGHJ])|\r")
"""What rich writes to draw a panel."""


def assert_harmless(said: str, *, is_forced: bool = False) -> None:
    assert "\x1b[31;5m" not in said
    left = BY_RICH.sub("", said) if is_forced else said
    assert {c for c in left if not c.isprintable()} <= {"\n"}, ascii(left)
    assert not any(line.startswith("written  forged") for line in left.splitlines())


def test_what_cannot_be_seen_is_shown_as_a_code() -> None:
    shown = plain.escape(HOSTILE)
    assert shown.isprintable()
    assert shown.startswith(r"[p][/foo]:bug:\x1b[31;5m\x1b]0;title\x07\x9b2J\r\nwritten  forged\x08\x7f\u202egnp")
    assert plain.escape("Müller 肺 [p] → :bug:") == "Müller 肺 [p] → :bug:"
    assert plain.escape(os.fsdecode(b"\xff")) == r"\udcff"


def test_json_holds_no_number_that_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    terminal.say_json({"dice": float("nan"), "apart": [1.5, float("inf"), (float("-inf"),)], "n": 3})
    said = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert said == {"dice": None, "apart": [1.5, None, [None]], "n": 3}


def test_a_command_of_any_words_means_the_same_to_a_shell() -> None:
    words = ["dskprep", "a b", "[p]", ":bug:", HOSTILE.replace("\x00", ""), "it's \\ \x1b", os.fsdecode(b"\xff\xfe'")]
    line = terminal.shell_words(words)
    assert plain.escape(line) == line
    script = "import os, sys; print([os.fsencode(w) for w in sys.argv[1:]])"
    said = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{script}' {line}"], check=True, capture_output=True, text=True
    )
    assert ast.literal_eval(said.stdout) == [os.fsencode(word) for word in words]


def test_nothing_but_one_module_writes_to_the_terminal() -> None:
    """Every other way would have to escape by itself."""
    package = Path(dskprep.__file__).parent
    ways = re.compile(r"click\.(echo|secho)|(?<!\.)\bprint\(|sys\.std(out|err)\.write|(?<!Plain\()Console\((?!\))")
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if ways.search(re.sub(r"^\s*(>>>|\.\.\.).*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    }
    found.discard("storage/credential_program.py")  # a program of its own, whose output botocore reads
    assert found <= {"plain.py", "cli/terminal.py", "cli/output.py"}
    assert "click" not in (package / "cli/output.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A source and a dataset whose names, headers and records are full of HOSTILE."""
    folder = tmp_path_factory.mktemp("hostile") / HOSTILE.replace("/", "").replace("\x00", "")
    source, target = str(folder / "in"), str(folder / "out")
    tiny.write_patients(source, ["p1", "p2"])
    evil = HOSTILE.replace("/", "").replace("\x00", "")
    tiny.write(f"{source}/{evil}", {f"{evil}.dcm": b"none of it"})
    tiny.write(f"{source}/several", {**tiny.series(5), **{f"b{n}": c for n, c in tiny.series(6, n=14).items()}})
    dskprep.run(source, target)
    (name,) = [name for name in store.record_names(target) if name.status == "refused"]
    record = store.read_record(target, name)
    evil_record = record.changed(message=HOSTILE, reason=HOSTILE, warnings=(HOSTILE,), url=f"{source}/{HOSTILE}")
    storage.write_many(target, {name.path: evil_record.to_json()})
    (name,) = [name for name in store.record_names(target) if name.key == "p2"]
    objects = {**store.read_record(target, name).objects, HOSTILE.replace("\x00", ""): StoredObject.of(b"")}
    changed = store.read_record(target, name).changed(warnings=(HOSTILE,), objects=objects)
    storage.write_many(target, {name.path: changed.to_json()})
    storage.delete(target, ["index.parquet"])
    tiny.write(f"{target}/volumes/{evil}.zarr", {f"{evil}": b""})
    return source, target


COMMANDS = [
    "status TARGET",
    "status TARGET --json",
    "status HOSTILE",
    "verify TARGET",
    "clean TARGET --dry-run --older-than 0",
    "plan SOURCE",
    "plan SOURCE --against TARGET",
    "plan SOURCE --json",
    "run SOURCE NEW --scheduler sync",
    "run SOURCE NEW --scheduler sync --log-json --retry all",
    "run SOURCE TARGET --scheduler sync --only HOSTILE",
    "run SOURCE TARGET --scheduler HOSTILE",
    "run SOURCE TARGET --preset HOSTILE",
    "run SOURCE TARGET --config HOSTILE",
    "run SOURCE TARGET --time-limit HOSTILE",
    "run SOURCE TARGET --memory-limit HOSTILE",
    "show TARGET HOSTILE",
    "show SOURCE/several -o PNG",
    "show TARGET p1 --source -o PNG",
    "show SOURCE",
    "show TARGET p1 -o HOSTILE",
    "compare TARGET TARGET",
    "compare TARGET TARGET --json",
    "compare default default --series SOURCE/several",
    "report TARGET -o HTML",
    "report TARGET -o HOSTILE/x.html",
    "duplicates TARGET",
    "duplicates TARGET --json",
    "split TARGET HOSTILE",
    "split TARGET v1 --folds 2 --balanced --by HOSTILE",
    "split TARGET v1 --join HOSTILE",
    "export nnunet TARGET HOSTILE --scheduler sync",
    "export nnunet TARGET NEW --scheduler sync --labels HOSTILE",
    "export monai TARGET NEW --scheduler sync --log-json",
    "export croissant TARGET NEW --license HOSTILE",
    "phantom SOURCE",
    "phantom NEW2 --patients 1",
    "demo -o SOURCE",
    "HOSTILE",
    "run SOURCE TARGET HOSTILE",
    "run SOURCE TARGET --limit HOSTILE",
    "run SOURCE TARGET --retry HOSTILE",
    "run SOURCE TARGET --HOSTILE",
]


def argv_of(command: str, places: tuple[str, str], folder: Path) -> list[str]:
    evil = HOSTILE.replace("/", "").replace("\x00", "")
    words = {"SOURCE": places[0], "TARGET": places[1], "HOSTILE": evil, "PNG": f"{folder}/{evil}.png"}
    words |= {"NEW2": f"{folder}/{evil}2", "NEW": f"{folder}/{evil}", "HTML": f"{folder}/{evil}.html"}
    made = []
    for word in command.split():
        for name, value in words.items():
            if name in word:
                word = word.replace(name, value)
                break
        made.append(word)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("is_forced", [False, True], ids=["plain", "colours"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_lets_a_control_character_through(
    command: str,
    places: tuple[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_forced: bool,
) -> None:
    for name, value in FORCED.items() if is_forced else ():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    tiny.make_small_phantoms(monkeypatch)
    capfd.readouterr()
    code = commands.run_command(argv_of(command, places, tmp_path))
    said = capfd.readouterr()
    assert code in (0, 1, 2, 3)
    assert said.out + said.err
    assert_harmless(said.out, is_forced=is_forced)
    assert_harmless(said.err, is_forced=is_forced)
    if "json" in command:
        for line in said.out.splitlines():
            json.loads(line)


def test_the_command_that_goes_on_is_not_changed_by_what_looks_like_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    source, target = tiny.write_patients(tmp_path / "[p] :bug: [/foo]", ["p1"]), str(tmp_path / "out\x1b[1m\n")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with monkeypatch.context() as patched:
        patched.setattr(make, "prepare", interrupted)
        assert commands.run_command(["run", source, target, "--scheduler", "sync"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to go on: ")]
    read = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line.removeprefix('to go on: ')}"], check=True, capture_output=True
    )
    words = [os.fsdecode(word) for word in read.stdout.split(b"\0")[:-1]]
    assert words == ["dskprep", "run", source, target, "--scheduler", "sync"]


def test_the_panel_shows_hostile_words_as_words() -> None:
    text = io.StringIO()
    console = Plain(file=text, force_terminal=True, width=140, color_system="truecolor", soft_wrap=True)
    record = tiny.record("p1", "refused", reason=HOSTILE, message=HOSTILE)
    account = Account(inputs=1, is_listed=True, split_series=[[HOSTILE, HOSTILE]])
    account.add([record])
    account.warnings[HOSTILE] += 1
    summary = Summary("1", HOSTILE, HOSTILE, account, 1.0)
    with Output(console=console).observe(Workers()) as observer:
        observer.on_note(HOSTILE)
        observer.on_patient(summary, [record])
        observer.on_end(summary)
    assert_harmless(text.getvalue(), is_forced=True)
    assert text.getvalue().count("[p][/foo]:bug:") >= 6


@pytest.mark.parametrize(
    "what",
    [
        "warnings.warn(text)",
        "logging.getLogger('dskprep').warning(text)",
        "logging.basicConfig(); logging.getLogger('dask').warning('%s', text)",
        "thread = threading.Thread(target=lambda: 1 / 0 if not text else {}[text]); thread.start(); thread.join()",
        "raise ValueError(text)",
        "raise UsageError(text)",
    ],
)
def test_what_python_prints_by_itself_is_escaped_too(what: str) -> None:
    script = f"""
import logging, sys, threading, warnings
from dskprep.cli import commands
from dskprep.errors import UsageError
text = {HOSTILE!r}
def status(**_): {what}
commands.main.commands["status"].callback = status
sys.argv = ["dskprep", "--debug", "status", "x"]
commands.run_and_exit()
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert "[p][/foo]:bug:" in done.stderr
    assert_harmless(done.stdout)
    assert_harmless(done.stderr)


def test_a_warning_begins_a_line_where_a_line_moves() -> None:
    script = """
import sys, warnings
from dskprep.cli import commands, terminal
def status(**_):
    terminal.wait_for("reading the index")
    warnings.warn("6 volumes without a row")
commands.main.commands["status"].callback = status
sys.argv = ["dskprep", "status", "x"]
commands.run_and_exit()
"""
    environment = os.environ | {"FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    before, note, _ = done.stderr.partition("note: 6 volumes without a row\n")
    assert "reading the index" in before
    assert note
    assert before.endswith("\x1b[2K")  # the line is erased


def test_the_program_without_a_word_shows_its_help() -> None:
    words = [sys.executable, "-m", "dskprep"]
    bare = subprocess.run(words, check=False, capture_output=True, text=True)
    asked = subprocess.run([*words, "--help"], check=True, capture_output=True, text=True)
    assert bare.returncode == 2
    assert bare.stderr == asked.stdout


def complain() -> None:
    """What libraries do in a worker with words that they have read."""
    logging.getLogger("distributed.worker").error("read %s", HOSTILE)
    logging.getLogger("some.library").warning(HOSTILE)
    warnings.warn(HOSTILE, stacklevel=1)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("distributed.worker").exception(HOSTILE)
    thread = threading.Thread(target={}.__getitem__, args=(HOSTILE,))
    thread.start()
    thread.join()


@pytest.mark.slow
@pytest.mark.cluster
def test_what_workers_print_is_escaped_too(capfd: pytest.CaptureFixture[str]) -> None:
    with dskprep.local_client(1, "1GiB") as client:
        capfd.readouterr()
        client.run(complain)
        first = capfd.readouterr()
        client.restart_workers(list(cluster.workers_of(client)), timeout=tiny.LIMIT_S)
        capfd.readouterr()
        client.run(complain)
        second = capfd.readouterr()
    for said in (first, second):
        assert said.out == ""
        assert said.err.count("[p][/foo]:bug:") == 6
        assert_harmless(said.err)
