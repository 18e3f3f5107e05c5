"""Loops compiled to machine code by numba, and where that code is kept."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import config
from numba.core.caching import FunctionCache
from numba.core.runtime.nrt import rtsys

log = logging.getLogger("dskprep")

UNMAPPED = 65534
"""The owner that a container shows for folders of users outside of it, root among them."""

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


class _KeptCode(FunctionCache):
    """Code that is kept on disk, loaded without what only compiling needs.

    numba's own cache first imports all that numba can compile, linear algebra and random numbers among it, which is 60
    MiB and 0.3 s of CPU for each worker. When a kernel has to be compiled, numba imports it all the same.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kept code for arguments of these types, or None."""
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)  # type: ignore[no-untyped-call]


def _kernel(function: _F, **how: Any) -> _F:
    kernel = cast(Any, njit)(function, nogil=True, no_cfunc_wrapper=True, **how)
    cache: Any = _KeptCode
    try:
        kernel._cache = cache(function)
    except RuntimeError:  # numba can write neither to NUMBA_CACHE_DIR, nor beside the package, nor at home
        _keep_for_this_program()
        kernel._cache = cache(function)
    folder, package = Path(kernel.stats.cache_path), Path(__file__).parents[1]
    if not (folder.is_relative_to(package) or _is_ours_alone(folder)):
        _keep_for_this_program()
        kernel._cache = cache(function)
    return cast(_F, kernel)


@contextlib.contextmanager
def ahead_of_use() -> Iterator[None]:
    """Compile, in the block, without looking for garbage: a seventh of the time, as the compiler holds much."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def is_kept(kernel: Callable[..., Any]) -> bool:
    """Tell whether code of a compiled function is kept, for some dtypes."""
    return bool(cast(Any, kernel)._cache._cache_file._load_index())


@functools.cache
def _is_ours_alone(folder: Path) -> bool:
    """Tell whether no other user can replace what lies in a folder, and log a warning if one can.

    Members of the folder's group may, if its owner lets them: many systems give each user a group of his own.
    """
    real = folder.resolve()
    for place in (real, *_way_to(folder)):
        found = place.lstat()
        owners = {0, os.getuid()} if place == real else {0, os.getuid(), UNMAPPED}
        is_sticky = place != real and found.st_mode & stat.S_ISVTX  # as /tmp: all may add, none may replace
        is_open = found.st_mode & stat.S_IWOTH and not stat.S_ISLNK(found.st_mode)
        if found.st_uid not in owners or (is_open and not is_sticky):
            _warn_of(place, found.st_uid, found.st_mode)
            return False
    return True


@functools.cache
def _warn_of(place: Path, owner: int, mode: int) -> None:
    """Log the warning once, also where the folders of several modules, or the one in place of them, lie below it."""
    log.warning(
        f"{place}: expected a folder that no other user can write to, as the compiled code below it is run; "
        f"found owner {owner} and mode {stat.filemode(mode)}, so this program compiles anew; "
        "set NUMBA_CACHE_DIR to a folder of your own"
    )


def _way_to(folder: Path) -> Iterator[Path]:
    """Yield each place on the way to a folder as it is written, and through each link on it."""
    todo = [folder.absolute()]
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        for place in {path, *path.parents} - seen:
            seen.add(place)
            yield place
            if place.is_symlink():
                todo.append(place.parent / place.readlink())


@functools.cache
def _keep_for_this_program() -> None:
    """Keep compiled code in a folder of this process and its children, as in a container without a home."""
    folder = tempfile.mkdtemp(prefix="dskprep-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder
    config.reload_config()
