"""Compiled loops over the values of one plane of a volume: rescaled, counted, looked up in a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled


@compiled
def rescale(stored: NDArray[Any], slope: float, intercept: float, low: int, high: int, out: NDArray[Any]) -> None:
    """Write stored * slope + intercept, rounded half to even and clipped, into int16 `out`; both (y, x)."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            value = np.rint(stored[y, x] * slope + intercept)
            out[y, x] = np.int16(min(max(value, np.float64(low)), np.float64(high)))


@compiled
def count_values(plane: NDArray[Any], counts: NDArray[Any]) -> None:
    """Count every fourth row and second column of int16 `plane` (y, x) in `counts`, which begins with value -32768."""
    for y in range(0, plane.shape[0], 4):
        for x in range(0, plane.shape[1], 2):
            counts[np.int64(plane[y, x]) + 32768] += 1


@compiled
def look_up(values: NDArray[Any], table: NDArray[Any], out: NDArray[Any]) -> None:
    """Write table[value + 32768] into `out` for each int16 value of a plane (y, x)."""
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            out[y, x] = table[np.int64(values[y, x]) + 32768]
