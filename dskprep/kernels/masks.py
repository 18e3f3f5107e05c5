"""Compiled loops over a mask and its volume: block means, sums, medians. All arrays are (z, y, x)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.bits import NONE, ONE, count_range
from dskprep.kernels.compiled import compiled
from dskprep.volume import AIR_HU, PADDING


@compiled
def sum_inside(array: NDArray[Any], mask: NDArray[Any]) -> tuple[int, int]:
    """Return the sum and the number of the voxels of an integer array where the mask is not 0."""
    total, n = 0, 0
    for z in range(array.shape[0]):
        for y in range(array.shape[1]):
            for x in range(array.shape[2]):
                if mask[z, y, x]:
                    total += array[z, y, x]
                    n += 1
    return total, n


@compiled
def are_all(mask: NDArray[Any], value: int) -> bool:
    """Tell whether every voxel of a uint8 mask has this value."""
    wanted = np.uint8(value)
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            row, differs = mask[z, y], np.uint8(0)
            for x in range(row.size):
                differs |= row[x] ^ wanted
            if differs:
                return False
    return True


@compiled
def cast_shadows(mask: NDArray[Any], above: NDArray[Any], before: NDArray[Any]) -> None:
    """Set in uint8 `above` (y, x) and `before` (z, x), all 0, what a mask of 0 and 1 has anywhere along z and y."""
    for z in range(mask.shape[0]):
        front = before[z]
        for y in range(mask.shape[1]):
            row, top = mask[z, y], above[y]
            for x in range(row.size):
                top[x] |= row[x]
                front[x] |= row[x]


def block_means(array: NDArray[Any], block: tuple[int, int, int]) -> NDArray[Any]:
    """Return the mean HU, int16, of each block (z, y, x) of voxels; blocks at the upper ends may be smaller.

    Values below AIR_HU count as AIR_HU. Padding does not count, and a block of which it is half or more becomes
    padding. Means are rounded half up.
    """
    means = np.empty([-(-n // b) for n, b in zip(array.shape, block, strict=True)], np.int16)
    mx, bx = means.shape[2], block[2]
    _block_means(array, block, np.empty((2, mx * bx), np.int32), np.empty((2, mx), np.int32), means)
    return means


@compiled
def _block_means(
    array: NDArray[Any], block: tuple[int, int, int], columns: NDArray[Any], blocks: NDArray[Any], means: NDArray[Any]
) -> None:
    """Write the means. Scratch: sums and counts of the `columns` and of the `blocks` of a row of blocks.

    Columns are summed over the rows of a block first, then so many columns at a time: inner loops run along memory. All
    in 32 bits, so that many fit a register.
    """
    nz, ny, nx = array.shape
    bz, by, bx = block
    mx = means.shape[2]
    sums, counts, totals, measured = columns[0], columns[1], blocks[0], blocks[1]
    for k in range(means.shape[0]):
        for j in range(means.shape[1]):
            for x in range(sums.size):
                sums[x] = counts[x] = 0
            n_rows = 0
            for z in range(k * bz, min((k + 1) * bz, nz)):
                for y in range(j * by, min((j + 1) * by, ny)):
                    row = array[z, y]
                    n_rows += 1
                    for x in range(nx):
                        value = np.int32(row[x])
                        is_measured = np.int32(value != np.int32(PADDING))
                        sums[x] += max(value, np.int32(AIR_HU)) * is_measured
                        counts[x] += is_measured
            _fold(sums, bx, totals)
            _fold(counts, bx, measured)
            size, last_size = np.int32(n_rows * bx), np.int32(n_rows * (nx - (mx - 1) * bx))
            out = means[k, j]
            for i in range(mx):
                # exact: single precision holds whole numbers to 2**24, sums of 512 voxels of any int16, more of real HU
                mean = np.floor(np.float32(totals[i]) / np.float32(max(measured[i], np.int32(1))) + np.float32(0.5))
                out[i] = np.int16(mean) if 2 * measured[i] > (size if i < mx - 1 else last_size) else PADDING


def counts_along(mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return how many voxels of each plane across z, across y and across x of a uint8 array are not 0."""
    nz, ny, nx = mask.shape
    along_z, along_y, along_x = np.zeros(nz, np.int64), np.zeros(ny, np.int64), np.zeros(nx, np.int32)
    _count_along(mask, along_z, along_y, along_x)
    return along_z, along_y, along_x


