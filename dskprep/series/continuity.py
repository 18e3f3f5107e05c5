"""Whether the rows and planes of a volume are in their places, judged by how alike neighbours are.

A header whose sizes are those of another order of the axes has as many voxels as the right one. Each value is then
read, but rows and planes are cut elsewhere, and neighbours across the cuts have little to do with each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP = 4
"""Every so many rows and columns are compared, in whole cells of this edge: neighbours differ over whole organs."""
LOW_HU, HIGH_HU = -1024, 400
"""Values are cut to these, so that padding and metal say nothing."""
MAX_DIFFERENCE = 0.5
"""Largest difference of neighbours, as a share of that of any two values.

In three real chests it was at most 0.08; 0.21 with seven of eight slices left out, 0.34 with 15 of 16 pixels. Cut at
wrong sizes it was 0.3 to 1.2, along at least one axis.
"""
MAX_OF_COLUMNS = 2.0
"""Such neighbours also differ by more than so many times as much as those along x, which stay together in the file.

Noise makes all neighbours differ alike: where it is most of what there is to see, as in a soft crop of a scan of low
dose, the rule above alone would refuse a right volume. Of 36 wrong orders of three real chests both rules together
find the same 24 as the first alone.
"""
MAX_SPACING_MM = 10.0
"""Neighbours that are farther apart than this are not compared."""
MIN_VALUES = 5000
"""Fewer values compared along an axis say nothing."""
MIN_SPREAD_HU = 50.0
"""Where any two values are more alike than this, on average, nothing is to be told apart."""


class Continuity:
    """How alike the neighbours along (z, y, x) are, as plane after plane comes."""

    def __init__(self) -> None:
        self._sums, self._numbers = [0.0, 0.0, 0.0], [0, 0, 0]
        self._counts = np.zeros(HIGH_HU - LOW_HU + 1, np.int64)
        self._previous: NDArray[np.int16] | None = None

    def add(self, hu: NDArray[np.float64]) -> None:
        """Take some pixels of a plane, the one a row below each, and the one beside it: (3, rows, columns)."""
        row, below, beside = np.nan_to_num(hu, nan=LOW_HU).clip(LOW_HU, HIGH_HU).astype(np.int16)
        self._counts += np.bincount(row.ravel() - LOW_HU, minlength=len(self._counts))
        self._compare(1, row, below)
        self._compare(2, row, beside)
        if self._previous is not None:
            self._compare(0, row, self._previous)
        self._previous = row

    def _compare(self, axis: int, ones: NDArray[np.int16], others: NDArray[np.int16]) -> None:
        self._sums[axis] += float(np.abs(ones - others).sum(dtype=np.int64))
        self._numbers[axis] += ones.size

    def broken_axis(self, spacing_mm: tuple[float, float, float]) -> str | None:
        """Return `planes` or `rows` if such neighbours are hardly more alike than any two values; None if they are."""
        below = np.cumsum(self._counts) / max(int(self._counts.sum()), 1)
        spread = 2 * float((below * (1 - below)).sum())  # mean difference of two values, each drawn from all
        for axis, name in enumerate(("planes", "rows")):
            if self._numbers[axis] < MIN_VALUES or spread < MIN_SPREAD_HU or spacing_mm[axis] > MAX_SPACING_MM:
                continue
            difference = self._sums[axis] / self._numbers[axis]
            along_x = self._sums[2] / max(self._numbers[2], 1)
            if difference > max(MAX_DIFFERENCE * spread, MAX_OF_COLUMNS * along_x):
                return name
        return None
