"""Closed contours in the patient, and how those of a plane are drawn in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.dicom.slices import MAX_PLANE_MM
from dskprep.errors import Refusal
from dskprep.kernels.polygons import LINES, MAX_CROSSINGS, cover, keep_small
from dskprep.labels.stack import FULL

FLAT_MM = 0.1
"""A contour is flat if its points deviate from a plane by less than this, or by FLAT_PART of its width."""
FLAT_PART = 1e-3
"""The part of a contour's width by which its points may deviate from a plane."""


def joined(contours: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return all points one after another, (n, axes), and where each contour begins."""
    return np.concatenate(contours), np.cumsum([0, *map(len, contours[:-1])])


def area(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the vector area of a polygon in mm2: along its normal, as long as it is large."""
    moved = points - points[0]
    found: NDArray[np.float64] = np.cross(moved, np.roll(moved, -1, axis=0)).sum(0) / 2
    return found


def normal(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the direction across a polygon, of length 1; that of z if it encloses nothing."""
    across = area(points)
    size = np.linalg.norm(across)
    direction: NDArray[np.float64] = across / size if size > 0 else np.array([0.0, 0.0, 1.0])
    return direction


def are_flat(contours: Sequence[NDArray[np.float64]], across: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell of each contour, (n, 3) in mm, whether it lies in a plane across this direction."""
    points, begins = joined(contours)
    along = points @ across
    depth = np.maximum.reduceat(along, begins) - np.minimum.reduceat(along, begins)
    width = (np.maximum.reduceat(points, begins) - np.minimum.reduceat(points, begins)).max(1)
    flat: NDArray[np.bool_] = depth <= FLAT_MM + FLAT_PART * width
    return flat


def basis(across: NDArray[np.float64], pixel_mm: float) -> NDArray[np.float64]:
    """Return axes of a stack (see `Stack`) with square pixels in the planes across a direction."""
    row = np.cross(across, np.eye(3)[np.abs(across).argmin()])
    row /= np.linalg.norm(row)
    return np.stack([across, row * pixel_mm, np.cross(across, row) * pixel_mm], axis=1)


class Laid(NamedTuple):
    """The contours of planes, in pixels: `first` row and column of each plane, and `shapes`, each (planes, 2).

    Its points follow one another in `rows` and `columns`, from those first ones on; contour k has those from starts[k]
    on, and plane i the contours from edges[i] on.
    """

    first: NDArray[np.float64]
    shapes: NDArray[np.float64]
    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    starts: NDArray[np.int64]
    edges: NDArray[np.int64]

    @property
    def making_bytes(self) -> int:
        """The most memory that drawing a plane takes: its pixels, and where its edges cross scan lines."""
        heights = np.add.reduceat(np.abs(np.diff(self.rows, append=self.rows[-1])), self.starts[self.edges[:-1]])
        crossings = np.minimum(2 * LINES * heights, MAX_CROSSINGS)  # twice, as each contour closes on its first point
        return int((self.shapes.prod(1) + 8 * crossings).max())


def lay(planes: Sequence[Sequence[NDArray[np.float64]]], pixel_mm: NDArray[np.float64], where: str) -> Laid:
    """Lay out the contours of each plane, given as (row, column).

    Raises Refusal `label-damaged` for one that no patient is as wide as.
    """
    points, begins = joined([contour for plane in planes for contour in plane])
    starts, edges = np.append(begins, len(points)), np.cumsum([0, *map(len, planes)])
    of_plane = starts[edges]
    first = np.floor(np.minimum.reduceat(points, of_plane[:-1]) + 0.5)
    shapes = np.floor(np.maximum.reduceat(points, of_plane[:-1]) + 0.5) - first + 1
    if (shapes * pixel_mm > MAX_PLANE_MM).any():
        raise Refusal(
            "label-damaged", f"{where}: expected contours of a patient, found one wider than {MAX_PLANE_MM} mm"
        )
    rows, columns = np.ascontiguousarray((points - np.repeat(first, np.diff(of_plane), axis=0)).T)
    return Laid(first, shapes, rows, columns, starts, edges)


def draw(laid: Laid, where: str) -> Iterator[tuple[float, float, NDArray[np.uint8]]]:
    """Yield the first row and column, and the pixels, of each plane.

    Raises Refusal `label-too-large` for a contour that fills planes.
    """
    first, shapes, rows, columns, starts, edges = laid
    for (row, column), shape, begin, end in zip(
        first.tolist(), shapes.astype(int).tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True
    ):
        here, pixels = starts[begin : end + 1], np.zeros(shape, np.uint8)
        if not cover(rows, columns, here, FULL, pixels):
            raise Refusal(
                "label-too-large", f"{where}: expected the outline of an organ, found a contour that fills planes"
            )
        keep_small(rows, columns, here, FULL, pixels)
        yield row, column, pixels
