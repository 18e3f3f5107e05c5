"""Stored values to Hounsfield units, and which of them were never measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import masks, planes
from dskprep.volume import AIR_HU, PADDING, Volume

ToHU = Callable[[NDArray[Any], float, float, NDArray[np.int16]], None]
"""A way from stored values (y, x), slope and intercept to HU, which it writes into the last argument."""

INT16_HU = (PADDING + 1, 32767)
"""The HU that int16 can hold beside PADDING."""

IMPOSSIBLE_HU = -1500
"""No tissue and no noise is lower: air is -1000, and kernels overshoot by a few hundred."""

AIR_RANGE_HU = (AIR_HU, -900)
"""Values here are air whatever a header calls them."""

CORNER = 4
"""Edge, in pixels, of the corner blocks that show what lies outside the round field of view."""


def to_hu(
    stored: NDArray[Any], slope: float, intercept: float, out: NDArray[np.int16] | None = None
) -> NDArray[np.int16]:
    """Hounsfield units of a slice (y, x), rounded to the nearest and clipped to INT16_HU.

    HU = stored * slope + intercept (DICOM PS3.3 C.11.1); `stored` is an integer array; `out` takes the result.
    """
    hu = np.empty(stored.shape, np.int16) if out is None else out
    stored = np.asarray(stored, stored.dtype.newbyteorder("="))
    planes.rescale(stored, float(slope), float(intercept), *INT16_HU, hu)
    return hu


def mark_padding(hu: NDArray[np.int16], declared_hu: tuple[int, int] | None) -> None:
    """Set to PADDING, in place, the pixels of a slice (y, x) that were never measured.

    Three signs: HU that nothing has; the value or range that the header declares (PixelPaddingValue,
    PixelPaddingRangeLimit); one constant value in all four corners, as vendors fill what lies outside
    the round field of view. A sign whose value is that of air is no sign; one whose value could be
    tissue counts only from the slice's left and right edge inwards.
    """
    corner = _corner_value(hu)
    planes.mark_padding(hu, PADDING, IMPOSSIBLE_HU - 1)
    for sign in (declared_hu, None if corner is None else (corner, corner)):
        if sign is None or sign[1] < IMPOSSIBLE_HU or (AIR_RANGE_HU[0] <= sign[0] and sign[1] <= AIR_RANGE_HU[1]):
            continue
        mark = planes.mark_padding if sign[1] < AIR_HU else planes.mark_padding_from_edges
        mark(hu, *sign)


def _corner_value(hu: NDArray[np.int16]) -> int | None:
    """The one value in all four corners, if there is one."""
    value = hu[0, 0]
    rows, columns = [slice(CORNER), slice(-CORNER, None)], [slice(CORNER), slice(-CORNER, None)]
    is_constant = all((hu[y, x] == value).all() for y in rows for x in columns)
    return int(value) if is_constant else None


def normalized(volume: Volume, *, low_hu: float = -1000, high_hu: float = 400, mean: float = 0.25) -> Volume:
    """HU as float32 in 0..1 between the bounds, minus `mean` (the 2017 tutorial's steps 12 and 13)."""
    array = (volume.array.astype(np.float32) - np.float32(low_hu)) / np.float32(high_hu - low_hu)
    return volume.with_array(np.clip(array, 0, 1) - np.float32(mean))


def mean_inside(volume: Volume, mask: NDArray[np.uint8]) -> float | None:
    """Mean of an integer volume over the voxels (z, y, x) where the mask is not 0; None if it is 0 everywhere."""
    total, n = masks.sum_inside(volume.array, mask)
    return total / n if n else None
