"""Compiled loops of the recipe grt123, on runs of voxels and on bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import runs
from dskprep.kernels.compiled import compiled
from dskprep.kernels.hulls import TINY, extremes, hull
from dskprep.kernels.runs import Runs

PATCH = 10
"""Edge of the corner block that shows whether the outside of the field of view holds one value."""

FAR = np.inf


@compiled
def smooth_air(array: NDArray[Any], limit: float, weights: NDArray[Any], valid: NDArray[Any]) -> Runs:
    """Runs where int16 HU (z, y, x), smoothed in each slice, are below `limit`.

    `weights` (3) are those of the five taps, the middle first; the edge is mirrored. Where the corner block of
    a slice holds one value, only the columns valid[y, 0] to valid[y, 1] of its rows count.
    """
    nz, ny, nx = array.shape
    first = np.empty(nz * ny + 1, np.int64)
    starts = np.empty(8 * nz * ny + nx, np.int32)
    stops = np.empty(8 * nz * ny + nx, np.int32)
    along_y = np.empty(nx + 4, np.float32)
    smooth = np.empty(nx, np.float32)
    w0, w1, w2 = weights
    below = np.nextafter(np.float32(limit), np.float32(-np.inf))  # runs are made of what is at most the limit
    n = 0
    for z in range(nz):
        plane = array[z]
        is_round = True
        for y in range(min(PATCH, ny)):
            for x in range(min(PATCH, nx)):
                is_round = is_round and plane[y, x] == plane[0, 0]
        for y in range(ny):
            first[z * ny + y] = n
            row = plane[y]
            up, down = plane[_mirrored(y - 1, ny)], plane[_mirrored(y + 1, ny)]
            up2, down2 = plane[_mirrored(y - 2, ny)], plane[_mirrored(y + 2, ny)]
            for x in range(nx):
                near = np.float32(up[x]) + np.float32(down[x])
                far = np.float32(up2[x]) + np.float32(down2[x])
                along_y[x + 2] = w0 * np.float32(row[x]) + w1 * near + w2 * far
            for k in (-2, -1, nx, nx + 1):
                along_y[k + 2] = along_y[_mirrored(k, nx) + 2]
            for x in range(nx):
                near = along_y[x + 1] + along_y[x + 3]
                smooth[x] = w0 * along_y[x + 2] + w1 * near + w2 * (along_y[x] + along_y[x + 4])
            if n + nx > starts.size:
                starts = runs.enlarged(starts)
                stops = runs.enlarged(stops)
            begin, end = (valid[y, 0], valid[y, 1]) if is_round else (0, nx)
            n = runs.add_row(smooth, below, begin, end, n, starts, stops)
    first[nz * ny] = n
    return Runs(first, starts[:n].copy(), stops[:n].copy())


@compiled
def _mirrored(k: int, n: int) -> int:
    """Index of a sample beyond the edge: -1 is 0, -2 is 1."""
    if k < 0:
        return min(-1 - k, n - 1)
    return max(2 * n - 1 - k, 0) if k >= n else k


@compiled
def eccentricities(found: Runs, pieces: NDArray[Any], ny: int) -> NDArray[Any]:
    """Eccentricity of each piece of a slice, at its first run: that of the ellipse with its second moments."""
    moments = np.zeros((pieces.size, 6))  # n, x, y, xx, yy, xy
    for row in range(found.first.size - 1):
        y = row % ny
        for run in range(found.first[row], found.first[row + 1]):
            a, b = float(found.starts[run]), float(found.stops[run])
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
            half = math.sqrt(((var_x - var_y) / 2) ** 2 + cov * cov)
            large, small = mean + half, max(mean - half, 0.0)
            result[run] = math.sqrt(max(1 - small / large, 0.0)) if large > 0 else 0.0
    return result


@compiled
def slice_profiles(
    found: Runs, pieces: NDArray[Any], names: NDArray[Any], n_names: int, shape: tuple[int, int, int], pixel: Any
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Voxels in each slice, and least distance to the slice's centre, of the pieces with a name (0 onwards).

    `pixel` is the distance between (rows, columns); as in the recipe, which takes slices for square, the
    first is that of columns here.
    """
    nz, ny, nx = shape
    counts = np.zeros((n_names, nz), np.int64)
    distances = np.full((n_names, nz), FAR)
    middle_y, middle_x = (ny - 1) / 2, (nx - 1) / 2
    for row in range(nz * ny):
        z, y = row // ny, row % ny
        for run in range(found.first[row], found.first[row + 1]):
            name = names[pieces[run]]
            if name < 0:
                continue
            start, last = found.starts[run], found.stops[run] - 1
            counts[name, z] += last + 1 - start
            x = float(min(max(math.floor(middle_x), start), last))
            distance = math.sqrt(((x - middle_x) * pixel[0]) ** 2 + ((y - middle_y) * pixel[1]) ** 2)
            distances[name, z] = min(distances[name, z], distance)
    return counts, distances


