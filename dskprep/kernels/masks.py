"""Compiled loops over masks: block means, distances, and drawing a coarse mask at full resolution.

All arrays are (z, y, x). Single-threaded, no fast-math: the same input gives the same bytes everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dskprep.kernels import runs
from dskprep.volume import AIR_HU, PADDING

FAR = np.float32(np.inf)
"""Squared distance to a voxel that there is not."""
FACING_SIDE = 0.3
FACING_BACK = 0.8
"""Least part of a hull edge's normal that points to the side, or to the back."""


@njit(cache=True, nogil=True)
def sum_inside(array: NDArray[Any], mask: NDArray[Any]) -> tuple[int, int]:
    """Sum and number of the voxels of an integer array where the mask is not 0; both (z, y, x)."""
    total, n = 0, 0
    for z in range(array.shape[0]):
        for y in range(array.shape[1]):
            for x in range(array.shape[2]):
                if mask[z, y, x]:
                    total += array[z, y, x]
                    n += 1
    return total, n


@njit(cache=True, nogil=True)
def block_means(array: NDArray[Any], block: tuple[int, int, int]) -> NDArray[Any]:
    """Mean HU of each block of voxels; blocks at the upper ends may be smaller.

    Values below AIR_HU count as AIR_HU, padding does not count; a block that is mostly padding becomes
    padding.
    """
    nz, ny, nx = array.shape
    bz, by, bx = block
    means = np.empty(((nz + bz - 1) // bz, (ny + by - 1) // by, (nx + bx - 1) // bx), np.int16)
    sums = np.empty(nx, np.int32)
    counts = np.empty(nx, np.int32)
    for k in range(means.shape[0]):
        for j in range(means.shape[1]):
            sums[:] = 0
            counts[:] = 0
            n_rows = 0
            for z in range(k * bz, min((k + 1) * bz, nz)):
                for y in range(j * by, min((j + 1) * by, ny)):
                    n_rows += 1
                    for x in range(nx):  # all in 32 bits, so that many fit a register
                        value = np.int32(array[z, y, x])
                        is_measured = np.int32(value != np.int32(PADDING))
                        sums[x] += max(value, np.int32(AIR_HU)) * is_measured
                        counts[x] += is_measured
            for i in range(means.shape[2]):
                end = min((i + 1) * bx, nx)
                total, count = 0, 0
                for x in range(i * bx, end):
                    total += sums[x]
                    count += counts[x]
                is_measured = 2 * count > n_rows * (end - i * bx)
                means[k, j, i] = np.int16(math.floor(total / count + 0.5)) if is_measured else PADDING
    return means


@njit(cache=True, nogil=True)
def components(mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Label the pieces of a bool mask that are connected through faces.

    Returns labels (int32, 1 onwards in the order of their first voxels, 0 outside) and the number of
    voxels of each label. The same labels as scipy.ndimage.label, found by joining runs of voxels.
    """
    nz, ny = mask.shape[:2]
    found = runs.of_mask(mask)
    pieces = runs.label(found, ny, runs.FACES)
    labels = np.zeros(mask.shape, np.int32)
    names = np.zeros(pieces.size, np.int32)
    sizes = np.zeros(pieces.size + 1, np.int64)
    n = 0
    for row in range(nz * ny):
        line = labels[row // ny, row % ny]
        for run in range(found.first[row], found.first[row + 1]):
            piece = pieces[run]
            if piece == run:
                n += 1
                names[run] = n
            line[found.starts[run] : found.stops[run]] = names[piece]
            sizes[names[piece]] += found.stops[run] - found.starts[run]
    sizes[0] = mask.size - sizes.sum()
    return labels, sizes[: n + 1]


@njit(cache=True, nogil=True)
def connected(mask: NDArray[Any], seeds: NDArray[Any]) -> NDArray[Any]:
    """The pieces of a bool mask, connected through faces, that hold a voxel of the bool mask `seeds`."""
    ny = mask.shape[1]
    found = runs.of_mask(mask)
    pieces = runs.label(found, ny, runs.FACES)
    is_held = np.zeros(pieces.size, np.bool_)
    for row in range(found.first.size - 1):
        line = seeds[row // ny, row % ny]
        for run in range(found.first[row], found.first[row + 1]):
            if not is_held[pieces[run]]:
                is_held[pieces[run]] = line[found.starts[run] : found.stops[run]].any()
    kept = np.zeros(mask.shape, np.bool_)
    runs.paint(runs.where(found, is_held[pieces]), 1, kept)
    return kept


@njit(cache=True, nogil=True)
def fill_holes(mask: NDArray[Any], max_voxels: float) -> None:
    """Fill, in place, the holes of each axial slice of a bool mask that are smaller than `max_voxels`.

    A hole is a piece of the rest, connected through edges of pixels, that does not reach a side.
    """
    nz, ny, nx = mask.shape
    rest = np.zeros((1, nz * (ny + 1), nx), np.bool_)  # all slices in one plane, an empty row between
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                rest[0, z * (ny + 1) + y, x] = not mask[z, y, x]
    found = runs.of_mask(rest)
    pieces = runs.label(found, nz * (ny + 1), runs.FACES)
    sizes = runs.sizes(found, pieces)
    is_hole = sizes < max_voxels
    for row in range(nz * (ny + 1)):
        is_side = row % (ny + 1) == 0 or row % (ny + 1) == ny - 1
        for run in range(found.first[row], found.first[row + 1]):
            if is_side or found.starts[run] == 0 or found.stops[run] == nx:
                is_hole[pieces[run]] = False
    for row in range(nz * (ny + 1)):
        for run in range(found.first[row], found.first[row + 1]):
            if is_hole[pieces[run]]:
                mask[row // (ny + 1), row % (ny + 1), found.starts[run] : found.stops[run]] = True


@njit(cache=True, nogil=True)
def count_where(labels: NDArray[Any], n_labels: int, mask: NDArray[Any]) -> NDArray[Any]:
    """Number of voxels of each label, from 0 on, inside a bool mask."""
    counts = np.zeros(n_labels, np.int64)
    last, n = 0, 0  # a label's voxels mostly follow one another
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                label = labels[z, y, x]
                if label != last:
                    counts[last] += n
                    last, n = label, 0
                n += mask[z, y, x]
    counts[last] += n
    return counts


@njit(cache=True, nogil=True)
def chosen(labels: NDArray[Any], is_chosen: NDArray[Any]) -> NDArray[Any]:
    """A bool mask of the voxels whose label, from 0 on, is chosen."""
    mask = np.empty(labels.shape, np.bool_)
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                mask[z, y, x] = is_chosen[labels[z, y, x]]
    return mask


@njit(cache=True, nogil=True)
def counts_along(mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """How many voxels of each plane across z, y and x are not 0."""
    nz, ny, nx = mask.shape
    along_z, along_y, along_x = np.zeros(nz, np.int64), np.zeros(ny, np.int64), np.zeros(nx, np.int32)
    for z in range(nz):
        for y in range(ny):
            n = np.int32(0)
            for x in range(nx):
                is_there = np.int32(mask[z, y, x] != 0)
                n += is_there
                along_x[x] += is_there
            along_z[z] += n
            along_y[y] += n
    return along_z, along_y, along_x


@njit(cache=True, nogil=True)
def median_inside(values: NDArray[Any], mask: NDArray[Any]) -> float:
    """Median of int16 values where a bool mask is; the mean of the two middle ones of an even number, 0.0 of none."""
    counts = np.zeros(1 << 16, np.int64)
    n = 0
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            for x in range(values.shape[2]):
                if mask[z, y, x]:
                    counts[np.int64(values[z, y, x]) + 32768] += 1
                    n += 1
    if n == 0:
        return 0.0
    total, lower = 0, -1
    for k in range(counts.size):
        total += counts[k]
        if lower < 0 and total > (n - 1) // 2:
            lower = k
        if total > n // 2:
            return (lower + k) / 2 - 32768
    return 0.0


@njit(cache=True, nogil=True)
def grow(labels: NDArray[Any], limit_mm: float, spacing: tuple[float, float, float]) -> NDArray[Any]:
    """Give each voxel the label (uint8, 1 or 2) of the nearest labelled voxel within `limit_mm`, else 0.

    Distances are Euclidean, from centre to centre; a tie goes to 1. Found one axis after the other: along
    x by two sweeps, then along y and z as the least sum over the lines within reach, which is quick
    because limits are a few voxels. Planes stream through a ring, so little is held beyond the result.
    """
    nz, ny, nx = labels.shape
    limit_mm *= 1 + 1e-6  # a voxel exactly at the limit is within it
    limit = np.float32(limit_mm * limit_mm)
    reach_z = min(int(limit_mm / spacing[0]), nz)
    n_labels = 2 if (labels == 2).any() else 1
    depth = 2 * reach_z + 1
    ring = np.empty((n_labels, depth, ny, nx), np.float32)  # plane z lies at z % depth
    row_has_any = np.zeros((n_labels, depth, ny), np.bool_)
    nearest = np.empty((n_labels, nx), np.float32)
    grown = np.zeros(labels.shape, np.uint8)
    for newest in range(nz + reach_z):
        for label in range(n_labels):
            slot = newest % depth
            if newest < nz:
                _distance_in_plane(
                    labels[newest], label + 1, limit_mm, spacing, ring[label, slot], row_has_any[label, slot]
                )
        z = newest - reach_z
        if z < 0:
            continue
        for y in range(ny):
            nearest[:] = FAR
            for label in range(n_labels):
                for other in range(max(0, z - reach_z), min(nz, z + reach_z + 1)):
                    slot = other % depth
                    if row_has_any[label, slot, y]:
                        offset = np.float32(((other - z) * spacing[0]) ** 2)
                        for x in range(nx):
                            value = ring[label, slot, y, x] + offset
                            nearest[label, x] = value if value < nearest[label, x] else nearest[label, x]
            row = grown[z, y]
            for x in range(nx):
                row[x] = nearest[0, x] <= limit
            if n_labels == 2:
                for x in range(nx):
                    is_second = nearest[1, x] <= limit and nearest[1, x] < nearest[0, x]
                    row[x] = 2 if is_second else row[x]
    return grown


@njit(cache=True, nogil=True)
def _distance_in_plane(
    labels: NDArray[Any],
    label: int,
    limit_mm: float,
    spacing: tuple[float, float, float],
    out: NDArray[Any],
    row_has_any: NDArray[Any],
) -> None:
    """Squared distance (mm2) in the plane (y, x) to the nearest voxel of `label`, into float32 `out`.

    `row_has_any` says which rows of `out` lie within the limit of a row with such a voxel; the others
    are not written.
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


@njit(cache=True, nogil=True)
def _distance_in_row(labels: NDArray[Any], label: int, spacing: float, out: NDArray[Any]) -> bool:
    """Squared distance (mm2) along a row to the nearest voxel of `label`; whether there is any."""
    steps = np.empty(labels.size, np.int32)
    n = np.int32(labels.size)  # none so far
    for x in range(labels.size):
        n = np.int32(0) if labels[x] == label else n + np.int32(1)
        steps[x] = n
    if n >= labels.size:
        return False
    for x in range(labels.size - 1, -1, -1):
        n = min(steps[x], n + np.int32(1))
        steps[x] = n
    scale = np.float32(spacing)
    for x in range(labels.size):
        out[x] = (np.float32(steps[x]) * scale) * (np.float32(steps[x]) * scale)
    return True


@njit(cache=True, nogil=True)
def fill_wall_dents(
    mask: NDArray[Any],
    lateral: int,
    spacing: tuple[float, float, float],
    max_width_mm: float,
    min_depth_mm: float,
    max_depth_mm: float,
) -> None:
    """Fill, in place, the dents of bool `mask` that open to the side or to the back.

    In each axial slice, an edge of the convex hull spans each dent. Edges longer than `max_width_mm` and
    those that face the front or the middle are left alone; `lateral` is the sign of x that leads away
    from the middle. A dent is filled if it is somewhere `min_depth_mm` deep and nowhere more than
    `max_depth_mm`.
    """
    nz, ny, nx = mask.shape
    sy, sx = spacing[1], spacing[2]
    step = 0.5 * min(sy, sx)
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
            out_y, out_x = (x0 - x1) / width, (y1 - y0) / width  # outward normal
            if out_x * lateral < FACING_SIDE and out_y < FACING_BACK:
                continue
            along_y, along_x = (y1 - y0) / width, (x1 - x0) / width
            deepest = 0.0
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


@njit(cache=True, nogil=True)
def _hull(plane: NDArray[Any], hull: NDArray[Any]) -> int:
    """Corners (y, x) of the convex hull of a bool plane into `hull`, and their number.

    Andrew's monotone chain over the first and last voxel of each row: up the rows along the largest x,
    then down along the smallest.
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
        start = n
        for row in range(ny):
            y = ny - 1 - row if is_down else row
            x = first[y] if is_down else last[y]
            if x < 0:
                continue
            while n - start >= 2:
                ay, ax = hull[n - 1, 0] - hull[n - 2, 0], hull[n - 1, 1] - hull[n - 2, 1]
                by, bx = y - hull[n - 2, 0], x - hull[n - 2, 1]
                if ay * bx - ax * by < 0:  # a right turn stays
                    break
                n -= 1
            hull[n, 0], hull[n, 1] = y, x
            n += 1
    return n


@njit(cache=True, nogil=True)
def draw(
    array: NDArray[Any],
    air_below: int,
    label: NDArray[Any],
    solid: NDArray[Any],
    block: tuple[int, int, int],
    first: tuple[int, int, int],
    mask: NDArray[Any],
) -> NDArray[Any]:
    """Draw a coarse mask at full resolution into uint8 `mask`, all 0 before; count the voxels per label.

    Coarse voxel (0, 0, 0) of uint8 `label` and bool `solid` is block `first` of the volume. A voxel takes
    the label of its block if it is air (HU below `air_below`), or if `solid`, interpolated linearly
    between the centres of blocks, is one half or more there.
    """
    nz, ny, nx = array.shape
    bz, by, bx = block
    oz, oy, ox = first
    mz, my, mx = label.shape
    weights = np.empty(mx, np.float32)
    before = np.empty(nx, np.int64)  # for each column: the two blocks round it, and the weight of the second
    after = np.empty(nx, np.int64)
    share = np.empty(nx, np.float32)
    for x in range(nx):
        before[x], after[x], share[x] = _between(x, bx, ox, mx)
    counts = np.zeros(3, np.int64)
    for z in range(oz * bz, min((oz + mz) * bz, nz)):
        k = z // bz - oz
        k0, k1, wk = _between(z, bz, oz, mz)
        for y in range(oy * by, min((oy + my) * by, ny)):
            j = y // by - oy
            labels = label[k, j]
            if not labels.any():
                continue
            j0, j1, wj = _between(y, by, oy, my)
            for i in range(mx):
                upper = (1 - wj) * solid[k0, j0, i] + wj * solid[k0, j1, i]
                lower = (1 - wj) * solid[k1, j0, i] + wj * solid[k1, j1, i]
                weights[i] = (1 - wk) * upper + wk * lower
            for i in range(mx):
                if labels[i] == 0:
                    continue
                for x in range((ox + i) * bx, min((ox + i + 1) * bx, nx)):
                    hu = array[z, y, x]
                    is_in = hu < air_below and hu != PADDING
                    if not is_in:
                        is_in = (1 - share[x]) * weights[before[x]] + share[x] * weights[after[x]] >= 0.5
                    if is_in:
                        mask[z, y, x] = labels[i]
                        counts[labels[i]] += 1
    counts[0] = mask.size - counts[1] - counts[2]
    return counts


@njit(cache=True, nogil=True)
def _between(index: int, block: int, first: int, n_blocks: int) -> tuple[int, int, np.float32]:
    """The two blocks whose centres lie around a voxel, and the weight of the second."""
    place = (index + 0.5) / block - 0.5 - first
    low = math.floor(place)
    weight = np.float32(place - low)
    return min(max(low, 0), n_blocks - 1), min(max(low + 1, 0), n_blocks - 1), weight
