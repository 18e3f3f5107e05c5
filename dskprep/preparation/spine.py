"""Whether the spine lies behind the lungs. Where it does not, the affine of an image contradicts its anatomy."""

from __future__ import annotations

import numpy as np

from dskprep.preparation.prepared import Prepared
from dskprep.series import upright

STEP_MM = 4.0
"""Distance of the voxels that are looked at."""
BONE_HU = 250
MIDDLE_MM = 48.0
"""Half the width of the strip about the midline of the lungs in which spine and sternum lie."""
DEPTH = 0.2
"""Share of the lungs' depth, from their front or back, and all beyond: contrast agent in a heart lies between."""
LEAST_ML = 500.0
"""Smaller lungs are cut off, or are none."""
MOST_FRONT, MOST_BACK = 0.3, 0.1
"""Shares of the slices that show much more bone in front of the lungs, and behind them, where the body is turned.

None of 20 real scans has more than 0.26 and less than 0.38. With front and back exchanged, 18 of them are found.
"""


def is_in_front(prepared: Prepared) -> bool:
    """Tell whether the bone of the midline lies in front of the lungs: front and back are mixed up.

    What is mirrored from left to right, or upside down, does not show so surely.
    """
    lungs, image = prepared.lungs, prepared.image
    if lungs is None or prepared.values != "HU" or lungs.right_ml + lungs.left_ml + lungs.unsided_ml < LEAST_ML:
        return False
    if upright.patient_order(image.affine) != [0, 1, 2] or image.affine[1, 1] < 0:  # a recipe of 2017 leaves it so
        return False
    steps = [max(1, round(STEP_MM / mm)) for mm in image.spacing]
    coarse = tuple(slice(None, None, step) for step in steps)
    hu, is_lung = image.array[coarse], lungs.mask.array[coarse] > 0
    z, y, x = (np.flatnonzero(is_lung.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    middle, half = (x[0] + x[-1]) / 2, MIDDLE_MM / (image.spacing[2] * steps[2])
    is_bone = hu[z[0] : z[-1] + 1, :, max(0, int(middle - half)) : int(middle + half)] > BONE_HU
    depth = DEPTH * (y[-1] - y[0])
    rows = np.arange(is_bone.shape[1])
    front, back = (is_bone[:, ends].sum(axis=(1, 2)) for ends in (rows <= y[0] + depth, rows >= y[-1] - depth))
    return bool(np.mean(front > 2 * back + 5) >= MOST_FRONT and np.mean(back > 2 * front + 5) <= MOST_BACK)
