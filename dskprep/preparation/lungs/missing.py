"""Measure lung that should be there and is not: beside the other lung, and at the base of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dskprep.preparation.bitmask import Mask
from dskprep.preparation.lungs.expected import (
    MIDDLE_ROWS,
    SPINE_MM,
    Chest,
    expect,
    find_inside_ribs,
    find_middle_columns,
    look_ahead,
    share_of_rows,
)
from dskprep.preparation.morphology import Pieces, box_of, dilate, open_mask
from dskprep.sides import LEFT, RIGHT
from dskprep.volume import PADDING

MIN_ML = 30.0
"""Less is not missing: healthy lungs differ by up to 20 ml in this measure, and a tenth of a lung makes 45."""
MIN_BEHIND_ML = 60.0
"""Nor is less between lung and ribs, if the base is not raised: up to 35 ml is seen there."""
MIN_UNSURE_ML = 100.0
"""Nor is less beside the other lung where only the spine tells the mid-plane; healthy lungs have up to 71 ml there."""
MIN_BETWEEN_ML = 100.0
"""Nor is less between two parts of a lung, one above the other: hearts have up to 77 ml there."""
CORE_MM = 8.0
"""What is missing is thicker than twice this; healthy lungs differ by thinner layers."""
AERATED_HU = -400
"""Not more than this is aerated; vessels, and edges of bronchi in dense lung, lie above."""

MEDIASTINUM_MM = {RIGHT: 45.0, LEFT: 50.0}
"""This near to the mid-plane nothing is known: great vessels and hila differ."""
GUTTER_MM = 35.0
"""Beside the spine, above the hila, no great vessel reaches this far from the mid-plane:"""
GUTTER_SHARE = 0.6
"""behind this share of the lung's rows, from the front,"""
GUTTER_HEIGHT_MM = 120.0
"""and so high above its base. Healthy lungs differ there by up to 2 ml in the measure of MIN_ML."""
HEART_MM = 90.0
"""The heart reaches this far to the left."""
HEART_HEIGHT_MM = 160.0
"""It reaches so high above the base of the left lung."""
HEART_SHARE = 0.55
"""It lies in this share of the left lung's rows, from the front."""
LOW_MM = 120.0
"""So high above the base, dense lung lies at the back: what has lung behind it is the liver."""

REAR_SHARE = (0.6, 0.97)
"""The rear of a lung lies between these shares of its rows, from the front; its rearmost rows end anywhere."""
DROP_MM = 20.0
"""The base of the rear lies at least this much below that of the middle, from DROP_SHARE of the rows on."""
DROP_SHARE = 0.8
"""See DROP_MM."""
MIN_RISE_MM = 30.0
"""A base that is this much higher than that is raised."""
RISE_MM = 40.0
"""It is looked at from this distance from the mid-plane on."""
ROUGH_MM = 8.0
"""Half the width of the smallest raised part."""

FRONT_SHARE, BACK_SHARE = (0.2, 0.4), (0.8, 0.97)
"""The base is compared between these shares of the rows."""
MIN_SLOPE_MM = 16.0
"""Its back is not so much higher than its front: in healthy lungs up to 8 mm, in most 20 to 90 mm lower."""
MIN_COLUMNS = 20
"""In fewer columns of either nothing is known of it."""
MAX_CUT_MM2 = 2000.0
"""Nor where the scan cuts off more than this of the base."""
MIN_SEEN_SHARE = 0.8
"""Nor where less of the columns and slices show what lies behind the lung."""


class Gap(NamedTuple):
    """Lung of one side that should be there and is not, on the grid of a Chest."""

    side: int
    core: Mask
    """What is surely missing."""
    expected: Mask
    """Where this lung would end."""
    inside: Mask
    """What lies inside of the ribs."""
    ml: float


class Missing(NamedTuple):
    """What is missing of both lungs."""

    ml: float
    place: str
    """As in "right lower, left upper": the third of the lung's height where it lies."""


