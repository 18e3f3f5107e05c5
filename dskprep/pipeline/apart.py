"""What keeps a cluster of this machine apart from the machine's other users, and from the current folder."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path
from typing import Any, cast

import dask

from dskprep import plain
from dskprep.errors import InfrastructureError
from dskprep.plain import in_one_line

HTTP: dict[str, Any] = {
    # what only shows: no route that forwards requests to other ports, and none that retires workers
    "distributed.scheduler.http.routes": [
        f"distributed.http.{name}"
        for name in ("scheduler.prometheus", "scheduler.info", "scheduler.json", "health", "statics")
    ],
    "distributed.worker.http.routes": ["distributed.http.worker.prometheus", "distributed.http.health"],
}
"""What the scheduler and the workers of this machine answer to anybody who asks by HTTP."""


@contextlib.contextmanager
def from_here() -> Iterator[None]:
    """Start processes in the block that import nothing from the current folder, unless this process does.

    multiprocessing starts each by `python -c`. That looks for modules in the current folder first, until it is told
    where this process looks, and another user may have put some there: it could be /tmp. The option is not in the
    environment, as programs that a step starts would get it too.
    """
    library = cast(Any, util)
    options = library._args_from_interpreter_flags
    library._args_from_interpreter_flags = lambda: [*options(), "-P"]
    try:
        yield
    finally:
        library._args_from_interpreter_flags = options


@contextlib.contextmanager
def from_others() -> Iterator[dict[str, Any]]:
    """Yield settings by which no other user of this machine has a part in the cluster, and no worker in the terminal.

    By default Dask keeps its files in a folder in /tmp that all users share, and which it puts first on the path that
    modules are imported from. Here it is a folder of this user alone, which goes with the block.
    """
    preload, scratch = (dask.config.get(name) for name in ("distributed.worker.preload", "temporary-directory"))
    try:
        if scratch:
            Path(scratch).mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix="dskprep-", dir=scratch, ignore_cleanup_errors=True)
    except OSError as error:
        raise InfrastructureError(
            f"the workers could not be started: no folder for temporary files: {in_one_line(error)}"
        ) from error
    with made as folder:
        try:
            yield HTTP | {
                "temporary-directory": folder,
                "distributed.worker.preload": [*([preload] if isinstance(preload, str) else preload), plain.__name__],
            }
        finally:  # another user could make a folder of the same name, with modules in it
            sys.path[:] = [place for place in sys.path if not place.startswith(folder)]
