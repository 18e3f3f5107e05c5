"""Compiled loops over masks as bits, 64 voxels a machine word: steps of growing and shrinking."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dskprep.kernels.runs import Runs

ONE, WORD = np.uint64(1), np.uint64(63)
NONE, ALL = np.uint64(0), np.uint64(2**64 - 1)


@njit(cache=True, nogil=True)
def of_runs(runs: Runs, shape: tuple[int, int, int]) -> NDArray[Any]:
    """The mask (z, y, x) as uint64 (z, y, words); bit i of word w is x = 64 w + i."""
    nz, ny, nx = shape
    bits = np.zeros((nz, ny, (nx + 63) // 64), np.uint64)
    for row in range(nz * ny):
        line = bits[row // ny, row % ny]
        for run in range(runs.first[row], runs.first[row + 1]):
            start, last = runs.starts[run], runs.stops[run] - 1
            head = ALL << np.uint64(start & 63)
            tail = ALL >> np.uint64(63 - (last & 63))
            if start >> 6 == last >> 6:
                line[start >> 6] |= head & tail
            else:
                line[start >> 6] |= head
                line[(start >> 6) + 1 : last >> 6] = ALL
                line[last >> 6] |= tail
    return bits


@njit(cache=True, nogil=True)
def to_runs(bits: NDArray[Any], nx: int) -> Runs:
    """The runs of a mask of rows of `nx` voxels."""
    nz, ny, nw = bits.shape
    first = np.empty(nz * ny + 1, np.int64)
    n = 0
    for row in range(nz * ny):
        first[row] = n
        carry = NONE
        for w in range(nw):
            word = bits[row // ny, row % ny, w]
            begins = word & ~(word << ONE | carry)
            while begins:
                begins &= begins - ONE
                n += 1
            carry = word >> WORD
    first[nz * ny] = n
    starts = np.empty(n, np.int32)
    stops = np.empty(n, np.int32)
    n = 0
    for row in range(nz * ny):
        is_in = False
        for w in range(nw):
            word = bits[row // ny, row % ny, w]
            if (word == NONE and not is_in) or (word == ALL and is_in):
                continue
            for i in range(min(64, nx - 64 * w)):
                is_set = (word >> np.uint64(i)) & ONE != NONE
                if is_set and not is_in:
                    starts[n] = 64 * w + i
                elif is_in and not is_set:
                    stops[n] = 64 * w + i
                    n += 1
                is_in = is_set
        if is_in:
            stops[n] = nx
            n += 1
    return Runs(first, starts, stops)


@njit(cache=True, nogil=True)
def grown(bits: NDArray[Any], nx: int, steps: int) -> NDArray[Any]:
    """The mask, `steps` times joined by the neighbours through faces, as scipy.ndimage.binary_dilation."""
    before, after = np.empty_like(bits), bits.copy()
    for _ in range(steps):
        before, after = after, before
        _step(before, after, nx, False)
    return after


@njit(cache=True, nogil=True)
def shrunk(bits: NDArray[Any], nx: int) -> NDArray[Any]:
    """The voxels whose six neighbours are in the mask too, as scipy.ndimage.binary_erosion."""
    after = np.empty_like(bits)
    _step(bits, after, nx, True)
    return after


@njit(cache=True, nogil=True)
def _step(before: NDArray[Any], after: NDArray[Any], nx: int, is_shrinking: bool) -> None:
    """One step; beyond the edges there is nothing."""
    nz, ny, nw = before.shape
    last = ALL >> np.uint64(63 - (nx - 1) % 64)
    nothing = np.zeros(nw, np.uint64)
    for z in range(nz):
        for y in range(ny):
            line, out = before[z, y], after[z, y]
            front = before[z, y - 1] if y > 0 else nothing
            back = before[z, y + 1] if y < ny - 1 else nothing
            below = before[z - 1, y] if z > 0 else nothing
            above = before[z + 1, y] if z < nz - 1 else nothing
            for w in range(nw):
                word = line[w]
                right = word << ONE | (line[w - 1] >> WORD if w > 0 else NONE)
                left = word >> ONE | (line[w + 1] << WORD if w < nw - 1 else NONE)
                if is_shrinking:
                    out[w] = word & right & left & front[w] & back[w] & below[w] & above[w]
                else:
                    out[w] = word | right | left | front[w] | back[w] | below[w] | above[w]
            out[nw - 1] &= last


@njit(cache=True, nogil=True)
def of_mask(mask: NDArray[Any]) -> NDArray[Any]:
    """A bool mask (z, y, x) as bits."""
    nz, ny, nx = mask.shape
    bits = np.zeros((nz, ny, (nx + 63) // 64), np.uint64)
    for z in range(nz):
        for y in range(ny):
            row = mask[z, y]
            for w in range(bits.shape[2]):
                word = NONE
                for i in range(min(64, nx - 64 * w)):
                    word |= np.uint64(row[64 * w + i]) << np.uint64(i)
                bits[z, y, w] = word
    return bits


@njit(cache=True, nogil=True)
def to_mask(bits: NDArray[Any], nx: int) -> NDArray[Any]:
    """Bits as a bool mask of rows of `nx` voxels."""
    nz, ny, nw = bits.shape
    mask = np.empty((nz, ny, nx), np.bool_)
    for z in range(nz):
        for y in range(ny):
            for w in range(nw):
                word = bits[z, y, w]
                for i in range(min(64, nx - 64 * w)):
                    mask[z, y, 64 * w + i] = (word >> np.uint64(i)) & ONE != NONE
    return mask


@njit(cache=True, nogil=True)
def near(bits: NDArray[Any], nx: int, limit_mm: float, spacing: tuple[float, float, float]) -> NDArray[Any]:
    """The voxels at most `limit_mm` from the mask, from centre to centre.

    A ball is a stack of rows: each plane is widened along x by every number of voxels that occurs in the
    ball, and joined to the rows that lie within reach of it.
    """
    nz, ny, nw = bits.shape
    limit_mm *= 1 + 1e-6  # a voxel exactly at the limit is within it
    reach_z, reach_y = min(int(limit_mm / spacing[0]), nz), min(int(limit_mm / spacing[1]), ny)
    reach_x = min(int(limit_mm / spacing[2]), nx)
    result = np.zeros_like(bits)
    widened = np.empty((reach_x + 1, ny, nw), np.uint64)
    for z in range(nz):
        if not bits[z].any():
            continue
        widened[0] = bits[z]
        for n in range(1, reach_x + 1):
            _widen(widened[n - 1], nx, widened[n])
        for other_z in range(max(0, z - reach_z), min(nz, z + reach_z + 1)):
            for dy in range(-reach_y, reach_y + 1):
                left = limit_mm**2 - ((other_z - z) * spacing[0]) ** 2 - (dy * spacing[1]) ** 2
                if left < 0:
                    continue
                rows = widened[min(int(np.sqrt(left) / spacing[2]), reach_x)]
                for y in range(max(0, -dy), min(ny, ny - dy)):
                    for w in range(nw):
                        result[other_z, y + dy, w] |= rows[y, w]
    return result


@njit(cache=True, nogil=True)
def _widen(plane: NDArray[Any], nx: int, out: NDArray[Any]) -> None:
    """A plane (y, words) joined by the neighbours along x."""
    ny, nw = plane.shape
    last = ALL >> np.uint64(63 - (nx - 1) % 64)
    for y in range(ny):
        for w in range(nw):
            word = plane[y, w]
            right = word << ONE | (plane[y, w - 1] >> WORD if w > 0 else NONE)
            left = word >> ONE | (plane[y, w + 1] << WORD if w < nw - 1 else NONE)
            out[y, w] = word | right | left
        out[y, nw - 1] &= last
