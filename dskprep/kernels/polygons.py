"""Compiled loops that fill polygons: the share of each pixel inside, or the pixels whose centres are inside."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

LINES = 16
"""Scan lines per row of pixels in `cover`; along a line the share is exact."""
MAX_CROSSINGS = 1 << 24
"""Most places at which edges may cross scan lines; no outline of an organ comes near, and they are held in memory."""


@compiled
def cover(y: NDArray[Any], x: NDArray[Any], starts: NDArray[Any], out: NDArray[Any]) -> bool:
    """Add to float32 `out` (y, x), all 0 before, the share of each pixel inside closed polygons, by the even-odd rule.

    Polygon k has the points starts[k] to starts[k + 1] of float64 `y` and `x`, in pixels; pixel i is centred on i. So a
    polygon inside another one is a hole, and a keyhole's two edges along one line enclose nothing. Returns False, and
    draws nothing, if there are more than MAX_CROSSINGS.
    """
    ny, nx = out.shape
    n_lines = ny * LINES
    counts = np.zeros(n_lines + 1, np.int64)
    n = 0
    for k in range(starts.size - 1):
        for i in range(starts[k], starts[k + 1]):
            j = i + 1 if i + 1 < starts[k + 1] else starts[k]
            first, last = _lines_between(y[i], y[j], n_lines)
            n += max(last - first, 0)
            if n > MAX_CROSSINGS:
                return False
            for line in range(first, last):
                counts[line + 1] += 1
    begins = np.cumsum(counts)
    crossings = np.empty(n, np.float64)
    filled = begins.copy()
    for k in range(starts.size - 1):
        for i in range(starts[k], starts[k + 1]):
            j = i + 1 if i + 1 < starts[k + 1] else starts[k]
            first, last = _lines_between(y[i], y[j], n_lines)
            for line in range(first, last):
                place = (line + 0.5) / LINES - 0.5
                crossings[filled[line]] = x[i] + (x[j] - x[i]) * (place - y[i]) / (y[j] - y[i]) + 0.5
                filled[line] += 1
    steps = np.zeros(nx + 1, np.float32)  # by how much a pixel differs from the one before, for those that are crossed
    for y_out in range(ny):
        first, last = y_out * LINES, (y_out + 1) * LINES
        if begins[first] == begins[last]:
            continue
        steps[:] = 0
        row = out[y_out]
        for line in range(first, last):
            along = crossings[begins[line] : begins[line + 1]]
            if along.size == 2:  # most often so, and a sort takes longer than all the rest
                along[0], along[1] = min(along[0], along[1]), max(along[0], along[1])
            elif along.size > 2:
                along.sort()
            for i in range(0, along.size - 1, 2):
                _add_span(row, steps, max(along[i], 0.0), min(along[i + 1], np.float64(nx)))
        whole = np.float32(0)
        for i in range(nx):
            whole += steps[i]
            row[i] += whole
    return True


@compiled
def _lines_between(y0: float, y1: float, n_lines: int) -> tuple[int, int]:
    """Return the first scan line at or above the lower of two heights, and the first above the other one."""
    first = np.ceil((min(y0, y1) + 0.5) * LINES - 0.5)
    last = np.ceil((max(y0, y1) + 0.5) * LINES - 0.5)
    return int(min(max(first, 0.0), n_lines)), int(min(max(last, 0.0), n_lines))


@compiled
def _add_span(row: NDArray[Any], steps: NDArray[Any], begin: float, end: float) -> None:
    """Add one scan line's part of the pixels between two places, of which pixel i covers i to i + 1.

    The first and last pixel are added in `row`, those between them at both ends of `steps`: multiples of a power of
    two, whose sums are exact.
    """
    if end <= begin:
        return
    part = np.float32(1.0 / LINES)
    first, last = int(begin), min(int(end), row.size - 1)
    if first == last:
        row[first] += np.float32(end - begin) * part
        return
    row[first] += np.float32(first + 1 - begin) * part
    steps[first + 1] += part
    steps[last] -= part
    row[last] += np.float32(end - last) * part


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
