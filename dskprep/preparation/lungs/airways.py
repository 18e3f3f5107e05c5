"""Find the trachea and main bronchi whose gas is not told from lung by its HU, by their shape, on the coarse grid."""

from __future__ import annotations

import math

from dskprep.kernels import components, masks, runs
from dskprep.preparation.bitmask import BitMask
from dskprep.preparation.body import Grid
from dskprep.preparation.lungs.aerated import GAS_MM, RING_MM, WALL_MM
from dskprep.preparation.morphology import Pieces, dilate, open_mask

MAX_AREA_MM2 = 700.0
"""Largest area in an axial slice: the trachea is up to 27 mm wide (Breatnach et al. 1984, AJR 142:903)."""
MIN_HEIGHT_MM = 24.0
"""Least height, in mm: the tips of lungs widen faster."""
MIN_BELOW_LUNG_HU = 40.0
"""Gas in a tube is at least so many HU less dense than the lungs: seen 70 and more."""
MIN_WALL = 0.7
"""Least share of tissue in the ring round a tube: seen 0.82 and more."""


def find_airways(grid: Grid, lung: BitMask) -> BitMask:
    """Return the tubes in what was taken for lung, with their walls: small in each slice, high, within tissue."""
    wide = runs.of_bits(open_mask(lung, GAS_MM, grid.spacing).words, lung.nx)
    in_slices = components.label(wide, lung.shape[1], components.IN_SLICE_EDGES)
    areas = components.sizes(wide, in_slices)[in_slices] * grid.spacing[1] * grid.spacing[2]
    tubes = Pieces.of(BitMask(runs.to_bits(runs.where(wide, areas < MAX_AREA_MM2), lung.shape), lung.nx))
    max_hu = masks.median_inside(grid.means, lung.words) - MIN_BELOW_LUNG_HU
    is_pale = 2 * tubes.counts(BitMask.below(grid.means, max_hu)) > tubes.sizes
    is_large = tubes.sizes * grid.voxel_ml * 1000 >= MIN_HEIGHT_MM * math.pi * GAS_MM**2
    is_tube = is_pale & is_large & (tubes.heights() * grid.spacing[0] >= MIN_HEIGHT_MM)
    n_round, n_wall, _ = tubes.counts_around(is_tube, *RING_MM, grid.spacing, grid.tissue, grid.tissue)
    return dilate(tubes.select(is_tube & (n_wall >= MIN_WALL * n_round)), WALL_MM, grid.spacing)
