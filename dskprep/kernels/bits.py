"""Compiled loops over masks as bits, 64 voxels a machine word: steps of growing and shrinking."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

ONE, WORD = np.uint64(1), np.uint64(63)
NONE, ALL = np.uint64(0), np.uint64(2**64 - 1)


@compiled
def grown(bits: NDArray[Any], nx: int, steps: int) -> NDArray[Any]:
    """The mask, `steps` times joined by the neighbours through faces, as scipy.ndimage.binary_dilation."""
    before, after = np.empty_like(bits), bits.copy()
    for _ in range(steps):
        before, after = after, before
        _step(before, after, nx, False)
    return after


@compiled
def shrunk(bits: NDArray[Any], nx: int) -> NDArray[Any]:
    """The voxels whose six neighbours are in the mask too, as scipy.ndimage.binary_erosion."""
    after = np.empty_like(bits)
    _step(bits, after, nx, True)
    return after


@compiled
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


@compiled
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


@compiled
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


@compiled
def far(bits: NDArray[Any], nx: int, limit_mm: float, spacing: tuple[float, float, float]) -> NDArray[Any]:
    """The voxels of the mask that are more than `limit_mm` from the rest."""
    return inverse(near(inverse(bits, nx), nx, limit_mm, spacing), nx)


@compiled
def inverse(bits: NDArray[Any], nx: int) -> NDArray[Any]:
    """The voxels that are not in the mask."""
    rest = ~bits
    rest[:, :, -1] &= ALL >> np.uint64(63 - (nx - 1) % 64)
    return rest


@compiled
def near(bits: NDArray[Any], nx: int, limit_mm: float, spacing: tuple[float, float, float]) -> NDArray[Any]:
    """The voxels at most `limit_mm` from the mask, from centre to centre.

    A ball is a stack of sections, and a section a stack of rows: each plane is widened along x by every
    number of voxels that occurs in the ball, joined to the rows within reach, and that to the planes.
    """
    nz, ny, nw = bits.shape
    limit_mm *= 1 + 1e-6  # a voxel exactly at the limit is within it
    reach_z, reach_y = min(int(limit_mm / spacing[0]), nz - 1), min(int(limit_mm / spacing[1]), ny - 1)
    reach_x = min(int(limit_mm / spacing[2]), nx)
    result = np.zeros_like(bits)
    widened = np.empty((reach_x + 1, ny, nw), np.uint64)
    section = np.empty((ny, nw), np.uint64)
    for z in range(nz):
        if not bits[z].any():
            continue
        widened[0] = bits[z]
        for n in range(1, reach_x + 1):
            _widen(widened[n - 1], nx, widened[n])
        for dz in range(reach_z + 1):
            section[:] = NONE
            for dy in range(-reach_y, reach_y + 1):
                left = limit_mm**2 - (dz * spacing[0]) ** 2 - (dy * spacing[1]) ** 2
                if left >= 0:
                    _join(widened[min(int(np.sqrt(left) / spacing[2]), reach_x)], dy, section)
            if z >= dz:
                _join(section, 0, result[z - dz])
            if 0 < dz < nz - z:
                _join(section, 0, result[z + dz])
    return result


@compiled
def _join(plane: NDArray[Any], dy: int, out: NDArray[Any]) -> None:
    """Join a plane (y, words), moved by `dy` rows, to `out`: in one go over all words."""
    ny, nw = plane.shape
    begin, end = max(0, -dy) * nw, min(ny, ny - dy) * nw
    moved, to = plane.reshape(ny * nw)[begin:end], out.reshape(ny * nw)[begin + dy * nw : end + dy * nw]
    for i in range(moved.size):
        to[i] |= moved[i]


@compiled
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
