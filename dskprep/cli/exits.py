"""What an error says in one line, and the exit code that it ends the program with."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from types import FrameType

import click

from dskprep.endings import SIGNALS
from dskprep.errors import DskprepError, InfrastructureError, UsageError
from dskprep.plain import words_of

EXIT_CLEAN = 0
EXIT_SOME_NOT_WRITTEN = 1
"""Some patient was refused, failed or killed, some volume is faulty, or the user interrupted."""

EXIT_USAGE = UsageError.exit_code

CONFIGURED = {
    "dask.config": ("Dask", "the files in ~/.config/dask or DASK_CONFIG"),
    "distributed.config": ("Dask", "the files in ~/.config/dask or DASK_CONFIG"),
    "fsspec.config": ("fsspec", "the files in ~/.config/fsspec or FSSPEC_CONFIG_DIR"),
}
"""Modules that read configuration as they are imported, of which library, and where it stands."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""What a disk says that is full, or broken: the user has asked for nothing wrong."""
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What is said of a place that may not be written."""


def end_as_on_ctrl_c() -> None:
    """Let a machine, or a terminal, that is taken away end the program as Ctrl-C does, with its workers and folders."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # nohup
            signal.signal(ending, signal.default_int_handler)


def end_soon() -> None:
    """Let the program end as it would and soon, as nothing is left to be done.

    A signal is passed over; a second one ends the program at once, without the traceback that Python would show. What
    is in memory is not searched for what nobody refers to, which takes seconds after a run.
    """
    gc.freeze()
    for ending in SIGNALS:
        if callable(signal.getsignal(ending)):
            signal.signal(ending, _pass_over)


def _pass_over(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


class Unread(KeyboardInterrupt):
    """Nobody reads standard output any more. It ends a run as Ctrl-C does."""


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Name what is written in an error of a write: a full disk does not say which file it is about."""
    try:
        yield
    except OSError as error:
        error.filename = what
        raise


def misconfigured(error: BaseException) -> str:
    """Return a line on what a library raises on import if files that configure it are damaged; "" for other errors.

    What it says is not repeated: it may show lines of these files, with secrets in them.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        library, files = CONFIGURED.get(str(frame.f_globals.get("__name__")), ("", ""))
        if library and frame.f_code.co_name == "<module>":
            named = re.search(r"config file at '([^'\n]+)'", words_of(error))
            return (
                f"the configuration of {library} cannot be used ({type(error).__name__}); correct "
                f"{named[1] if named else files}, or move it away"
            )
    return ""


def silence() -> None:
    """Send what is still written to standard output nowhere: nobody reads it, and Python would complain at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def describe_error(error: BaseException) -> tuple[str, int]:
    """Return the line that an error is told in, and its exit code."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "interrupted", EXIT_SOME_NOT_WRITTEN
    if isinstance(error, DskprepError):
        return words_of(error), error.exit_code
    if isinstance(error, OSError):  # a file of the user's own, such as the place of a picture
        said = f"{error.filename or ''}: {error.strerror or words_of(error)}".lstrip(": ")
        if error.errno in DENIED:
            return f"{said}; check the path's rights, or choose another place", InfrastructureError.exit_code
        return said, InfrastructureError.exit_code if error.errno in NO_SPACE else EXIT_USAGE
    if isinstance(error, MemoryError):
        return "there is not enough memory for this on this machine", InfrastructureError.exit_code
    return f"{type(error).__name__}: {words_of(error)}", EXIT_SOME_NOT_WRITTEN
