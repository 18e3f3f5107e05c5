"""Compiled loops over one plane of a volume: padding, and separable weighted sums."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled, inlined
from dskprep.volume import PADDING

FOUR = 4
"""Inputs that are added in one go, so that a row of sums is read and written a quarter as often.

The order of the additions is that of one after another, so the sums are the same to the last bit.
"""


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


def weigh_plane(
    plane: NDArray[Any],
    start_y: NDArray[Any],
    weight_y: NDArray[Any],
    start_x: NDArray[Any],
    weight_x: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the weighted sums of `plane` (y, x) along y, then x, into float32 `out`; see `resample.Taps`."""
    start = start_x.astype(np.uint32)  # no sign, and half the size: so that many can be looked up at a time
    weights = np.ascontiguousarray(weight_x.T)  # the weights k of neighbouring outputs lie side by side
    _weigh_plane(plane, start_y, weight_y, start, weights, np.empty(plane.shape[1], np.float32), out)


@compiled
def _weigh_plane(
    plane: NDArray[Any],
    start_y: NDArray[Any],
    weight_y: NDArray[Any],
    start_x: NDArray[Any],
    weight_x: NDArray[Any],
    row: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the weighted sums; the weights along x are (k, outputs), `row` is scratch."""
    for j in range(out.shape[0]):
        _weigh_rows(plane, start_y[j], weight_y[j], row)
        _weigh_row(row, start_x, weight_x, out[j])


@inlined
def _weigh_row(row: NDArray[Any], start: NDArray[Any], weights: NDArray[Any], out: NDArray[Any]) -> None:
    """Write weighted sums of neighbours in a row: out[i] = sum over k of weights[k, i] * row[start[i] + k]."""
    n = weights.shape[0]
    # two taps (an axis that does not shrink) and three are written out, so that each sum stays in a register
    if n == 2:
        w0, w1 = weights[0], weights[1]
        for i in range(out.size):
            x = start[i]
            out[i] = w0[i] * row[x] + w1[i] * row[x + 1]
        return
    if n == 3:
        w0, w1, w2 = weights[0], weights[1], weights[2]
        for i in range(out.size):
            x = start[i]
            out[i] = w0[i] * row[x] + w1[i] * row[x + 1] + w2[i] * row[x + 2]
        return
    out[:] = 0
    for k in range(0, n - n % FOUR, FOUR):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        rest = row[k:]  # so that the index start[i] needs no addition
        for i in range(out.size):
            x = start[i]
            out[i] = out[i] + w0[i] * rest[x] + w1[i] * rest[x + 1] + w2[i] * rest[x + 2] + w3[i] * rest[x + 3]
    for k in range(n - n % FOUR, n):
        weight = weights[k]
        for i in range(out.size):
            out[i] += weight[i] * row[start[i] + k]


@inlined
def _weigh_rows(rows: NDArray[Any], first: int, weights: NDArray[Any], total: NDArray[Any]) -> None:
    """Write the weighted sum of `rows` from the `first` on into float32 `total`, in their order, FOUR in one go."""
    n = weights.size
    if n == 2:
        w0, w1 = weights[0], weights[1]
        for i in range(total.size):
            total[i] = w0 * np.float32(rows[first, i]) + w1 * np.float32(rows[first + 1, i])
        return
    if n == 3:
        w0, w1, w2 = weights[0], weights[1], weights[2]
        for i in range(total.size):
            total[i] = (
                w0 * np.float32(rows[first, i])
                + w1 * np.float32(rows[first + 1, i])
                + w2 * np.float32(rows[first + 2, i])
            )
        return
    total[:] = 0
    for k in range(0, n - n % FOUR, FOUR):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        row0, row1, row2, row3 = rows[first + k], rows[first + k + 1], rows[first + k + 2], rows[first + k + 3]
        for i in range(total.size):
            total[i] = (
                total[i]
                + w0 * np.float32(row0[i])
                + w1 * np.float32(row1[i])
                + w2 * np.float32(row2[i])
                + w3 * np.float32(row3[i])
            )
    for k in range(n - n % FOUR, n):
        weight = weights[k]
        row = rows[first + k]
        for i in range(total.size):
            total[i] += weight * np.float32(row[i])


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


def weigh_planes(
    planes: NDArray[Any], which: NDArray[Any], weights: NDArray[Any], is_padding: NDArray[Any], out: NDArray[Any]
) -> None:
    """Write the weighted sum of float32 planes[which], rounded half up, into int16 `out` (y, x); padding stays.

    Sums are clipped to -32767..32767, because -32768 is PADDING.
    """
    rows = np.empty((which.size + 1, out.shape[1]), np.float32)
    _weigh_planes(planes, which, weights, is_padding, rows[:-1], rows[-1], out)


@compiled
def _weigh_planes(
    planes: NDArray[Any],
    which: NDArray[Any],
    weights: NDArray[Any],
    is_padding: NDArray[Any],
    rows: NDArray[Any],
    total: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the weighted sum; `rows` (planes, x) and `total` (x) are scratch."""
    for j in range(out.shape[0]):
        if which.size == 2:
            w0, w1, first, second = weights[0], weights[1], which[0], which[1]
            for i in range(total.size):
                total[i] = w0 * planes[first, j, i] + w1 * planes[second, j, i]
        else:
            for k in range(which.size):  # gathered, because the planes of a ring do not lie in order
                for i in range(total.size):
                    rows[k, i] = planes[which[k], j, i]
            _weigh_rows(rows, 0, weights, total)
        for i in range(total.size):
            rounded = min(max(np.floor(total[i] + np.float32(0.5)), np.float32(-32767)), np.float32(32767))
            out[j, i] = PADDING if is_padding[j, i] else np.int16(rounded)


@compiled
def zoom_planes(planes: NDArray[Any], which: NDArray[Any], weights: NDArray[Any], out: NDArray[Any]) -> None:
    """Write weighted sums of float32 `planes`, a ring, into several planes of int16 or uint8 `out` (b, y, x).

    Plane b of `out` is the sum over k of weights[b, k] * planes[which[b, k]], rounded half away from zero, as
    scipy.ndimage does, and clipped to the type of `out`. The planes of a sum follow one another in the ring.
    """
    low, high = (-32768.0, 32767.0) if out.itemsize == 2 else (0.0, 255.0)
    total = np.empty(out.shape[2], np.float32)
    first = which[0, 0]
    n = planes.shape[0]
    rows = np.empty((n, out.shape[2]), np.float32)
    for j in range(out.shape[1]):
        for k in range(n):  # from the ring into order, so that all sums run along memory that is in the cache
            rows[k] = planes[(first + k) % n, j]
        for b in range(out.shape[0]):
            _weigh_rows(rows, (which[b, 0] - first) % n, weights[b], total)
            for i in range(out.shape[2]):
                # the conversion to an integer cuts off, so half a unit further from zero rounds
                away = total[i] + np.float32(0.5) if total[i] > 0 else total[i] - np.float32(0.5)
                out[b, j, i] = np.int16(min(max(away, np.float32(low)), np.float32(high)))
