"""Compiled loops that halve an array along each axis. All arrays are (z, y, x); an odd last plane is a block alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled


def halve_by_mean(array: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of each block of 2 x 2 x 2 voxels, of the array's type; whole numbers are rounded half up."""
    half = np.empty([-(-n // 2) for n in array.shape], array.dtype)
    _means(array, half, array.dtype.kind != "f")
    return half


def halve_by_majority(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the most frequent value of each block of 2 x 2 x 2 voxels; of two as frequent, the larger one."""
    half = np.empty([-(-n // 2) for n in mask.shape], np.uint8)
    _majorities(mask, half)
    return half


@compiled
def _means(array: NDArray[Any], half: NDArray[Any], is_whole: bool) -> None:
    nz, ny, nx = array.shape
    sums = np.empty(nx, np.float64)  # of the rows of a block: so the inner loop runs along memory
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
    values = np.empty(8, np.uint8)
    for k in range(half.shape[0]):
        for j in range(half.shape[1]):
            for i in range(half.shape[2]):
                n, is_one = 0, True
                for z in range(2 * k, min(2 * k + 2, nz)):
                    for y in range(2 * j, min(2 * j + 2, ny)):
                        for x in range(2 * i, min(2 * i + 2, nx)):
                            values[n] = mask[z, y, x]
                            is_one &= values[n] == values[0]
                            n += 1
                best, most = values[0], 0 if not is_one else n
                for a in range(0 if is_one else n):
                    count = 0
                    for b in range(n):
                        count += values[b] == values[a]
                    if count > most or (count == most and values[a] > best):
                        best, most = values[a], count
                half[k, j, i] = best
