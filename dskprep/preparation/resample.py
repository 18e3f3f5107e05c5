"""Resample a volume to another spacing on a voxel-centred grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import padding, planes
from dskprep.volume import AIR_HU, PADDING, Grid, Triple, Volume, check_is_volume


class Taps(NamedTuple):
    """Weights of a filter along one axis: output i = sum over k of weights[i, k] * input[start[i] + k]."""

    start: NDArray[np.int64]
    """First input of each output; start + k is an input for every k."""
    weights: NDArray[np.float32]
    """Weights (outputs, k); those of an output add up to 1."""
    nearest: NDArray[np.int64]
    """The input closest to each output."""

    def part(self, outputs: slice) -> Taps:
        """Return the taps of some outputs only."""
        return Taps(self.start[outputs], self.weights[outputs], self.nearest[outputs])


def to_spacing(volume: Volume, spacing_mm: Triple, *, smooth: bool = True) -> Volume:
    """Resample int16 HU (z, y, x) linearly to `spacing_mm` (z, y, x), exactly.

    The output covers the same box of the patient: along each axis it has round(n * spacing / new
    spacing) voxels, and both grids share their centre, so their outer faces differ by a quarter of a
    new voxel at most. Beyond the first and last centre the edge value continues.

    With `smooth`, an axis that shrinks is weighed by a tent as wide as the new voxels (2 x the new
    spacing), else by the two neighbours. A voxel whose nearest source is PADDING becomes PADDING;
    padding takes no part in any sum: its place is taken by the nearest value of its slice.

    Raises ValueError if a spacing is not more than 0 and finite, TypeError if it is no Volume of
    int16.
    """
    check_is_volume(volume)
    if np.shape(spacing_mm) != (3,) or not all(0 < s < math.inf for s in spacing_mm):
        raise ValueError(f"spacing_mm must be three numbers above 0, not {spacing_mm}")
    return of_planes(volume.hu, volume.grid, spacing_mm, smooth=smooth)


def of_planes(planes: Iterable[NDArray[np.int16]], grid: Grid, spacing_mm: Triple, *, smooth: bool = True) -> Volume:
    """Resample as `to_spacing`, from planes (y, x) that come in the order of z and are held no longer than needed."""
    old = grid.spacing
    taps = [axis_taps(n, new / s, smooth=smooth) for n, s, new in zip(grid.shape, old, spacing_mm, strict=True)]
    return Volume(_weigh(planes, taps), _new_affine(grid, spacing_mm, [len(t.start) for t in taps]))


def axis_taps(n: int, factor: float, *, smooth: bool) -> Taps:
    """Return the taps that turn `n` samples into samples `factor` times as far apart, about the same centre.

    The weights are a tent over the inputs round each output; with `smooth`, as wide as two outputs where they lie
    further apart than inputs.
    """
    n_out = max(1, round(round(n / factor, 6)))  # the last bits of a spacing do not decide between 332 and 333
    centre = (n - 1) / 2 + (np.arange(n_out) - (n_out - 1) / 2) * factor
    half_width = max(1.0, factor) if smooth else 1.0
    first = np.floor(centre - half_width).astype(np.int64) + 1  # the first input under the tent
    width = min(int(np.ceil(2 * half_width)), n)  # the most that can lie under it
    start = np.clip(first, 0, n - width)  # kernels do not check that start + k is an input
    taps = start[:, None] + np.arange(width)
    weights = np.maximum(0.0, 1.0 - np.abs(taps - centre[:, None]) / half_width)
    weights[taps < first[:, None]] = 0.0  # by rounding only
    nearest = np.clip(np.floor(centre + 0.5).astype(np.int64), 0, n - 1)
    beyond = weights.sum(axis=1) == 0  # no input under the tent: the nearest one continues
    weights[beyond, (nearest - start)[beyond]] = 1.0
    weights /= weights.sum(axis=1, keepdims=True)
    return Taps(start, weights.astype(np.float32), nearest)


def _new_affine(grid: Grid, spacing_mm: Triple, shape: list[int]) -> NDArray[np.float64]:
    """Return the affine of the new grid, whose centre is the old grid's centre."""
    affine = grid.affine.copy()
    centre = affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + affine[:3, 3]
    affine[:3, :3] *= np.divide(spacing_mm, grid.spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _weigh(slices: Iterable[NDArray[np.int16]], taps: list[Taps]) -> NDArray[np.int16]:
    """Return the weighted sums of slices along all axes; only as many as one output needs are held in float.

    Each slice is resampled in its plane once, into a ring of planes; slice k lies at k % depth. An output plane is
    the weighted sum of the planes that its taps along z need.
    """
    z, y, x = taps
    plane_shape = (len(y.start), len(x.start))
    depth = z.weights.shape[1]
    ring = np.empty((depth, *plane_shape), np.float32)
    is_padding = np.zeros((depth, *plane_shape), np.bool_)
    out = np.empty((len(z.start), *plane_shape), np.int16)
    coming = enumerate(_fill_slices(slices))
    n_read = 0
    for i, first in enumerate(z.start):
        used = np.flatnonzero(z.weights[i]) + first
        while n_read <= used[-1]:
            number, (plane, filled, ends) = next(coming)
            n_read = number + 1
            if number < used[0]:
                continue
            slot = number % depth
            planes.weigh_plane(filled, y.start, y.weights, x.start, x.weights, ring[slot])
            if ends is None:
                is_padding[slot] = False
            else:
                padding.sample_padding(plane, ends, y.nearest, x.nearest, is_padding[slot])
        planes.weigh_planes(
            ring, used % depth, z.weights[i, used - first], is_padding[int(z.nearest[i]) % depth], out[i]
        )
    for _ in coming:  # slices that no output needs are read all the same
        pass
    return out


_Filled = tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.int64] | None]
"""A slice; its copy without padding; and the `ends` of `padding.fill_padding_from_row`, None if there is no padding."""


def _fill_slices(slices: Iterable[NDArray[np.int16]]) -> Iterator[_Filled]:
    """Yield each slice with its padding filled by the nearest values.

    A slice of nothing but padding is filled from the last one with values, or, if none came yet, from the first.
    """
    blank: list[NDArray[np.int16]] = []
    last: NDArray[np.int16] | None = None
    for plane in slices:
        filled, ends = np.empty_like(plane), np.empty((len(plane), 3), np.int64)
        n_padding = padding.fill_padding_from_row(plane, filled, ends)
        if n_padding < plane.size:
            for before in blank:
                yield before, filled, _no_values(before)
            blank, last = [], filled
            yield plane, filled, ends if n_padding else None
        elif last is not None:
            yield plane, last, ends
        else:
            blank.append(plane)
    for plane in blank:
        yield plane, np.full_like(plane, AIR_HU), _no_values(plane)


def _no_values(plane: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return the `ends` of a slice of nothing but padding: no column has a value."""
    return np.zeros((len(plane), 3), np.int64)


def fill_padding(volume: Volume, value: int = AIR_HU) -> Volume:
    """Return the volume with `value` (HU) in place of PADDING."""
    return volume.with_array(np.where(volume.array == PADDING, np.int16(value), volume.array))