@compiled
def nearer_seed(seeds: NDArray[Any], spacing: tuple[float, float, float]) -> NDArray[Any]:
    """The nearer of the seeds 1 and 2 for each voxel (z, y, x) of uint8 `seeds`; 0 where both are as near.

    Exact Euclidean distances, one axis after the other by lower envelopes of parabolas (Felzenszwalb and
    Huttenlocher 2012, Theory of Computing 8:415).
    """
    nz, ny, nx = seeds.shape
    squared = np.empty((2, nz, ny, nx), np.float32)
    longest = max(nz, ny) + 1
    line = np.empty(longest)
    places = np.empty(longest, np.int64)
    bounds = np.empty(longest + 1)
    block = np.empty((nx, longest))
    for seed in range(2):
        for z in range(nz):
            for y in range(ny):
                _row_distance(seeds[z, y], seed + 1, spacing[2], squared[seed, z, y])
            for y in range(ny):
                for x in range(nx):
                    block[x, y] = squared[seed, z, y, x]
            for x in range(nx):
                _lower_envelope(block[x, :ny], spacing[1], line, places, bounds)
            for y in range(ny):
                for x in range(nx):
                    squared[seed, z, y, x] = block[x, y]
        for y in range(ny):
            for z in range(nz):
                for x in range(nx):
                    block[x, z] = squared[seed, z, y, x]
            for x in range(nx):
                _lower_envelope(block[x, :nz], spacing[0], line, places, bounds)
            for z in range(nz):
                for x in range(nx):
                    squared[seed, z, y, x] = block[x, z]
    nearer = np.empty(seeds.shape, np.uint8)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                first, second = squared[0, z, y, x], squared[1, z, y, x]
                nearer[z, y, x] = 1 if first < second else (2 if second < first else 0)
    return nearer


@compiled
def _row_distance(row: NDArray[Any], seed: int, spacing: float, out: NDArray[Any]) -> None:
    """Squared distance along a row to its nearest `seed`."""
    steps = FAR
    for x in range(row.size):
        steps = 0.0 if row[x] == seed else steps + 1
        out[x] = steps
    steps = FAR
    for x in range(row.size - 1, -1, -1):
        steps = min(steps + 1, float(out[x]))
        out[x] = (steps * spacing) ** 2


@compiled
def _lower_envelope(
    values: NDArray[Any], spacing: float, heights: NDArray[Any], places: NDArray[Any], bounds: NDArray[Any]
) -> None:
    """Replace each value by the least of value[k] + (distance to k)^2, in place; the rest is scratch."""
    n = 0
    for q in range(values.size):
        if values[q] == FAR:
            continue
        at = -FAR
        while n > 0:
            p = places[n - 1]
            at = ((values[q] - heights[n - 1]) / (spacing * spacing) + (q * q - p * p)) / (2 * (q - p))
            if at > bounds[n - 1]:
                break
            n -= 1
            at = -FAR
        places[n], heights[n], bounds[n] = q, values[q], at
        n += 1
    if n == 0:
        return
    k = 0
    for q in range(values.size):
        while k + 1 < n and bounds[k + 1] < q:
            k += 1
        values[q] = heights[k] + ((q - places[k]) * spacing) ** 2


