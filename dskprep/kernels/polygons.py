"""Compiled loops over polygons: the share of each pixel inside, the pixels whose centres are inside, and copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

LINES = 16
"""Scan lines per row of pixels in `cover`; along a line the share is exact."""
MAX_CROSSINGS = 1 << 24
"""Most places at which edges may cross scan lines; no outline of an organ comes near, and they are held in memory."""
BLOCK = 32
"""So many pixels of a row are written at a time."""
FEW = 32
"""So many numbers are sorted by putting each where it belongs among those before."""


@compiled
def cover(y: NDArray[Any], x: NDArray[Any], starts: NDArray[Any], full: int, pixels: NDArray[Any]) -> bool:
    """Write into uint8 `pixels` (y, x), all 0 before, the share of each inside closed polygons, from 0 to `full`.

    Polygon k has the points starts[k] to starts[k + 1] of float64 `y` and `x`, in pixels; pixel i is centred on i. What
    is inside follows from the even-odd rule. So a polygon inside another one is a hole, and a keyhole's two edges along
    one line enclose nothing. Returns False, and draws nothing, if there are more than MAX_CROSSINGS.
    """
    ny, nx = pixels.shape
    n_lines = ny * LINES
    counts = np.zeros(n_lines + 2, np.int64)
    n = 0
    for k in range(starts.size - 1):
        for i in range(starts[k], starts[k + 1]):
            j = i + 1 if i + 1 < starts[k + 1] else starts[k]
            first, last = _lines_between(y[i], y[j], n_lines)
            n += max(last - first, 0)
            if n > MAX_CROSSINGS:
                return False
            if last > first:
                counts[first + 1] += 1  # at first only by how many a line has more than the one before
                counts[last + 1] -= 1
    begins = np.cumsum(np.cumsum(counts[:-1]))
    crossings = np.empty(n, np.float64)
    filled = begins.copy()
    for k in range(starts.size - 1):
        for i in range(starts[k], starts[k + 1]):
            j = i + 1 if i + 1 < starts[k + 1] else starts[k]
            first, last = _lines_between(y[i], y[j], n_lines)
            x_0, y_0, run, rise = x[i], y[i], x[j] - x[i], y[j] - y[i]
            for line in range(first, last):
                at, place = filled[line], (line + 0.5) / LINES - 0.5
                crossings[at] = x_0 + run * (place - y_0) / rise + 0.5
                filled[line] = at + 1
    share = np.zeros(nx, np.float32)  # of a row of pixels, at the ends of what is inside
    steps = np.zeros(nx + 1, np.int32)  # in how many lines more a pixel is inside as a whole than the one before it is
    for row in range(ny):
        lines = begins[row * LINES : (row + 1) * LINES + 1]
        if lines[0] < lines[LINES]:
            left, right = _add_lines(crossings, lines, share, steps)
            if left < right:
                _write_row(share[left:right], steps[left : right + 1], full, pixels[row, left:right])
    return True


@compiled
def _add_lines(
    crossings: NDArray[Any], begins: NDArray[Any], share: NDArray[Any], steps: NDArray[Any]
) -> tuple[int, int]:
    """Add the scan lines of a row of pixels, of which pixel i covers i to i + 1; return which pixels they reach.

    Where a line enters and leaves, its part of the pixel is added in `share`. The lines of those between are counted
    at both ends of `steps`.
    """
    part = np.float32(1.0 / LINES)
    left, right, width = share.size, 0, np.float64(share.size)
    for line in range(LINES):
        low, high = begins[line], begins[line + 1]
        if high - low == 2:  # most often so, and a sort takes longer than all the rest
            a, b = crossings[low], crossings[low + 1]
            crossings[low], crossings[low + 1] = min(a, b), max(a, b)
        elif high - low > 2:
            _sort(crossings[low:high])
        for i in range(low, high - 1, 2):
            begin, end = max(crossings[i], 0.0), min(crossings[i + 1], width)
            if end <= begin:
                continue
            first, last = int(begin), min(int(end), share.size - 1)
            left, right = min(left, first), max(right, last + 1)
            if first == last:
                share[first] += np.float32(end - begin) * part
            else:
                share[first] += np.float32(first + 1 - begin) * part
                steps[first + 1] += 1
                steps[last] -= 1
                share[last] += np.float32(end - last) * part
    return left, right


@compiled
def _lines_between(y0: float, y1: float, n_lines: int) -> tuple[int, int]:
    """Return the first scan line at or above the lower of two heights, and the first above the other one."""
    first = np.ceil((min(y0, y1) + 0.5) * LINES - 0.5)
    last = np.ceil((max(y0, y1) + 0.5) * LINES - 0.5)
    return int(min(max(first, 0.0), n_lines)), int(min(max(last, 0.0), n_lines))


@compiled
def _write_row(share: NDArray[Any], steps: NDArray[Any], full: int, out: NDArray[Any]) -> None:
    """Write the shares of a row of pixels, from 0 to `full`, and set `share` and `steps` to 0 for the next row.

    It goes by blocks: in one without a step all pixels have as many whole lines, so that many are done at a time.
    """
    part, top, half = np.float32(1.0 / LINES), np.float32(full), np.float32(0.5)
    n_whole, n = np.int32(0), out.size
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        any_step = np.int32(0)
        for i in range(begin, end):
            any_step |= steps[i]
        whole = np.float32(n_whole) * part
        if any_step == 0:
            for i in range(begin, end):
                out[i] = np.uint8(min(max(share[i] + whole, np.float32(0)), np.float32(1)) * top + half)
            continue
        for i in range(begin, end):
            n_whole = np.int32(n_whole + steps[i])
            whole = np.float32(n_whole) * part
            out[i] = np.uint8(min(max(share[i] + whole, np.float32(0)), np.float32(1)) * top + half)
    steps[n] = 0
    for i in range(n):
        share[i], steps[i] = np.float32(0), np.int32(0)


@compiled
def _sort(values: NDArray[Any]) -> None:
    """Sort numbers in place, of which there are mostly few: then numba's own sort takes four times as long."""
    if values.size > FEW:
        values.sort()
        return
    for k in range(1, values.size):
        value, i = values[k], k - 1
        while i >= 0 and values[i] > value:
            values[i + 1] = values[i]
            i -= 1
        values[i + 1] = value


