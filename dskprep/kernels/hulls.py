"""Convex hulls of axial slices of masks, and dents in them, as tumours at the chest wall make them."""

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
FACING_SIDE = 0.3
"""Least part to the side of the outward normal (of length 1) of a hull's edge that faces the side wall."""
FACING_BACK = 0.8
"""Least part to the back of the outward normal (of length 1) of a hull's edge that faces the back."""


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
    """Replace the largest columns of rows y0 to y1 by those of their convex hull, in place."""
    corners = np.empty((3 * (y1 - y0 + 1), 2))
    start: Any = np.int64(0)  # as in `_outline`
    n: int = start
    for y in range(y0, y1 + 1):
        if np.isnan(edge[y]):
            continue
        for half in range(3):  # the middles of the pixel's upper side, of its outer one, and of its lower one
            at, reach = y + (half - 1) / 2, edge[y] + (half == 1) / 2
            if n > 0 and corners[n - 1, 0] == at:  # the lower side of one pixel is the upper one of the next
                if corners[n - 1, 1] >= reach:
                    continue
                n -= 1
            n = _add_corner(corners, start, n, at, reach)
    # where the hull's sides cross the rows of pixel centres
    k = 0
    for y in range(y0, y1 + 1):
        while k < n - 2 and corners[k + 1, 0] < y:
            k += 1
        (from_y, from_x), (to_y, to_x) = corners[k], corners[k + 1]
        edge[y] = from_x + (to_x - from_x) * (y - from_y) / (to_y - from_y)


@compiled
def _outline(plane: NDArray[Any], corners: NDArray[Any]) -> int:
    """Write the corners (y, x) of the convex hull of the pixel centres of a bool plane (y, x); return their number.

    They go up the rows along the largest x, then down along the smallest.
    """
    ny, nx = plane.shape
    start: Any = np.int64(0)  # not written as 0, for which the callee would be compiled again
    n: int = start
    for step in range(2 * ny):
        is_up = step < ny
        y = step if is_up else 2 * ny - 1 - step
        if step == ny:
            start = n
        x, by, end = (nx - 1, -1, -1) if is_up else (0, 1, nx)
        while x != end and not plane[y, x]:
            x += by
        if x != end:
            n = _add_corner(corners, start, n, float(y), float(x))
    return n


@compiled
def _add_corner(corners: NDArray[Any], start: int, n: int, y: float, x: float) -> int:
    """Add a point to the corners (y, x) of a hull, of which there are `n`; return their new number.

    Andrew's monotone chain (1979): the points come in order of their rows, and a corner goes when the next point
    shows that it lies on the line between its neighbours or within it. Corners before `start` stay.
    """
    while n - start >= 2:
        before_y, before_x = corners[n - 2, 0], corners[n - 2, 1]
        if (corners[n - 1, 0] - before_y) * (x - before_x) < (corners[n - 1, 1] - before_x) * (y - before_y):
            break
        n -= 1
    corners[n, 0], corners[n, 1] = y, x
    return n + 1


def fill_wall_dents(
    mask: NDArray[Any],
    lateral: int,
    spacing: tuple[float, float, float],
    max_width_mm: float,
    min_depth_mm: float,
    max_depth_mm: float,
) -> None:
    """Fill, in place, the dents of bool `mask` (z, y, x; y to the back) that open to the side or to the back.

    In each axial slice, an edge of the convex hull spans each dent. Edges longer than `max_width_mm` and those that
    face the front or the middle are left alone; `lateral` is the sign of x that leads away from the middle. A dent is
    filled if it is somewhere `min_depth_mm` deep and nowhere deeper than `max_depth_mm`.
    """
    sy, sx = spacing[1:]
    step = 0.5 * min(sy, sx)  # half a pixel, so that no pixel is stepped over
    hull = np.empty((4 * mask.shape[1] + 4, 2), np.float64)
    depths = np.empty(int(max_width_mm / step) + 2, np.float64)
    _fill_wall_dents(mask, lateral, sy, sx, step, max_width_mm, min_depth_mm, max_depth_mm, hull, depths)


@compiled
def _fill_wall_dents(
    mask: NDArray[Any],
    lateral: int,
    sy: float,
    sx: float,
    step: float,
    max_width_mm: float,
    min_depth_mm: float,
    max_depth_mm: float,
    hull: NDArray[Any],
    depths: NDArray[Any],
) -> None:
    """Fill the dents, with steps of `step` mm; room for the corners of a `hull`, and `depths` along an edge of it."""
    nz, ny, nx = mask.shape
    for z in range(nz):
        plane = mask[z]
        n = _outline(plane, hull)
        for v in range(n):
            y0, x0 = hull[v, 0] * sy, hull[v, 1] * sx
            y1, x1 = hull[(v + 1) % n, 0] * sy, hull[(v + 1) % n, 1] * sx
            width = math.sqrt((y1 - y0) ** 2 + (x1 - x0) ** 2)
            if width < min_depth_mm or width > max_width_mm:
                continue
            out_y, out_x = (x0 - x1) / width, (y1 - y0) / width  # outward normal of length 1
            if out_x * lateral < FACING_SIDE and out_y < FACING_BACK:
                continue
            along_y, along_x = (y1 - y0) / width, (x1 - x0) / width
            deepest = 0.0
            # from places along the edge, step inwards until the mask begins
            for a in range(int(width / step) + 1):
                y, x = y0 + a * step * along_y, x0 + a * step * along_x
                depths[a] = 0.0
                while depths[a] <= max_depth_mm:
                    j = round((y - depths[a] * out_y) / sy)
                    i = round((x - depths[a] * out_x) / sx)
                    if not (0 <= j < ny and 0 <= i < nx) or plane[j, i]:
                        break
                    depths[a] += step
                deepest = max(deepest, depths[a])
            if not min_depth_mm <= deepest <= max_depth_mm:
                continue
            for a in range(int(width / step) + 1):
                y, x = y0 + a * step * along_y, x0 + a * step * along_x
                for d in range(int(depths[a] / step)):
                    j = round((y - d * step * out_y) / sy)
                    i = round((x - d * step * out_x) / sx)
                    plane[j, i] = True
