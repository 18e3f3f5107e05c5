"""Compiled loops that fill dents in the outline of a lung, as tumours at the chest wall make them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

FACING_SIDE = 0.3
"""Least part to the side of the outward normal (of length 1) of a hull's edge that faces the side wall."""

FACING_BACK = 0.8
"""Least part to the back of the outward normal (of length 1) of a hull's edge that faces the back."""


@compiled
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
    nz, ny, nx = mask.shape
    sy, sx = spacing[1], spacing[2]
    step = 0.5 * min(sy, sx)  # half a pixel, so that no pixel is stepped over
    hull = np.empty((4 * ny + 4, 2), np.float64)
    depths = np.empty(int(max_width_mm / step) + 2, np.float64)
    for z in range(nz):
        plane = mask[z]
        n = _hull(plane, hull)
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


@compiled
def _hull(plane: NDArray[Any], hull: NDArray[Any]) -> int:
    """Write the corners (y, x) of the convex hull of a bool plane (y, x) into `hull`; return their number.

    Andrew's monotone chain (1979) over the first and last voxel of each row: up the rows along the largest x, then
    down along the smallest.
    """
    ny, nx = plane.shape
    first = np.full(ny, -1, np.int64)
    last = np.full(ny, -1, np.int64)
    for y in range(ny):
        for x in range(nx):
            if plane[y, x]:
                if first[y] < 0:
                    first[y] = x
                last[y] = x
    n = 0
    for is_down in (False, True):
        start = n  # corners of the way up stay
        for row in range(ny):
            y = ny - 1 - row if is_down else row
            x = first[y] if is_down else last[y]
            if x < 0:
                continue
            while n - start >= 2:
                ay, ax = hull[n - 1, 0] - hull[n - 2, 0], hull[n - 1, 1] - hull[n - 2, 1]
                by, bx = y - hull[n - 2, 0], x - hull[n - 2, 1]
                if ay * bx - ax * by < 0:  # the last corner is a right turn, so it stays; else it is within the hull
                    break
                n -= 1
            hull[n, 0], hull[n, 1] = y, x
            n += 1
    return n
