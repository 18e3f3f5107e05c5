"""Recipe `zuidhof`: Kaggle's 'Full Preprocessing Tutorial' in its late version, steps 3 to 13."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from dskprep import sides
from dskprep.errors import Refusal
from dskprep.kernels import components, runs
from dskprep.preparation.lungs import lungs
from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import Native, Recipe, tutorial
from dskprep.settings import PrepConfig
from dskprep.stopwatch import Stopwatch

MAX_AIR_HU = -320
"""This and less is air."""


def prepare(native: Native, config: PrepConfig, clock: Stopwatch) -> Prepared:
    """Make the image and its lungs, which are one label: the recipe does not tell them apart.

    The image is int16 HU, or normalized floats (`config.dtype`).

    Defects kept: T2, T7 to T16 (see docs/recipes.md). Raises Refusal: `no-thickness`, `no-lungs`.
    """
    volume = native.volume()
    with clock("resample"):
        image = tutorial.resample(volume, native.first_gap_mm, config.spacing_mm)
    with clock("lungs"):
        mask = lung_mask(image.array, fill=config.fill_lungs)
        mask *= np.uint8(sides.LUNG)  # right and left are one
        found = lungs.judge(image.with_array(mask))
    with clock("normalize"):
        return dataclasses.replace(tutorial.normalize(image, config.dtype), lungs=found)


def lung_mask(array: NDArray[np.int16], *, fill: bool = True) -> NDArray[np.uint8]:
    """Return 1 in the largest pocket of air that the corner voxel is no part of: steps 7 to 10 on HU (z, y, x).

    With `fill`, everything in a slice but its largest solid piece counts as air, and so do vessels and nodules; the
    air of the corner voxel counts as solid. Raises Refusal `no-lungs` if nothing is left.
    """
    nz, ny, nx = array.shape
    air = runs.of_mask(array <= MAX_AIR_HU)
    if array[0, 0, 0] <= MAX_AIR_HU:
        pieces = components.label(air, ny, components.CORNERS)
        air = runs.where(air, pieces != 0)  # the corner's run is the very first, so its piece is 0
    if fill:
        solid = runs.invert(air, nx)
        is_body = components.is_largest_in_slice(solid, components.label(solid, ny, components.IN_SLICE), ny)
        air = runs.invert(runs.where(solid, is_body), nx)
    lung = components.largest(air, components.label(air, ny, components.CORNERS))
    if lung.starts.size == 0:
        raise Refusal(
            "no-lungs", f"expected a pocket of air ({MAX_AIR_HU} HU or less) in the body, found none in {nz} slices"
        )
    mask = np.zeros(array.shape, np.uint8)
    runs.paint(lung, 1, mask)
    return mask


RECIPE = Recipe("zuidhof", prepare, tutorial.memory, tutorial.to_hu)
