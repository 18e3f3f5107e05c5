"""Find the aerated lung among the air in the body, on the coarse grid.

Gas in airways, stomach and bowel is left out, and so is foam under the patient.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import masks
from dskprep.preparation.body import PARENCHYMA_HU, SHELL_MM, TISSUE_HU, Grid
from dskprep.preparation.morphology import Mask, Pieces, dilate, erode, expand_labels, open_mask, select_connected
from dskprep.volume import PADDING

CONTACT_MM = 4.0
"""Two regions touch if they come this near, in mm."""

USUAL_AIR_HU = -1000.0
"""HU of air where the scan shows none round the patient. Else it is the scan's own: scanners give -950 to -1024."""
MAX_OUTSIDE_AIR_HU = -900
"""Less than this is air round the patient; above lie blankets and foam."""
USUAL_LUNG_HU = -850.0
"""HU of aerated lung where no air was found in the body. Else it is the scan's own."""

GAS_SHARE = 0.45
"""Gas lies below this share of the way from the HU of air to that of lung; emphysema (-930) lies above."""
SURE_GAS_SHARE = 0.25
"""Sure gas lies below this share of that way."""
MIN_SURE_GAS = 0.5
"""Least part of a pocket of gas that is sure gas."""
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
MAX_OUTSIDE_CONTACT = 0.1
"""Most of a core's surface near outside air, relative to that near the body: lungs 0 to 0.003, foam from 0.5."""
MIN_CORE_SHARE = 0.05
"""A core with a smaller share of the largest one is no lung by itself, but may be connected to one."""
REACH_MM = 8.0
"""How far the thin parts of a lung reach beyond its core, once that is dilated again, in mm."""


def find_air_hu(grid: Grid, outside: Mask) -> float:
    """Return the HU that this scan gives to air: the median of the air round the patient."""
    air = outside & (grid.means != PADDING) & (grid.means < MAX_OUTSIDE_AIR_HU)
    return masks.median_inside(grid.means, air) if air.any() else USUAL_AIR_HU


def find_gas(grid: Grid, air: Mask, air_hu: float) -> Mask:
    """Return pockets of gas with tissue round them, and their walls: airway, stomach, bowel, pneumothorax.

    Gas with lung round it (small bronchi, bullae) is not among them.
    """
    lung_hu = masks.median_inside(grid.means, air) if air.any() else USUAL_LUNG_HU
    gas_hu, sure_hu = (air_hu + share * (lung_hu - air_hu) for share in (GAS_SHARE, SURE_GAS_SHARE))
    pockets = Pieces.of(open_mask(air & (grid.means < gas_hu), GAS_MM, grid.spacing))
    is_gas = pockets.sizes * grid.voxel_ml >= MIN_GAS_ML
    is_gas &= pockets.counts(grid.means < sure_hu) >= MIN_SURE_GAS * pockets.sizes
    # the blurred edge of gas is as dense as lung, but thin: the opening removes it
    parenchyma = air & (grid.means >= gas_hu) & (grid.means < PARENCHYMA_HU[1])
    parenchyma = open_mask(parenchyma, SHELL_MM, grid.spacing)
    z, y, x = (math.ceil(RING_MM[1] / s) for s in grid.spacing)
    for pocket in np.flatnonzero(is_gas).tolist():
        box, is_pocket = pockets.cut_out(pocket, margin=(z, y, x))
        ring = dilate(is_pocket, RING_MM[1], grid.spacing) & ~dilate(is_pocket, RING_MM[0], grid.spacing)
        n_tissue = np.count_nonzero(ring & (grid.means[box] > TISSUE_HU))
        is_gas[pocket] = n_tissue > np.count_nonzero(ring & parenchyma[box])
    return dilate(pockets.select(is_gas), WALL_MM, grid.spacing)


def find_cores(grid: Grid, air: Mask, air_hu: float, tissue: Mask, outside: Mask) -> Mask:
    """Return the cores of lungs: pieces of eroded air that are large enough, denser than gas, and enclosed."""
    pieces = Pieces.of(erode(air, CORE_MM, grid.spacing))
    is_lung = pieces.sizes * grid.voxel_ml >= MIN_CORE_ML
    is_lung &= pieces.counts(grid.means > air_hu + MIN_LUNG_ABOVE_AIR_HU) >= MIN_LUNG_SHARE * pieces.sizes
    is_lung &= _are_enclosed(grid, pieces, pieces.select(is_lung), tissue, outside)
    is_main = is_lung & (pieces.sizes >= MIN_CORE_SHARE * pieces.sizes.max(where=is_lung, initial=0))
    return pieces.select(is_lung) & select_connected(air, pieces.select(is_main))


def _are_enclosed(grid: Grid, pieces: Pieces, where: Mask, tissue: Mask, outside: Mask) -> NDArray[np.bool_]:
    """Return whether each piece touches the body and hardly the outside, unlike foam under the patient.

    Only pieces in `where` are looked at.
    """
    # where the field of view cuts a lung open, the outside says nothing
    outside_air = outside & ~dilate(grid.means == PADDING, CONTACT_MM, grid.spacing)
    surroundings = tissue.view(np.uint8) + 2 * outside_air.view(np.uint8)
    nearest = expand_labels(surroundings, CORE_MM + CONTACT_MM, grid.spacing, where)
    at_body, at_outside = (pieces.counts(nearest == which) for which in (1, 2))
    return np.asarray((at_body > 0) & (at_outside <= MAX_OUTSIDE_CONTACT * at_body))


def extend_cores(grid: Grid, cores: Mask, air: Mask) -> Mask:
    """Return the cores with the thin parts of the lungs round them."""
    return select_connected(air & dilate(cores, CORE_MM + REACH_MM, grid.spacing), cores)
