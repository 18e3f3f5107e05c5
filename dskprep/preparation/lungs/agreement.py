"""How far a mask of the lungs that was found in another way agrees with the one that dskprep finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dskprep.preparation.lungs.lungs import Lungs
from dskprep.sides import LEFT, LUNG, RIGHT

MIN_DICE = 0.9
"""Below this overlap two masks disagree. Beside reference masks dskprep reaches 0.93 to 0.99 (docs/lungs.md)."""
MIN_ML = 50.0
"""Masks that differ by less agree, however small they are: of the tips of lungs every millimetre counts."""

_N = LUNG + 1


def compare(found: Lungs, own: Lungs) -> Lungs:
    """Return the lungs `found` with what `own`, those that dskprep finds, say about them.

    Voxels agree if both masks call them lung of the same side; a side that is not known agrees with either.
    `disagreed_ml` is the volume of all other voxels that are lung in one of them.
    """
    counts = np.zeros(_N * _N, np.int64)
    for plane, own_plane in zip(found.mask.array, own.mask.array, strict=True):
        counts += np.bincount((plane * np.uint8(_N) + own_plane).ravel(), minlength=_N * _N)
    pairs = counts.reshape(_N, _N)
    agreed = pairs[RIGHT, RIGHT] + pairs[LEFT, LEFT] + pairs[LUNG, 1:].sum() + pairs[1:LUNG, LUNG].sum()
    sizes = pairs[1:].sum() + pairs[:, 1:].sum()
    disagreed_ml = float(pairs.sum() - pairs[0, 0] - agreed) * found.mask.voxel_ml
    disagrees = 2 * agreed < MIN_DICE * sizes and disagreed_ml >= MIN_ML
    warnings = (*found.warnings, "lungs-disagree") if disagrees else found.warnings
    return replace(found, disagreed_ml=disagreed_ml, warnings=warnings)
