"""Closed contours in the patient, and how those of a plane are drawn in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.dicom.slices import MAX_PLANE_MM
from dskprep.errors import Refusal
from dskprep.kernels.polygons import LINES, MAX_CROSSINGS, cover, keep_small
from dskprep.labels.stack import FULL, SAME_PLANE_MM, places

FLAT_MM = 0.1
"""A contour is flat if its points deviate from a plane by less than this, or by FLAT_PART of its width."""
FLAT_PART = 1e-3
"""The part of a contour's width by which its points may deviate from a plane."""

ONE_SLICE = 0.4
"""Contours that name the same slice are in one plane if they are nearer than this part of the usual distance of planes.

Contours that are drawn on finer slices than those of the image have a smaller distance, and name the same slice too.
"""
UNNAMED = 0.1
"""The same part for contours that do not say on which slice they were drawn."""


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


def usual_step(along_mm: NDArray[np.float64], far_mm: float) -> float:
    """Return the usual distance of neighbouring contours along their normal, without those that lie beside their plane.

    It is the distance in which half of the way through all of them lies, so that many small ones do not count. What is
    further apart than `far_mm` does not belong together. Returns 0 where contours do not tell.
    """
    gaps = np.sort(np.diff(places(along_mm)))
    gaps = gaps[gaps <= far_mm]
    return float(gaps[np.searchsorted(np.cumsum(gaps), gaps.sum() / 2)]) if len(gaps) > 1 else 0.0


def in_planes(
    along_mm: NDArray[np.float64], images: Sequence[frozenset[str]], step_mm: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each contour the index of its plane, and where along the normal each plane lies.

    Contours are in one plane if they are nearer than a part of the usual step: ONE_SLICE if they name the same slice,
    UNNAMED if one of them names none. Those that name different slices are only at one place (see `places`).
    """
    which, ends = np.zeros(len(along_mm), np.int64), list[tuple[float, float]]()
    named, last = frozenset[str](), -np.inf
    for k in np.argsort(along_mm, kind="stable").tolist():
        here, images_here = float(along_mm[k]), images[k]
        part = ONE_SLICE if named & images_here else 0.0 if named and images_here else UNNAMED
        if ends and (here - last <= SAME_PLANE_MM or here - ends[-1][0] < part * step_mm):
            ends[-1], named = (ends[-1][0], here), named or images_here
        else:
            ends.append((here, here))
            named = images_here
        which[k], last = len(ends) - 1, here
    return which, np.array(ends).mean(1)


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