@compiled
def main_parts(found: Runs, pieces: NDArray[Any], shape: tuple[int, int, int], share: float) -> Runs:
    """Leave in each slice what lies in the convex hulls of its largest pieces, which hold `share` of its area.

    `pieces` are those of single slices.
    """
    nz, ny, nx = shape
    counts = runs.sizes(found, pieces)
    first = np.empty(nz * ny + 1, np.int64)
    starts = np.empty(2 * found.starts.size + nx, np.int32)
    stops = np.empty(2 * found.starts.size + nx, np.int32)
    is_kept = np.zeros((ny, nx), np.bool_)
    left, right = np.empty(ny), np.empty(ny)
    n = 0
    for z in range(nz):
        begin, end = found.first[z * ny], found.first[(z + 1) * ny]
        roots = np.flatnonzero(pieces[begin:end] == np.arange(begin, end)) + begin
        order = roots[np.argsort(-counts[roots], kind="mergesort")]
        total = counts[roots].sum()
        n_main, covered = 0, 0
        while covered < total * share:
            covered += counts[order[n_main]]
            n_main += 1
        is_whole = n_main == roots.size
        if not is_whole:
            is_kept[:] = False
            for main in order[:n_main]:
                y0, y1 = extremes(found, pieces, main, z, ny, left, right)
                hull(left, right, y0, y1)
                for y in range(y0, y1 + 1):
                    is_kept[y, math.ceil(left[y] - TINY) : math.floor(right[y] + TINY) + 1] = True
        for y in range(ny):
            first[z * ny + y] = n
            for run in range(found.first[z * ny + y], found.first[z * ny + y + 1]):
                if n + nx > starts.size:
                    starts = runs.enlarged(starts)
                    stops = runs.enlarged(stops)
                if is_whole:
                    starts[n], stops[n] = found.starts[run], found.stops[run]
                    n += 1
                    continue
                x = found.starts[run]
                while x < found.stops[run]:
                    if is_kept[y, x]:
                        starts[n] = x
                        while x < found.stops[run] and is_kept[y, x]:
                            x += 1
                        stops[n] = x
                        n += 1
                    else:
                        x += 1
    first[nz * ny] = n
    return Runs(first, starts[:n].copy(), stops[:n].copy())


@compiled
def reaches_edge(found: Runs, pieces: NDArray[Any], ny: int, nx: int) -> NDArray[Any]:
    """Whether the piece of each run, in its slice, touches the slice's edge."""
    is_open = np.zeros(pieces.size, np.bool_)
    for row in range(found.first.size - 1):
        for run in range(found.first[row], found.first[row + 1]):
            if row % ny == 0 or row % ny == ny - 1 or found.starts[run] == 0 or found.stops[run] == nx:
                is_open[pieces[run]] = True
    touches: NDArray[Any] = is_open[pieces]
    return touches


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
    """HU (y, x) to uint8 `out` by a table from -32768 on; masks are bits.

    `fill` outside the soft mask, and where it shows more than `bone` beyond the lungs.
    """
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            word, bit = x >> 6, np.uint64(x & 63)
            grey = table[np.int64(plane[y, x]) + 32768]
            is_soft = (soft[y, word] >> bit) & np.uint64(1) != 0
            is_lung = (lungs[y, word] >> bit) & np.uint64(1) != 0
            out[y, x] = grey if is_lung or (is_soft and grey <= bone) else fill


@compiled
def sample(
    bits: NDArray[Any], z: NDArray[Any], y: NDArray[Any], x: NDArray[Any], value: int, out: NDArray[Any]
) -> None:
    """Set uint8 `out` to `value` where the voxel at (z[k], y[j], x[i]) of the mask is set."""
    for k in range(z.size):
        for j in range(y.size):
            line = bits[z[k], y[j]]
            for i in range(x.size):
                if (line[x[i] >> 6] >> np.uint64(x[i] & 63)) & np.uint64(1) != 0:
                    out[k, j, i] = value
