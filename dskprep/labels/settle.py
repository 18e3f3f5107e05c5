"""Choose the voxels of a label from the share of each that lies inside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.shares import Profiles, profiles, sum_around
from dskprep.volume import Triple

HALF = 128
"""The share 0.5 as a number of 8 bits."""
VOLUME_TOLERANCE = 0.005
"""The volume of a label may change by this share, or by half a voxel, before it is set right."""
CENTRE_TOLERANCE = 0.095
"""Its centre may move by this part of a voxel before it is set right."""
SURE = 16
"""A voxel of which less than this, or all but this, is inside is left as it is, if the volume allows it."""
SUPPORT = 0.2
"""How much the mean share of the 27 voxels round a voxel counts beside its own."""
NEARER = 1e-4
"""What is taken off the rank of a voxel per mm2 of its distance from the centre, so that few are equal."""
MOST_TRIES = 30
"""Tries to set the centre right; a few are enough but for labels of a slice or two."""
GROWTH = 1.3
"""A try moves the centre by this factor more than the one before, or half as much where that went too far."""


def settle(shares: NDArray[np.uint8], n_voxels: float, spacing_mm: Triple) -> NDArray[np.bool_]:
    """Return which voxels (z, y, x) belong to a label whose volume is that of `n_voxels` voxels.

    Those are the voxels of which half or more is inside. But the faces of thick slices may all be rounded to the same
    side by this: a nodule changes its volume by several percent, or moves by up to half a voxel. Then as many voxels
    as the volume asks for are taken, first those with most of the label round them, and more of them on the side to
    which the centre has to move. A label that fills half of no voxel keeps those that it fills most.

    `shares` are used up: the result may take their memory.
    """
    sums = profiles(shares, HALF, 257 - SURE)
    total, n_inside, n_sure = sums.by_z.sum(1).tolist()
    moment, inside_moment, sure_moment = _moments(sums)
    centre = moment / total
    is_volume_right = n_inside and abs(n_inside - n_voxels) <= max(0.5, VOLUME_TOLERANCE * n_voxels)
    if is_volume_right and np.linalg.norm(inside_moment / n_inside - centre) <= CENTRE_TOLERANCE:
        return np.greater_equal(shares, HALF, out=shares.view(np.bool_))  # a large label is not held twice
    wanted = max(1, round(n_voxels))
    flat = shares.ravel()
    places = np.flatnonzero(flat - np.uint8(SURE) <= 256 - 2 * SURE)  # less than SURE becomes a large number
    inside = shares > 256 - SURE
    n_open = wanted - n_sure
    if not 0 <= n_open <= len(places):
        inside[:], n_sure, sure_moment = False, 0, np.zeros(3)
        places = np.flatnonzero(flat)
        n_open = min(wanted, len(places))
    open_shares, places = flat[places], np.column_stack(np.unravel_index(places, shares.shape))
    from_centre = places - centre
    rank = open_shares + SUPPORT * _around(shares, places)
    rank -= NEARER * ((from_centre * spacing_mm) ** 2).sum(1)
    chosen = _choose(rank, from_centre, sure_moment - n_sure * centre, wanted, n_open)
    inside[tuple(places[chosen].T)] = True
    return inside


def _moments(sums: Profiles) -> NDArray[np.float64]:
    """Return the sum of the indices of each set's voxels, weighted by their values: (set, z y x)."""
    return np.column_stack([by @ np.arange(by.shape[1], dtype=np.float64) for by in sums])


def _around(shares: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean share of the 27 voxels round each place."""
    total = np.empty(len(places), np.int64)
    sum_around(shares, places, total)
    return total / 27


def _choose(
    rank: NDArray[np.float64], from_centre: NDArray[np.float64], moment: NDArray[np.float64], wanted: int, n_open: int
) -> NDArray[np.int64]:
    """Return the `n_open` best places of a label of `wanted` voxels.

    The rank is tilted along each axis until the label's centre is right, or nearly. `moment` is the sum of the
    distances from the centre of the voxels that are not open.
    """
    spread = rank.std() / np.maximum((from_centre**2).mean(0), 1e-9) if n_open else 0.0
    tilt, gain, last = np.zeros(3), np.ones(3), np.zeros(3)
    best, best_distance = np.empty(0, np.int64), np.inf
    for _ in range(MOST_TRIES):
        chosen = np.argsort(-(rank + from_centre @ tilt), kind="stable")[:n_open]
        offset = (moment + from_centre[chosen].sum(0)) / wanted
        if np.linalg.norm(offset) < best_distance:
            best, best_distance = chosen, float(np.linalg.norm(offset))
        if best_distance <= CENTRE_TOLERANCE or not n_open:
            break
        gain *= np.where(offset * last < 0, 0.5, GROWTH)
        last = offset
        tilt -= gain * offset * spread * wanted / len(rank)
    return best
