"""Whether a script may start worker processes: each of them imports the script, which must not start more."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FrameType

import dask

from dskprep.errors import UsageError


def check() -> None:
    """Raise UsageError if the main program is a script that is being run, not below `if __name__ == "__main__":`.

    A worker process that imported it would come to the same line. Notebooks and `python -c` have no file to import.
    """
    main = sys.modules["__main__"]
    frame, path, spec = _running_line(), getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if path == "<stdin>":
        raise UsageError("worker processes import the main program, which came by standard input; save it to a file")
    if spec and spec.name.endswith(".__main__"):  # `python -m package`, which nothing imports again
        return
    if frame is None or path is None or dask.config.get("distributed.worker.multiprocessing-method", "spawn") == "fork":
        return
    try:
        script = ast.parse(Path(path).read_bytes())
    except (OSError, ValueError, SyntaxError):  # not a script: an archive, a frozen program
        return
    line = frame.f_lineno
    if not any(node.lineno <= line <= (node.end_lineno or 0) for node in script.body if _is_guard(node)):
        raise UsageError(
            f"{path}, line {line}: worker processes import this script, and must not run this line again; put `if "
            '__name__ == "__main__":` before it, and indent what follows'
        )


def _running_line() -> FrameType | None:
    """Return the frame of the main program's own lines, if they are being run by this thread."""
    frame: FrameType | None = sys._getframe()
    main = vars(sys.modules["__main__"])
    while frame and not (frame.f_code.co_name == "<module>" and frame.f_globals is main):
        frame = frame.f_back
    return frame


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