@compiled
def _count_along(mask: NDArray[Any], along_z: NDArray[Any], along_y: NDArray[Any], along_x: NDArray[Any]) -> None:
    """Add the counts to arrays, all 0 before."""
    nz, ny, nx = mask.shape
    for z in range(nz):
        for y in range(ny):
            n = np.int32(0)
            for x in range(nx):
                is_there = np.int32(mask[z, y, x] != 0)
                n += is_there
                along_x[x] += is_there
            along_z[z] += n
            along_y[y] += n


def median_inside(values: NDArray[Any], mask: NDArray[Any]) -> float:
    """Return the median of int16 values in a mask as bits, as numpy.median; 0.0 if the mask is empty."""
    n_up_to = np.cumsum(_histogram(values, mask))
    n = int(n_up_to[-1])
    lower, upper = (int(np.searchsorted(n_up_to, place, side="right")) for place in ((n - 1) // 2, n // 2))
    return (lower + upper) / 2 - 32768 if n else 0.0


def most_common_inside(values: NDArray[Any], mask: NDArray[Any]) -> tuple[int, int]:
    """Return the most common of int16 values in a mask as bits, the least of several, and how often it is there."""
    counts = _histogram(values, mask)
    value = int(counts.argmax())
    return value - 32768, int(counts[value])


def _histogram(values: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.int64]:
    """Return how often each value from -32768 to 32767 is there: so nothing is sorted."""
    counts = np.zeros(1 << 16, np.int64)
    _count_inside(values, mask, counts)
    return counts


@compiled
def _count_inside(values: NDArray[Any], mask: NDArray[Any], counts: NDArray[Any]) -> None:
    """Count the values in the mask in `counts`, which begins with value -32768."""
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            for w in range(mask.shape[2]):
                word = mask[z, y, w]
                if word == NONE:
                    continue
                for x in range(64 * w, min(64 * w + 64, values.shape[2])):
                    if (word >> np.uint64(x - 64 * w)) & ONE:
                        counts[np.int64(values[z, y, x]) + 32768] += 1


def block_counts(mask: NDArray[Any], nx: int, block: tuple[int, int, int], where: NDArray[Any]) -> NDArray[Any]:
    """Return how many voxels of a mask, as bits with rows of `nx` voxels, each block (z, y, x) has where that is asked.

    `where` is bool (blocks); the blocks at the upper ends may be smaller. The counts are int32, else 0.
    """
    counts = np.zeros(where.shape, np.int32)
    _count_blocks(mask, nx, block, where, counts)
    return counts


@compiled
def _count_blocks(
    mask: NDArray[Any], nx: int, block: tuple[int, int, int], where: NDArray[Any], counts: NDArray[Any]
) -> None:
    """Add the counts to `counts`, all 0 before."""
    bz, by, bx = block
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            row, is_asked, out = mask[z, y], where[z // bz, y // by], counts[z // bz, y // by]
            for i in range(out.size):
                if is_asked[i]:
                    out[i] += count_range(row, i * bx, min(nx, (i + 1) * bx))


@compiled
def _fold(row: NDArray[Any], n: int, out: NDArray[Any]) -> None:
    """Write the sums of each `n` neighbours of an int32 row into `out`."""
    if n == 2:  # most often so, and the compiler sums many at a time when it is a constant
        for i in range(out.size):
            out[i] = row[2 * i] + row[2 * i + 1]
        return
    out[:] = 0
    for k in range(n):
        for i in range(out.size):
            out[i] += row[n * i + k]