def find_gaps(chest: Chest) -> list[Gap]:
    """Return what is missing of each lung, beside the other one or, where both ends are raised, at its base.

    Where the field of view cuts the lungs off, the base tells something only if it rises to its back; and what lies
    between two parts of a lung is looked at too.
    """
    expected = expect(chest)
    gaps: list[Gap] = []
    for side in (RIGHT, LEFT):
        found = _beside_the_other(chest, side, expected[side])
        if not chest.is_comparable and sum(gap.ml for gap in found) < MIN_UNSURE_ML:
            found = []
        if not found and (not chest.is_cut_off or rises_to_the_back(chest, side)):
            found = _at_the_base(chest, side, expected[side])
        if not found and chest.is_cut_off:
            found = _between_its_parts(chest, side)
        gaps += found
    return gaps


def has_dense_part(chest: Chest, side: int) -> bool:
    """Return whether a lung has a dense part in a field of view that cuts lungs off; nothing is known of its volume."""
    return rises_to_the_back(chest, side) or bool(_between_its_parts(chest, side))


def rises_to_the_back(chest: Chest, side: int) -> bool:
    """Return whether the base of a lung is higher at its back than in front, as no healthy one is."""
    lung = chest.labels == side
    has_lung = np.asarray(lung.any(axis=0))
    bases, share = lung.argmax(axis=0), share_of_rows(has_lung)
    area_mm2 = chest.spacing[1] * chest.spacing[2]
    if np.count_nonzero(lung[0]) * area_mm2 > MAX_CUT_MM2 or not _is_seen_behind(chest, lung):
        return False
    outer = has_lung & (np.abs(chest.off_mm[lung.shape[0] // 2]) > RISE_MM)
    heights = [np.sort(bases[outer & (share > low) & (share < high)]) for low, high in (FRONT_SHARE, BACK_SHARE)]
    if min(part.size for part in heights) < MIN_COLUMNS:
        return False
    front, back = (int(part[part.size // 2]) for part in heights)
    return (back - front) * chest.spacing[0] >= MIN_SLOPE_MM


def _split(chest: Chest, side: int, core: Mask, expected: Mask, inside: Mask) -> list[Gap]:
    """Return the pieces of a core that are large enough.

    The core ends where what is missing gets thin; the volumes hold these edges too.
    """
    pieces = Pieces.of(core)
    ml = pieces.sizes * chest.voxel_ml
    if not (ml >= MIN_ML).any():
        return []
    edges = dilate(core, CORE_MM, chest.spacing) & expected & _is_dense(chest)
    with_edges = _ml(chest, core | edges) / _ml(chest, core)
    return [
        Gap(side, pieces.select(np.arange(ml.size) == number).array, expected, inside, float(ml[number]) * with_edges)
        for number in np.flatnonzero(ml >= MIN_ML)
    ]


def sum_up(chest: Chest, gaps: Iterable[Gap]) -> Missing:
    """Return the volume of all gaps, and where they are."""
    gaps = list(gaps)
    return Missing(sum(gap.ml for gap in gaps), ", ".join(_name_place(chest, gap) for gap in gaps))


def _name_place(chest: Chest, gap: Gap) -> str:
    whole = box_of((chest.labels == gap.side) | gap.core, margin=0)[0]
    slices = np.flatnonzero(gap.core.any(axis=(1, 2)))
    share = (np.mean(slices) - whole.start) / max(1, whole.stop - whole.start)
    third = ("lower", "middle", "upper")[min(2, int(3 * share))]
    return f"{'right' if gap.side == RIGHT else 'left'} {third}"


def _beside_the_other(chest: Chest, side: int, expected: Mask) -> list[Gap]:
    """Return what the other lung, mirrored, has more than this one."""
    missing = expected & _is_dense(chest)
    missing &= _is_comparable(chest, side, expected)
    if _ml(chest, open_mask(missing, CORE_MM, chest.spacing)) < MIN_ML:
        return []
    inside = find_inside_ribs(chest, side, expected)
    return _split(chest, side, open_mask(missing & inside, CORE_MM, chest.spacing), expected & inside, inside)


def _is_comparable(chest: Chest, side: int, expected: Mask) -> Mask:
    """Return where healthy lungs are alike."""
    low, front, _ = box_of(expected, margin=0)
    z, y = np.arange(expected.shape[0])[:, None, None], np.arange(expected.shape[1])[:, None]
    off_mm = np.abs(chest.off_mm)
    found: Mask = off_mm >= MEDIASTINUM_MM[side]
    is_high = z >= low.start + GUTTER_HEIGHT_MM / chest.spacing[0]
    found |= is_high & (y > front.start + GUTTER_SHARE * (front.stop - front.start)) & (off_mm >= GUTTER_MM)
    if side == LEFT:
        is_low = z < low.start + HEART_HEIGHT_MM / chest.spacing[0]
        is_front = y < front.start + HEART_SHARE * (front.stop - front.start)
        found &= ~(is_low & (is_front | chest.is_cut_off) & (off_mm < HEART_MM))
    is_base = z < low.start + LOW_MM / chest.spacing[0]
    found &= ~(is_base & look_ahead(chest.labels == side, 1, 1))
    return found


def _at_the_base(chest: Chest, side: int, expected: Mask) -> list[Gap]:
    """Return what is missing at the back of the base, which lies lower than the middle of the base in healthy lungs."""
    lung = chest.labels == side
    has_lung = np.asarray(lung.any(axis=0))
    middle = find_middle_columns(chest, lung)
    if not middle.any():
        return []
    bases = lung.argmax(axis=0)
    heights = np.sort(bases[middle])
    share = share_of_rows(has_lung)
    drop_mm = DROP_MM * np.clip((share - REAR_SHARE[0]) / (DROP_SHARE - REAR_SHARE[0]), 0, 1)
    usual = heights[heights.size // 2] - drop_mm / chest.spacing[0]
    rear = has_lung & (share > REAR_SHARE[0]) & (share < REAR_SHARE[1])
    rear &= np.abs(chest.off_mm[lung.shape[0] // 2]) > RISE_MM
    is_raised = rear & ((bases - usual) * chest.spacing[0] > MIN_RISE_MM)
    is_raised = open_mask(is_raised[None], ROUGH_MM, (1, *chest.spacing[1:]))[0]
    z = np.arange(lung.shape[0])[:, None, None]
    free = _is_dense(chest)
    core = is_raised & (z >= usual) & (z < bases) & free
    min_ml = MIN_ML if _ml(chest, core) >= MIN_ML else MIN_BEHIND_ML
    inside = find_inside_ribs(chest, side, expected)
    here = (chest.off_mm < -SPINE_MM) if side == RIGHT else (chest.off_mm > SPINE_MM)
    behind = here & inside & (share > MIDDLE_ROWS[0]) & (z >= usual) & ~look_ahead(lung, 1, 1) & look_ahead(lung, 1, -1)
    core = open_mask(behind & free, CORE_MM, chest.spacing) | core & inside
    return _split(chest, side, core, behind, inside) if _ml(chest, core) >= min_ml else []


def _is_seen_behind(chest: Chest, lung: Mask) -> bool:
    """Return whether what lies behind a lung was measured, in most of its columns and slices."""
    margin = max(1, chest.voxels(CORE_MM, 1))
    is_measured = np.pad(chest.means != PADDING, [(0, 0), (0, margin), (0, 0)])
    z, x = np.nonzero(lung.any(axis=1))
    last = lung.shape[1] - 1 - lung[:, ::-1].argmax(axis=1)[z, x]
    is_seen = np.logical_and.reduce([is_measured[z, last + n, x] for n in range(1, margin + 1)])
    return bool(np.count_nonzero(is_seen) >= MIN_SEEN_SHARE * is_seen.size)


def _between_its_parts(chest: Chest, side: int) -> list[Gap]:
    """Return what is dense with lung above and below it: it is no liver."""
    lung = chest.labels == side
    between = look_ahead(lung, 0, 1) & look_ahead(lung, 0, -1) & (np.abs(chest.off_mm) >= MEDIASTINUM_MM[LEFT])
    core = open_mask(between & _is_dense(chest), CORE_MM, chest.spacing)
    return _split(chest, side, core, between, between) if _ml(chest, core) >= MIN_BETWEEN_ML else []


def _is_dense(chest: Chest) -> Mask:
    """Return what is neither lung nor air."""
    found: Mask = (chest.labels == 0) & (chest.means > AERATED_HU) & ~chest.never
    return found


def _ml(chest: Chest, mask: Mask) -> float:
    return float(np.count_nonzero(mask) * chest.voxel_ml)
