"""Find the aerated lung among the air in the body, on the coarse grid.

Gas in airways, stomach and bowel is left out, and so is foam under the patient.
"""

from __future__ import annotations

import numpy as np

from dskprep.kernels import masks
from dskprep.preparation.bitmask import BitMask
from dskprep.preparation.body import SHELL_MM, Grid
from dskprep.preparation.lungs.views import Views
from dskprep.preparation.morphology import Pieces, dilate, erode, open_mask, select_connected

USUAL_AIR_HU = -1000.0
"""HU of air where the scan shows none round the patient. Else it is the scan's own: scanners give -950 to -1024."""
MAX_OUTSIDE_AIR_HU = -900
"""Less than this is air round the patient; above lie blankets and foam."""
FILL_SHARE = 0.2
"""If one value makes up more of the air round the patient, it was not measured but filled in, as outside of a round
field of view. Measured air has noise: of 30 scans one value had 3 to 12 % of it, and fills 31 to 78 %."""
MIN_SOLID_FILL = 0.5
"""Least part of a fill that is further than FILL_EDGE_MM from all else. Air whose noise was cut off has less."""
FILL_EDGE_MM = 3.0
"""This near to a fill or the patient lie cells that hold some of both, in mm."""
USUAL_LUNG_HU = -850.0
"""HU of aerated lung where no air was found in the body. Else it is the scan's own."""

GAS_SHARE = 0.45
"""Gas lies below this share of the way from the HU of air to that of lung; emphysema (-930) lies above."""
SURE_GAS_SHARE = 0.25
"""Sure gas lies below this share of that way."""
MIN_SURE_GAS = 0.5
"""Least part of a pocket of gas that is sure gas."""
MIN_SURE_HIGH_GAS = 0.35
"""The same of a pocket as high as a trachea: seen 0.42. Noise and its narrow branches take the rest."""
HIGH_MM = 60.0
"""A trachea is higher than this: with its bronchi seen 88 mm and more. One cavity is 18 mm high."""
GAS_MM = 2.5
"""Half the width, in mm, of the narrowest gas that is looked at: lobar bronchi."""
RING_MM = (2.5, 6.0)
"""A pocket of gas is judged by what lies between these distances, in mm, from it."""
MIN_GAS_ML = 0.2
"""Smaller pockets of gas are bronchi in the lung."""
WALL_MM = 4.5
"""Thickness of the wall of a pocket of gas with its blurred edge, in mm."""

CORE_MM = 4.0
"""The core of a lung is at least this far from its edge, in mm; bridges to other air are narrower than twice this."""
MIN_CORE_ML = 10.0
"""Least volume of the core of a lung, or of a piece of one."""
MIN_LUNG_ABOVE_AIR_HU = 50.0
"""Lung is more than this many HU denser than air: so is most of a lung with severe emphysema."""
MIN_LUNG_SHARE = 0.3
"""Least part of a core that is that much denser."""
MIN_CORE_SHARE = 0.05
"""A core with a smaller share of the largest one is no lung by itself, but may be connected to one, or lie near it."""
SURE_SHARE = 0.9
"""A core with so much that is denser than air is lung wherever it lies: of gas in bowel and trachea, seen 0.76."""
NEAR_MM = 40.0
"""A piece of parenchyma that lies apart is lung if it comes this near to the upper half of a lung, in mm."""
THIN_MM = 2.0
"""The lowest parts of a lung are at least twice as thick as this, in mm."""
MIN_THIN_SHARE = 0.6
"""Least part of a thin piece that is denser than air in the same way; of the colon, seen up to 0.5."""
MIN_THIN_ML = 3.0
"""Least volume of a thin piece of lung, half its thickness away from its edge."""
CUT_MM2 = 300.0
"""Least area, in the topmost slice, of the core of a lung that the scan cuts off there; a trachea's is 200."""
MIN_LOW_ML = 100.0
"""A core of so much is lung also where it does not come near the first slice: what consolidation leaves below it."""
MIN_TOP_MM2 = 50.0
"""Least area of each of its pieces there."""

REACH_MM = 8.0
"""How far the thin parts of a lung reach beyond its core, once that is dilated again, in mm."""


def find_air_hu(grid: Grid, outside: BitMask) -> float:
    """Return the HU that this scan gives to air: the median of the air round the patient that was measured."""
    air = outside & BitMask.below(grid.means, MAX_OUTSIDE_AIR_HU) & ~grid.padding
    if not air.any():
        return USUAL_AIR_HU
    value, n = masks.most_common_inside(grid.means, air.words)
    fill = air & BitMask.equal(grid.means, value)
    if (
        n > FILL_SHARE * air.counts().sum()
        and erode(fill, FILL_EDGE_MM, grid.spacing).counts().sum() > MIN_SOLID_FILL * n
    ):
        measured = erode(air & ~fill, FILL_EDGE_MM, grid.spacing)
        return masks.median_inside(grid.means, measured.words) if measured.any() else USUAL_AIR_HU
    return masks.median_inside(grid.means, air.words)


