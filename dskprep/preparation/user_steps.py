"""The user's own functions, which settings name by import path: `package.module:function`.

Every worker imports them. In place of a function a path may name a class: it is instantiated once per process, and the
instance is called, so that what is costly is loaded once. A Refusal that one raises refuses its patient; any other
exception fails it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dskprep import sides
from dskprep.errors import DskprepError, Refusal, UsageError
from dskprep.plain import words_of
from dskprep.settings import PrepConfig
from dskprep.volume import Volume

DTYPES = ("int16", "uint8", "float32", "float64")
"""The types in which an image can be stored."""

MOVED = {"dskprep.body:only": "dskprep.preparation.body:only"}
"""Documented import paths, and where their functions are now.

Settings keep the path that was written, because the digest of every dataset prepared with it depends on it.
"""


OUT_OF_MEMORY = {"MemoryError", "OutOfMemoryError"}
"""Names of exceptions that say so: Python's own and numpy's, PyTorch's, CuPy's. The libraries are not imported."""


class StepFailed(DskprepError):
    """A function of the user's own raised, or returned something that cannot be used."""


class OutOfMemory(StepFailed):
    """A function of the user's own had not enough memory, of the host or of a GPU."""


def check(config: PrepConfig) -> None:
    """Raise UsageError if a function that the settings name cannot be imported here."""
    for path in config.user_functions:
        load(path)


def load(path: str) -> Callable[..., object]:
    """Import the function or class of that path. Raises UsageError if there is none."""
    module, _, name = MOVED.get(path, path).partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing runs code of the module's own, which may end the program
        why = f"SystemExit: {error}" if isinstance(error, SystemExit) else words_of(error)
        raise UsageError(
            f"{path}: cannot be imported: {why}; it must be importable here and on every worker, for example by "
            "PYTHONPATH"
        ) from error
    if not callable(found):
        raise UsageError(f"{path}: expected a function, found {type(found).__name__}")
    if isinstance(found, type) and not any("__call__" in vars(base) for base in found.__mro__):
        raise UsageError(f"{path}: expected a class whose instances can be called, found one without __call__")
    return found  # type: ignore[no-any-return]


def apply(path: str, image: Volume, *, keep_grid: bool) -> Volume:
    """Apply a step to an image: int16 HU, or what the step before made of it.

    With `keep_grid` the step must keep shape and affine, because the lungs' mask lies on them. Raises StepFailed.
    """
    result = _call(path, image)
    if not isinstance(result, Volume) or str(result.array.dtype) not in DTYPES:
        raise StepFailed(f"{path}: expected a Volume of {', '.join(DTYPES)}, found {_describe(result)}")
    lowest, highest = result.array.min(), result.array.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise StepFailed(f"{path}: expected finite numbers, found {lowest} to {highest}")
    if keep_grid and not (result.shape == image.shape and np.array_equal(result.affine, image.affine)):
        raise StepFailed(
            f"{path}: expected the grid of its input, {image.shape}, on which the lungs lie, found {result.shape} or "
            "another affine; set lungs = false for steps that move voxels"
        )
    return result


def find_lungs(path: str, image: Volume) -> Volume:
    """Find the lungs in an image (int16 HU, PADDING outside the field of view) with the user's function.

    It must return a Volume on the grid of the image: 0 outside, 1 right lung, 2 left lung, 3 where the side is not
    known. It comes back as uint8. Raises StepFailed.
    """
    result = _call(path, image)
    if not isinstance(result, Volume) or result.shape != image.shape or result.array.dtype.kind not in "bui":
        raise StepFailed(f"{path}: expected a mask, a Volume of {image.shape} integers, found {_describe(result)}")
    if not np.allclose(result.affine, image.affine, rtol=0, atol=1e-3):
        raise StepFailed(f"{path}: expected a mask in the place of its image, found another affine; use with_array")
    if not 0 <= result.array.min() <= result.array.max() <= sides.LUNG:
        raise StepFailed(f"{path}: expected a mask of 0 to 3, found {result.array.min()} to {result.array.max()}")
    return image.with_array(np.ascontiguousarray(result.array, np.uint8))


def _call(path: str, image: Volume) -> object:
    step = load(path)
    try:
        if isinstance(step, type):
            step = _instance(step)
        return step(image)
    except (Refusal, KeyboardInterrupt):
        raise
    except BaseException as error:  # some libraries exit, and those in Rust panic by a kind of error of their own
        is_out_of_memory = any(base.__name__ in OUT_OF_MEMORY for base in type(error).__mro__)
        failed = OutOfMemory if is_out_of_memory else StepFailed
        raise failed(f"{path}: {type(error).__name__}: {words_of(error)}") from error


@functools.cache
def _instance(of: type) -> Any:
    """Return the instance of a class that this process calls."""
    return of()


def _describe(result: object) -> str:
    if isinstance(result, Volume):
        return f"one of {result.shape} {result.array.dtype}"
    return f"a value of type {type(result).__name__}"
