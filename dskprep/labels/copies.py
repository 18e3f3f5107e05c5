"""Contours of a plane that are there a second time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.polygons import lies_near

COPY_MM = 0.1
"""Contours are copies if neither lies further than this from the other, in mm; headers round to 0.01 mm or so."""
COPY_POINTS = 256
"""Most points of a contour that are looked at for that."""
MOST_ALIKE = 16
"""A contour is compared with this many others of its box at most, those of the nearest area.

No plane has so many that are no copies of each other, unless somebody made it to keep a computer busy.
"""


def without_copies(contours: list[NDArray[np.float64]], pixel_mm: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Leave out contours of a plane, in pixels, that are there a second time, perhaps with other points on their way.

    Planning systems write such copies, and by the even-odd rule two of them would be nothing.
    """
    if len(contours) == 1:
        return contours
    kept: list[NDArray[np.float64]] = []
    outlines: list[NDArray[np.float64]] = []
    boxes, areas = np.empty((len(contours), 4)), np.empty(len(contours))
    for points in contours:
        outline = points * pixel_mm
        box, area = np.concatenate([outline.min(0), outline.max(0)]), _area(outline)
        alike = np.flatnonzero((np.abs(boxes[: len(kept)] - box) <= COPY_MM).all(1))
        if len(alike) > MOST_ALIKE:
            alike = alike[np.argsort(np.abs(areas[alike] - area), kind="stable")[:MOST_ALIKE]]
        if not any(_lies_on(outline, outlines[i]) and _lies_on(outlines[i], outline) for i in alike):
            boxes[len(kept)], areas[len(kept)] = box, area
            kept.append(points)
            outlines.append(outline)
    return kept


def _area(outline: NDArray[np.float64]) -> float:
    """Return the area that a contour encloses, whichever way round it goes."""
    y, x = outline.T
    return abs(float(y @ (np.roll(x, -1) - np.roll(x, 1)))) / 2


def _lies_on(outline: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Tell whether the points of a contour, and the middles between them, lie on another one, to within COPY_MM."""
    points = np.concatenate([outline, (outline + np.roll(outline, -1, axis=0)) / 2])
    points = points[:: -(-len(points) // COPY_POINTS)]
    return lies_near(points, other, COPY_MM)
