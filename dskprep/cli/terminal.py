"""The only way to a terminal. What comes from headers, names and records is shown, and never obeyed."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dskprep.cli import exits
from dskprep.plain import escape
from dskprep.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console


TOLD_AFTER_S = 1.0
"""How long a wait lasts, where there is no terminal, before a line says what is waited for."""
TOLD_EVERY_S = 30.0
"""How long nothing is said there, at most, while the same is waited for."""


class _Moving:
    """What is waited for, in a terminal: its last line, which moves."""

    def __init__(self, console: Console) -> None:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._progress = Progress(
            *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._what = ""
        self._task = self._progress.add_task("", total=None)
        self._progress.start()

    def show(self, what: str, so_far: Callable[[], str]) -> None:
        line = _in_words(what, so_far())
        if what != self._what:
            self._what = what
            self._progress.reset(self._task, total=None, description=line)
        else:  # to draw it takes half a millisecond; it is drawn ten times a second
            self._progress.update(self._task, description=line)

    def stop(self) -> None:
        self._progress.stop()


class _Told:
    """What is waited for, where there is no terminal: a line once it lasts, and then one now and then.

    With `as_json` they are events on standard output, and only now and then.
    """

    def __init__(self, clock: Callable[[], float], *, as_json: bool) -> None:
        self._clock, self._as_json = clock, as_json
        self._changed = threading.Condition()
        self._what = ""
        self._so_far: Callable[[], str] = str
        self._began_s = self._said_s = clock()
        self._is_going = self._is_told = self._is_over = False
        self._thread: threading.Thread | None = None

    def show(self, what: str, so_far: Callable[[], str]) -> None:
        with self._changed:
            if what != self._what:
                self._what, self._began_s, self._is_told = what, self._clock(), False
                self._changed.notify()
            elif not self._is_going:
                self._changed.notify()
            self._so_far, self._is_going = so_far, True
            self._tell_if_due()
            if self._thread is None:
                self._thread = threading.Thread(target=self._tell_until_over, name="waits", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Wait for nothing, as something is said."""
        with self._changed:
            self._is_going, self._said_s = False, self._clock()

    def end(self) -> None:
        with self._changed:
            self._is_going, self._is_over = False, True
            self._changed.notify()

    def _tell_until_over(self) -> None:
        with self._changed:
            while not self._is_over:
                if self._is_going:
                    self._tell_if_due()
                self._changed.wait(self._left_s() if self._is_going else None)

    def _left_s(self) -> float:
        """Return how long it is until a line is due."""
        due_s = self._said_s + TOLD_EVERY_S
        if not self._is_told and not self._as_json:
            due_s = min(due_s, self._began_s + TOLD_AFTER_S)
        return due_s - self._clock()

    def _tell_if_due(self) -> None:
        if self._left_s() > 0:
            return
        self._said_s = self._clock()
        seconds = round(self._said_s - self._began_s)
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a closed stream; figures that change meanwhile
            so_far = self._so_far()
            if self._as_json:
                click.echo(_event("waiting", {"for": self._what, "so_far": so_far, "seconds": seconds}))
            else:
                line = _in_words(self._what, so_far)
                click.echo(f"{line} ({seconds} s so far)" if self._is_told else line, err=True)
        self._is_told = True


def _in_words(what: str, so_far: str) -> str:
    return escape(redacted(f"{what}: {so_far}" if so_far else what))


class _Wait:
    """What is waited for now."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.as_json = False
        self._clock = clock
        self._moving: _Moving | None = None
        self._told: _Told | None = None

    def show(self, what: str, so_far: Callable[[], str]) -> None:
        from rich.console import Console

        if self._moving is None and self._told is None:
            console = Console(stderr=True)
            if console.is_terminal:
                self._moving = _Moving(console)
            else:
                self._told = _Told(self._clock, as_json=self.as_json)
        for shown in (self._moving, self._told):
            if shown:
                shown.show(what, so_far)

    def stop(self) -> None:
        if self._moving:
            self._moving.stop()
            self._moving = None
        if self._told:
            self._told.stop()

    @property
    def is_shown(self) -> bool:
        return self._moving is not None

    def end(self) -> None:
        self.stop()
        if self._told:
            self._told.end()
            self._told = None


_wait = _Wait()


def wait_for(what: str, so_far: str | Callable[[], str] = "") -> None:
    """Say what is waited for and how far it is, on standard error: in a terminal a line that moves until more is said.

    Elsewhere, as in a file or a pipe, it is a line, but only where `what` lasts for TOLD_AFTER_S; from then on there is
    one where nothing was said for TOLD_EVERY_S. A function `so_far` is asked for each of them, in another thread.
    """
    _wait.show(what, so_far if callable(so_far) else functools.partial(str, so_far))


def end_wait() -> None:
    """Take the line of `wait_for` away, as something else is said."""
    _wait.stop()


def end_command() -> None:
    """Wait for nothing any more, and forget what was waited for."""
    _wait.end()


@contextlib.contextmanager
def lines_of_json(is_asked: bool) -> Iterator[None]:
    """Write nothing but lines of JSON over the block, if that is asked for: one of them is the error that ends it."""
    _wait.as_json = is_asked
    try:
        yield
    except BaseException as error:
        if is_asked:
            message, code = exits.describe_error(error)
            say_event("error", {"message": message, "exit_code": code})
        raise
    finally:
        _wait.as_json = False


def say(line: str, *, is_error: bool = False) -> None:
    """Print a line to standard output, or to standard error."""
    end_wait()
    _echo(escape(line), is_error=is_error)


def say_at_once(line: str) -> None:
    """Print a line to standard error from wherever the program is, also in the middle of what it prints."""
    begin = "\n" if _wait.is_shown else ""  # below what is waited for
    with contextlib.suppress(OSError):
        os.write(2, f"{begin}{escape(line)}\n".encode())


def say_json(content: Any) -> None:
    """Print a line of JSON to standard output."""
    end_wait()
    _echo(_as_json(content))


def say_event(event: str, content: dict[str, Any]) -> None:
    """Print an event, with the time, as a line of JSON to standard output."""
    end_wait()
    _echo(_event(event, content))


def _event(event: str, content: dict[str, Any]) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return _as_json({"event": event, "time": now, **content})


def _as_json(content: Any) -> str:
    """Return a line of JSON. It escapes what cannot be seen, but for one character."""
    return json.dumps(_finite(content), allow_nan=False).replace("\x7f", "\\u007f")


def _finite(content: Any) -> Any:
    """Return the content with null in place of NaN and infinity, of which JSON has none."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content


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
