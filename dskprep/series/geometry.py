"""From the positions of ordered slices to the grid of a volume: spacing, gaps, tilt, affine.

Everything is decided from positions and orientations (DICOM PS3.3 C.7.6.2.1.1), never from
SliceLocation, SliceThickness, GantryDetectorTilt or one pair of slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dskprep.dicom.plane import Plane
from dskprep.errors import Refusal
from dskprep.volume import Grid, TiltedGrid

Floats = NDArray[np.float64]

STEP_TOLERANCE = 0.1
"""Largest distance of a slice from its place on the even grid, as a fraction of a step; rounding may explain more."""
ROUNDING_TOLERANCE = 0.75
"""The same as a fraction of the unit to which positions are rounded: a half, and what the fit adds."""
MAX_ROUNDING = 1 / 3
"""Positions that are rounded to more than this share of a step tell nothing of its evenness."""
MAX_DECIMALS = 6
"""Decimals (mm) beyond which positions count as not rounded."""
DRIFT_TOLERANCE_MM = 0.5
"""Largest distance of a first pixel from the straight line through all; headers round positions and directions."""
MAX_EXTENT_MM = 3000.0
"""Longest stack. No patient is longer, so positions farther apart come from a damaged header."""
MAX_TILT_DEGREES = 35.0
"""Largest tilt. Gantries tilt by 30 degrees at most, so a larger one comes from a damaged header."""
MAX_GAP_SHARE = 0.1
"""Largest share of slices that may be missing from a stack whose gaps are interpolated."""
FIT_DIGITS = 6
"""Decimals (mm) to which a fit is rounded, so that its last bits cannot change a decision."""


@dataclass(frozen=True, eq=False)
class Layout:
    """How the acquired slices lie on the grid of a volume.

    Slice k is plane `numbers[k]` of the grid. Its first pixel lies `offsets[k]` pixels (rows, columns) from the
    plane's, which is 0 unless the gantry was tilted. `gaps_mm` are the positions along the normal at which slices
    are missing.
    """

    grid: Grid
    numbers: tuple[int, ...]
    offsets: tuple[tuple[float, float], ...]
    tilt_degrees: float
    gaps_mm: tuple[float, ...]


def lay_out(planes: Sequence[Plane], *, max_gap_slices: int = 0) -> Layout:
    """Return the layout of slices that share size, pixel spacing and orientation, sorted along their normal.

    Up to `max_gap_slices` slices may be missing in a row, and MAX_GAP_SHARE in all. Tilted slices get a grid that
    is wide enough for all of their pixels. Raises Refusal `missing-slices`, `uneven-spacing` or `gantry-tilt`, or
    `mixed-geometry` if the slices lie on no such grid.
    """
    first = planes[0]
    positions = np.array([plane.position for plane in planes])
    along = positions @ first.normal
    if along[-1] - along[0] > MAX_EXTENT_MM:
        raise Refusal(
            "mixed-geometry",
            f"expected slices within {MAX_EXTENT_MM:g} mm, found them from {along[0]:.2f} to "
            f"{along[-1]:.2f} mm along the normal",
        )
    numbers, start, step = _number(along, _rounding_mm(positions, first.normal), max_gap_slices)
    lean, corner = _fit_lean(positions, first, start)
    n_slices = int(numbers[-1]) + 1
    reach = lean * step * (n_slices - 1) / first.pixel_mm  # the last slice's offset from the first, in pixels
    low = np.minimum(reach, 0)
    offsets = np.outer(numbers / (n_slices - 1), reach) - low
    rows, columns = (n + int(np.ceil(round(extra, 3))) for n, extra in zip(first.shape, np.abs(reach), strict=True))
    affine = np.eye(4)
    affine[:3, 0] = first.normal * step
    affine[:3, 1] = np.array(first.column) * first.pixel_mm[0]
    affine[:3, 2] = np.array(first.row) * first.pixel_mm[1]
    askew = affine.copy()
    askew[:3, 0] += affine[:3, 1:3] @ reach / (n_slices - 1)
    askew[:3, 3] = corner
    affine[:3, 3] = corner + affine[:3, 1:3] @ low
    shape = (n_slices, rows, columns)
    return Layout(
        grid=TiltedGrid(shape, affine, Grid((n_slices, *first.shape), askew)) if reach.any() else Grid(shape, affine),
        numbers=tuple(numbers.tolist()),
        offsets=tuple((row, column) for row, column in offsets.tolist()),
        tilt_degrees=_degrees(lean),
        gaps_mm=tuple(round(start + step * k, 3) for k in np.setdiff1d(np.arange(n_slices), numbers).tolist()),
    )


def _rounding_mm(positions: Floats, normal: Floats) -> float:
    """Return the unit, along the normal, to which the header rounds the positions; 0 if it does not."""
    units = np.zeros(3)
    for axis in range(3):
        values = positions[:, axis]
        for decimals in range(MAX_DECIMALS):
            if np.ptp(values) > 0 and np.abs(values - values.round(decimals)).max() < 10.0 ** -(MAX_DECIMALS + 2):
                units[axis] = 10.0**-decimals
                break
    return float(np.abs(normal) @ units)


def _number(along: Floats, rounding_mm: float, max_gap_slices: int) -> tuple[NDArray[np.int_], float, float]:
    """Return the number of each slice on the even grid of positions, and the grid's start and step (mm)."""
    numbers = np.arange(len(along))
    start, step, off = _fit_line(numbers, along)
    if off.max() <= _tolerance_mm(step, rounding_mm):
        return numbers, start, step
    steps = np.diff(along)
    typical = float(np.median(steps))
    jumps = np.maximum(np.rint(steps / typical), 1).astype(np.int_)
    numbers = np.append(0, np.cumsum(jumps))
    start, step, off = _fit_line(numbers, along)
    gaps = np.flatnonzero(jumps > 1)
    if off.max() > _tolerance_mm(step, rounding_mm) or len(gaps) == 0:
        raise Refusal(
            "uneven-spacing",
            f"expected even steps, found {steps.min():.3f} to {steps.max():.3f} mm (median {typical:.3f} mm); "
            f"the slice at {along[off.argmax()]:.2f} mm lies {off.max():.2f} mm off",
        )
    n_missing = int((jumps - 1).sum())
    if jumps.max() - 1 <= max_gap_slices and n_missing <= MAX_GAP_SHARE * (numbers[-1] + 1):
        return numbers, start, step
    where = ", ".join(f"{along[g]:.2f} and {along[g + 1]:.2f}" for g in gaps[:5])
    allowed = f"; {max_gap_slices} in a row and {MAX_GAP_SHARE:.0%} in all may be" if max_gap_slices else ""
    found = f"{n_missing} missing, between {where} mm along the normal{allowed}"
    raise Refusal("missing-slices", f"expected a slice every {step:.3f} mm, found {found}")


