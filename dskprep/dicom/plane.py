"""The place of one slice in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dskprep.volume import Triple

SAME_PIXEL_MM = 1e-4
"""Pixel spacings that differ by less are equal."""
SAME_DIRECTION = 1e-3
"""Directions whose components differ by less are equal."""


@dataclass(frozen=True)
class Plane:
    """The place of one slice.

    `shape` counts (rows, columns), and `pixel_mm` is the distance between (rows, columns). `position` is the centre of
    the first pixel, `row` and `column` are the unit directions along a row and down a column, all LPS (x, y, z) in mm.
    `stack` holds the tags that tell apart the stacks of one series, and `order` when the slice was made, in several
    ways; all of it is text that sorts.
    """

    shape: tuple[int, int]
    pixel_mm: tuple[float, float]
    position: Triple
    row: Triple
    column: Triple
    stack: tuple[str, ...] = ()
    order: tuple[str, ...] = ()

    @property
    def normal(self) -> NDArray[np.float64]:
        """The unit direction across the slice: row x column."""
        normal = np.cross(self.row, self.column)
        return normal / np.linalg.norm(normal)

    def shares_grid(self, other: Plane) -> bool:
        """Tell whether size, pixel spacing and orientation allow both slices in one volume."""
        return (
            self.shape == other.shape
            and _are_close(self.pixel_mm, other.pixel_mm, SAME_PIXEL_MM)
            and _are_close(self.row + self.column, other.row + other.column, SAME_DIRECTION)
        )


def _are_close(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    return all(abs(u - v) < tolerance for u, v in zip(a, b, strict=True))
