"""Compiled loops for convex hulls of axial slices of masks, on runs of voxels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled
from dskprep.kernels.runs import Runs

TINY = 1e-9
"""Rounding of a hull's edge, in pixels: a pixel whose centre lies on it is inside."""


@compiled
def hulls(found: Runs, nz: int, ny: int, max_ratio: float) -> Runs:
    """The convex hull of each slice, unless it is more than `max_ratio` times as large as the slice's mask."""
    first = np.empty(nz * ny + 1, np.int64)
    starts = np.empty(found.starts.size + nz * ny, np.int32)
    stops = np.empty(found.starts.size + nz * ny, np.int32)
    everything = np.zeros(found.starts.size, np.int32)
    left, right = np.empty(ny), np.empty(ny)
    n = 0
    for z in range(nz):
        begin, end = found.first[z * ny], found.first[(z + 1) * ny]
        area = (found.stops[begin:end] - found.starts[begin:end]).sum()
        hull_area = 0
        y0, y1 = extremes(found, everything, 0, z, ny, left, right)
        if area > 0:
            hull(left, right, y0, y1)
            for y in range(y0, y1 + 1):
                hull_area += max(0, math.floor(right[y] + TINY) + 1 - math.ceil(left[y] - TINY))
        for y in range(ny):
            first[z * ny + y] = n
            if hull_area > max_ratio * area:
                for run in range(found.first[z * ny + y], found.first[z * ny + y + 1]):
                    starts[n], stops[n] = found.starts[run], found.stops[run]
                    n += 1
            elif area > 0 and y0 <= y <= y1:
                start, stop = math.ceil(left[y] - TINY), math.floor(right[y] + TINY) + 1
                if start < stop:
                    starts[n], stops[n] = start, stop
                    n += 1
    first[nz * ny] = n
    return Runs(first, starts[:n].copy(), stops[:n].copy())


@compiled
def extremes(
    found: Runs, pieces: NDArray[Any], piece: int, z: int, ny: int, left: NDArray[Any], right: NDArray[Any]
) -> tuple[int, int]:
    """First and last column of one piece in each row of a slice (NaN where none), and its first and last row."""
    left[:], right[:] = np.nan, np.nan
    y0, y1 = ny, -1
    for y in range(ny):
        for run in range(found.first[z * ny + y], found.first[z * ny + y + 1]):
            if pieces[run] == piece:
                if np.isnan(left[y]):
                    left[y] = found.starts[run]
                right[y] = found.stops[run] - 1
                y0, y1 = min(y0, y), max(y1, y)
    return y0, y1


@compiled
def hull(left: NDArray[Any], right: NDArray[Any], y0: int, y1: int) -> None:
    """Replace the extremes of rows y0 to y1 by the edges of the convex hull, in place.

    The hull is that of the middles of the pixels' four sides, as scikit-image takes it.
    """
    _bulge(right, y0, y1)
    left[:] = -left
    _bulge(left, y0, y1)
    left[:] = -left


@compiled
def _bulge(edge: NDArray[Any], y0: int, y1: int) -> None:
    """The upper hull of the pixels at column edge[y], at each row from y0 to y1, in place."""
    ys = np.empty(3 * (y1 - y0 + 1))
    xs = np.empty(3 * (y1 - y0 + 1))
    n = 0
    for y in range(y0, y1 + 1):
        if np.isnan(edge[y]):
            continue
        for half in range(3):  # middles of the upper side, of the outer one, and of the lower one
            at, reach = y + (half - 1) / 2, edge[y] + (half == 1) / 2
            if n > 0 and ys[n - 1] == at:
                if xs[n - 1] >= reach:
                    continue
                n -= 1
            while n >= 2 and (ys[n - 1] - ys[n - 2]) * (reach - xs[n - 2]) >= (xs[n - 1] - xs[n - 2]) * (
                at - ys[n - 2]
            ):
                n -= 1
            ys[n], xs[n] = at, reach
            n += 1
    k = 0
    for y in range(y0, y1 + 1):
        while k < n - 2 and ys[k + 1] < y:
            k += 1
        edge[y] = xs[k] + (xs[k + 1] - xs[k]) * (y - ys[k]) / (ys[k + 1] - ys[k])
