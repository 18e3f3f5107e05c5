"""Complete lungs whose part that lies down is dense: consolidation, effusion, collapse.

In CT without contrast little tells dense lung from liver, heart or muscle, so its limits are taken from
what is known: the other lung, mirrored; gravity, for dense lung lies below the aerated one; the aerated
lung above, which shows where the mediastinum ends; bone, fat; and its own HU where they differ. All on the
coarse grid, in whole numbers, so that every machine gives the same mask.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.kernels import masks
from dskprep.preparation.morphology import Mask, Pieces, closed, erode, near, opened
from dskprep.volume import Triple

RIGHT, LEFT = 1, 2

REAR_SHARE = 0.4
RAISED_MM = 20.0
MIN_RAISED_SHARE = 0.25
"""A lung is completed if this part of its rear, here its back two fifths, ends this much higher than its
front: healthy lungs reach lowest at the back. Seen: healthy lungs up to 0.19, a third dense from 0.4."""

SAME_ROW_MM = (np.inf, 20.0, 10.0, 10.0)
"""Rows that deviate more from the mirror plane are left out, round after round."""
FAR_MM = 60.0
BASE_QUANTILE = 0.15
"""The mirrored lung is stretched to the height of the aerated base: so many of the columns this far from
the mirror plane, where no heart lies, end lower. The dense ones end higher."""

AIR_HU, FAT_HU, BONE_HU = -400, -80, 180
"""Soft tissue lies between the last two; vessels and edges of bronchi in it lie above the first."""
AVERAGE_MM = 5.2
"""Half the width of the cube over which soft tissue is averaged."""
MIN_SOFT_SHARE = 0.3
"""Least share of soft tissue in that cube: fat and bone are no dense lung."""
CORE_MM = 4.0
TAIL = 0.05
MARGIN_HU = 10
"""What lies this far outside the values of the dense part's middle, but for their tails, is another organ."""

WALL_MM = 40.0
SHIFT_MM = 12.0
"""The aorta lies at the left lung, so that the right one, where it ends as near to the mirror plane as the
first, may reach further inwards than the mirrored left one by the second."""
SLOPE = 0.3
"""The mediastinum's wall may recede so fast from one slice to the next below, in mm per mm."""
STRIP_MM = 24.0
"""Soft tissue between lung and mirrored mediastinum that is narrower is aorta or vertebra."""
OPENING_MM = 3.0
CLOSING_MM = 8.0
MAX_HOLE_MM2 = 700.0
MIN_PIECE_ML = 20.0
"""A smaller piece is not worth a guess."""


def completed(
    means: NDArray[np.int16], spacing: Triple, labels: NDArray[np.uint8], never: Mask
) -> tuple[NDArray[np.uint8], bool]:
    """Take into each lung its dense part, if it has one and the other lung shows its shape.

    `means` (z, y, x; up, posterior, left) are mean HU, `labels` 1 for the right lung and 2 for the left, as
    far as it is aerated; nothing is taken from `never`. Dense lung is expected at the base and the back, in
    a patient on the back; nowhere if the scan cuts a lung off at its back.
    Also returns whether there seems to be dense lung, also if it could not be taken in.
    """
    found = labels.copy()
    is_raised = False
    if labels[:, -1].any():
        return found, is_raised
    for side in (RIGHT, LEFT):
        lung = labels == side
        if not _is_raised_at_the_back(lung, spacing):
            continue
        is_raised = True
        if (labels == 3 - side).any():
            found[_dense_part(means, spacing, labels, never, side) & (found == 0)] = side
    return found, is_raised


