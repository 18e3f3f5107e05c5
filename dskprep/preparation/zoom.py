"""Zoom an array exactly where scipy.ndimage.zoom samples it: first and last voxels stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.kernels import planes
from dskprep.preparation.resample import Taps
from dskprep.volume import Volume

SPLINE_EDGE = 12
"""Samples by which scipy.ndimage.zoom continues the edge value before it fits a spline (mode nearest)."""
NEGLIGIBLE = 2e-7
"""Weights of a spline below this are left out: over the 4096 HU of CT, less than a thousandth of a HU each."""
LEAST_BLOCK = 8
"""Output planes that are summed together, at least: the inputs that they share are fetched once."""


def zoom(
    plane_of: Callable[[int], NDArray[Any]], z: Taps, y: Taps, x: Taps, dtype: type[np.int16] | type[np.uint8]
) -> NDArray[Any]:
    """Zoom a stack of planes (y, x); `plane_of(k)` is called once for each, in order.

    The result (z, y, x) is that of scipy.ndimage.zoom (mode nearest) on the whole stack, but for one unit
    where float32 sums round to another side than scipy's float64. The planes stream: of those in float, about
    twice as many are held as one output needs.
    """
    n_out = len(z.start)
    width = z.weights.shape[1]
    n_steps = int(z.start[-1] - z.start[0]) + 1
    n_block = max(LEAST_BLOCK, width * n_out // n_steps)  # as many outputs as begin within `width` inputs
    depth = width + max(int(z.start[min(b + n_block, n_out) - 1] - z.start[b]) for b in range(0, n_out, n_block))
    ring = np.empty((depth, len(y.start), len(x.start)), np.float32)
    out = np.empty((n_out, len(y.start), len(x.start)), dtype)
    n_read = int(z.start[0])  # a part of a stack may begin later
    for b in range(0, n_out, n_block):
        block = slice(b, min(b + n_block, n_out))
        which = z.start[block, None] + np.arange(width)
        for k in range(n_read, int(which[-1, -1]) + 1):
            planes.weigh_plane(plane_of(k), y.start, y.weights, x.start, x.weights, ring[k % depth])
        n_read = int(which[-1, -1]) + 1
        planes.zoom_planes(ring, which % depth, z.weights[block], out[block])
    return out


@lru_cache(maxsize=32)
def taps(n: int, n_out: int, order: int) -> Taps:
    """Return the taps by which scipy.ndimage.zoom makes `n_out` samples of `n` along an axis, splines of order 1 or 3.

    Output i lies at input i (n - 1) / (n_out - 1) (T10 in docs/recipes.md); beyond the ends the edge value continues.
    """
    place = np.arange(n_out, dtype=np.float64) * ((n - 1) / (n_out - 1) if n_out > 1 else 0.0)
    nearest = np.floor(place + 0.5).astype(np.int64)
    if order == 1:
        first = np.minimum(np.floor(place).astype(np.int64), max(0, n - 2))
        weights = np.stack([1 - (place - first), place - first], axis=1)[:, : min(2, n)]
        return Taps(first, weights.astype(np.float32), nearest)
    return _banded(_spline(place, n), nearest)


def _spline(place: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return the cubic spline through `n` samples as a matrix (outputs, inputs).

    A spline is linear in its samples, so its fit to each column of the identity gives the weights of one sample.
    """
    padded = np.pad(np.eye(n), ((SPLINE_EDGE, SPLINE_EDGE), (0, 0)), mode="edge")
    coefficients = ndimage.spline_filter1d(padded, 3, axis=0, mode="nearest")
    place = place + SPLINE_EDGE
    first = np.floor(place).astype(np.int64) - 1
    t = (place - first - 1)[:, None]
    # the four cubic B-splines that are not 0 at a place, times 6
    basis = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
    matrix: NDArray[np.float64] = sum(
        (b / 6 * coefficients[first + k] for k, b in enumerate(basis)), np.zeros((len(place), n))
    )
    return matrix


def _banded(matrix: NDArray[np.float64], nearest: NDArray[np.int64]) -> Taps:
    """Return the taps of a matrix (outputs, inputs): the part of each row that is not negligible."""
    n = matrix.shape[1]
    matters = np.abs(matrix) > NEGLIGIBLE
    first = np.minimum.accumulate(matters.argmax(axis=1)[::-1])[::-1]  # planes that stream do not come back
    width = int((n - matters[:, ::-1].argmax(axis=1) - first).max())
    first = np.minimum(first, n - width)
    weights = np.take_along_axis(matrix, first[:, None] + np.arange(width), axis=1)
    return Taps(first, weights.astype(np.float32), nearest)


def zoomed_affine(volume: Volume, shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the affine on which a zoom to `shape` truly lies: the step along an axis is s (n - 1) / (n_out - 1)."""
    affine = volume.affine.copy()
    for axis, (n, n_out) in enumerate(zip(volume.shape, shape, strict=True)):
        affine[:3, axis] *= (n - 1) / (n_out - 1) if n_out > 1 and n > 1 else 1.0
    return affine
