"""Put slices on a right-angled grid (tilt, gaps) and a volume on the patient's axes."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import padding, planes
from dskprep.volume import PADDING, Volume


def to_patient_axes(volume: Volume) -> Volume:
    """Flip and transpose so that (z, y, x) run nearest to superior, posterior and left.

    No interpolation: every voxel keeps its value and its place in the patient.
    """
    order = patient_order(volume.affine)
    array, affine = volume.array.transpose(order), volume.affine.copy()
    affine[:3, :3] = affine[:3, order]
    for axis, patient_axis in enumerate((2, 1, 0)):
        if affine[patient_axis, axis] < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(array), affine)


def patient_order(affine: NDArray[np.float64]) -> list[int]:
    """Return which array axis runs nearest to the patient's z, y and x: the best of the six orders."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    orders = map(list, itertools.permutations(range(3)))
    return max(orders, key=lambda order: sum(abs(directions[2 - k, axis]) for k, axis in enumerate(order)))


def flip_upwards(volume: Volume) -> Volume:
    """Reverse the order of the slices if they go from head to foot; rows and columns stay as they are."""
    if volume.affine[2, 0] >= 0:
        return volume
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (volume.shape[0] - 1)
    affine[:3, 0] *= -1
    return Volume(np.ascontiguousarray(volume.array[::-1]), affine)


def shift(plane: NDArray[np.int16], offset: tuple[float, float], out: NDArray[np.int16]) -> None:
    """Interpolate int16 HU (y, x) linearly into the larger plane `out`, the first pixel at `offset` (y, x) in pixels.

    Padding takes no part in any sum: a pixel whose nearest source is PADDING, or lies outside, becomes PADDING.
    """
    starts, weights, nearest = [], [], []
    for n, n_out, by in zip(plane.shape, out.shape, offset, strict=True):
        place = np.arange(n_out) - by
        first = np.clip(np.floor(place).astype(np.int64), 0, n - 2)
        share = np.clip(place - first, 0, 1)
        starts.append(first)
        weights.append(np.stack([1 - share, share], axis=1).astype(np.float32))
        closest = np.floor(place + 0.5).astype(np.int64)
        nearest.append(np.where((closest >= 0) & (closest < n), closest, -1))
    filled, total = np.empty_like(plane), np.empty(out.shape, np.float32)
    ends, is_padding = np.empty((len(plane), 3), np.int64), np.empty(out.shape, np.bool_)
    padding.fill_padding_from_row(plane, filled, ends)
    planes.weigh_plane(filled, starts[0], weights[0], starts[1], weights[1], total)
    padding.sample_padding(plane, ends, nearest[0], nearest[1], is_padding)
    is_padding |= (nearest[0] < 0)[:, None] | (nearest[1] < 0)
    planes.weigh_planes(total[None], np.zeros(1, np.int64), np.ones(1, np.float32), is_padding, out)


def interpolate(below: NDArray[np.int16], above: NDArray[np.int16], share: float) -> NDArray[np.int16]:
    """Return the int16 HU (y, x) at a `share` of the way from one slice to another; PADDING where either has it."""
    out = np.empty_like(below)
    planes.weigh_planes(
        np.stack([below, above]).astype(np.float32),
        np.arange(2),
        np.array([1 - np.float32(share), share], np.float32),
        (below == PADDING) | (above == PADDING),
        out,
    )
    return out
