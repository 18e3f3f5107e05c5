"""Compiled loops that find the nearer of two labels by Euclidean distances in mm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.bits import TOLERANCE
from dskprep.kernels.compiled import compiled
from dskprep.kernels.runs import Runs, rows_of

FAR = np.float32(np.inf)
"""Squared distance to a label that is not there."""


def find_nearest_label(
    labels: NDArray[Any], where: Runs, offsets: NDArray[Any], squared: NDArray[Any], out: NDArray[Any]
) -> None:
    """Write the label, 1 or 2, of the nearest labelled voxel into `out` (z, y, x), in the runs `where`.

    `offsets` (n, 3) are the places to look at, nearest first, and `squared` (n) their squared distances. A tie goes
    to label 1; where there is no label, 0 is written.
    """
    reach = np.abs(offsets).max(axis=0)  # with nothing round the labels, no place needs a look at the edges
    padded = np.pad(labels, [(n, n) for n in reach.tolist()])
    rows, strides = rows_of(where), np.array(padded.strides)
    z, y = np.divmod(rows, labels.shape[1])
    begins = (np.stack([z, y, where.starts], axis=1) + reach) @ strides
    ends_out = rows * labels.shape[2] + where.stops
    lengths = where.stops - where.starts
    _find_nearest_label(padded.ravel(), begins, ends_out - lengths, lengths, offsets @ strides, squared, out.ravel())


@compiled
def _find_nearest_label(
    labels: NDArray[Any],
    begins: NDArray[Any],
    begins_out: NDArray[Any],
    lengths: NDArray[Any],
    places: NDArray[Any],
    squared: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the labels. All voxels lie in a row: runs by where they begin, and places by how far they are off."""
    for run in range(lengths.size):
        for x in range(lengths[run]):
            nearest, limit = 0, math.inf
            for n in range(squared.size):
                if squared[n] > limit:
                    break
                label = labels[begins[run] + x + places[n]]
                if label == 1:
                    nearest = 1
                    break
                if label == 2:
                    nearest, limit = 2, squared[n]  # a 1 that is as near may follow
            out[begins_out[run] + x] = nearest


@compiled
def find_nearer_label(labels: NDArray[Any], limit_mm: float, spacing: tuple[float, float, float]) -> NDArray[Any]:
    """Return the nearer of the labels 1 and 2 (uint8) for each voxel that has both within `limit_mm`; a tie goes to 1.

    Elsewhere the result means nothing. Squared distances are sums over the axes, so they are found one axis after the
    other: along x by two sweeps, then along y and z as the least sum over all lines within reach, which is quick
    because limits are a few voxels. Planes stream through a ring, so that little is held beyond the result.
    """
    nz, ny, nx = labels.shape
    limit_mm *= TOLERANCE
    reach_z = min(int(limit_mm / spacing[0]), nz)
    depth = 2 * reach_z + 1  # planes that one output plane needs
    ring = np.empty((2, depth, ny, nx), np.float32)  # plane z lies at z % depth: a new one replaces the oldest
    row_has_any = np.zeros((2, depth, ny), np.bool_)
    nearest = np.empty((2, nx), np.float32)
    nearer = np.empty(labels.shape, np.uint8)
    for newest in range(nz + reach_z):
        slot = newest % depth
        if newest < nz:
            for label in range(2):
                _distance_in_plane(
                    labels[newest], label + 1, limit_mm, spacing, ring[label, slot], row_has_any[label, slot]
                )
        z = newest - reach_z  # the plane whose neighbourhood has just become whole
        if z < 0:
            continue
        for y in range(ny):
            nearest[:] = FAR
            for label in range(2):
                for other in range(max(0, z - reach_z), min(nz, z + reach_z + 1)):
                    slot = other % depth
                    if row_has_any[label, slot, y]:
                        offset = np.float32(((other - z) * spacing[0]) ** 2)
                        for x in range(nx):
                            value = ring[label, slot, y, x] + offset
                            # no min() and no branch: the compiler takes the lesser of many at a time
                            nearest[label, x] = value if value < nearest[label, x] else nearest[label, x]
            for x in range(nx):
                nearer[z, y, x] = 2 if nearest[1, x] < nearest[0, x] else 1
    return nearer


@compiled
def _distance_in_plane(
    labels: NDArray[Any],
    label: int,
    limit_mm: float,
    spacing: tuple[float, float, float],
    out: NDArray[Any],
    row_has_any: NDArray[Any],
) -> None:
    """Write the squared distance (mm2) in the plane (y, x) to the nearest voxel of `label` into float32 `out`.

    Only rows within the limit of a row with such a voxel are written: bool `row_has_any` (y) is set for those.
    """
    ny, nx = labels.shape
    along_x = np.empty((ny, nx), np.float32)
    is_row_labelled = np.zeros(ny, np.bool_)
    for y in range(ny):
        is_row_labelled[y] = _distance_in_row(labels[y], label, spacing[2], along_x[y])
    reach = int(limit_mm / spacing[1])
    for y in range(ny):
        row_has_any[y] = False
        for other in range(max(0, y - reach), min(ny, y + reach + 1)):
            if is_row_labelled[other]:
                if not row_has_any[y]:
                    row_has_any[y] = True
                    out[y] = FAR
                offset = np.float32(((other - y) * spacing[1]) ** 2)
                for x in range(nx):
                    value = along_x[other, x] + offset
                    out[y, x] = value if value < out[y, x] else out[y, x]


