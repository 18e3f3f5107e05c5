"""Find the lungs in a chest CT: on the coarse grid of `body`, then voxel by voxel at their boundary.

All lengths are in mm, so thick and thin slices give the same lungs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dskprep import sides
from dskprep.kernels import drawing
from dskprep.preparation.bitmask import BitMask, Mask
from dskprep.preparation.body import GRID_MM, TISSUE_HU, Grid, coarse_grid, crop, find_body
from dskprep.preparation.lungs import aerated, airways, dense, doubts, filling, separation
from dskprep.preparation.lungs.views import Views
from dskprep.preparation.morphology import box_of, dilate, erode, expand_labels
from dskprep.sides import LEFT, LUNG, RIGHT
from dskprep.volume import Volume, check_is_volume

EDGE_MM = 2.5
"""The coarse boundary is right to within this, in mm; inside it, voxels are judged by their own HU."""


@dataclass(frozen=True, eq=False, repr=False)
class Lungs:
    """The lungs of a volume: with their vessels, nodules and small bronchi, without the main bronchi."""

    mask: Volume
    """uint8 (z, y, x): 0 outside, 1 right lung, 2 left lung, 3 lung whose side is not known (`sides`)."""
    right_ml: float
    """Volume of the right lung, gas and tissue."""
    left_ml: float
    """Volume of the left lung."""
    warnings: tuple[str, ...]
    """Words of docs/reasons.md."""
    dense_share: float | None = None
    """Share that is denser than -320 HU, of the lung that has the larger one; None if it was not measured."""
    unsided_ml: float = 0.0
    """Volume of lung whose side is not known."""
    disagreed_ml: float | None = None
    """Volume in which a mask of the user's own and that of `find_lungs` differ; None if there is only one."""
    missing_ml: float | None = None
    """Volume that should be lung and was not found, about; None if it was not measured."""
    missing_place: str = ""
    """Where that is, as in "right lower, left upper": the third of the lung's height."""

    def __repr__(self) -> str:
        words = sides.in_words(self.right_ml, self.left_ml, self.unsided_ml)
        return f"<Lungs: {'; '.join([words, *self.warnings])}>"


def find_lungs(volume: Volume, *, margin_mm: float = 0.0) -> Lungs:
    """Find the right and the left lung.

    Main bronchi, gas in the stomach, bowel and oesophagus, and all air outside the body are left out. Lungs cut off by
    the ends of the scan or by the field of view are kept. Dense lung (consolidation, effusion, collapse) is taken in
    where aerated lung surrounds it, and where the other lung or the ribs show that lung should be and its HU tell it
    from what lies round it (module `dense`). `dense_share` and the warning `dense-lung` say so. What should be there
    and was not found is measured: `missing_ml`, `missing_place`, and the warning `lung-missing`.

    Parameters
    ----------
    volume
        int16 HU (z, y, x) along the patient's axes: z up is superior, y posterior, x the patient's left. Voxels equal
        to PADDING were not measured. Spacing may be anything up to about 5 mm.
    margin_mm
        Grow the mask by this much on every side, not into the other lung. The volumes in ml and the warnings are of
        the lungs without it.

    Returns
    -------
    Lungs
        The mask, on the grid of the volume, with both volumes and what is doubtful.

    Raises
    ------
    ValueError
        If the margin is not 0 or more.
    TypeError
        If it is no Volume, or not int16.

    Examples
    --------
    >>> import numpy as np
    >>> from dskprep import Volume, find_lungs
    >>> water = Volume(np.zeros((20, 20, 20), np.int16), np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]])
    >>> find_lungs(water).warnings
    ('lungs-not-found',)
    """
    check_is_volume(volume)
    if not margin_mm >= 0:
        raise ValueError(f"margin_mm must be 0 or more, not {margin_mm}")
    grid, tissue, outside = find_body(coarse_grid(volume))
    air = BitMask.below(grid.means, TISSUE_HU) & ~grid.padding & ~outside
    air_hu = aerated.find_air_hu(grid, outside)
    grid, air, tissue, outside = crop(air, grid, air, tissue, outside)
    views = Views.of(grid, outside)
    gas = aerated.find_gas(grid, air, air_hu, views)
    air = air & ~gas
    cores = aerated.find_cores(grid, air, air_hu, views)

    midline, spine = separation.find_midline(grid, tissue, cores), separation.find_spine(grid, cores)
    first = grid.first[2]
    grid, cores, air, gas, outside = crop(cores, grid, cores, air, gas, outside)
    lung = aerated.extend_cores(grid, cores, air)
    tubes = airways.find_airways(grid, lung)
    cores, lung = cores & ~tubes, lung & ~tubes
    midline, spine = (None if column is None else column + first - grid.first[2] for column in (midline, spine))
    labels, is_told = separation.separate(grid, cores, lung, midline)
    never = (outside | gas | tubes | grid.padding).array
    labels = filling.fill_lungs(grid, labels, never)
    completed = None
    # of a lung that is cut off no shape is known
    is_cut_off = bool(labels[:, -1].any() or labels[:, :, [0, -1]].any()) or doubts.meets_padding(grid, labels)
    if is_told:
        completed = dense.complete(grid, labels, never, midline, spine, is_cut_off)
    if completed is not None:
        labels = completed.labels

    mask, right_ml, left_ml = _draw(volume, grid, labels, never)
    ml = (right_ml, left_ml, 0.0)
    if not is_told:
        mask[mask > 0] = LUNG
        ml = (0.0, 0.0, right_ml + left_ml)
    dense_share = doubts.dense_share_of(grid, labels)
    is_dense = dense_share > doubts.MAX_DENSE_SHARE or (completed is not None and completed.is_dense)
    is_dense = is_dense or (not is_told and dense.seems_dense(grid, labels, never, spine))
    missing = completed and completed.missing
    is_cut_off = doubts.meets_a_face(mask, volume.spacing) or doubts.meets_padding(grid, labels)
    warnings = doubts.find_doubts(
        ml, is_cut_off, labels, grid.spacing, is_dense, missing is not None and missing.ml > 0
    )
    found = Lungs(
        volume.with_array(mask),
        *ml[:2],
        warnings,
        dense_share,
        ml[2],
        missing_ml=missing and missing.ml,
        missing_place=missing.place if missing else "",
    )
    return grow(found, margin_mm)


