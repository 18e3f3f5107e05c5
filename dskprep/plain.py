"""What strangers wrote, in a form that no terminal obeys; and so all that Python prints by itself.

What an error says is told without the secrets in it (`redaction`), and so are tracebacks and logs.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from dskprep.redaction import redacted


def escape(text: str) -> str:
    r"""Return a text in one line, with a code such as \x1b in place of each character that cannot be seen.

    These would colour a terminal, rename it, forge a line, or turn the order of what follows around.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_utf8(text: str) -> str:
    """Return a text with what UTF-8 cannot hold escaped: the name of a file may have such characters."""
    return text.encode(errors="backslashreplace").decode()


def words_of(error: BaseException) -> str:
    """Return what an error says, without secrets; that of a user's own code may raise another when it is asked."""
    try:
        return redacted(str(error))
    except BaseException:  # it is asked in a worker, where whatever is raised would be no answer
        return "its message cannot be shown"


def in_one_line(error: BaseException, most: int | None = None) -> str:
    """Return what an error says in one line, at most so many characters of it."""
    return " ".join(words_of(error).split())[:most]


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an error, with those of its causes, without secrets."""
    return "".join(map(redacted, traceback.format_exception(error)))


def to_number(text: str) -> float | None:
    """Return the number that a text stands for, None if it is none, or not finite.

    >>> to_number("001.25"), to_number("na"), to_number("1_0")
    (1.25, None, None)
    """
    try:
        number = float(text.replace("_", "x"))  # Python alone takes 1_0 for 10
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def escape_what_python_prints(before_warnings: Callable[[], None] = lambda: None) -> None:
    """Escape from now on what Python itself prints in this process: logs, warnings, and tracebacks of errors.

    `before_warnings` is called before each warning, to make room for it where a line of the terminal moves.
    Logs are escaped where a record is made, so this holds for every handler and formatter, also those of Dask.
    """
    logging.setLogRecordFactory(_Escaped)
    logging.getLogger("asyncio").addFilter(_is_worth_telling)

    def show_warning(message: Warning | str, *_args: Any, **_more: Any) -> None:
        before_warnings()
        _tell(f"note: {message}")

    warnings.showwarning = show_warning
    sys.excepthook = _tell_traceback
    threading.excepthook = lambda error: _tell_traceback(error.exc_type, error.exc_value, error.exc_traceback)
    sys.unraisablehook = lambda error: _tell_traceback(error.exc_type, error.exc_value, error.exc_traceback)


def dask_setup(worker: Any) -> None:  # noqa: ARG001
    """Called by Dask in each worker process that has this module as a preload: those of a cluster on this machine."""
    escape_what_python_prints()
    logging.getLogger("distributed.worker").addFilter(_is_worth_telling)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Tell whether a line of a log is for the user.

    A heartbeat finds no scheduler where the cluster is being closed. If the scheduler is lost, the run says so itself.
    A client that is interrupted while it gathers results leaves a task of Dask's, whose end nobody asks for.
    """
    kind = record.exc_info[0] if record.exc_info else None
    is_all_exit = getattr(kind, "__name__", "") == "AllExit"
    return not is_all_exit and "scheduler during heartbeat" not in record.getMessage()


class _Escaped(logging.LogRecord):
    """A record of a log whose message is one line, and whose traceback has no lines but its own."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self.exc_info:
            self.exc_text = "\n".join(_lines_of(*self.exc_info))

    def getMessage(self) -> str:
        return escape(redacted(super().getMessage()))


def _tell(line: str) -> None:
    """Print a line to standard error, if there is one."""
    if sys.stderr is not None:
        sys.stderr.write(escape(redacted(line)) + "\n")


def _tell_traceback(kind: Any, error: Any, trace: Any) -> None:
    if kind is SystemExit:  # by which a thread ends without a word
        return
    for line in _lines_of(kind, error, trace):
        _tell(line)


def _lines_of(kind: Any, error: Any, trace: Any) -> Iterator[str]:
    """Yield the lines of a traceback, escaped. What an error says is one of them, whatever it holds."""
    for part in map(redacted, traceback.format_exception(kind, error, trace)):
        is_place = part.startswith("  ")
        yield from map(escape, part.rstrip("\n").split("\n") if is_place else [part.strip("\n")])
