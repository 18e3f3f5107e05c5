"""A label as its author drew it: planes of pixels, each at its own place in the patient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dskprep.volume import Grid

FULL = 254
"""Value of a pixel that lies inside as a whole. It is even, so that one half is a whole number too."""
SAME_PLANE_MM = 0.05
"""Planes nearer than this are one plane, at a place that a header rounds."""
GAP = 1.5
"""Planes further apart than this many usual steps have a gap between them, which is empty."""
PARALLEL = 1e-4
"""Axes that differ by less than this angle are parallel; it moves the edge of a slice by a twentieth of a pixel."""


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
    the steps from one row and column to the next. `planes` may be made one at a time, as they are asked for, and only
    once. Then `boxes` tells before what there will be, of each plane (low, high, row, column, rows, columns) as in
    `Plane`, of no fewer pixels than it has; and making one takes `making_bytes` beside the pixels that are kept.
    """

    origin: NDArray[np.float64]
    axes: NDArray[np.float64]
    planes: Iterable[Plane]
    boxes: NDArray[np.float64] | None = None
    making_bytes: int = 0


def same_axes(axes: NDArray[np.float64], grid: Grid) -> tuple[int, int, int] | None:
    """Return which axes of a grid the normal, rows and columns of a stack lie along; None if they are oblique to it."""
    directions = axes / np.linalg.norm(axes, axis=0)
    between = np.abs(directions.T @ (grid.affine[:3, :3] / grid.spacing))
    a, b, c = between.argmax(1).tolist()
    are_along = sorted((a, b, c)) == [0, 1, 2] and (between.max(1) > math.cos(PARALLEL)).all()
    return (a, b, c) if are_along else None


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
