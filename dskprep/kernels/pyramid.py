"""Compiled loops that halve an array along each axis. All arrays are (z, y, x); an odd last plane is a block alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled


def halve_by_mean(array: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of each block of 2 x 2 x 2 voxels, of the array's type; whole numbers are rounded half up."""
    half = np.empty([-(-n // 2) for n in array.shape], array.dtype)
    is_whole = array.dtype.kind != "f"
    _means(array, half, np.empty(array.shape[2], np.int32 if is_whole else np.float64), is_whole)
    return half


def halve_by_majority(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the most frequent value of each block of 2 x 2 x 2 voxels; of two as frequent, the larger one."""
    half = np.empty([-(-n // 2) for n in mask.shape], np.uint8)
    _majorities(mask, half)
    return half


@compiled
def _means(array: NDArray[Any], half: NDArray[Any], sums: NDArray[Any], is_whole: bool) -> None:
    """Write the means; `sums` takes those of the rows of a block, so that the inner loop runs along memory."""
    nz, ny, nx = array.shape
    for k in range(half.shape[0]):
        for j in range(half.shape[1]):
            sums[:] = 0
            n_rows = 0
            for z in range(2 * k, min(2 * k + 2, nz)):
                for y in range(2 * j, min(2 * j + 2, ny)):
                    n_rows += 1
                    row = array[z, y]
                    for x in range(nx):
                        sums[x] += row[x]
            out = half[k, j]
            for i in range(half.shape[2]):
                mean = (sums[2 * i] + sums[2 * i + 1]) / (2 * n_rows) if 2 * i + 1 < nx else sums[2 * i] / n_rows
                out[i] = np.floor(mean + 0.5) if is_whole else mean


@compiled
def _majorities(mask: NDArray[Any], half: NDArray[Any]) -> None:
    nz, ny, nx = mask.shape
    least, largest = np.empty(nx, np.uint8), np.empty(nx, np.uint8)
    for k in range(half.shape[0]):
        for j in range(half.shape[1]):
            least[:] = 255
            largest[:] = 0
            for z in range(2 * k, min(2 * k + 2, nz)):
                for y in range(2 * j, min(2 * j + 2, ny)):
                    row = mask[z, y]
                    for x in range(nx):  # along memory, many at a time: nearly all blocks have one value
                        least[x] = min(least[x], row[x])
                        largest[x] = max(largest[x], row[x])
            for i in range(half.shape[2]):
                last = min(2 * i + 1, nx - 1)
                low, high = min(least[2 * i], least[last]), max(largest[2 * i], largest[last])
                half[k, j, i] = low if low == high else _majority(mask[2 * k :, 2 * j :, 2 * i :], low, high)


@compiled
def _majority(rest: NDArray[Any], low: int, high: int) -> int:
    """Return the most frequent value of the first block of a mask, all of whose values lie from `low` to `high`."""
    best, most = 0, 0
    for value in range(low, high + 1):
        count = 0
        for z in range(min(2, rest.shape[0])):
            for y in range(min(2, rest.shape[1])):
                for x in range(min(2, rest.shape[2])):
                    count += rest[z, y, x] == value
        if count >= most:
            best, most = value, count
    return best
