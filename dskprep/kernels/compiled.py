"""Loops compiled to machine code by numba, and where that code is kept."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import config

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compile a function at its first call for each set of dtypes, and keep the code for later processes.

    Without fast-math: every sum has the order that is written, so the same input gives the same bytes on every machine.
    The function runs without the GIL. Kept code is made anew when the function's own file changes, but not when a
    function that it calls from another file does: then remove the folders `__pycache__`.
    """
    return _kernel(function, inline="never")


def inlined(function: _F) -> _F:
    """The same, for a small function that is put into each compiled function that calls it."""
    return _kernel(function, inline="always")


def _kernel(function: _F, **how: Any) -> _F:
    try:
        kernel: Any = njit(function, cache=True, nogil=True, **how)
    except RuntimeError:  # numba can write neither to NUMBA_CACHE_DIR, nor beside the package, nor at home
        _keep_for_this_program()
        kernel = njit(function, cache=True, nogil=True, **how)
    return cast(_F, kernel)


def _keep_for_this_program() -> None:
    """Keep compiled code in a folder of this process and its children, as in a container without a home."""
    folder = tempfile.mkdtemp(prefix="dskprep-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder
    config.reload_config()
