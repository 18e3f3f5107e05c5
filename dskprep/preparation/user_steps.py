"""Functions of the user's own, named by import path: `package.module:function`.

They are imported where they are used, in every worker. A Refusal that one raises refuses its patient;
anything else fails it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dskprep import sides
from dskprep.errors import DskprepError, Refusal, UsageError
from dskprep.preparation.lungs import lungs
from dskprep.settings import PrepConfig
from dskprep.volume import Volume

Step = Callable[[Volume], Volume]

DTYPES = ("int16", "uint8", "float32", "float64")
"""What can be stored."""


class StepFailed(DskprepError):
    """A function of the user's own raised, or gave what cannot be used."""


def check(config: PrepConfig) -> None:
    """Raise UsageError if a function that the settings name cannot be imported here."""
    for path in config.own_functions:
        function(path)


def function(path: str) -> Callable[..., Any]:
    """The function of that import path. Raises UsageError if there is none."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module runs code of its own while it is imported
        raise UsageError(
            f"{path}: cannot be imported: {error}; it must be importable here and on every worker, for example by "
            "PYTHONPATH"
        ) from error
    if not callable(found):
        raise UsageError(f"{path}: expected a function, found {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def apply(path: str, image: Volume, *, keep_grid: bool) -> Volume:
    """The image (int16 HU, or what the step before made of it) after a step.

    With `keep_grid` the step must leave shape and affine as they are, because a mask lies on them. Raises
    StepFailed.
    """
    result = _called(path, image)
    if not isinstance(result, Volume) or str(result.array.dtype) not in DTYPES:
        raise StepFailed(f"{path}: expected a Volume of {', '.join(DTYPES)}, found {_described(result)}")
    lowest, highest = result.array.min(), result.array.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise StepFailed(f"{path}: expected finite numbers, found {lowest} to {highest}")
    if keep_grid and not (result.shape == image.shape and np.array_equal(result.affine, image.affine)):
        raise StepFailed(
            f"{path}: expected the grid of its input, {image.shape}, on which the lungs lie, found {result.shape} or "
            "another affine; set lungs = false for steps that move voxels"
        )
    return result


def find_lungs(path: str, image: Volume) -> lungs.Lungs:
    """The lungs of an image (int16 HU, PADDING outside the field of view), by a function of the user's own.

    It returns a Volume of the same shape: 0 outside, 1 right lung, 2 left lung (1 where they are not told
    apart). Raises StepFailed.
    """
    result = _called(path, image)
    if not isinstance(result, Volume) or result.shape != image.shape or result.array.dtype.kind not in "bui":
        raise StepFailed(f"{path}: expected a mask, a Volume of {image.shape} integers, found {_described(result)}")
    if result.array.size and not 0 <= result.array.min() <= result.array.max() <= sides.LEFT:
        raise StepFailed(f"{path}: expected a mask of 0, 1 and 2, found {result.array.min()} to {result.array.max()}")
    return lungs.judge(image.with_array(result.array.astype(np.uint8)))


def _called(path: str, image: Volume) -> object:
    step = function(path)
    try:
        return step(image)
    except Refusal:
        raise
    except Exception as error:
        raise StepFailed(f"{path}: {type(error).__name__}: {error}") from error


def _described(result: object) -> str:
    if isinstance(result, Volume):
        return f"one of {result.shape} {result.array.dtype}"
    return f"a {type(result).__name__}"
