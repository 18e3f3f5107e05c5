"""Compiled loops that only the recipe grt123 needs, on runs of voxels and on bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import bits, components, runs
from dskprep.kernels.bits import ONE
from dskprep.kernels.compiled import compiled
from dskprep.kernels.hulls import find_hull
from dskprep.kernels.runs import Runs

PATCH = 10
"""Edge, in pixels, of the corner block that the recipe looks at: one value in it means a round field of view."""


def smooth_air(array: NDArray[Any], limit: float, weights: NDArray[Any], valid: NDArray[Any]) -> Runs:
    """Return the runs where int16 HU (z, y, x), smoothed in each slice, are below `limit`.

    float32 `weights` (3) are those of five symmetric taps, the middle one first; the edge is mirrored. Where the
    corner block of a slice holds one value, only the columns valid[y, 0] to valid[y, 1] of each row count.
    """
    nz, ny, nx = array.shape
    is_air = np.zeros((nz, ny, (nx + 63) // 64), np.uint64)
    _smooth_air(array, limit, weights, valid, is_air)
    return runs.of_bits(is_air, nx)


@compiled
def _smooth_air(
    array: NDArray[Any], limit: float, weights: NDArray[Any], valid: NDArray[Any], is_air: NDArray[Any]
) -> None:
    """Set the bits of `is_air`, all 0 before."""
    nz, ny, nx = array.shape
    along_y = np.empty(nx + 4, np.float32)  # with two mirrored values at either end
    smooth = np.empty(nx, np.float32)
    w0, w1, w2 = weights
    below = np.float32(limit)
    for z in range(nz):
        plane = array[z]
        is_round = True
        for y in range(min(PATCH, ny)):
            for x in range(min(PATCH, nx)):
                is_round = is_round and plane[y, x] == plane[0, 0]
        for y in range(ny):
            row = plane[y]
            up, down = plane[_mirror(y - 1, ny)], plane[_mirror(y + 1, ny)]
            up2, down2 = plane[_mirror(y - 2, ny)], plane[_mirror(y + 2, ny)]
            for x in range(nx):
                near = np.float32(up[x]) + np.float32(down[x])
                far = np.float32(up2[x]) + np.float32(down2[x])
                along_y[x + 2] = w0 * np.float32(row[x]) + w1 * near + w2 * far
            for k in (-2, -1, nx, nx + 1):
                along_y[k + 2] = along_y[_mirror(k, nx) + 2]
            for x in range(nx):
                near = along_y[x + 1] + along_y[x + 3]
                smooth[x] = w0 * along_y[x + 2] + w1 * near + w2 * (along_y[x] + along_y[x + 4])
            begin, end = (valid[y, 0], valid[y, 1]) if is_round else (0, nx)
            for x in range(begin, end):
                is_air[z, y, x >> 6] |= np.uint64(smooth[x] < below) << np.uint64(x & 63)


@compiled
def _mirror(k: int, n: int) -> int:
    """Return the index of the sample that stands for one beyond the edge: -1 is 0, -2 is 1 (scipy's mode reflect)."""
    if k < 0:
        return min(-1 - k, n - 1)
    return max(2 * n - 1 - k, 0) if k >= n else k


@compiled
def eccentricities(found: Runs, pieces: NDArray[Any], ny: int) -> NDArray[Any]:
    """Return the eccentricity of each piece of a slice at its first run: that of the ellipse with its second moments.

    As skimage.measure.regionprops gives it, in pixels.
    """
    moments = np.zeros((pieces.size, 6))  # n, x, y, xx, yy, xy
    for row in range(found.first.size - 1):
        y = row % ny
        for run in range(found.first[row], found.first[row + 1]):
            a, b = float(found.starts[run]), float(found.stops[run])
            # sums of x and of x^2 over a <= x < b: a run of any length costs the same
            sum_x = (a + b - 1) * (b - a) / 2
            sum_xx = (b - 1) * b * (2 * b - 1) / 6 - (a - 1) * a * (2 * a - 1) / 6
            piece = moments[pieces[run]]
            piece[0] += b - a
            piece[1] += sum_x
            piece[2] += y * (b - a)
            piece[3] += sum_xx
            piece[4] += y * y * (b - a)
            piece[5] += y * sum_x
    result = np.zeros(pieces.size)
    for run in range(pieces.size):
        if pieces[run] == run:
            n, x, y, xx, yy, xy = moments[run]
            var_x, var_y, cov = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2, xy / n - x * y / n / n
            mean = (var_x + var_y) / 2
            # eigenvalues of the matrix of second moments: squared axes of the ellipse, but for a factor
            half = math.sqrt(((var_x - var_y) / 2) ** 2 + cov * cov)
            large, small = mean + half, max(mean - half, 0.0)
            result[run] = math.sqrt(max(1 - small / large, 0.0)) if large > 0 else 0.0
    return result


@compiled
def slice_profiles(
    found: Runs, pieces: NDArray[Any], names: NDArray[Any], n_names: int, shape: tuple[int, int, int], pixel: Any
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the voxels per slice and the least distance (mm) to the slice's centre of each named piece.

    Both are (names, z). `names` (pieces) are from 0 on, and -1 for pieces that do not count. `pixel` is the distance
    (mm) between (rows, columns), taken the wrong way round as in the recipe, which takes slices for square.
    """
    nz, ny, nx = shape
    counts = np.zeros((n_names, nz), np.int64)
    distances = np.full((n_names, nz), np.inf)
    middle_y, middle_x = (ny - 1) / 2, (nx - 1) / 2
    for row in range(nz * ny):
        z, y = row // ny, row % ny
        for run in range(found.first[row], found.first[row + 1]):
            name = names[pieces[run]]
            if name < 0:
                continue
            start, last = found.starts[run], found.stops[run] - 1
            counts[name, z] += last + 1 - start
            # of a run, the pixel nearest to the middle column; the left one of an even number
            x = float(min(max(math.floor(middle_x), start), last))
            distance = math.sqrt(((x - middle_x) * pixel[0]) ** 2 + ((y - middle_y) * pixel[1]) ** 2)
            distances[name, z] = min(distances[name, z], distance)
    return counts, distances


def main_parts(found: Runs, pieces: NDArray[Any], shape: tuple[int, int, int], share: float) -> Runs:
    """Return, of each slice, what lies in the convex hulls of its largest pieces, which hold `share` of its area.

    `pieces` are those of single slices. Small pieces near the large ones stay, those further off go.
    """
    remaining = runs.to_bits(found, shape)
    _keep_main_parts(found, pieces, components.sizes(found, pieces), share, remaining)
    return runs.of_bits(remaining, shape[2])


@compiled
def _keep_main_parts(
    found: Runs, pieces: NDArray[Any], counts: NDArray[Any], share: float, remaining: NDArray[Any]
) -> None:
    """Take the rest from the bits that remain, in place; `counts` are the voxels of each piece at its first run."""
    nz, ny, _ = remaining.shape
    for z in range(nz):
        begin, end = found.first[z * ny], found.first[(z + 1) * ny]
        roots = np.flatnonzero(pieces[begin:end] == np.arange(begin, end)) + begin
        order = roots[np.argsort(-counts[roots], kind="mergesort")]  # stable, so that ties go to the first piece
        total = counts[roots].sum()
        n_main, covered = 0, 0
        while covered < total * share:
            covered += counts[order[n_main]]
            n_main += 1
        if n_main == roots.size:
            continue
        is_kept = np.zeros_like(remaining[z])
        for main in order[:n_main]:
            starts, stops = find_hull(found, pieces, main, z, ny)
            for y in range(ny):
                bits.set_range(is_kept[y], starts[y], stops[y])
        remaining[z] &= is_kept


@compiled
def grey_plane(
    plane: NDArray[Any],
    table: NDArray[Any],
    lungs: NDArray[Any],
    soft: NDArray[Any],
    fill: int,
    bone: int,
    out: NDArray[Any],
) -> None:
    """Write int16 HU (y, x) as grey values into uint8 `out`, by a `table` from -32768 on.

    `lungs` and `soft` are bits (y, words). `fill` takes the place of what is outside the soft mask, and of what is
    brighter than `bone` outside the lungs.
    """
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            word, bit = x >> 6, np.uint64(x & 63)
            grey = table[np.int64(plane[y, x]) + 32768]
            is_soft = (soft[y, word] >> bit) & ONE != 0
            is_lung = (lungs[y, word] >> bit) & ONE != 0
            out[y, x] = grey if is_lung or (is_soft and grey <= bone) else fill


@compiled
def sample(
    bits: NDArray[Any], z: NDArray[Any], y: NDArray[Any], x: NDArray[Any], value: int, out: NDArray[Any]
) -> None:
    """Set uint8 `out` (k, j, i) to `value` where the voxel (z[k], y[j], x[i]) of a mask as bits is set."""
    for k in range(z.size):
        for j in range(y.size):
            line = bits[z[k], y[j]]
            for i in range(x.size):
                if (line[x[i] >> 6] >> np.uint64(x[i] & 63)) & ONE != 0:
                    out[k, j, i] = value
