"""Say where each lung is expected: where the other one is, mirrored, and inside the ribs; on a grid of about 4 mm.

Axes are (z, y, x): up, to the back, to the patient's left. All is decided by whole numbers where a sum of floats could
differ in its last bits, so that every machine gives the same mask.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.preparation.bitmask import Mask
from dskprep.preparation.morphology import erode
from dskprep.sides import LEFT, RIGHT
from dskprep.volume import PADDING, Triple

THIN_MM = 4.0
"""Lungs are compared on a grid of about this spacing."""

SAME_ROW_MM = (np.inf, 20.0, 10.0, 10.0)
"""Rows that deviate more from the mid-plane are left out of its fit, round after round."""
EDGE_MM = 8.0
"""A row of a lung that ends so near to the edge of what was measured is cut off, and tells nothing of the mid-plane."""
MIN_WHOLE_SHARE = 0.2
"""If fewer rows are whole, the lungs are not compared: with 0.15 a mid-plane was wrong by a third of a lung."""
OFF_SPINE_MM = 20.0
"""A mid-plane of cut lungs that is further from the spine is wrong: right ones are up to 16 mm from it."""

OUTER_MM = 85.0
"""This far from the mid-plane lies no heart, so the bases of both lungs are compared there."""
INNER_MM = 60.0
"""The same in narrow chests, where hardly anything lies further out."""
MIDDLE_ROWS = (0.2, 0.6)
"""They are compared in these shares of the rows, from the front: dense lung lies further back."""
MIN_COLUMNS = 12
"""Of fewer columns nothing is known."""
MAX_LIFT_MM = 36.0
"""One base is at most this much higher than the other: seen 34 mm. If it is more, the upper one is dense."""
REAR_MM = (40.0, 90.0)
"""At these distances from the mid-plane the rear ends of both lungs are compared, in their upper halves."""
MAX_SHIFT_MM = 12.0
"""One lung reaches at most this much further back than the other."""

RIB_HU = 150
"""Bone lies above this."""
SPINE_MM = 35.0
"""The spine and the sternum lie within this distance from the mid-plane."""
DEEP_MM = 12.0
"""So deep in an expected lung lies no rib; a vessel with contrast may."""


class Chest(NamedTuple):
    """Both lungs on a thin grid."""

    means: NDArray[np.int16]
    labels: NDArray[np.uint8]
    never: Mask
    """What is no lung in any case."""
    spacing: Triple
    step: tuple[int, int, int]
    """Every so many-th voxel of the coarse grid is there."""
    off_mm: NDArray[np.float32]
    """Distance of each voxel from the mid-plane: below 0 on the right."""
    mirror: NDArray[np.int64]
    """Sum of the column (x) of a place and of its mirror image, for each slice and row."""
    is_cut_off: bool
    """The field of view cuts the lungs off at a side, in front or behind."""
    is_comparable: bool
    """The lungs can be compared with each other."""

    @classmethod
    def of(
        cls,
        means: NDArray[np.int16],
        spacing: Triple,
        labels: NDArray[np.uint8],
        never: Mask,
        midline: float | None,
        spine: float | None = None,
        is_cut_off: bool = False,
    ) -> Chest | None:
        """Thin a coarse grid, and find the plane between both lungs.

        It goes through the column `midline`, or that of the `spine`, where there is only one lung, and through the
        spine where the field of view leaves hardly a row of both lungs whole, or only rows that are far from it. Then
        nothing is known of a tilt. Returns None where neither is known.
        """
        z, y, x = step = (
            max(1, round(THIN_MM / spacing[0])),
            max(1, round(THIN_MM / spacing[1])),
            max(1, round(THIN_MM / spacing[2])),
        )
        thin = np.s_[::z, ::y, ::x]
        wide = (z * spacing[0], y * spacing[1], x * spacing[2])
        lungs = np.ascontiguousarray(labels[thin])
        known = spine if midline is None else midline
        is_comparable = True
        b = c = 0.0
        if (lungs == RIGHT).any() and (lungs == LEFT).any():
            rows = _find_rows(lungs)
            if is_cut_off:
                # a tilt does not show in some rows only
                is_whole = _are_whole(means[thin], rows, wide)
                is_comparable = bool(np.count_nonzero(is_whole) >= MIN_WHOLE_SHARE * is_whole.size)
                if not is_comparable and spine is None:
                    return None
                a = float(np.median(rows[2:, is_whole].sum(axis=0))) if is_comparable else np.inf
                if spine is not None and abs(a / 2 * x - spine) * spacing[2] > OFF_SPINE_MM:
                    a = 2 * spine / x
            else:
                a, b, c = _fit_mirror_plane(rows, wide)
        elif known is not None and lungs.any():
            a = 2 * known / x
        else:
            return None
        nz, ny, nx = lungs.shape
        sums = a + b * np.arange(nz)[:, None, None] + c * np.arange(ny)[:, None]
        off_mm = ((2 * np.arange(nx) - sums) * (wide[2] / 2)).astype(np.float32)
        mirror = np.floor(sums + 0.5).astype(np.int64)
        masks = np.ascontiguousarray(means[thin]), lungs, np.ascontiguousarray(never[thin])
        return cls(*masks, wide, step, off_mm, mirror, is_cut_off, is_comparable)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing)) / 1000

    def voxels(self, mm: float, axis: int) -> int:
        """Return a length in voxels."""
        return round(mm / self.spacing[axis])


def expect(chest: Chest) -> dict[int, Mask]:
    """Return where each lung would be if it were like the other one; ribs are not looked at."""
    mirrored = {side: _mirror_other_lung(chest, side) for side in (RIGHT, LEFT)}
    right = chest.labels == RIGHT
    lift = _compare_bases(chest, right, mirrored[RIGHT])
    shift = _compare_rears(chest, right, mirrored[RIGHT])
    return {
        side: np.roll(_stretch(mirrored[side], sign * lift), sign * shift, axis=1)
        for side, sign in ((RIGHT, 1), (LEFT, -1))
    }


def look_ahead(mask: Mask, axis: int, direction: int) -> Mask:
    """Return where the mask holds a voxel further on in this direction (1 or -1) of an axis, or the voxel itself."""
    found = mask.copy()
    towards = np.flip(found, axis) if direction > 0 else found
    planes = np.moveaxis(towards, axis, 0)  # of `found`, from the one that is looked at first
    for before, plane in itertools.pairwise(planes):
        plane |= before
    return found


def find_inside_ribs(chest: Chest, side: int, expected: Mask) -> Mask:
    """Return what no rib of this side parts from the middle of the chest.

    Ribs are looked for outwards, to the front and to the back. A rib has no lung beyond it: a vessel with contrast has.
    Ribs are joined with those of the slices above and below, and reach one voxel inwards for that.
    """
    bone = chest.means >= RIB_HU
    is_far = np.abs(chest.off_mm) > SPINE_MM
    rows = np.flatnonzero((bone & ~is_far).any(axis=(0, 2)))  # spine and sternum
    middle = (rows[0] + rows[-1]) / 2 if rows.size else chest.labels.shape[1] / 2
    bone &= is_far & ((chest.off_mm < 0) == (side == RIGHT))
    bone[1:-1] |= bone[2:] | bone[:-2]
    lung = (chest.labels > 0) | erode(expected, DEEP_MM, chest.spacing)
    y = np.arange(bone.shape[1])[:, None]
    outside = np.zeros_like(bone)
    for axis, direction, where in ((2, -1 if side == RIGHT else 1, y >= 0), (1, 1, y > middle), (1, -1, y < middle)):
        ribs = bone & where & ~look_ahead(lung, axis, direction)
        outside |= np.roll(look_ahead(ribs, axis, -direction), direction, axis)
    return ~outside


def _mirror_other_lung(chest: Chest, side: int) -> Mask:
    """Return the other lung, mirrored at the mid-plane."""
    other = chest.labels == RIGHT + LEFT - side
    nx = other.shape[2]
    opposite = chest.mirror - np.arange(nx)
    found: Mask = np.take_along_axis(other, np.clip(opposite, 0, nx - 1), axis=2) & (opposite >= 0) & (opposite < nx)
    return found


def _compare_bases(chest: Chest, lung: Mask, mirrored: Mask) -> int:
    """Return by how many slices the base of a lung is higher than that of the other one."""
    columns = find_middle_columns(chest, lung | mirrored) & lung.any(axis=0) & mirrored.any(axis=0)
    lifts = np.sort((lung.argmax(axis=0) - mirrored.argmax(axis=0))[columns])
    lift = int(lifts[lifts.size // 2]) if lifts.size else 0
    return lift if abs(lift) * chest.spacing[0] <= MAX_LIFT_MM else 0


def find_middle_columns(chest: Chest, lung: Mask) -> Mask:
    """Return the columns (y, x) beside the heart, in the middle rows of a lung: those whose base tells its height."""
    off_mm = np.abs(chest.off_mm[lung.shape[0] // 2])
    has_lung = np.asarray(lung.any(axis=0))
    share = share_of_rows(has_lung)
    outer: Mask = has_lung & (off_mm > OUTER_MM) & (share > MIDDLE_ROWS[0]) & (share < MIDDLE_ROWS[1])
    if np.count_nonzero(outer) >= MIN_COLUMNS:
        return outer
    inner: Mask = has_lung & (off_mm > INNER_MM) & (share < MIDDLE_ROWS[1])
    return inner


def share_of_rows(has_lung: Mask) -> NDArray[np.float64]:
    """Return where each row (y, 1) lies between the front (0) and the back (1) of a mask (y, x)."""
    rows = np.flatnonzero(has_lung.any(axis=1))
    first, last = (rows[0], rows[-1]) if rows.size else (0, 1)
    share: NDArray[np.float64] = (np.arange(has_lung.shape[0]) - first)[:, None] / max(1, last - first)
    return share


def _compare_rears(chest: Chest, lung: Mask, mirrored: Mask) -> int:
    """Return by how many rows a lung reaches further back than the other one, in their upper halves."""
    ny = lung.shape[1]
    off_mm = np.abs(chest.off_mm[:, ny // 2])
    both = lung.any(axis=1) & mirrored.any(axis=1) & (off_mm > REAR_MM[0]) & (off_mm < REAR_MM[1])
    slices = np.flatnonzero((lung | mirrored).any(axis=(1, 2)))
    both[: (slices[0] + slices[-1]) // 2 if slices.size else 0] = False
    shifts = np.sort((mirrored[:, ::-1].argmax(axis=1) - lung[:, ::-1].argmax(axis=1))[both])
    limit = chest.voxels(MAX_SHIFT_MM, 1)
    return int(np.clip(shifts[shifts.size // 2], -limit, limit)) if shifts.size else 0


def _stretch(mask: Mask, lift: int) -> Mask:
    """Return the mask with its base moved up by `lift` slices; its apex stays."""
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if not slices.size:
        return mask
    n, top, height = mask.shape[0], int(slices[-1]), int(slices[-1] - slices[0])
    source = top - np.rint((top - np.arange(n)) * (height / max(1, height - lift))).astype(np.int64)
    found: Mask = mask[np.clip(source, 0, n - 1)] & ((source >= 0) & (source < n))[:, None, None]
    return found


def _find_rows(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return z, y, and the outer ends (x) of the right and of the left lung, of all rows that cross both."""
    right, left = labels == RIGHT, labels == LEFT
    z, y = np.nonzero(right.any(axis=2) & left.any(axis=2))
    return np.stack([z, y, right[z, y].argmax(axis=1), labels.shape[2] - 1 - left[z, y, ::-1].argmax(axis=1)])