def _tolerance_mm(step: float, rounding_mm: float) -> float:
    """Return how far a slice may lie from its place on the even grid."""
    rounded = ROUNDING_TOLERANCE * rounding_mm if rounding_mm <= MAX_ROUNDING * step else 0.0
    return max(STEP_TOLERANCE * step, rounded)


def _fit_line(numbers: NDArray[np.int_], along: Floats) -> tuple[float, float, Floats]:
    """Fit a least-squares line to the positions of numbered slices: its start, its step, each distance from it (mm)."""
    centred = numbers - numbers.mean()
    step = round(float(centred @ along / (centred @ centred)), FIT_DIGITS)
    start = round(float(along.mean() - step * numbers.mean()), FIT_DIGITS)
    return start, step, np.abs(along - (start + step * numbers))


def _fit_lean(positions: Floats, plane: Plane, start: float) -> tuple[Floats, Floats]:
    """Return the lean of the stack along (columns, rows), in mm per mm of the normal, and its first corner (LPS, mm).

    The first pixels lie above one another (no lean), or on one slanted line: a tilted gantry.
    """
    normal = plane.normal
    along = positions @ normal
    sideways = positions - np.outer(along, normal)
    aside = np.linalg.norm(sideways - sideways[0], axis=1)
    if aside.max() <= DRIFT_TOLERANCE_MM:
        return np.zeros(2), sideways[0] + normal * start
    centre, centred = along.mean(), along - along.mean()
    slope = (centred @ sideways / (centred @ centred)).round(FIT_DIGITS + 3)
    off = np.linalg.norm(sideways - sideways.mean(axis=0) - np.outer(centred, slope), axis=1)
    if off.max() > DRIFT_TOLERANCE_MM:
        raise _refusal_of_bend(along, sideways, aside, float(off.max()))
    if _degrees(slope) > MAX_TILT_DEGREES:
        raise Refusal(
            "gantry-tilt",
            f"expected a tilt of {MAX_TILT_DEGREES:g} degrees at most, found slices sheared by {_degrees(slope):.1f}",
        )
    in_plane = np.array([plane.column, plane.row])
    lean = in_plane @ slope
    lean[np.abs(lean) * (along[-1] - along[0]) <= DRIFT_TOLERANCE_MM] = 0
    return lean, (sideways.mean(axis=0) + (start - centre) * lean @ in_plane).round(FIT_DIGITS) + normal * start


def _refusal_of_bend(along: Floats, sideways: Floats, aside: Floats, off_mm: float) -> Refusal:
    """Return why slices on no straight line are refused: a tilt that changes, or one slice that lies aside."""
    usual = np.median(np.diff(sideways, axis=0) / np.diff(along)[:, None], axis=0)
    if float(np.linalg.norm(usual)) * (along[-1] - along[0]) > DRIFT_TOLERANCE_MM:
        return Refusal(
            "gantry-tilt",
            f"expected one tilt, found slices sheared by {_degrees(usual):.1f} degrees, and up to {off_mm:.1f} mm "
            "beside a straight line",
        )
    worst = int(np.argmax(aside))
    return Refusal(
        "mixed-geometry",
        f"expected slices above one another, found one {aside[worst]:.1f} mm aside at {along[worst]:.1f} mm",
    )


def _degrees(lean: Floats) -> float:
    return round(float(np.degrees(np.arctan(np.linalg.norm(lean)))), 3)
