"""Compiled loops over one plane of a volume: rescaling, padding, and separable weighted sums.

No fast-math: every sum has one order, so the same input gives the same bytes on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dskprep.volume import PADDING


@njit(cache=True, nogil=True)
def rescale(stored: NDArray[Any], slope: float, intercept: float, low: int, high: int, out: NDArray[Any]) -> None:
    """stored * slope + intercept, rounded to the nearest and clipped, into int16 `out`; both (y, x)."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            value = np.rint(stored[y, x] * slope + intercept)
            out[y, x] = np.int16(min(max(value, np.float64(low)), np.float64(high)))


@njit(cache=True, nogil=True)
def mark_padding(plane: NDArray[Any], low: int, high: int) -> None:
    """Set the values of int16 `plane` (y, x) from `low` to `high` to PADDING."""
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            value = plane[y, x]
            plane[y, x] = PADDING if low <= value <= high else value


@njit(cache=True, nogil=True)
def mark_padding_from_edges(plane: NDArray[Any], low: int, high: int) -> None:
    """The same, but only in the unbroken runs at both ends of each row; PADDING does not break a run."""
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


@njit(cache=True, nogil=True)
def fill_padding_from_row(plane: NDArray[Any], filled: NDArray[Any]) -> int:
    """Copy int16 `plane` (y, x) into `filled`, each padding pixel replaced by the nearest value.

    Nearest in its row, or, for a row of padding only, in the nearest row that has values. Returns the
    number of padding pixels; if all are, `filled` is a copy.
    """
    ny, nx = plane.shape
    row_has_values = np.zeros(ny, np.bool_)
    n_padding = 0
    for y in range(ny):
        left = -1  # last column with a value
        for x in range(nx):
            if plane[y, x] == PADDING:
                n_padding += 1
                continue
            for gap in range(left + 1, x):
                is_nearer_left = left >= 0 and gap - left <= x - gap
                filled[y, gap] = plane[y, left] if is_nearer_left else plane[y, x]
            filled[y, x] = plane[y, x]
            left = x
        for gap in range(left + 1, nx):
            filled[y, gap] = plane[y, left] if left >= 0 else PADDING
        row_has_values[y] = left >= 0
    if n_padding == 0 or n_padding == ny * nx:
        return n_padding
    for y in range(ny):
        if row_has_values[y]:
            continue
        for step in range(1, ny):
            if y - step >= 0 and row_has_values[y - step]:
                filled[y] = filled[y - step]
                break
            if y + step < ny and row_has_values[y + step]:
                filled[y] = filled[y + step]
                break
    return n_padding


@njit(cache=True, nogil=True)
def weigh_plane(
    plane: NDArray[Any],
    start_y: NDArray[Any],
    weight_y: NDArray[Any],
    start_x: NDArray[Any],
    weight_x: NDArray[Any],
    row: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Weighted sums of `plane` (y, x) along y, then x, into float32 `out`; `row` is scratch."""
    nx = plane.shape[1]
    for j in range(out.shape[0]):
        first = start_y[j]
        for x in range(nx):
            row[x] = weight_y[j, 0] * np.float32(plane[first, x])
        for k in range(1, weight_y.shape[1]):
            weight = weight_y[j, k]
            if weight != 0:
                for x in range(nx):
                    row[x] += weight * np.float32(plane[first + k, x])
        for i in range(out.shape[1]):
            total = np.float32(0)
            for k in range(weight_x.shape[1]):
                total += weight_x[i, k] * row[start_x[i] + k]
            out[j, i] = total


@njit(cache=True, nogil=True)
def sample_padding(plane: NDArray[Any], nearest_y: NDArray[Any], nearest_x: NDArray[Any], out: NDArray[Any]) -> None:
    """Whether the nearest pixel of `plane` is padding, into bool `out`."""
    for j in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[j, i] = plane[nearest_y[j], nearest_x[i]] == PADDING


@njit(cache=True, nogil=True)
def weigh_planes(
    planes: NDArray[Any], which: NDArray[Any], weights: NDArray[Any], is_padding: NDArray[Any], out: NDArray[Any]
) -> None:
    """Weighted sum of float32 `planes[which]`, rounded half up to int16 `out`; padding stays padding."""
    for j in range(out.shape[0]):
        for i in range(out.shape[1]):
            total = np.float32(0)
            for k in range(which.size):
                total += weights[k] * planes[which[k], j, i]
            total = np.floor(total + np.float32(0.5))
            total = min(max(total, np.float32(-32767)), np.float32(32767))
            out[j, i] = PADDING if is_padding[j, i] else np.int16(total)
