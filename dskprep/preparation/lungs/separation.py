"""Tell the right lung from the left one, on the coarse grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dskprep.preparation.body import Grid
from dskprep.preparation.lungs.aerated import CORE_MM, MIN_CORE_SHARE, REACH_MM
from dskprep.preparation.morphology import Mask, Pieces, centre_of, erode, expand_labels
from dskprep.sides import LEFT, RIGHT

EROSIONS_MM = (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
"""Erosions that are tried until two lungs come apart, in mm; the junction lines are 1 to 4 mm thick."""
MIN_BALANCE = 0.2
"""The smaller part has at least this share of the larger, else a lobe came off.

A part that lies apart without erosion may be a smaller lung.
"""
MIDLINE_SHARE = 0.25
"""If both sides of the midline hold this share of a single piece, it is two lungs."""


def separate(grid: Grid, cores: Mask, lung: Mask, midline: float) -> NDArray[np.uint8]:
    """Return the labels RIGHT and LEFT of the voxels of `lung`.

    Lungs that touch are eroded until they come apart; each voxel goes to the nearer part, or, far from both, to the
    one on its side. A single lung is named by its side of `midline`, a column; two that do not come apart are RIGHT.
    """
    for erosion_mm in EROSIONS_MM:
        seeds = _find_two_sides(grid, erode(cores, erosion_mm, grid.spacing), MIN_BALANCE)
        if seeds is not None:
            break
    else:
        erosion_mm, seeds = 0.0, _find_two_sides(grid, cores, MIN_CORE_SHARE)
    columns = np.arange(lung.shape[2])
    if seeds is None:
        n_left, n = (int(np.count_nonzero(part)) for part in (lung & (columns > midline), lung))
        return np.asarray(lung * np.uint8(LEFT if n_left > (1 - MIDLINE_SHARE) * n else RIGHT))
    # the lung reaches CORE_MM + REACH_MM beyond its cores, and they the erosion beyond the seeds
    nearest = expand_labels(seeds, CORE_MM + REACH_MM + erosion_mm, grid.spacing, lung)
    between = (centre_of(seeds == RIGHT)[2] + centre_of(seeds == LEFT)[2]) / 2
    by_side = np.where(columns > between, np.uint8(LEFT), np.uint8(RIGHT))
    return np.where(nearest > 0, nearest, by_side) * lung


def _find_two_sides(grid: Grid, cores: Mask, min_share: float) -> NDArray[np.uint8] | None:
    """Return the two largest pieces as RIGHT and LEFT, or None unless they are balanced and side by side."""
    pieces = Pieces.of(cores)
    if pieces.sizes.size < 2:
        return None
    order = np.argsort(-pieces.sizes, kind="stable")[:2]  # of equals, the first
    larger, smaller = (pieces.select(np.arange(pieces.sizes.size) == number) for number in order)
    if pieces.sizes[order[1]] < min_share * pieces.sizes[order[0]]:
        return None
    across = (centre_of(smaller) - centre_of(larger)) * grid.spacing
    if np.abs(across).argmax() != 2:
        return None  # two lobes, one above or behind the other
    right, left = (larger, smaller) if across[2] > 0 else (smaller, larger)
    return right * np.uint8(RIGHT) + left * np.uint8(LEFT)
