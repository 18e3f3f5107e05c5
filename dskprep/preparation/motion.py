"""How far a chest moved while it was scanned: the largest step between axial slices, in their plane.

The section of a chest changes slowly from slice to slice. It jumps if the patient moves or breathes while the table
goes on. How well that shows, and what does not show, is in docs/cohort.md, by `benchmarks/curation.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dskprep.preparation.bitmask import Mask
from dskprep.volume import Triple

AROUND_MM = 15.0
"""What lies so far around the lungs is looked at too: their edges, and the wall of the chest."""
SEEN_HU = (-950, 150)
"""The range of HU that is looked at; padding, metal and contrast medium would outweigh the rest."""
LAG_MM = 8.0
"""Distance of the slices that are compared. Few are thicker, so the step is the same in thin and thick ones."""
NEAR_MM = 20.0
"""The usual shift of a section is the median of those up to so far above and below it."""
ENDS_MM = 20.0
"""So much of the lungs' height is left out at each end, where their section changes fast by itself."""
LEAST_MM = 32.0
"""A shorter part of the lungs' height says nothing."""


def find_largest_step(hu: NDArray[np.int16], lungs: Mask, spacing: Triple) -> float | None:
    """Return the largest step, sideways or front to back, in a chest on a coarse grid (z, y, x).

    Each section is compared with the one LAG_MM below it, and has one shift: that of least squares (Lucas and Kanade
    1981). Thousands of voxels have a part in it, so noise cancels out and what is in one place counts little. A step is
    how far the shift is from the usual one near it. None where too little of the lungs is seen.
    """
    z, y, x = spacing
    lag, near, ends = (max(1, round(mm / z)) for mm in (LAG_MM, NEAR_MM, ENDS_MM))
    box = [slice(0, 0)] * 3
    for axis, beside in enumerate((0, round(AROUND_MM / y), round(AROUND_MM / x))):
        inside = np.flatnonzero(lungs.any(axis=tuple(other for other in range(3) if other != axis)))
        if inside.size:
            box[axis] = slice(max(0, int(inside[0]) - beside), int(inside[-1]) + 1 + beside)
    chest = hu[tuple(box)].clip(*SEEN_HU).astype(np.float32)
    if (chest.shape[0] - lag - 2 * ends) * z < LEAST_MM or min(chest.shape[1:]) < 2:
        return None
    shifts = _find_shifts(chest[:-lag], chest[lag:], (y, x))
    padded = np.pad(shifts, ((0, 0), (near, near)), "edge")
    usual = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * near + 1, axis=1), axis=2)
    steps = np.hypot(*(shifts - usual))[ends:-ends]
    return round(float(steps.max()), 2)


def _find_shifts(
    below: NDArray[np.float32], above: NDArray[np.float32], spacing: tuple[float, float]
) -> NDArray[np.float64]:
    """Return how far each section (z, y, x) is shifted against the one below, in mm: (along y or x, z)."""
    change, mean = above - below, (above + below) / 2
    slope_y, slope_x = (np.gradient(mean, mm, axis=axis) for axis, mm in zip((1, 2), spacing, strict=True))
    yy, xx, xy = _sum(slope_y, slope_y), _sum(slope_x, slope_x), _sum(slope_y, slope_x)
    y, x = _sum(slope_y, change), _sum(slope_x, change)
    least = 1 + 1e-4 * (yy + xx)  # where nothing is seen, or edges of one direction alone, the shift is small, not wild
    yy, xx = yy + least, xx + least
    return -np.stack([xx * y - xy * x, yy * x - xy * y]) / (yy * xx - xy * xy)


def _sum(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the sum of the products in each section."""
    total: NDArray[np.float64] = np.einsum("zyx,zyx->z", a, b, dtype=np.float64)
    return total
