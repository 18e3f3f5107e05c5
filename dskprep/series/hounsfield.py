"""Stored values to Hounsfield units, and which of them were never measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import padding, values
from dskprep.volume import AIR_HU, PADDING

ToHU = Callable[[NDArray[Any], float, float, NDArray[np.int16]], None]
"""Converts stored values (y, x), by slope and intercept, to HU, which it writes into the last argument."""

INT16_HU = (PADDING + 1, 32767)
"""Range of HU that int16 can hold beside PADDING."""
IMPOSSIBLE_HU = -1500
"""Below this lies neither tissue nor noise: air is -1000, and kernels overshoot by a few hundred."""
HIGHEST_HU = 4095
"""No tissue lies above, and few scanners reach it; a constant corner above it is padding."""
AIR_RANGE_HU = (AIR_HU, -900)
"""Values in this range are air, whatever a header calls them."""
WATER_HU = 0

CORNER = 4
"""Edge, in pixels, of the corner blocks that show the fill value outside the round field of view."""
MIN_RADIUS = 0.45
"""Smallest radius of the round field of view, as a share of the slice's shorter edge; it usually fills the slice."""
ON_CIRCLE = 2.0
"""Most pixels between the end of a row's fill and the circle."""
ROUND_SHARE = 0.9
"""Least share of the rows' ends that lie on the circle; noise may equal the fill at some."""


def to_hu(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[np.int16]:
    """Convert the stored integers of a slice (y, x) to HU, rounded to the nearest and clipped to INT16_HU.

    HU = stored * slope + intercept (DICOM PS3.3 C.11.1).
    """
    hu = np.empty(stored.shape, np.int16)
    stored = np.asarray(stored, stored.dtype.newbyteorder("="))
    values.rescale(stored, float(slope), float(intercept), *INT16_HU, hu)
    return hu


def value_to_hu(stored: float, slope: float, intercept: float) -> int:
    """Convert one stored integer to HU as `to_hu` does."""
    low, high = INT16_HU
    return int(min(max(np.rint(stored * slope + intercept), low), high))


def padding_in_hu(padding: tuple[int, int] | None, slope: float, intercept: float) -> tuple[int, int] | None:
    """Return the range of HU of stored values that a header declares as padding, rounded and clipped like pixels.

    None if it declares none, or one from air to water: that would be the patient.
    """
    if padding is None:
        return None
    low, high = sorted(value_to_hu(value, slope, intercept) for value in padding)
    return None if low <= AIR_RANGE_HU[1] and high >= WATER_HU else (low, high)


def mark_padding(hu: NDArray[np.int16], declared_hu: tuple[int, int] | None) -> None:
    """Set the pixels of a slice (y, x) that were never measured to PADDING, in place.

    Padding shows in three ways: HU below anything real; the value or range that the header declares
    (PixelPaddingValue, PixelPaddingRangeLimit); one constant value in all four corners, with which vendors fill
    the space outside the round field of view. A value in AIR_RANGE_HU is never taken for padding. A value that
    could be tissue is padding only from the slice's left and right edge inwards, and one that only the corners
    show must end on a circle: an image that was cut to a window, or made by a program, has such corners too.
    """
    signs = [declared_hu] if declared_hu else []
    corner = _find_corner_value(hu)
    if corner is not None and not _is_air(corner, corner):
        is_tissue = AIR_HU <= corner <= HIGHEST_HU
        signs += [(corner, corner)] if not is_tissue or _ends_on_circle(hu, corner) else []
    padding.mark_padding(hu, PADDING, IMPOSSIBLE_HU - 1)
    for low, high in signs:
        if high >= IMPOSSIBLE_HU and not _is_air(low, high):
            mark = padding.mark_padding if high < AIR_HU else padding.mark_padding_from_edges
            mark(hu, low, high)


def find_fills(hu: NDArray[np.int16], declared_hu: tuple[int, int] | None) -> set[tuple[int, int]]:
    """Return ranges of values in a slice (y, x), not yet marked, that tell nothing of its scale: padding, corners."""
    corner = _find_corner_value(hu)
    found = {declared_hu, None if corner is None else (corner, corner)}
    return {each for each in found if each is not None}


class Blanks:
    """How many slices of a series hold one value everywhere, as its slices come in order.

    Slices of air do not count before and after all that hold more: some exports put space round a body.
    """

    def __init__(self) -> None:
        self.n = 0
        self._n_air, self._has_begun = 0, False

    def add(self, hu: NDArray[np.int16]) -> None:
        """Look at the next slice (y, x), not yet marked."""
        value = int(hu[0, 0])
        if not ((hu[len(hu) // 2] == value).all() and (hu == value).all()):  # one row tells of most slices
            self.n += self._n_air
            self._n_air, self._has_begun = 0, True
        elif _is_air(value, value):
            self._n_air += self._has_begun
        else:
            self.n += 1


def _is_air(low: int, high: int) -> bool:
    return AIR_RANGE_HU[0] <= low and high <= AIR_RANGE_HU[1]


def _find_corner_value(hu: NDArray[np.int16]) -> int | None:
    """Return the value that fills all four corners, or None."""
    ends = (slice(CORNER), slice(-CORNER, None))
    is_constant = all((hu[y, x] == hu[0, 0]).all() for y in ends for x in ends)
    return int(hu[0, 0]) if is_constant else None


def _ends_on_circle(hu: NDArray[np.int16], value: int) -> bool:
    """Tell whether the pixels of `value` end, from the left and from the right, on one circle about the centre."""
    is_other = hu != value
    ny, nx = hu.shape
    y = np.flatnonzero(is_other.any(axis=1))
    first, last = is_other[y].argmax(axis=1), nx - 1 - is_other[y, ::-1].argmax(axis=1)
    ends, rows = np.concatenate([first, last]), np.concatenate([y, y])
    inside = (ends > 0) & (ends < nx - 1)
    radii = np.hypot(ends[inside] - (nx - 1) / 2, rows[inside] - (ny - 1) / 2)
    if len(radii) < min(ny, nx) // 4:
        return False
    radius = float(np.median(radii))
    return radius >= MIN_RADIUS * min(ny, nx) and float(np.mean(np.abs(radii - radius) < ON_CIRCLE)) > ROUND_SHARE
