"""HU to the values that a network is trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dskprep.volume import Volume

NORMALIZED_HU = (-1000, 400)
"""HU that become 0 and 1: from air to dense bone (step 12 of the 2017 tutorial)."""

NORMALIZED_MEAN = 0.25
"""Subtracted from normalized values: the mean of the tutorial's data (its step 13)."""


def normalize(volume: Volume) -> Volume:
    """Scale HU to float32: NORMALIZED_HU to 0..1, values beyond to 0 or 1, then subtract NORMALIZED_MEAN."""
    normalized = np.empty(volume.shape, np.float32)
    normalize_into(volume.array, normalized)
    return volume.with_array(normalized)


def normalize_into(hu: NDArray[np.generic], normalized: NDArray[np.float32]) -> None:
    """Write normalized values (z, y, x) into an array of the same shape, by planes: one fits into the cache."""
    low, high = NORMALIZED_HU
    for plane, out in zip(hu, normalized, strict=True):
        out[...] = plane
        out -= np.float32(low)
        out /= np.float32(high - low)
        np.clip(out, 0, 1, out=out)
        out -= np.float32(NORMALIZED_MEAN)
