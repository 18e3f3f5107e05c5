"""Compiled loops over the shares of voxels that lie inside a label."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

ROUNDING = 0.01
"""What sums of weights may lack, in steps of 1/256."""


class Profiles(NamedTuple):
    """The sums of three sets of voxels in each plane, row and column: int64 (set, z), (set, y), (set, x)."""

    by_z: NDArray[np.int64]
    by_y: NDArray[np.int64]
    by_x: NDArray[np.int64]


@compiled
def weigh_overlaps(scale: float, offset: float, n: int, first: int, start: NDArray[Any], weights: NDArray[Any]) -> None:
    """Weigh inputs centred on whole numbers by their overlap with outputs centred on scale * i + offset.

    For output `first` + k, start[k] is the first of `n` inputs that count, and float32 weights[k] the shares of the
    output that lie in them.
    """
    half, width = abs(scale) / 2, weights.shape[1]
    for k in range(start.size):
        centre = scale * (first + k) + offset
        start[k] = int(min(max(np.floor(centre - half + 0.5), 0.0), np.float64(n - width)))
        for i in range(width):
            low, high = max(start[k] + i - 0.5, centre - half), min(start[k] + i + 0.5, centre + half)
            weights[k, i] = np.float32(max(high - low, 0.0) / (2 * half))


@compiled
def sum_pixels(pixels: NDArray[Any]) -> tuple[np.int64, np.int64, np.int64]:
    """Return the sum of uint8 pixels (y, x), and the sums of their rows and columns, each weighted by its pixel."""
    total, rows, columns = np.int64(0), np.int64(0), np.int64(0)
    for y in range(pixels.shape[0]):
        in_row, along = np.int64(0), np.int64(0)
        for x in range(pixels.shape[1]):
            value = np.int64(pixels[y, x])
            in_row += value
            along += x * value
        total += in_row
        rows += y * in_row
        columns += along
    return total, rows, columns


@compiled
def add_area(area: NDArray[Any], weight: np.float32, share: NDArray[Any]) -> None:
    """Add `weight` times `area` (y, x), of float32 or uint8, to the beginning of each row of float32 `share`."""
    for y in range(area.shape[0]):
        for x in range(area.shape[1]):
            share[y, x] += weight * np.float32(area[y, x])


@compiled
def quantize(share: NDArray[Any], out: NDArray[Any]) -> None:
    """Write float32 shares from 0 to 1 into uint8 `out` in steps of 1/256: 128 or more where half or more is inside.

    It is 0 only where nothing is inside, and 255 where all is.
    """
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            step = share[y, x] * np.float32(256) + np.float32(ROUNDING)
            least = np.float32(share[y, x] > 0)
            out[y, x] = np.uint8(min(max(step, least), np.float32(255)))


@compiled
def sum_around(shares: NDArray[Any], places: NDArray[Any], out: NDArray[Any]) -> None:
    """Write into int64 `out` the sum of the 27 uint8 shares (z, y, x) round each of `places` (n, 3), 0 outside."""
    nz, ny, nx = shares.shape
    for k in range(out.size):
        z, y, x = places[k]
        total = np.int64(0)
        for z_near in range(max(z - 1, 0), min(z + 2, nz)):
            for y_near in range(max(y - 1, 0), min(y + 2, ny)):
                for x_near in range(max(x - 1, 0), min(x + 2, nx)):
                    total += shares[z_near, y_near, x_near]
        out[k] = total


def profiles(shares: NDArray[np.uint8], half: int, sure: int) -> Profiles:
    """Return the sums of uint8 shares (z, y, x) along the other axes, and how many are `half` or more, and `sure`."""
    found = Profiles(*(np.zeros((3, n), np.int64) for n in shares.shape))
    _add_profiles(shares, half, sure, np.empty((3, shares.shape[2]), np.uint32), *found)
    return found


@compiled
def _add_profiles(
    shares: NDArray[Any],
    half: int,
    sure: int,
    columns: NDArray[Any],
    by_z: NDArray[Any],
    by_y: NDArray[Any],
    by_x: NDArray[Any],
) -> None:
    """Add to the profiles; `columns` takes the sums of a plane. Numbers are small, so that many fit a register."""
    half_at, sure_at = np.uint8(half), np.uint8(sure)
    for z in range(shares.shape[0]):
        columns[:] = 0
        for y in range(shares.shape[1]):
            row = shares[z, y]
            total, n_half, n_sure = np.uint32(0), np.uint32(0), np.uint32(0)
            for x in range(row.size):
                value = row[x]
                total = np.uint32(total + value)
                n_half = np.uint32(n_half + np.uint32(value >= half_at))
                n_sure = np.uint32(n_sure + np.uint32(value >= sure_at))
            if total == 0:
                continue
            all_of, half_of, sure_of = columns[0], columns[1], columns[2]
            for x in range(row.size):
                value = row[x]
                all_of[x] += np.uint32(value)
                half_of[x] += np.uint32(value >= half_at)
                sure_of[x] += np.uint32(value >= sure_at)
            by_y[0, y] += total
            by_y[1, y] += n_half
            by_y[2, y] += n_sure
            by_z[0, z] += total
            by_z[1, z] += n_half
            by_z[2, z] += n_sure
        for k in range(3):
            for x in range(by_x.shape[1]):
                by_x[k, x] += columns[k, x]