def _are_whole(means: NDArray[np.int16], rows: NDArray[np.int64], spacing: Triple) -> NDArray[np.bool_]:
    """Return of each row whether both its ends lie within what was measured."""
    margin = max(1, round(EDGE_MM / spacing[2]))
    measured = np.pad(means != PADDING, [(0, 0), (0, 0), (margin, margin)])
    z, y, first, last = rows
    found = np.ones(z.size, np.bool_)
    for n in range(1, margin + 1):
        found &= measured[z, y, first + margin - n] & measured[z, y, last + margin + n]
    return found


def _fit_mirror_plane(rows: NDArray[np.int64], spacing: Triple) -> Triple:
    """Return (a, b, c) so that x of a place and of its mirror image add up to a + b z + c y, as indices.

    Fitted by least squares to the outer ends of rows; those where one side is shorter, as beside dense lung, are left
    out more strictly from round to round.
    """
    z, y, first, last = rows
    sums = first + last
    terms = np.stack([np.ones_like(z), z, y]).astype(np.int64)
    deviations = np.zeros(z.size)
    for limit in SAME_ROW_MM:
        is_same = np.abs(deviations) * spacing[2] / 2 <= limit
        kept = terms[:, is_same]
        # normal equations: their sums are whole numbers, and exact
        solved = np.linalg.lstsq((kept @ kept.T).astype(np.float64), (kept @ sums[is_same]).astype(np.float64))[0]
        a, b, c = (round(float(value), 6) for value in solved)  # so that the last bits do not count
        deviations = sums - (a + b * z + c * y)
    return a, b, c