@compiled
def _distance_in_row(labels: NDArray[Any], label: int, spacing: float, out: NDArray[Any]) -> bool:
    """Write the squared distance (mm2) along a row to the nearest voxel of `label`; return whether there is one."""
    steps = np.empty(labels.size, np.int32)
    n = np.int32(labels.size)  # steps since the last one; none so far
    for x in range(labels.size):
        n = np.int32(0) if labels[x] == label else n + np.int32(1)
        steps[x] = n
    if n >= labels.size:
        return False
    for x in range(labels.size - 1, -1, -1):  # and back: the nearer of the last and the next one
        n = min(steps[x], n + np.int32(1))
        steps[x] = n
    scale = np.float32(spacing)
    for x in range(labels.size):
        out[x] = (np.float32(steps[x]) * scale) * (np.float32(steps[x]) * scale)
    return True


@compiled
def find_nearer_seed(seeds: NDArray[Any], spacing: tuple[float, float, float]) -> NDArray[Any]:
    """Return the nearer of the seeds 1 and 2 for each voxel (z, y, x) of uint8 `seeds`, and 0 where both are as near.

    Without a limit, so neighbours cannot be tried one by one: exact distances are found one axis after the other by
    lower envelopes of parabolas (Felzenszwalb and Huttenlocher 2012, Theory of Computing 8:415).
    """
    nz, ny, nx = seeds.shape
    squared = np.empty((2, nz, ny, nx), np.float32)
    longest = max(nz, ny) + 1
    line = np.empty(longest)
    places = np.empty(longest, np.int64)
    bounds = np.empty(longest + 1)
    block = np.empty((nx, longest))  # lines along y or z, gathered so that each lies along memory
    for seed in range(2):
        for z in range(nz):
            for y in range(ny):
                _row_distance(seeds[z, y], seed + 1, spacing[2], squared[seed, z, y])
            block[:, :ny] = squared[seed, z].T
            for x in range(nx):
                _lower_envelope(block[x, :ny], spacing[1], line, places, bounds)
            squared[seed, z] = block[:, :ny].T
        for y in range(ny):
            block[:, :nz] = squared[seed, :, y].T
            for x in range(nx):
                _lower_envelope(block[x, :nz], spacing[0], line, places, bounds)
            squared[seed, :, y] = block[:, :nz].T
    nearer = np.empty(seeds.shape, np.uint8)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                first, second = squared[0, z, y, x], squared[1, z, y, x]
                nearer[z, y, x] = 1 if first < second else (2 if second < first else 0)
    return nearer


@compiled
def _row_distance(row: NDArray[Any], seed: int, spacing: float, out: NDArray[Any]) -> None:
    """Write the squared distance (mm2) along a row to its nearest `seed`."""
    steps = math.inf
    for x in range(row.size):
        steps = 0.0 if row[x] == seed else steps + 1
        out[x] = steps
    steps = math.inf
    for x in range(row.size - 1, -1, -1):
        steps = min(steps + 1, float(out[x]))
        out[x] = (steps * spacing) ** 2


@compiled
def _lower_envelope(
    values: NDArray[Any], spacing: float, heights: NDArray[Any], places: NDArray[Any], bounds: NDArray[Any]
) -> None:
    """Replace each value by the least of values[k] + (distance to k)^2, in place.

    Each value is the lowest point of a parabola. The n parabolas that form the envelope are kept from left to right:
    `places` and `heights` of their lowest points, and `bounds`, from where on each is the lowest. All three are
    scratch, allocated by the caller.
    """
    n = 0
    for q in range(values.size):
        if values[q] == math.inf:
            continue
        at = -math.inf
        while n > 0:
            p = places[n - 1]
            # where the new parabola falls below the last one; if that is before the last one's own bound, it goes
            at = ((values[q] - heights[n - 1]) / (spacing * spacing) + (q * q - p * p)) / (2 * (q - p))
            if at > bounds[n - 1]:
                break
            n -= 1
            at = -math.inf
        places[n], heights[n], bounds[n] = q, values[q], at
        n += 1
    if n == 0:
        return
    k = 0
    for q in range(values.size):
        while k + 1 < n and bounds[k + 1] < q:
            k += 1
        values[q] = heights[k] + ((q - places[k]) * spacing) ** 2
