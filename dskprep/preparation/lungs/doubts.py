"""What is doubtful about lungs that were found: their size, shape and density, and where they end."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dskprep.preparation.bitmask import BitMask, Mask
from dskprep.preparation.body import Grid
from dskprep.preparation.morphology import Pieces, box_of, dilate
from dskprep.sides import LEFT, LUNG, RIGHT
from dskprep.volume import Triple

TOUCH_MM2 = 100.0
"""Least area in which a lung meets the edge of what was measured to be called cut off."""

MIN_TOTAL_ML = 1000.0
"""Least volume of both lungs together, gas and tissue: the residual volume of a woman of 1.5 m.

From Quanjer et al. 1993 (Eur Respir J 6 Suppl 16:5). Children, and scans of a part, are rightly pointed out.
"""
MAX_TOTAL_ML = 10000.0
"""Largest volume of both lungs: the upper limit (mean + 1.64 SD) of the total lung capacity of a man of 2.0 m, ibid."""
MIN_LUNG_RATIO = 0.1
"""A lung smaller than this share of the other counts as missing."""
MIN_USUAL_RATIO = 0.5
"""Below this share the smaller lung is collapsed, drowned or partly removed: left to right is about 0.85."""

DENSE_HU = -320
"""Lung above this is dense."""
MAX_DENSE_SHARE = 0.05
"""More of a lung that is dense is worth a look: vessels and small tumours make up 0.01 to 0.035."""

MAX_APART_SHARE = 0.05
"""More of a lung that does not hang together with its main piece is no lung."""
MAX_EXTENT_MM = (380.0, 280.0, 210.0)
"""No lung is higher, deeper or wider (z, y, x)."""
BOX_SHARE = (0.2, 0.6)
"""No lung fills less or more of the box round it; lungs fill 0.30 to 0.45."""


def find_doubts(
    ml: Triple,
    is_cut_off: bool,
    labels: NDArray[np.uint8],
    spacing: Triple,
    is_dense: bool = False,
    is_missing: bool = False,
) -> tuple[str, ...]:
    """Return the words of errors.WARNINGS that fit.

    `ml` are the volumes of the right lung, of the left lung, and of lung whose side is not known; shapes are judged by
    coarse `labels` (z, y, x).
    """
    if sum(ml) == 0:
        return ("lungs-not-found",)
    doubts = ["lungs-touch-border"] if is_cut_off else []
    smaller, larger = sorted(ml[:2])
    if ml[2] or smaller < MIN_LUNG_RATIO * larger:
        doubts.append("one-lung")
    if not MIN_TOTAL_ML <= sum(ml) <= MAX_TOTAL_ML:
        doubts.append("lung-volume-unlikely")
    if MIN_LUNG_RATIO * larger <= smaller < MIN_USUAL_RATIO * larger:
        doubts.append("lungs-unequal")
    if is_dense:
        doubts.append("dense-lung")
    if is_missing:
        doubts.append("lung-missing")
    lungs = _lungs_of(labels)
    n_within = 2 if ml[2] else 1  # of unknown side may be both lungs
    if any(_share_apart(lung, n_within) > MAX_APART_SHARE for lung in lungs):
        doubts.append("lungs-in-pieces")
    if not is_cut_off and any(_is_no_lung(lung, spacing, n_within) for lung in lungs):
        doubts.append("lung-shape-unlikely")
    return tuple(doubts)


def _lungs_of(labels: NDArray[np.uint8]) -> list[Mask]:
    """Return the mask of each lung that there is."""
    return [labels == side for side in (RIGHT, LEFT, LUNG) if (labels == side).any()]


def dense_share_of(grid: Grid, labels: NDArray[np.uint8]) -> float:
    """Return the share that is dense of the lung that has the larger one."""
    is_dense = grid.means > DENSE_HU
    shares = [np.count_nonzero(lung & is_dense) / np.count_nonzero(lung) for lung in _lungs_of(labels)]
    return max(shares, default=0.0)


def _share_apart(lung: Mask, n_lungs: int) -> float:
    """Return the part of a mask that lies apart from its `n_lungs` largest pieces."""
    sizes = np.sort(Pieces.of(lung).sizes)
    return 1 - float(sizes[-n_lungs:].sum() / sizes.sum())


def _is_no_lung(lung: Mask, spacing: Triple, n_lungs: int) -> bool:
    """Return whether a mask is larger than lungs are in one direction, or fills too much or too little of its box."""
    shape = [side.stop - side.start for side in box_of(lung, margin=0)]
    limits = (MAX_EXTENT_MM[0], MAX_EXTENT_MM[1], n_lungs * MAX_EXTENT_MM[2])
    if any(n * s > limit for n, s, limit in zip(shape, spacing, limits, strict=True)):
        return True
    return not BOX_SHARE[0] <= np.count_nonzero(lung) / math.prod(shape) <= BOX_SHARE[1]


def meets_a_face(mask: NDArray[np.uint8], spacing: Triple) -> bool:
    """Return whether a mask meets the first or last slice or a side of its volume."""
    return any(
        np.count_nonzero(np.take(mask, end, axis=axis)) * math.prod(spacing) / spacing[axis] >= TOUCH_MM2
        for axis in range(3)
        for end in (0, -1)
    )


def meets_padding(grid: Grid, labels: NDArray[np.uint8]) -> bool:
    """Return whether a lung meets what was not measured, in the coarse grid."""
    if not grid.padding.any():
        return False
    near_padding = dilate(grid.padding, 1.5 * max(grid.spacing[1:]), grid.spacing)  # the voxels beside it
    n_voxels = (near_padding & BitMask.of(labels > 0)).counts().sum()
    return bool(n_voxels * grid.spacing[0] * min(grid.spacing[1:]) >= TOUCH_MM2)