@compiled
def fill_inside(y: NDArray[Any], x: NDArray[Any], out: NDArray[Any]) -> None:
    """Set in bool `out` (y, x), all False before, the pixels whose centres lie inside a closed polygon.

    The points of the polygon are centres of pixels, int64. Those and the centres on its edges are not inside.
    """
    n = y.size
    for i in range(n):
        j = i + 1 if i + 1 < n else 0
        low, high = (i, j) if y[i] < y[j] else (j, i)
        for row in range(y[low], y[high]):
            # the first column right of the edge or on it: whole numbers, so it is exact
            run, rise = x[high] - x[low], y[high] - y[low]
            first = x[low] - (-(row - y[low]) * run) // rise
            for column in range(max(first, 0), out.shape[1]):
                out[row, column] = not out[row, column]
    for i in range(n):
        j = i + 1 if i + 1 < n else 0
        a, b = abs(y[j] - y[i]), abs(x[j] - x[i])
        while b:
            a, b = b, a % b
        for step in range(a + 1):
            part = max(a, 1)
            out[y[i] + (y[j] - y[i]) // part * step, x[i] + (x[j] - x[i]) // part * step] = False


@compiled
def keep_small(y: NDArray[Any], x: NDArray[Any], starts: NDArray[Any], full: int, pixels: NDArray[Any]) -> None:
    """Set to `full` the pixel in the middle of each polygon that encloses less than half a pixel, so that it stays.

    Polygons are as in `cover`, and uint8 `pixels` what that drew. Where a pixel nearby is half inside, nothing is set:
    there the polygon is not lost, or it is a hole.
    """
    for k in range(starts.size - 1):
        first, end = starts[k], starts[k + 1]
        area, mean_y, mean_x = 0.0, 0.0, 0.0
        for i in range(first, end):
            j = i + 1 if i + 1 < end else first
            area += (y[i] - y[first]) * (x[j] - x[first]) - (x[i] - x[first]) * (y[j] - y[first])
            mean_y += y[i]
            mean_x += x[i]
        if abs(area) / 2 >= 0.5:
            continue
        row, column = int(np.floor(mean_y / (end - first) + 0.5)), int(np.floor(mean_x / (end - first) + 0.5))
        largest = 0
        for j in range(max(row - 1, 0), min(row + 2, pixels.shape[0])):
            for i in range(max(column - 1, 0), min(column + 2, pixels.shape[1])):
                largest = max(largest, pixels[j, i])
        if 2 * largest < full:
            pixels[row, column] = full


@compiled
def lies_near(points: NDArray[Any], outline: NDArray[Any], limit: float) -> bool:
    """Tell whether each of the float64 `points` (n, 2) lies within `limit` of a closed polygon's edges.

    A point's edge is looked for from that of the point before on, as a copy of a polygon has them in one order.
    """
    n, at = outline.shape[0], 0
    for k in range(points.shape[0]):
        is_near = False
        for _ in range(n):
            following = at + 1 if at + 1 < n else 0
            edge_y, edge_x = outline[following, 0] - outline[at, 0], outline[following, 1] - outline[at, 1]
            y, x = points[k, 0] - outline[at, 0], points[k, 1] - outline[at, 1]
            length = max(edge_y * edge_y + edge_x * edge_x, 1e-12)
            along = min(max((y * edge_y + x * edge_x) / length, 0.0), 1.0)
            y, x = y - along * edge_y, x - along * edge_x
            if np.sqrt(y * y + x * x) <= limit:
                is_near = True
                break
            at = following
        if not is_near:
            return False
    return True