def _draw(volume: Volume, grid: Grid, labels: NDArray[np.uint8], never: Mask) -> tuple[NDArray[np.uint8], float, float]:
    """Draw the lungs at full resolution; return the mask, and the ml of the right and of the left lung.

    Deep inside and where tissue was filled in, the coarse mask counts; at its edge, whether a voxel is air.
    """
    mask = np.zeros(volume.shape, np.uint8)
    is_lung = labels > 0
    solid = is_lung & (erode(is_lung, EDGE_MM, grid.spacing) | (grid.means >= TISSUE_HU))
    reach = expand_labels(labels, EDGE_MM, grid.spacing, ~never)
    _, *counts = drawing.draw(volume.array, TISSUE_HU, reach, solid, grid.block, grid.first, mask)
    right_ml, left_ml = (float(count) * volume.voxel_ml for count in counts)
    return mask, right_ml, left_ml


def grow(lungs: Lungs, margin_mm: float) -> Lungs:
    """Grow the mask by a margin, in place; a voxel goes to the nearer lung. Volumes and warnings stay."""
    mask = lungs.mask
    if margin_mm > 0:
        box = box_of(mask.array, margin=math.ceil(margin_mm / min(mask.spacing)))
        labels = np.ascontiguousarray(mask.array[box])
        sided = expand_labels(labels * (labels != LUNG), margin_mm, mask.spacing)
        unsided = dilate(labels == LUNG, margin_mm, mask.spacing) & (sided == 0)
        mask.array[box] = sided + unsided * np.uint8(LUNG)
    return lungs


def judge(mask: Volume) -> Lungs:
    """Return a mask that was found in another way with its volumes and doubts.

    `mask` is uint8 (z, y, x): 0 outside, RIGHT, LEFT, LUNG.
    """
    right, left, unsided = (float(np.count_nonzero(mask.array == side)) for side in (RIGHT, LEFT, LUNG))
    ml = (right * mask.voxel_ml, left * mask.voxel_ml, unsided * mask.voxel_ml)
    steps = tuple(max(1, round(GRID_MM / s)) for s in mask.spacing)
    coarse = np.ascontiguousarray(mask.array[tuple(slice(None, None, step) for step in steps)])
    z, y, x = (s * step for s, step in zip(mask.spacing, steps, strict=True))
    is_cut_off = doubts.meets_a_face(mask.array, mask.spacing)
    warnings = doubts.find_doubts(ml, is_cut_off, coarse, (z, y, x))
    return Lungs(mask, ml[0], ml[1], warnings, unsided_ml=ml[2])
