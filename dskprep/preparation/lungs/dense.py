"""Complete lungs whose part is dense: consolidation, effusion, collapse, and haze at their edge.

In CT without contrast little tells dense lung from liver, heart or muscle, so its limits are taken from what is known:
the other lung, mirrored; the ribs; and its own HU where they differ from those of what lies round it. All on the coarse
grid, and decided by whole numbers, so that every machine gives the same mask.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.preparation.bitmask import BitMask, Mask
from dskprep.preparation.body import Grid
from dskprep.preparation.lungs.expected import Chest, look_ahead
from dskprep.preparation.lungs.filling import fill_lungs
from dskprep.preparation.lungs.missing import (
    AERATED_HU,
    Gap,
    Missing,
    find_gaps,
    has_dense_part,
    rises_to_the_back,
    sum_up,
)
from dskprep.preparation.morphology import (
    box_of,
    close_mask,
    dilate,
    enlarge,
    erode,
    expand_labels,
    open_mask,
    select_connected,
)
from dskprep.sides import LEFT, RIGHT
from dskprep.volume import Triple

HAZE_HU = (-400, -160)
"""No healthy tissue beside a lung is so dense, but for thin layers of partial volume: fat lies above."""
HAZE_MM = 3.0
"""Haze is thicker than twice this."""
HAZE_REACH_MM = 12.0
"""It lies this near to aerated lung."""
MIN_HAZE_ML = 60.0
"""Less is left out: noise and breathing make up to 40 ml of it."""
DEPENDENT_MM = 2.0
"""Behind the lungs, where density collects in patients on their backs, haze is thicker than twice this, or two voxels.

