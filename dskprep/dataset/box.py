"""What a box of voxels is given by: three indices, a size, and the value of voxels beyond the volume."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from dskprep.errors import UsageError

Index = tuple[int, int, int]

MAX_SIDE = 1 << 16
"""Voxels along one axis; no volume has so many."""


def as_index(numbers: Iterable[Any]) -> Index:
    """Return three numbers as plain integers. Raises ValueError if there are more or fewer."""
    z, y, x = (int(number) for number in numbers)
    return z, y, x


def as_size(size: int | Index) -> Index:
    """Return the size of a box along (z, y, x), where one number stands for all three. Raises UsageError."""
    try:
        sides = [operator.index(n) for n in np.broadcast_to(np.asarray(size, object), 3)]
    except (TypeError, ValueError):
        sides = []
    if len(sides) != 3 or np.asarray(size).dtype == bool or not all(1 <= n <= MAX_SIDE for n in sides):
        raise UsageError(
            f"expected a size of 1 to {MAX_SIDE} voxels, as one whole number or as three (z, y, x), found {size!r:.100}"
        )
    return as_index(sides)


def as_fill(value: float, dtype: np.dtype[Any]) -> float:
    """Return the value of voxels beyond a volume, of the volume's type. Raises UsageError if that cannot hold it."""
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    try:
        if math.isfinite(value) and limits.min <= value <= limits.max:
            return value
    except TypeError:
        pass
    raise UsageError(f"outside: expected a number from {limits.min:g} to {limits.max:g}, found {value!r:.100}")
