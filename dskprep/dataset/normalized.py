"""HU to the values that a network is trained on."""

from __future__ import annotations

import numpy as np

from dskprep.volume import Volume

NORMALIZED_HU = (-1000, 400)
"""HU that become 0 and 1: from air to dense bone (step 12 of the 2017 tutorial)."""

NORMALIZED_MEAN = 0.25
"""Subtracted from normalized values: the mean of the tutorial's data (its step 13)."""


def normalize(volume: Volume) -> Volume:
    """Scale HU to float32: NORMALIZED_HU to 0..1, values beyond to 0 or 1, then subtract NORMALIZED_MEAN."""
    low, high = NORMALIZED_HU
    array = (volume.array.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return volume.with_array(np.clip(array, 0, 1) - np.float32(NORMALIZED_MEAN))
