"""Compiled loops over the padding of one plane of a volume: what a scanner stores where it measured nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled
from dskprep.volume import PADDING


@compiled
def mark_padding(plane: NDArray[Any], low: int, high: int) -> None:
    """Set the values of int16 `plane` (y, x) from `low` to `high` to PADDING."""
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            value = plane[y, x]
            plane[y, x] = PADDING if low <= value <= high else value


@compiled
def mark_padding_from_edges(plane: NDArray[Any], low: int, high: int) -> None:
    """Set to PADDING as `mark_padding`, but only from both ends of each row to the first other value.

    PADDING counts as a value from `low` to `high`.
    """
    nx = plane.shape[1]
    for row in plane:
        x = 0
        while x < nx and (low <= row[x] <= high or row[x] == PADDING):
            row[x] = PADDING
            x += 1
        x = nx - 1
        while x >= 0 and (low <= row[x] <= high or row[x] == PADDING):
            row[x] = PADDING
            x -= 1


@compiled
def fill_padding_from_row(plane: NDArray[Any], filled: NDArray[Any], ends: NDArray[Any]) -> int:
    """Copy int16 `plane` (y, x) into `filled`, each padding pixel replaced by the nearest value of its row.

    A row that is all padding becomes a copy of the nearest row that has values. `ends` (y, 3) is written for each row:
    the first column with a value, the one after the last, and the number of padding pixels between the two.
    Returns the number of padding pixels; if all are, `filled` is a copy.
    """
    ny, nx = plane.shape
    n_padding = 0
    for y in range(ny):
        row, out = plane[y], filled[y]
        n = np.int32(0)
        for x in range(nx):  # counted without a branch, many at a time: most rows have none, and are done
            n += np.int32(row[x] == PADDING)
        left, right = 0, nx
        if n == nx:
            left = nx
        elif n:
            left, right = _n_at_end(row, False), nx - _n_at_end(row, True)
        n_within = n - left - (nx - right)
        for x in range(nx):
            out[x] = row[x]
        if left < right:
            for x in range(left):
                out[x] = row[left]
            for x in range(right, nx):
                out[x] = row[right - 1]
        if n_within:
            _fill_gaps(out, left, right)
        ends[y, 0], ends[y, 1], ends[y, 2] = left, right, n_within
        n_padding += nx - (right - left) + n_within
    if n_padding == 0 or n_padding == ny * nx:
        return n_padding
    for y in range(ny):
        if ends[y, 0] < ends[y, 1]:
            continue
        for step in range(1, ny):  # `ends` is that of the plane, so a filled row is no source; a tie goes up
            nearest = y - step
            if nearest < 0 or ends[nearest, 0] >= ends[nearest, 1]:
                nearest = y + step
            if nearest < ny and ends[nearest, 0] < ends[nearest, 1]:
                for x in range(nx):
                    filled[y, x] = filled[nearest, x]
                break
    return n_padding


@compiled
def _n_at_end(row: NDArray[Any], is_last: bool) -> int:
    """Return how many values of padding a row begins or ends with, not all; eight are looked at in one go."""
    x, n = 0, np.int32(8)
    while x + 8 <= row.size and n == 8:
        first = row.size - 8 - x if is_last else x
        n = np.int32(0)
        for i in range(8):
            n += np.int32(row[first + i] == PADDING)
        x += 8 if n == 8 else 0
    while row[row.size - 1 - x if is_last else x] == PADDING:
        x += 1
    return x


@compiled
def _fill_gaps(row: NDArray[Any], left: int, right: int) -> None:
    """Replace each padding pixel between two values of a row by the nearer value, in place; a tie goes to the left."""
    last = left
    for x in range(left + 1, right):
        if row[x] == PADDING:
            continue
        for gap in range(last + 1, x):
            row[gap] = row[last] if gap - last <= x - gap else row[x]
        last = x


@compiled
def sample_padding(
    plane: NDArray[Any], ends: NDArray[Any], nearest_y: NDArray[Any], nearest_x: NDArray[Any], out: NDArray[Any]
) -> None:
    """Write whether the nearest pixel of `plane` is padding into bool `out`; for `ends` see `fill_padding_from_row`."""
    n = out.shape[1]
    for j in range(out.shape[0]):
        y = nearest_y[j]
        left, right = ends[y, 0], ends[y, 1]
        if ends[y, 2]:
            for i in range(n):
                out[j, i] = plane[y, nearest_x[i]] == PADDING
        else:  # padding at the ends only: the pixels need not be read, so many are done at a time
            for i in range(n):
                out[j, i] = (nearest_x[i] < left) | (nearest_x[i] >= right)
