"""Complete lungs whose part that lies down is dense: consolidation, effusion, collapse.

In CT without contrast little tells dense lung from liver, heart or muscle, so its limits are taken from what is known:
the other lung, mirrored; gravity, for dense lung lies below the aerated one; the aerated lung above, which shows where
the mediastinum ends; bone, fat; and its own HU where they differ. All on the coarse grid, and decided by whole numbers
where a sum of floats could differ in its last bits, so that every machine gives the same mask.

Axes are (z, y, x): up, to the back, to the patient's left. "Behind" and "below" are in the patient, who lies on the
back: what is further back lies lower.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.preparation.lungs.filling import fill_small_holes
from dskprep.preparation.morphology import Mask, Pieces, box_of, close_mask, dilate, erode, open_mask
from dskprep.sides import LEFT, RIGHT
from dskprep.volume import Triple

REAR_SHARE = 0.4
"""The rear of a lung is this share of its rows, from the back."""
RAISED_MM = 20.0
"""The rear is raised where it ends this much higher, in mm, than the front; healthy lungs reach lowest at the rear."""
MIN_RAISED_SHARE = 0.4
"""A lung is completed if this share of its rear is raised. Seen: healthy up to 0.32, a quarter dense from 0.44."""

MIN_HEIGHT_MM = 100.0
"""Of less of a lung than this nothing is known about its shape."""

SAME_ROW_MM = (np.inf, 20.0, 10.0, 10.0)
"""Rows that deviate more from the mirror plane are left out of its fit, round after round."""

FAR_MM = 60.0
"""This far from the mirror plane lies no heart, so lungs are compared there."""
BASE_QUANTILE = 0.15
"""The mirrored lung is stretched so that this share of the base's columns ends lower; dense ones end higher."""

AERATED_HU = -400
"""Not more than this is aerated; vessels, and edges of bronchi in dense lung, lie above."""
FAT_HU = -80
"""Soft tissue lies above this."""
BONE_HU = 180
"""Soft tissue lies below this."""

AVERAGE_MM = 5.2
"""Half the width, in mm, of the cube over which soft tissue is averaged."""
MIN_SOFT_SHARE = 0.3
"""Least share of soft tissue in that cube: fat and bone are no dense lung."""

CORE_MM = 4.0
"""The core of the dense part is at least this far from its edge, in mm."""
TAIL = 0.05
"""Share of the core's values that is left out at either end of their range."""
MARGIN_HU = 10
"""What lies this far outside that range is another organ."""

WALL_MM = 40.0
"""Where the right lung ends this near to the mirror plane, it may reach further inwards, by SHIFT_MM."""
SHIFT_MM = 12.0
"""So much further than the mirrored left lung, beside which the aorta lies, may the right lung reach inwards."""
SLOPE = 0.3
"""The mediastinum's wall may recede so fast from one slice to the next below, in mm per mm."""
STRIP_MM = 24.0
"""Soft tissue between lung and mirrored mediastinum that is narrower, in mm, is aorta or vertebra."""

OPENING_MM = 3.0
"""Radius of the opening, in mm, that takes bridges to other organs off the dense part."""
CLOSING_MM = 8.0
"""Radius of the closing, in mm, that joins the dense part to the aerated one, as in `filling`."""
MIN_PIECE_ML = 20.0
"""A smaller piece is not worth a guess."""


def complete(
    means: NDArray[np.int16], spacing: Triple, labels: NDArray[np.uint8], never: Mask
) -> tuple[NDArray[np.uint8], bool]:
    """Take into each lung its dense part, if it has one and the other lung shows its shape.

    `means` (z, y, x) are mean HU, `labels` RIGHT and LEFT where lung is aerated; nothing is taken from `never`. Dense
    lung is expected at the base and the back of a patient on the back; nowhere if the scan cuts a lung off at its back.
    Returns the labels, and whether there seems to be dense lung, even if it could not be taken in.
    """
    found = labels.copy()
    is_raised = False
    if labels[:, -1].any():  # cut off at its back
        return found, is_raised
    for side in (RIGHT, LEFT):
        lung = labels == side
        height = box_of(lung, margin=0)[0]
        if (height.stop - height.start) * spacing[0] < MIN_HEIGHT_MM or not _is_raised_at_the_back(lung, spacing):
            continue
        is_raised = True
        if (labels == RIGHT + LEFT - side).any():
            found[_dense_part(means, spacing, labels, never, side) & (found == 0)] = side
    return found, is_raised


