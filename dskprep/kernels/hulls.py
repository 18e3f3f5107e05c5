"""Compiled loops for convex hulls of axial slices of masks, on runs of voxels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import bits
from dskprep.kernels.compiled import compiled
from dskprep.kernels.runs import Runs, to_bits

EDGE_TOLERANCE = 1e-9
"""In pixels: a pixel whose centre lies on a hull's edge is inside, in spite of the rounding of the edge's place."""


@compiled
def fill_hulls(found: Runs, shape: tuple[int, int, int], max_ratio: float) -> NDArray[Any]:
    """Return the convex hull of each slice of a mask of `shape` (z, y, x), as bits.

    A slice whose hull is more than `max_ratio` times its area stays as it is.
    """
    nz, ny, _ = shape
    filled = to_bits(found, shape)
    one_piece = np.zeros(found.starts.size, np.int32)
    for z in range(nz):
        begin, end = found.first[z * ny], found.first[(z + 1) * ny]
        if begin == end:
            continue
        area = (found.stops[begin:end] - found.starts[begin:end]).sum()
        starts, stops = find_hull(found, one_piece, 0, z, ny)
        if np.maximum(stops - starts, 0).sum() <= max_ratio * area:
            for y in range(ny):
                bits.set_range(filled[z, y], starts[y], stops[y])
    return filled


@compiled
def find_hull(
    found: Runs, pieces: NDArray[Any], piece: int, z: int, ny: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first column, and the one after the last, of the convex hull of a piece in each row of a slice.

    The hull is that of the middles of the pixels' four sides, as in skimage.morphology.convex_hull_image. In a row that
    it crosses between two pixel centres, the stop is not beyond the start.
    """
    left, right = np.full(ny, np.nan), np.full(ny, np.nan)
    y0, y1 = ny, -1
    for y in range(ny):
        for run in range(found.first[z * ny + y], found.first[z * ny + y + 1]):
            if pieces[run] == piece:
                if np.isnan(left[y]):
                    left[y] = -found.starts[run]  # mirrored, the left edge is a right one
                right[y] = found.stops[run] - 1
                y0, y1 = min(y0, y), max(y1, y)
    _bulge(left, y0, y1)
    _bulge(right, y0, y1)
    starts, stops = np.zeros(ny, np.int64), np.zeros(ny, np.int64)
    for y in range(y0, y1 + 1):
        starts[y], stops[y] = math.ceil(-left[y] - EDGE_TOLERANCE), math.floor(right[y] + EDGE_TOLERANCE) + 1
    return starts, stops


@compiled
def _bulge(edge: NDArray[Any], y0: int, y1: int) -> None:
    """Replace the largest columns of rows y0 to y1 by those of their convex hull, in place.

    Andrew's monotone chain (1979): the rows come in order, and a corner goes when the next point shows that it lies
    on the line between its neighbours or within it.
    """
    ys = np.empty(3 * (y1 - y0 + 1))
    xs = np.empty(3 * (y1 - y0 + 1))
    n = 0
    for y in range(y0, y1 + 1):
        if np.isnan(edge[y]):
            continue
        for half in range(3):  # the middles of the pixel's upper side, of its outer one, and of its lower one
            at, reach = y + (half - 1) / 2, edge[y] + (half == 1) / 2
            if n > 0 and ys[n - 1] == at:  # the lower side of one pixel is the upper side of the next: the outer counts
                if xs[n - 1] >= reach:
                    continue
                n -= 1
            while n >= 2 and (ys[n - 1] - ys[n - 2]) * (reach - xs[n - 2]) >= (xs[n - 1] - xs[n - 2]) * (
                at - ys[n - 2]
            ):
                n -= 1
            ys[n], xs[n] = at, reach
            n += 1
    # where the hull's sides cross the rows of pixel centres
    k = 0
    for y in range(y0, y1 + 1):
        while k < n - 2 and ys[k + 1] < y:
            k += 1
        edge[y] = xs[k] + (xs[k + 1] - xs[k]) * (y - ys[k]) / (ys[k + 1] - ys[k])