def _is_raised_at_the_back(lung: Mask, spacing: Triple) -> bool:
    """Whether the lower end of the lung rises towards the back, where it should fall."""
    has_lung = np.asarray(lung.any(axis=0))
    rows = np.flatnonzero(has_lung.any(axis=1))
    if not rows.size:
        return False
    bases = lung.argmax(axis=0)
    cut = rows[0] + round((1 - REAR_SHARE) * (rows[-1] + 1 - rows[0]))
    front, rear = bases[:cut][has_lung[:cut]], bases[cut:][has_lung[cut:]]
    if not front.size or not rear.size:
        return False
    limit = np.sort(front)[front.size // 4] + RAISED_MM / spacing[0]
    return bool(np.count_nonzero(rear > limit) >= MIN_RAISED_SHARE * rear.size)


def _dense_part(means: NDArray[np.int16], spacing: Triple, labels: NDArray[np.uint8], never: Mask, side: int) -> Mask:
    """What belongs to the lung of this side beside its aerated part."""
    lung = labels == side
    plane = _mirror_plane(labels, spacing)
    expected = _expected(labels, side, plane, spacing)
    if side == RIGHT:
        expected |= _inwards_of(expected, plane, spacing)
    bone = means >= BONE_HU
    tissue = _Tissue.of(means, (means > FAT_HU) & ~bone, spacing)
    may_be = expected & (means > AIR_HU) & tissue.is_soft & ~bone & ~never & (labels == 0)

    lies_below = ~np.logical_or.accumulate(lung[:, ::-1], axis=1)[:, ::-1]  # no aerated lung behind it
    may_be &= lies_below
    outwards = 1 if side == RIGHT else -1
    is_inside = np.logical_or.accumulate(lung[:, :, ::outwards], axis=2)[:, :, ::outwards]  # of aerated lung
    strip = np.ones((1, 1, max(1, round(STRIP_MM / spacing[2]))), np.bool_)
    is_narrow = is_inside & may_be & ~ndimage.binary_opening(may_be, strip)
    may_be &= ~is_narrow

    dense = _below(lung, may_be, side, spacing) & ~lung
    core = erode(dense, CORE_MM, spacing)
    if not core.any():
        return core
    dense &= tissue.is_like(core)
    pieces = Pieces.of(opened(dense, OPENING_MM, spacing))
    is_large = pieces.sizes * np.prod(spacing) >= 1000 * MIN_PIECE_ML
    if not is_large.any():
        return np.zeros_like(lung)
    dense = pieces.chosen(is_large)
    whole = closed(lung | dense, CLOSING_MM, spacing)
    whole &= (expected & lies_below & ~is_narrow) | near(dense, CLOSING_MM, spacing)
    whole &= ~never & ~bone & (labels != 3 - side)
    whole |= lung
    masks.fill_holes(whole, MAX_HOLE_MM2 / (spacing[1] * spacing[2]))
    return np.asarray(whole & ~lung)


class _Tissue(NamedTuple):
    """Soft tissue and its mean HU round each voxel."""

    is_soft: Mask
    means: NDArray[np.int32]

    @classmethod
    def of(cls, means: NDArray[np.int16], is_soft: Mask, spacing: Triple) -> _Tissue:
        totals = np.where(is_soft, means, 0).astype(np.int32)
        counts = is_soft.astype(np.int32)
        n = 1
        for axis in range(3):
            width = 2 * round(AVERAGE_MM / spacing[axis]) + 1
            n *= width
            totals, counts = (
                ndimage.correlate1d(array, np.ones(width), axis, mode="constant") for array in (totals, counts)
            )
        return cls(counts >= MIN_SOFT_SHARE * n, totals // np.maximum(counts, 1))

    def is_like(self, core: Mask) -> Mask:
        """Where the mean is about as in the core."""
        values = np.sort(self.means[core])
        low, high = values[int(TAIL * values.size)], values[-1 - int(TAIL * values.size)]
        found: Mask = (self.means >= low - MARGIN_HU) & (self.means <= high + MARGIN_HU)
        return found


def _expected(labels: NDArray[np.uint8], side: int, plane: Triple, spacing: Triple) -> Mask:
    """The other lung, mirrored at the plane between both, and stretched to the height of this one's base."""
    nz, ny, nx = labels.shape
    lung, other = labels == side, labels == 3 - side
    a, b, c = plane
    z, y, x = np.arange(nz)[:, None, None], np.arange(ny)[:, None], np.arange(nx)
    opposite = np.floor(a + b * z + c * y + 0.5).astype(np.int64) - x
    is_in = (opposite >= 0) & (opposite < nx)
    mirrored: Mask = np.take_along_axis(other, np.clip(opposite, 0, nx - 1), axis=2) & is_in

    is_far = np.abs(2 * x - (a + b * nz / 2 + c * y)) * spacing[2] > 2 * FAR_MM
    both = lung.any(axis=0) & mirrored.any(axis=0) & is_far
    if not both.any():
        return np.zeros_like(lung)
    lifts = np.sort((lung.argmax(axis=0) - mirrored.argmax(axis=0))[both])
    lift = int(lifts[int(BASE_QUANTILE * lifts.size)])
    slices = np.flatnonzero(mirrored.any(axis=(1, 2)))
    height = int(slices[-1] - slices[0])
    source = slices[-1] - np.rint((slices[-1] - np.arange(nz)) * (height / max(1, height - lift))).astype(np.int64)
    found: Mask = mirrored[np.clip(source, 0, nz - 1)] & ((source >= 0) & (source < nz))[:, None, None]
    return found


def _inwards_of(expected: Mask, plane: Triple, spacing: Triple) -> Mask:
    """What lies up to SHIFT_MM inwards of the ends of rows of a right lung that reach the mediastinum."""
    nz, ny, nx = expected.shape
    a, b, c = plane
    ends = nx - 1 - expected[:, :, ::-1].argmax(axis=2)[:, :, None]
    middles = (a + b * np.arange(nz)[:, None, None] + c * np.arange(ny)[:, None]) / 2
    is_wall = expected.any(axis=2, keepdims=True) & ((middles - ends) * spacing[2] <= WALL_MM)
    beyond = (np.arange(nx) - ends) * spacing[2]
    found: Mask = is_wall & (beyond > 0) & (beyond <= SHIFT_MM)
    return found


def _mirror_plane(labels: NDArray[np.uint8], spacing: Triple) -> Triple:
    """(a, b, c) so that x of a place and of its mirror image add up to a + b z + c y, as indices."""
    right, left = labels == RIGHT, labels == LEFT
    z, y = np.nonzero(right.any(axis=2) & left.any(axis=2))
    sums = right[z, y].argmax(axis=1) + labels.shape[2] - 1 - left[z, y, ::-1].argmax(axis=1)
    terms = np.stack([np.ones_like(z), z, y]).astype(np.int64)
    deviations = np.zeros(z.size)
    for limit in SAME_ROW_MM:
        is_same = np.abs(deviations) * spacing[2] / 2 <= limit
        kept = terms[:, is_same]
        solved = np.linalg.lstsq((kept @ kept.T).astype(np.float64), (kept @ sums[is_same]).astype(np.float64))[0]
        a, b, c = (round(float(value), 6) for value in solved)  # so that the last bits do not count
        deviations = sums - (a + b * z + c * y)
    return a, b, c


def _below(lung: Mask, may_be: Mask, side: int, spacing: Triple) -> Mask:
    """The lung with what may be dense lung, slice by slice downwards: not further inwards than the slice above."""
    found = lung.copy()
    every = max(1, round(spacing[1] / (SLOPE * spacing[0])))
    x = np.arange(lung.shape[2])
    for z in range(lung.shape[0] - 2, -1, -1):
        above = found[z + 1]
        columns, rows = (np.flatnonzero(above.any(axis=axis)) for axis in (0, 1))
        if not rows.size:
            continue
        middle = columns[0] + columns[-1]
        is_outer = 2 * x < middle if side == RIGHT else 2 * x > middle
        is_free = is_outer & (2 * np.arange(lung.shape[1]) > rows[0] + rows[-1])[:, None]
        found[z] |= may_be[z] & (is_free | (_wider(above) if z % every == 0 else above))
    return found


def _wider(plane: Mask) -> Mask:
    """The plane grown by one voxel, corners included."""
    along = plane.copy()
    along[1:] |= plane[:-1]
    along[:-1] |= plane[1:]
    wide = along.copy()
    wide[:, 1:] |= along[:, :-1]
    wide[:, :-1] |= along[:, 1:]
    return wide