def find_gas(grid: Grid, air: BitMask, air_hu: float, views: Views) -> BitMask:
    """Return pockets of gas with tissue round them, and their walls: airway, stomach, bowel, pneumothorax.

    Gas with lung round it (small bronchi, bullae) is not among them.
    """
    pieces = Pieces.of(erode(air, CORE_MM, grid.spacing))
    inner = pieces.select(views.are_enclosed(pieces))
    lung_hu = masks.median_inside(grid.means, inner.words) if inner.any() else USUAL_LUNG_HU
    gas_hu, sure_hu = (air_hu + share * (lung_hu - air_hu) for share in (GAS_SHARE, SURE_GAS_SHARE))
    pockets = Pieces.of(open_mask(air & BitMask.below(grid.means, gas_hu), GAS_MM, grid.spacing))
    is_gas = pockets.sizes * grid.voxel_ml >= MIN_GAS_ML
    is_high = pockets.heights() * grid.spacing[0] >= HIGH_MM
    n_sure = pockets.counts(BitMask.below(grid.means, sure_hu))
    is_gas &= n_sure >= np.where(is_high, MIN_SURE_HIGH_GAS, MIN_SURE_GAS) * pockets.sizes
    # the blurred edge of gas is as dense as lung, but thin: the opening removes it
    other = open_mask(air & ~pockets.select(is_gas), SHELL_MM, grid.spacing)
    _, n_tissue, n_other = pockets.counts_around(is_gas, *RING_MM, grid.spacing, grid.tissue, other)
    is_gas &= n_tissue > n_other
    return dilate(pockets.select(is_gas), WALL_MM, grid.spacing)


def find_cores(grid: Grid, air: BitMask, air_hu: float, views: Views) -> BitMask:
    """Return the cores of lungs: pieces of eroded air that are large enough, denser than gas, and enclosed.

    Where the scan begins within the lungs, each small piece of them goes up to its first slice; that tells them from
    gas of the bowel.
    """
    pieces = Pieces.of(erode(air, CORE_MM, grid.spacing))
    is_dense = BitMask.above(grid.means, air_hu + MIN_LUNG_ABOVE_AIR_HU)
    n_dense = pieces.counts(is_dense)
    is_sure = n_dense >= SURE_SHARE * pieces.sizes
    is_lung = (n_dense >= MIN_LUNG_SHARE * pieces.sizes) & views.are_enclosed(pieces, is_sure)
    is_lung &= pieces.sizes * grid.voxel_ml >= MIN_CORE_ML
    is_main = is_lung & (pieces.sizes >= MIN_CORE_SHARE * pieces.sizes.max(where=is_lung, initial=0))
    connected = select_connected(air, pieces.select(is_main))
    cores = pieces.select(is_lung) & connected
    area_mm2 = grid.spacing[1] * grid.spacing[2]
    in_slices = cores.counts()
    if cores.any() and in_slices[-1] * area_mm2 < CUT_MM2:
        upper = cores.slices(int(np.flatnonzero(in_slices).mean()))
        near = dilate(upper, NEAR_MM, grid.spacing)
        return cores | pieces.select(is_lung & (is_sure | (pieces.counts(near) > 0)))
    thin = Pieces.of(erode(air, THIN_MM, grid.spacing))
    is_thin = (thin.counts(is_dense) >= MIN_THIN_SHARE * thin.sizes) & views.are_enclosed(thin)
    is_thin &= thin.sizes * grid.voxel_ml >= MIN_THIN_ML
    is_thin &= thin.counts(air.slices(-1)) * area_mm2 >= MIN_TOP_MM2
    thin_cores = thin.select(is_thin)
    highest = air.slices(-max(1, round(NEAR_MM / grid.spacing[0])))
    is_lung &= (pieces.counts(highest) > 0) | (pieces.sizes * grid.voxel_ml >= MIN_LOW_ML)
    return pieces.select(is_lung) & connected | thin_cores


def extend_cores(grid: Grid, cores: BitMask, air: BitMask) -> BitMask:
    """Return the cores with the thin parts of the lungs round them."""
    return select_connected(air & dilate(cores, CORE_MM + REACH_MM, grid.spacing), cores)
