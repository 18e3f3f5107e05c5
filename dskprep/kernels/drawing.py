"""Compiled loops that draw a mask of a coarse grid at full resolution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled
from dskprep.volume import PADDING


def draw(
    array: NDArray[Any],
    air_below: int,
    label: NDArray[Any],
    solid: NDArray[Any],
    block: tuple[int, int, int],
    first: tuple[int, int, int],
    mask: NDArray[Any],
) -> NDArray[Any]:
    """Draw a coarse mask at full resolution into uint8 `mask`, all 0 before; return the voxels per label, 0 to 2.

    All arrays are (z, y, x). Coarse voxel (0, 0, 0) of uint8 `label` and bool `solid` is block `first` of int16 HU
    `array`. A voxel takes the label of its block if it is air (HU below `air_below`), or if `solid`, interpolated
    linearly between the centres of blocks, is one half or more there.

    Weights are whole numbers, of 2 x block in all along an axis: the centres of voxels and of blocks lie at odd and
    even half voxels. Held in float32 they and their sums are exact, and many fit a register. So one half is met
    exactly, and on every machine alike.
    """
    _, my, mx = label.shape
    bx, counts = block[2], np.zeros(3, np.int64)
    planes = np.empty((3, my, mx * bx), np.float32)
    row, is_solid = np.empty(mx + 2, np.float32), np.empty(mx * bx, np.bool_)
    strands, labels = np.empty((bx, mx), np.float32), np.empty(mx * bx, np.uint8)
    draw_voxels(array, air_below, label, solid, block, first, planes, row, strands, labels, is_solid, mask, counts)
    return counts


@compiled
def draw_voxels(
    array: NDArray[Any],
    air_below: int,
    label: NDArray[Any],
    solid: NDArray[Any],
    block: tuple[int, int, int],
    first: tuple[int, int, int],
    planes: NDArray[Any],
    padded: NDArray[Any],
    strands: NDArray[Any],
    labels: NDArray[Any],
    is_solid: NDArray[Any],
    mask: NDArray[Any],
    counts: NDArray[Any],
) -> None:
    """Draw the mask, and count the voxels in `counts`.

    Scratch: three `planes`; `padded`, a coarse row with its end values repeated; `strands`, of which b is voxel b of
    every block, all with the same weights; `labels` and `is_solid` of a row.
    """
    nz, ny, nx = array.shape
    bz, by, bx = block
    oz, oy, ox = first
    mz, my, mx = label.shape
    begin, end = ox * bx, min((ox + mx) * bx, nx)
    along_x, along_z = planes[:2], planes[2]  # a ring of two coarse planes: plane k lies at k % 2
    half = np.float32(4 * bz * by * bx)  # of a total weight of 2 bz x 2 by x 2 bx
    air, padding = np.int16(air_below), np.int16(PADDING)
    n_planes = 0
    for z in range(oz * bz, min((oz + mz) * bz, nz)):
        k0, k1, wz = _between(z, bz, oz, mz)
        while n_planes <= k1:
            for j in range(my):
                padded[0], padded[mx + 1] = solid[n_planes, j, 0], solid[n_planes, j, mx - 1]
                for i in range(mx):
                    padded[i + 1] = solid[n_planes, j, i]
                for b in range(bx):
                    weight = 2 * b + 1 - bx  # from the block's centre to the voxel's, in half voxels
                    low = 0 if weight < 0 else 1  # before the centre, the block before takes part
                    _blend(padded[low:], padded[low + 1 :], np.float32(weight % (2 * bx)), bx, strands[b])
                _weave(strands, along_x[n_planes % 2, j])
            n_planes += 1
        for j in range(my):
            _blend(along_x[k0 % 2, j], along_x[k1 % 2, j], wz, bz, along_z[j])
        k = z // bz - oz
        for j in range(my):
            is_any = False
            for i in range(mx):
                is_any |= label[k, j, i] != 0
                for b in range(bx):
                    labels[bx * i + b] = label[k, j, i]
            if not is_any:
                continue
            for y in range((oy + j) * by, min((oy + j + 1) * by, ny)):
                j0, j1, wy = _between(y, by, oy, my)
                upper, lower = along_z[j0], along_z[j1]
                rest = np.float32(2 * by) - wy
                for x in range(is_solid.size):
                    is_solid[x] = rest * upper[x] + wy * lower[x] >= half
                hu, out = array[z, y, begin:end], mask[z, y, begin:end]
                for x in range(out.size):
                    out[x] = labels[x] * (((hu[x] < air) & (hu[x] != padding)) | is_solid[x])
                for side in (1, 2):
                    n = np.int32(0)
                    for x in range(out.size):
                        n += np.int32(out[x] == side)
                    counts[side] += n
    counts[0] = mask.size - counts[1] - counts[2]


@compiled
def _between(index: int, block: int, first: int, n_blocks: int) -> tuple[int, int, np.float32]:
    """Return the two blocks whose centres lie around a voxel, and the weight of the second, of 2 x `block` in all."""
    place = 2 * index + 1 - block - 2 * block * first  # from the first block's centre, in half voxels
    low = place // (2 * block)
    weight = np.float32(place - 2 * block * low)
    return min(max(low, 0), n_blocks - 1), min(max(low + 1, 0), n_blocks - 1), weight


@compiled
def _blend(row: NDArray[Any], other: NDArray[Any], weight: np.float32, block: int, out: NDArray[Any]) -> None:
    """Write the weighted sum of two float32 rows: `weight` for the other, of 2 x `block` in all."""
    rest = np.float32(2 * block) - weight
    for i in range(out.size):
        out[i] = rest * row[i] + weight * other[i]


@compiled
def _weave(strands: NDArray[Any], out: NDArray[Any]) -> None:
    """Write the first value of each strand into a row, then the second of each, and so on."""
    n, m = strands.shape
    if n == 2:  # most often so, and the compiler moves many at a time when it is a constant
        for i in range(m):
            out[2 * i] = strands[0, i]
            out[2 * i + 1] = strands[1, i]
        return
    for k in range(n):
        for i in range(m):
            out[n * i + k] = strands[k, i]
