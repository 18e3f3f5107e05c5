"""The only way to a terminal. What comes from headers, names and records is shown, and never obeyed."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dskprep.cli import exits
from dskprep.plain import escape

if TYPE_CHECKING:
    from rich.progress import Progress


TOLD_EVERY_S = 30.0
"""How long nothing is said, where there is no terminal, before a line says what is waited for."""


class _Wait:
    """What is waited for now: at most one line, the last one of the terminal; elsewhere a line now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown: Progress | None = None
        self._clock = clock
        self._told_s: float | None = None

    def show(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        if self._shown is None:
            console = Console(stderr=True)
            if not console.is_terminal:
                self._tell(what)
                return
            words = TextColumn("{task.description}", markup=False)
            columns = (SpinnerColumn(), words, TimeElapsedColumn())
            self._shown = Progress(
                *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._shown.add_task(what, total=None)
            self._shown.start()
        (task,) = self._shown.task_ids
        if self._shown.tasks[0].description != what:
            self._shown.reset(task, total=None, description=what)

    def _tell(self, what: str) -> None:
        now = self._clock()
        if self._told_s is None:  # the first wait of a command, or since something was said
            self._told_s = now
        elif now - self._told_s >= TOLD_EVERY_S:
            self._told_s = now
            click.echo(what, err=True)

    def end(self) -> None:
        self._told_s = None
        if self._shown is not None:
            self._shown.stop()
            self._shown = None


_wait = _Wait()


def wait_for(what: str) -> None:
    """Say what is waited for, on standard error: in a terminal a line that moves until something is said.

    Elsewhere, as in a file or a pipe, it is a line, and only where nothing else was said for TOLD_EVERY_S.
    """
    _wait.show(escape(what))


def end_wait() -> None:
    """Take the line of `wait_for` away."""
    _wait.end()


def say(line: str, *, is_error: bool = False) -> None:
    """Print a line to standard output, or to standard error."""
    end_wait()
    _echo(escape(line), is_error=is_error)


def say_at_once(line: str) -> None:
    """Print a line to standard error from wherever the program is, also in the middle of what it prints."""
    with contextlib.suppress(OSError):
        os.write(2, f"{escape(line)}\n".encode())


def say_json(content: Any) -> None:
    """Print a line of JSON to standard output. JSON escapes what cannot be seen, but for one character."""
    end_wait()
    _echo(json.dumps(content).replace("\x7f", "\\u007f"))


def _echo(line: str, *, is_error: bool = False) -> None:
    with exits.naming("standard error" if is_error else "standard output"):
        click.echo(line, err=is_error)


def program() -> str:
    """Return the word that starts this program in the user's shell: its path, unless the shell finds it by its name."""
    path = Path(sys.argv[0])
    is_found = path.name != "dskprep" or shutil.which("dskprep") == str(path.absolute())
    return "dskprep" if is_found else str(path)


def shell_words(words: Iterable[str]) -> str:
    """Return words as a command that a shell takes apart into the same words, also once it was escaped."""
    return " ".join(shlex.quote(word) if word.isprintable() else _quote_bytes(word) for word in words)


def _quote_bytes(word: str) -> str:
    """Quote a word of any bytes for bash, ksh and zsh."""
    plain = {ord("'"): r"\'", ord("\\"): r"\\"}
    return "$'" + "".join(plain.get(b, chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in os.fsencode(word)) + "'"
