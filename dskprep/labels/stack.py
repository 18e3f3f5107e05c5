"""A label as its author drew it: planes of pixels, each at its own place in the patient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dskprep.kernels.shares import sum_pixels
from dskprep.volume import Grid

FULL = 254
"""Value of a pixel that lies inside as a whole. It is even, so that one half is a whole number too."""
SAME_PLANE_MM = 0.05
"""Planes nearer than this are one plane, at a place that a header rounds."""
GAP = 1.5
"""Planes further apart than this many usual steps have a gap between them, which is empty."""


class Plane(NamedTuple):
    """Pixels (rows, columns), uint8 from 0 to FULL, of a slab from `low` to `high` mm along the normal of its stack.

    The first pixel is centred on `row` and `column` of the stack, which need not be whole numbers.
    """

    low: float
    high: float
    row: float
    column: float
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel planes.

    `axes` maps (mm along the normal, row, column) to LPS mm from `origin`: its columns are the normal, of length 1, and
    the steps from one row and column to the next.
    """

    origin: NDArray[np.float64]
    axes: NDArray[np.float64]
    planes: Sequence[Plane]

    def sums(self) -> tuple[float, NDArray[np.float64]]:
        """Return the volume of the label in mm3, and the sum of the places in LPS mm, weighted by volume."""
        pixel_mm2 = float(np.linalg.norm(np.cross(self.axes[:, 1], self.axes[:, 2])))
        volume, moment = 0.0, np.zeros(3)
        for plane in self.planes:
            n, rows, columns = sum_pixels(plane.pixels)
            if not n:
                continue
            row, column = plane.row + rows / n, plane.column + columns / n
            mm3 = n / FULL * pixel_mm2 * (plane.high - plane.low)
            volume += mm3
            moment += mm3 * (self.origin + self.axes @ [(plane.low + plane.high) / 2, row, column])
        return volume, moment

    def corners(self) -> NDArray[np.float64]:
        """Return the corners of all planes, (n, 3) in LPS mm."""
        ends = []
        for p in self.planes:
            n_rows, n_columns = p.pixels.shape
            ends.append((p.low, p.high, p.row - 0.5, p.row + n_rows - 0.5, p.column - 0.5, p.column + n_columns - 0.5))
        which = np.array(list(itertools.product((0, 1), (2, 3), (4, 5))))
        corners: NDArray[np.float64] = self.origin + np.array(ends)[:, which].reshape(-1, 3) @ self.axes.T
        return corners


def axes_of(slices: Grid) -> tuple[NDArray[np.float64], tuple[float, float, float]]:
    """Return the axes of a stack (see `Stack`) that has the pixels of these slices, and the step between slices in it.

    The step is in mm along the normal, rows, and columns: slices may lie askew over each other.
    """
    steps = slices.affine[:3, :3]
    normal = np.cross(steps[:, 1], steps[:, 2])
    normal *= np.sign(normal @ steps[:, 0]) / np.linalg.norm(normal)
    axes = np.column_stack([normal, steps[:, 1:]])
    along, row, column = (np.linalg.inv(axes) @ steps[:, 0]).tolist()
    return axes, (along, row, column)


def crop(mask: NDArray[Any]) -> tuple[int, int, NDArray[np.uint8]] | None:
    """Return the first row, first column and pixels of the box round what is set in a mask (rows, columns), or None."""
    rows = np.flatnonzero(mask.any(1))
    if not rows.size:
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return int(rows[0]), int(columns[0]), np.where(box, np.uint8(FULL), np.uint8(0))


def places(along_mm: ArrayLike) -> NDArray[np.float64]:
    """Return the different places of planes, sorted; those nearer than SAME_PLANE_MM are one."""
    found = np.sort(np.asarray(along_mm, np.float64))
    return found[np.diff(found, prepend=-np.inf) > SAME_PLANE_MM]


def which_place(along_mm: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each plane the index of its place, of those that `places` found."""
    index = np.searchsorted(found, along_mm, side="right") - 1
    nearest: NDArray[np.int64] = np.maximum(index, 0)
    return nearest


def slabs(along_mm: NDArray[np.float64], step_mm: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where the slabs of planes begin and end, for sorted places.

    A slab reaches half way to its neighbour, or half a step where there is a gap or no neighbour.
    """
    halves = np.diff(along_mm) / 2
    halves = np.where(2 * halves > GAP * step_mm, step_mm / 2, halves)
    end = [step_mm / 2]
    return along_mm - np.concatenate([end, halves]), along_mm + np.concatenate([halves, end])