Such thin haze is lung only with both bounds below. They rest on one patient who has it, LUNG1-003, and 27 who do not.
"""
MIN_DEPENDENT_ML = 30.0
"""Least volume of thin haze behind the lungs: 56 ml in LUNG1-003; up to 22 ml in healthy chests, mostly below 1 ml."""
MIN_BEHIND_SHARE = 0.5
"""Least share of all thin haze that lies behind the lungs. Thick voxels make it all round them: 0.25 lies behind."""

FAR_COLUMN = -1000.0
"""A spine at this column is far from all lung."""

MIN_HEIGHT_MM = 100.0
"""Of less of a lung than this nothing is known about its shape."""

FAT_HU = -80
"""Soft tissue lies above this."""
BONE_HU = 180
"""Soft tissue lies below this."""
AVERAGE_MM = 5.2
"""Half the width, in mm, of the cube over which soft tissue is averaged."""
MIN_SOFT_SHARE = 0.3
"""Least share of soft tissue in that cube: fat and bone are no dense lung."""

CORE_MM = 5.0
"""The HU of dense lung are those at least this far within what is surely missing, in mm."""
MIN_DEVIATION_HU = 8
"""Dense lung deviates this much from its median, or by SPREAD of the range of its middle half if that is more."""
SPREAD = 1.5
"""See MIN_DEVIATION_HU."""
MAX_LIKE_SHARE = 0.75
"""If more than this share of what lies round the expected lung is like dense lung, then HU tell nothing."""
WIDER_MM = 12.0
"""Where HU tell, dense lung reaches up to this far beyond the expected lung, in mm,"""
LOWER_MM = 28.0
"""and below it up to this far."""
NEAR_MM = 24.0
"""It lies this near to what is surely missing, in mm."""

EDGE_MM = 6.0
"""So far beyond what is like dense lung in the average, its own voxels are taken in, in mm."""
NOISE_HU = 10
"""They may deviate by this more."""

OPENING_MM = 3.0
"""Radius of the opening, in mm, that takes bridges to other organs off the dense part."""
CLOSING_MM = 6.0
"""Radius of the closing, in mm, that joins the dense part to the aerated one."""
BESIDE_MM = 2.0
"""The closing takes in nothing further than this from the expected lung, in mm."""


class Completed(NamedTuple):
    """Lungs with their dense parts."""

    labels: NDArray[np.uint8]
    is_dense: bool
    """Something dense was taken in, or seems to be there."""
    missing: Missing | None
    """What is missing in spite of it; None if that is not known."""


def complete(
    grid: Grid,
    labels: NDArray[np.uint8],
    never: Mask,
    midline: float | None,
    spine: float | None = None,
    is_cut_off: bool = False,
) -> Completed | None:
    """Take into each lung its dense part; measure what is missing then.

    `labels` are RIGHT and LEFT where lung is aerated; nothing is taken from `never`. `midline` is the column of the
    body's middle, which counts where there is only one lung, as that of the `spine` does if it is not known; returns
    None where neither is. Where the field of view cuts lungs off at their sides (`is_cut_off`), what is missing is
    measured, and nothing taken in.
    """
    if is_cut_off:
        chest = Chest.of(grid.means, grid.spacing, labels, never, midline, spine, is_cut_off)
        if chest is None:
            return None
        gaps = find_gaps(chest)
        is_dense = bool(gaps) or any(has_dense_part(chest, side) for side in (RIGHT, LEFT))
        is_known = bool(gaps) or (chest.is_comparable and not is_dense)
        return Completed(labels, is_dense, sum_up(chest, gaps) if is_known else None)
    hazy = _find_haze(grid, labels, never)
    if hazy is not None:
        labels = fill_lungs(grid, np.where(labels > 0, labels, hazy), never)
    is_dense = hazy is not None
    chest = Chest.of(grid.means, grid.spacing, labels, never, midline, spine)
    if chest is None:
        return None
    gaps = find_gaps(chest)
    if gaps:
        is_dense = True
        labels = labels.copy()
        for gap in gaps:
            _fill(grid, labels, never, chest, gap)
        chest = Chest.of(grid.means, grid.spacing, labels, never, midline, spine) or chest
        gaps = find_gaps(chest)
    return Completed(labels, is_dense, sum_up(chest, gaps))


def seems_dense(grid: Grid, labels: NDArray[np.uint8], never: Mask, spine: float | None) -> bool:
    """Return whether a part of a lung seems dense whose side is not known: `labels` are all RIGHT.

    Where the `spine` is not known either, only its base is looked at, in all its columns.
    """
    chest = Chest.of(grid.means, grid.spacing, labels, never, None, FAR_COLUMN if spine is None else spine)
    if chest is None:
        return False
    return rises_to_the_back(chest, RIGHT) if spine is None else has_dense_part(chest, RIGHT)


def _find_haze(grid: Grid, labels: NDArray[np.uint8], never: Mask) -> NDArray[np.uint8] | None:
    """Return haze beside the lungs as RIGHT and LEFT, or None if there is hardly any."""
    low, high = HAZE_HU
    haze = BitMask.of((grid.means > low) & (grid.means < high) & (labels == 0) & ~never)
    thick = _beside(grid, labels, open_mask(haze, HAZE_MM, grid.spacing), MIN_HAZE_ML)
    thin_mm = max(DEPENDENT_MM, *grid.spacing)  # partial volume is as thick as a voxel
    thin = _beside(grid, labels, open_mask(haze, thin_mm, grid.spacing), MIN_DEPENDENT_ML)
    if thin is None:
        return thick
    lung = labels > 0
    behind = thin * (look_ahead(lung, 1, -1) & ~look_ahead(lung, 1, 1))
    n_behind = np.count_nonzero(behind)
    if n_behind * grid.voxel_ml < MIN_DEPENDENT_ML or n_behind < MIN_BEHIND_SHARE * np.count_nonzero(thin):
        return thick
    return behind if thick is None else np.maximum(behind, thick)


def _beside(grid: Grid, labels: NDArray[np.uint8], haze: BitMask, min_ml: float) -> NDArray[np.uint8] | None:
    """Return what of the haze lies near a lung as RIGHT and LEFT, or None if that is less than `min_ml`."""
    if haze.counts().sum() * grid.voxel_ml < min_ml:
        return None
    beside = expand_labels(labels, HAZE_REACH_MM, grid.spacing, haze)
    return beside if np.count_nonzero(beside) * grid.voxel_ml >= min_ml else None


def _fill(grid: Grid, labels: NDArray[np.uint8], never: Mask, chest: Chest, gap: Gap) -> None:
    """Take what a gap shows to be dense lung into `labels`, in place."""
    height = box_of(labels == gap.side, margin=0)[0]
    if (height.stop - height.start) * grid.spacing[0] < MIN_HEIGHT_MM:
        return
    wide = dilate(gap.expected, WIDER_MM, chest.spacing)
    for n in range(1, chest.voxels(LOWER_MM, 0) + 1):
        wide[:-n] |= gap.expected[n:]
    wide &= gap.inside
    wide[[0, -1]] = False  # a lung that ends in the scan does not end at its face
    shape = grid.means.shape
    core, expected, wide = (enlarge(mask, chest.step, shape).array for mask in (gap.core, gap.expected, wide))
    box = box_of(wide | (labels == gap.side), margin=0)
    dense = _dense_part(
        grid.means[box], grid.spacing, labels[box], gap.side, never[box], core[box], expected[box], wide[box]
    )
    labels[box][dense] = gap.side


def _dense_part(
    means: NDArray[np.int16],
    spacing: Triple,
    labels: NDArray[np.uint8],
    side: int,
    never: Mask,
    core: Mask,
    expected: Mask,
    wide: Mask,
) -> Mask:
    """Return what belongs to the lung of this side beside its aerated part."""
    bone = means >= BONE_HU
    tissue = _Tissue.average(means, (means > FAT_HU) & ~bone, spacing)
    middle, deviation = tissue.range_of(core, spacing)
    is_like = tissue.is_soft & (np.abs(tissue.means - middle) <= deviation)
    is_itself = np.abs(means - middle) <= deviation + NOISE_HU
    free = (means > AERATED_HU) & ~never & (labels == 0) & ~bone
    round_it = wide & ~expected & free & tissue.is_soft
    if np.count_nonzero(is_like & round_it) > MAX_LIKE_SHARE * np.count_nonzero(round_it):
        return np.zeros_like(core)
    dense = open_mask(free & is_like & wide, OPENING_MM, spacing)
    dense = select_connected(dense & dilate(core, NEAR_MM, spacing), core & dense)
    lung = labels == side
    whole = close_mask(lung | dense, CLOSING_MM, spacing)
    beside = dilate(expected, BESIDE_MM, spacing)
    whole &= dense | beside
    # the average reaches over the edge, where the voxels themselves still tell
    whole |= dilate(dense, EDGE_MM, spacing) & free & is_itself & beside
    return np.asarray(whole & ~never & ~bone & (labels == 0))


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
            half = round(AVERAGE_MM / spacing[axis])
            n *= 2 * half + 1
            totals, counts = (_sum_along(array, axis, half) for array in (totals, counts))
        return cls(counts >= MIN_SOFT_SHARE * n, totals // np.maximum(counts, 1))

    def range_of(self, core: Mask, spacing: Triple) -> tuple[int, float]:
        """Return the median of the means in the core, and how far they deviate from it."""
        inner = erode(core, CORE_MM, spacing)
        values = np.sort(self.means[inner if inner.any() else core])
        low, middle, high = (values[int(share * values.size)] for share in (0.25, 0.5, 0.75))
        return int(middle), max(MIN_DEVIATION_HU, SPREAD * float(high - low))


def _sum_along(array: NDArray[np.int32], axis: int, half: int) -> NDArray[np.int32]:
    """Return the sum of each value and its `half` neighbours on either side along an axis; beyond the ends all is 0."""
    sums = np.cumsum(array, axis, dtype=np.int32)
    n = array.shape[axis]
    after = np.minimum(np.arange(n) + half, n - 1)
    found: NDArray[np.int32] = sums.take(after, axis)
    inner = (slice(None),) * axis
    found[(*inner, slice(half + 1, None))] -= sums[(*inner, slice(0, max(0, n - half - 1)))]
    return found
