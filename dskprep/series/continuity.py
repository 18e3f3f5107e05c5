"""Whether the rows and planes of a volume are in their places, judged by how alike neighbours are.

A header whose sizes are those of another order of the axes has as many voxels as the right one. Each value is then
read, but rows and planes are cut elsewhere, and neighbours across the cuts have little to do with each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP = 4
"""Every so many rows and columns are compared: enough, for neighbours differ over whole organs."""
LOW_HU, HIGH_HU = -1024, 400
"""Values are cut to these, so that padding and metal say nothing."""
MAX_DIFFERENCE = 0.5
"""Largest difference of neighbours, as a share of that of any two values.

In three real chests it was at most 0.08; 0.21 with seven of eight slices left out, 0.34 with 15 of 16 pixels. Cut at
wrong sizes it was 0.3 to 1.2, along at least one axis.
"""
MAX_SPACING_MM = 10.0
"""Neighbours that are farther apart than this are not compared."""
MIN_VALUES = 5000
"""Fewer values compared along an axis say nothing."""
MIN_SPREAD_HU = 50.0
"""Where any two values are more alike than this, on average, nothing is to be told apart."""


class Continuity:
    """How alike the neighbours along (z, y) are, as plane after plane comes."""

    def __init__(self) -> None:
        self._sums, self._numbers = [0.0, 0.0], [0, 0]
        self._counts = np.zeros(HIGH_HU - LOW_HU + 1, np.int64)
        self._previous: NDArray[np.int16] | None = None

    def add(self, hu: NDArray[np.float64]) -> None:
        """Take every STEP-th row of a plane and the row after each, (2, rows, columns), by every STEP-th column."""
        row, after = np.nan_to_num(hu, nan=LOW_HU).clip(LOW_HU, HIGH_HU).astype(np.int16)
        self._counts += np.bincount(row.ravel() - LOW_HU, minlength=len(self._counts))
        self._compare(1, row, after)
        if self._previous is not None:
            self._compare(0, row, self._previous)
        self._previous = row

    def _compare(self, axis: int, ones: NDArray[np.int16], others: NDArray[np.int16]) -> None:
        self._sums[axis] += float(np.abs(ones - others).sum(dtype=np.int64))
        self._numbers[axis] += ones.size

    def broken_axis(self, spacing_mm: tuple[float, float, float]) -> str | None:
        """Return `planes` or `rows` if such neighbours are hardly more alike than any two values."""
        below = np.cumsum(self._counts) / max(int(self._counts.sum()), 1)
        spread = 2 * float((below * (1 - below)).sum())  # mean difference of two values, each drawn from all
        for axis, name in enumerate(("planes", "rows")):
            if self._numbers[axis] < MIN_VALUES or spread < MIN_SPREAD_HU or spacing_mm[axis] > MAX_SPACING_MM:
                continue
            if self._sums[axis] / self._numbers[axis] > MAX_DIFFERENCE * spread:
                return name
        return None