def _is_raised_at_the_back(lung: Mask, spacing: Triple) -> bool:
    """Return whether the lower end of the lung rises towards the back, where it should fall."""
    has_lung = np.asarray(lung.any(axis=0))
    rows = np.flatnonzero(has_lung.any(axis=1))
    if not rows.size:
        return False
    bases = lung.argmax(axis=0)  # the lowest slice of each column
    cut = rows[0] + round((1 - REAR_SHARE) * (rows[-1] + 1 - rows[0]))
    front, rear = bases[:cut][has_lung[:cut]], bases[cut:][has_lung[cut:]]
    if not front.size or not rear.size:
        return False
    # the lower quartile of the front, not its one lowest column
    limit = np.sort(front)[front.size // 4] + RAISED_MM / spacing[0]
    return bool(np.count_nonzero(rear > limit) >= MIN_RAISED_SHARE * rear.size)


def _dense_part(means: NDArray[np.int16], spacing: Triple, labels: NDArray[np.uint8], never: Mask, side: int) -> Mask:
    """Return what belongs to the lung of this side beside its aerated part."""
    lung = labels == side
    plane = _fit_mirror_plane(labels, spacing)
    expected = _mirror_other_lung(labels, side, plane, spacing)
    if side == RIGHT:
        expected |= _extend_inwards(expected, plane, spacing)
    bone = means >= BONE_HU
    tissue = _Tissue.average(means, (means > FAT_HU) & ~bone, spacing)
    may_be = expected & (means > AERATED_HU) & tissue.is_soft & ~bone & ~never & (labels == 0)

    # gravity: no aerated lung behind it
    lies_below = ~np.logical_or.accumulate(lung[:, ::-1], axis=1)[:, ::-1]
    may_be &= lies_below
    # a narrow strip between aerated lung and the mirrored mediastinum is aorta or vertebra
    outwards = 1 if side == RIGHT else -1
    is_inside = np.logical_or.accumulate(lung[:, :, ::outwards], axis=2)[:, :, ::outwards]  # aerated lung further out
    strip = np.ones((1, 1, max(1, round(STRIP_MM / spacing[2]))), np.bool_)
    is_narrow = is_inside & may_be & ~ndimage.binary_opening(may_be, strip)
    may_be &= ~is_narrow

    dense = _extend_downwards(lung, may_be, side, spacing) & ~lung
    core = erode(dense, CORE_MM, spacing)
    if not core.any():
        return core
    dense &= tissue.is_like(core)  # other organs that lie within all other limits go
    pieces = Pieces.of(open_mask(dense, OPENING_MM, spacing))
    is_large = pieces.sizes * np.prod(spacing) >= 1000 * MIN_PIECE_ML
    if not is_large.any():
        return np.zeros_like(lung)
    dense = pieces.select(is_large)
    whole = close_mask(lung | dense, CLOSING_MM, spacing)
    # what the closing took in stays within the same limits, or next to the dense part
    whole &= (expected & lies_below & ~is_narrow) | dilate(dense, CLOSING_MM, spacing)
    whole &= ~never & ~bone & (labels != RIGHT + LEFT - side)
    whole |= lung
    fill_small_holes(whole, spacing)
    return np.asarray(whole & ~lung)


class _Tissue(NamedTuple):
    """Soft tissue, averaged over a cube round each voxel."""

    is_soft: Mask
    """Where there is enough of it in the cube."""
    means: NDArray[np.int32]
    """Its mean HU in the cube."""

    @classmethod
    def average(cls, means: NDArray[np.int16], is_soft: Mask, spacing: Triple) -> _Tissue:
        """Average the soft voxels of `means`, in whole numbers."""
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
        """Return where the mean is about as in the core."""
        values = np.sort(self.means[core])
        low, high = values[int(TAIL * values.size)], values[-1 - int(TAIL * values.size)]
        found: Mask = (self.means >= low - MARGIN_HU) & (self.means <= high + MARGIN_HU)
        return found


def _mirror_other_lung(labels: NDArray[np.uint8], side: int, plane: Triple, spacing: Triple) -> Mask:
    """Return the other lung, mirrored at the plane between both, and stretched to the height of this one's base."""
    nz, ny, nx = labels.shape
    lung, other = labels == side, labels == RIGHT + LEFT - side
    a, b, c = plane
    z, y, x = np.arange(nz)[:, None, None], np.arange(ny)[:, None], np.arange(nx)
    opposite = np.floor(a + b * z + c * y + 0.5).astype(np.int64) - x
    is_in = (opposite >= 0) & (opposite < nx)
    mirrored: Mask = np.take_along_axis(other, np.clip(opposite, 0, nx - 1), axis=2) & is_in

    # from the mirror plane: x deviates from half the sum of x and its mirror image
    is_far = np.abs(2 * x - (a + b * nz / 2 + c * y)) * spacing[2] > 2 * FAR_MM
    both = lung.any(axis=0) & mirrored.any(axis=0) & is_far
    if not both.any():
        return np.zeros_like(lung)
    lifts = np.sort((lung.argmax(axis=0) - mirrored.argmax(axis=0))[both])
    lift = int(lifts[int(BASE_QUANTILE * lifts.size)])
    slices = np.flatnonzero(mirrored.any(axis=(1, 2)))
    height = int(slices[-1] - slices[0])
    # the slice that each slice is taken from: the apex stays, and the base moves by `lift`
    source = slices[-1] - np.rint((slices[-1] - np.arange(nz)) * (height / max(1, height - lift))).astype(np.int64)
    found: Mask = mirrored[np.clip(source, 0, nz - 1)] & ((source >= 0) & (source < nz))[:, None, None]
    return found


def _extend_inwards(expected: Mask, plane: Triple, spacing: Triple) -> Mask:
    """Return what lies up to SHIFT_MM inwards of the ends of rows of a right lung that reach the mediastinum."""
    nz, ny, nx = expected.shape
    a, b, c = plane
    ends = nx - 1 - expected[:, :, ::-1].argmax(axis=2)[:, :, None]
    middles = (a + b * np.arange(nz)[:, None, None] + c * np.arange(ny)[:, None]) / 2
    is_wall = expected.any(axis=2, keepdims=True) & ((middles - ends) * spacing[2] <= WALL_MM)
    beyond = (np.arange(nx) - ends) * spacing[2]
    found: Mask = is_wall & (beyond > 0) & (beyond <= SHIFT_MM)
    return found


def _fit_mirror_plane(labels: NDArray[np.uint8], spacing: Triple) -> Triple:
    """Return (a, b, c) so that x of a place and of its mirror image add up to a + b z + c y, as indices.

    Fitted by least squares to the outer ends of the rows that cross both lungs; rows where one side is shorter, as
    beside dense lung, are left out more strictly from round to round.
    """
    right, left = labels == RIGHT, labels == LEFT
    z, y = np.nonzero(right.any(axis=2) & left.any(axis=2))
    sums = right[z, y].argmax(axis=1) + labels.shape[2] - 1 - left[z, y, ::-1].argmax(axis=1)
    terms = np.stack([np.ones_like(z), z, y]).astype(np.int64)
    deviations = np.zeros(z.size)
    for limit in SAME_ROW_MM:
        is_same = np.abs(deviations) * spacing[2] / 2 <= limit
        kept = terms[:, is_same]
        # normal equations: their sums are whole numbers, and exact
        solved = np.linalg.lstsq((kept @ kept.T).astype(np.float64), (kept @ sums[is_same]).astype(np.float64))[0]
        a, b, c = (round(float(value), 6) for value in solved)  # so that the last bits do not count
        deviations = sums - (a + b * z + c * y)
    return a, b, c


def _extend_downwards(lung: Mask, may_be: Mask, side: int, spacing: Triple) -> Mask:
    """Return the lung with what may be dense lung, slice by slice downwards.

    In its inner and front part, no slice reaches further than the one above, dilated at the rate of SLOPE: where the
    lung above ends, the mediastinum begins.
    """
    found = lung.copy()
    # slices per dilation by one voxel
    every = max(1, round(spacing[1] / (SLOPE * spacing[0])))
    x = np.arange(lung.shape[2])
    for z in range(lung.shape[0] - 2, -1, -1):
        above = found[z + 1]
        columns, rows = (np.flatnonzero(above.any(axis=axis)) for axis in (0, 1))
        if not rows.size:
            continue
        middle = columns[0] + columns[-1]
        # the outer half of the slice above, at the back, borders on the chest wall, not on the mediastinum
        is_outer = 2 * x < middle if side == RIGHT else 2 * x > middle
        is_free = is_outer & (2 * np.arange(lung.shape[1]) > rows[0] + rows[-1])[:, None]
        if z % every == 0:
            above = ndimage.binary_dilation(above, np.ones((3, 3)))
        found[z] |= may_be[z] & (is_free | above)
    return found
