"""Compiled loops over masks: block means, distances, and drawing a coarse mask at full resolution.

All arrays are (z, y, x). Single-threaded, no fast-math: the same input gives the same bytes everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import runs
from dskprep.kernels.compiled import compiled
from dskprep.volume import AIR_HU, PADDING

FAR = np.float32(np.inf)
"""Squared distance to a voxel that there is not."""
FACING_SIDE = 0.3
FACING_BACK = 0.8
"""Least part of a hull edge's normal that points to the side, or to the back."""


@compiled
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


@compiled
def block_means(array: NDArray[Any], block: tuple[int, int, int]) -> NDArray[Any]:
    """Mean HU of each block of voxels; blocks at the upper ends may be smaller.

    Values below AIR_HU count as AIR_HU, padding does not count; a block that is mostly padding becomes
    padding.
    """
    nz, ny, nx = array.shape
    bz, by, bx = block
    means = np.empty(((nz + bz - 1) // bz, (ny + by - 1) // by, (nx + bx - 1) // bx), np.int16)
    mx = means.shape[2]
    sums = np.empty(mx * bx, np.int32)  # all in 32 bits, so that many fit a register
    counts = np.empty(mx * bx, np.int32)
    totals = np.empty(mx, np.int32)
    measured = np.empty(mx, np.int32)
    sizes = np.empty(mx, np.int32)
    for k in range(means.shape[0]):
        for j in range(means.shape[1]):
            sums[:] = 0
            counts[:] = 0
            n_rows = 0
            for z in range(k * bz, min((k + 1) * bz, nz)):
                for y in range(j * by, min((j + 1) * by, ny)):
                    row = array[z, y]
                    n_rows += 1
                    for x in range(nx):
                        value = np.int32(row[x])
                        is_measured = np.int32(value != np.int32(PADDING))
                        sums[x] += max(value, np.int32(AIR_HU)) * is_measured
                        counts[x] += is_measured
            _fold(sums, bx, totals)
            _fold(counts, bx, measured)
            sizes[:] = n_rows * bx
            sizes[mx - 1] = n_rows * (nx - (mx - 1) * bx)
            out = means[k, j]
            for i in range(mx):  # single precision is exact: no sum of a block of 512 voxels is beyond 2**24
                mean = np.floor(np.float32(totals[i]) / np.float32(max(measured[i], np.int32(1))) + np.float32(0.5))
                out[i] = np.int16(mean) if 2 * measured[i] > sizes[i] else PADDING
    return means


@compiled
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


@compiled
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


@compiled
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


@compiled
def nearest_label(
    labels: NDArray[Any], where: runs.Runs, offsets: NDArray[Any], squared: NDArray[Any], out: NDArray[Any]
) -> None:
    """Put into `out` (z, y, x), in the runs `where`, the label, 1 or 2, of the nearest labelled voxel.

    `offsets` (n, 3) are the places that are looked at, nearest first, and `squared` their distances; of two
    labels as near, 1 is taken, and 0 if there is none.
    """
    nz, ny, nx = labels.shape
    for row in range(where.first.size - 1):
        z, y = row // ny, row % ny
        for run in range(where.first[row], where.first[row + 1]):
            for x in range(where.starts[run], where.stops[run]):
                nearest, limit = 0, math.inf
                for n in range(squared.size):
                    if squared[n] > limit:
                        break
                    k, j, i = z + offsets[n, 0], y + offsets[n, 1], x + offsets[n, 2]
                    if not (0 <= k < nz and 0 <= j < ny and 0 <= i < nx):
                        continue
                    label = labels[k, j, i]
                    if label == 1:
                        nearest = 1
                        break
                    if label == 2:
                        nearest, limit = 2, squared[n]
                out[z, y, x] = nearest


@compiled
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


@compiled
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


@compiled
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


@compiled
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


@compiled
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


@compiled
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
    begin, end = ox * bx, min((ox + mx) * bx, nx)
    # weights are whole numbers in floats, so that sums are exact and many fit a register
    along_x = np.empty((2, my, mx * bx), np.float32)  # coarse plane k lies at k % 2
    along_z = np.empty((my, mx * bx), np.float32)
    padded = np.empty(mx + 2, np.float32)
    strands = np.empty((bx, mx), np.float32)
    label_strands = np.empty((bx, mx), np.uint8)
    labels = np.empty(mx * bx, np.uint8)
    is_solid = np.empty(mx * bx, np.bool_)
    half = np.float32(4 * bz * by * bx)
    air, padding = np.int16(air_below), np.int16(PADDING)
    counts = np.zeros(3, np.int64)
    n_planes = 0
    for z in range(oz * bz, min((oz + mz) * bz, nz)):
        k0, k1, wz = _between(z, bz, oz, mz)
        while n_planes <= k1:
            for j in range(my):
                padded[0], padded[mx + 1] = solid[n_planes, j, 0], solid[n_planes, j, mx - 1]
                for i in range(mx):
                    padded[i + 1] = solid[n_planes, j, i]
                for b in range(bx):
                    weight = 2 * b + 1 - bx
                    low = 0 if weight < 0 else 1
                    _blend(padded[low:], padded[low + 1 :], np.float32(weight % (2 * bx)), bx, strands[b])
                _weave(strands, along_x[n_planes % 2, j])
            n_planes += 1
        for j in range(my):
            _blend(along_x[k0 % 2, j], along_x[k1 % 2, j], wz, bz, along_z[j])
        k = z // bz - oz
        for j in range(my):
            if not label[k, j].any():
                continue
            label_strands[:] = label[k, j]
            _weave(label_strands, labels)
            for y in range((oy + j) * by, min((oy + j + 1) * by, ny)):
                j0, j1, wy = _between(y, by, oy, my)
                upper, lower = along_z[j0], along_z[j1]
                rest = np.float32(2 * by) - wy
                for x in range(is_solid.size):
                    is_solid[x] = rest * upper[x] + wy * lower[x] >= half
                hu, out = array[z, y, begin:end], mask[z, y, begin:end]
                for x in range(out.size):
                    out[x] = labels[x] * (((hu[x] < air) & (hu[x] != padding)) | is_solid[x])
                for side in (1, 2):
                    n = np.int32(0)
                    for x in range(out.size):
                        n += np.int32(out[x] == side)
                    counts[side] += n
    counts[0] = mask.size - counts[1] - counts[2]
    return counts


@compiled
def _between(index: int, block: int, first: int, n_blocks: int) -> tuple[int, int, np.float32]:
    """The two blocks whose centres lie around a voxel, and the weight of the second, of 2 x `block` in all."""
    place = 2 * index + 1 - block - 2 * block * first
    low = place // (2 * block)
    weight = np.float32(place - 2 * block * low)
    return min(max(low, 0), n_blocks - 1), min(max(low + 1, 0), n_blocks - 1), weight


@compiled
def _blend(row: NDArray[Any], other: NDArray[Any], weight: np.float32, block: int, out: NDArray[Any]) -> None:
    """Add two float32 rows; the weights are `weight` for the other, and 2 x `block` in all."""
    rest = np.float32(2 * block) - weight
    for i in range(out.size):
        out[i] = rest * row[i] + weight * other[i]


@compiled
def _weave(strands: NDArray[Any], out: NDArray[Any]) -> None:
    """Put the first values of all strands into a row, then the second ones, and so on."""
    n, m = strands.shape
    if n == 2:  # most often so, and many at a time when it is a constant
        for i in range(m):
            out[2 * i] = strands[0, i]
            out[2 * i + 1] = strands[1, i]
        return
    for k in range(n):
        for i in range(m):
            out[n * i + k] = strands[k, i]


@compiled
def _fold(row: NDArray[Any], n: int, out: NDArray[Any]) -> None:
    """Sums of every `n` values of an int32 row, one after another."""
    if n == 2:
        for i in range(out.size):
            out[i] = row[2 * i] + row[2 * i + 1]
        return
    out[:] = 0
    for k in range(n):
        for i in range(out.size):
            out[i] += row[n * i + k]
