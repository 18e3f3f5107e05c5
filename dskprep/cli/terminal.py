"""The only way to a terminal. What comes from headers, names and records is shown, and never obeyed."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import click


def escape(text: str) -> str:
    r"""Return a text in one line, with a code such as \x1b in place of each character that cannot be seen.

    These would colour a terminal, rename it, forge a line, or turn the order of what follows around.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(line: str, *, is_error: bool = False) -> None:
    """Print a line to standard output, or to standard error."""
    click.echo(escape(line), err=is_error)


def say_json(content: Any) -> None:
    """Print a line of JSON to standard output. JSON escapes what cannot be seen, but for one character."""
    click.echo(json.dumps(content).replace("\x7f", "\\u007f"))


def shell_words(words: Iterable[str]) -> str:
    """Return words as a command that a shell takes apart into the same words, also once it was escaped."""
    return " ".join(shlex.quote(word) if word.isprintable() else _quote_bytes(word) for word in words)


def _quote_bytes(word: str) -> str:
    """Quote a word of any bytes for bash, ksh and zsh."""
    plain = {ord("'"): r"\'", ord("\\"): r"\\"}
    return "$'" + "".join(plain.get(b, chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in os.fsencode(word)) + "'"


def tell_all_by_say() -> None:
    """Escape from now on what Python itself prints: warnings, logs, and the traceback of an error."""
    if logging.lastResort:
        logging.lastResort.setFormatter(_Escaped())
    warnings.showwarning = lambda message, *_args, **_more: say(f"note: {message}", is_error=True)
    sys.excepthook = _tell_traceback


class _Escaped(logging.Formatter):
    """A line for each record of a log, and those of its traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(_lines_of(*ei))


def _tell_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    for line in _lines_of(kind, error, trace):
        say(line, is_error=True)


def _lines_of(kind: Any, error: Any, trace: Any) -> Iterator[str]:
    """Yield the lines of a traceback, escaped. What an error says is one of them, whatever it holds."""
    for part in traceback.format_exception(kind, error, trace):
        is_place = part.startswith("  ")
        yield from map(escape, part.rstrip("\n").split("\n") if is_place else [part.strip("\n")])
