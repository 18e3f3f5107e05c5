"""Stored values to Hounsfield units, and which of them were never measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import planes
from dskprep.volume import AIR_HU, PADDING

ToHU = Callable[[NDArray[Any], float, float, NDArray[np.int16]], None]
"""Converts stored values (y, x), by slope and intercept, to HU, which it writes into the last argument."""

INT16_HU = (PADDING + 1, 32767)
"""Range of HU that int16 can hold beside PADDING."""
IMPOSSIBLE_HU = -1500
"""Below this lies neither tissue nor noise: air is -1000, and kernels overshoot by a few hundred."""
AIR_RANGE_HU = (AIR_HU, -900)
"""Values in this range are air, whatever a header calls them."""

CORNER = 4
"""Edge, in pixels, of the corner blocks that show the fill value outside the round field of view."""


def to_hu(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[np.int16]:
    """Convert the stored integers of a slice (y, x) to HU, rounded to the nearest and clipped to INT16_HU.

    HU = stored * slope + intercept (DICOM PS3.3 C.11.1).
    """
    hu = np.empty(stored.shape, np.int16)
    stored = np.asarray(stored, stored.dtype.newbyteorder("="))
    planes.rescale(stored, float(slope), float(intercept), *INT16_HU, hu)
    return hu


def mark_padding(hu: NDArray[np.int16], declared_hu: tuple[int, int] | None) -> None:
    """Set the pixels of a slice (y, x) that were never measured to PADDING, in place.

    Padding shows in three ways: HU below anything real; the value or range that the header declares
    (PixelPaddingValue, PixelPaddingRangeLimit); one constant value in all four corners, with which vendors fill
    the space outside the round field of view. A value in AIR_RANGE_HU is never taken for padding. A value that
    could be tissue is padding only from the slice's left and right edge inwards.
    """
    corner = _find_corner_value(hu)
    planes.mark_padding(hu, PADDING, IMPOSSIBLE_HU - 1)
    for sign in (declared_hu, None if corner is None else (corner, corner)):
        if sign is None or sign[1] < IMPOSSIBLE_HU or (AIR_RANGE_HU[0] <= sign[0] and sign[1] <= AIR_RANGE_HU[1]):
            continue
        mark = planes.mark_padding if sign[1] < AIR_HU else planes.mark_padding_from_edges
        mark(hu, *sign)


def _find_corner_value(hu: NDArray[np.int16]) -> int | None:
    """Return the value that fills all four corners, or None."""
    ends = (slice(CORNER), slice(-CORNER, None))
    is_constant = all((hu[y, x] == hu[0, 0]).all() for y in ends for x in ends)
    return int(hu[0, 0]) if is_constant else None
