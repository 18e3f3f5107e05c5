"""Find the lungs in a chest CT.

Decisions are taken on a coarse grid of block means (module `body`), where noise is low and morphology is
cheap; the boundary is then drawn voxel by voxel at full resolution. All lengths are in mm, so thick
and thin slices give the same lungs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import masks
from dskprep.preparation.body import GRID_MM, PARENCHYMA_HU, SHELL_MM, TISSUE_HU, Grid, coarse_grid, crop, find_body
from dskprep.preparation.lungs import dense
from dskprep.preparation.morphology import (
    Mask,
    Pieces,
    box_of,
    centre_of,
    closed,
    connected,
    erode,
    near,
    nearer,
    opened,
)
from dskprep.volume import PADDING, Triple, Volume

Labels = NDArray[np.uint8]

RIGHT = dense.RIGHT
LEFT = dense.LEFT

CONTACT_MM = 4.0
"""Two regions touch if they come this near."""

AIR_HU = -1000.0
MAX_AIR_HU = -900
"""Air where the scan shows none round the patient; above the second lie blankets and foam."""
LUNG_HU = -850.0
GAS_SHARE = 0.45
SURE_GAS_SHARE = 0.25
MIN_SURE_GAS = 0.5
"""Gas lies below the first share of the way from air to lung, and this part of a pocket below the second.
Both ends are the scan's own: scanners give air as -950 to -1024, and emphysema (-930) is no gas."""
GAS_MM = 2.5
"""Half the width of the narrowest gas that is looked at: lobar bronchi."""
RING_MM = (2.5, 6.0)
"""A pocket of gas is judged by what lies this far around it."""
MIN_GAS_ML = 0.2
"""Smaller pockets are bronchi in the lung."""
WALL_MM = 4.5
"""Wall of a gas pocket with its blurred edge."""

CORE_MM = 4.0
"""The middle of a lung is at least this far from its edge; bridges to other air are narrower."""
MIN_CORE_ML = 10.0
"""Least volume of the middle of a lung, or of a piece of one."""
MIN_LUNG_ABOVE_AIR = 50.0
MIN_DENSE = 0.3
"""Least part of it that is this much (HU) denser than air: so is most of a lung with severe emphysema."""
MAX_OUTSIDE_CONTACT = 0.1
"""Most of its surface near outside air, relative to that near the body: lungs 0 to 0.003, foam from 0.5."""
MIN_CORE_SHARE = 0.05
"""A smaller share of the largest one is no lung by itself, but may be connected to one."""
REACH_MM = 8.0
"""How far the thin parts of a lung reach beyond its opened middle."""

SPLIT_MM = (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
"""Erosions that are tried until two lungs come apart; the junction lines are 1 to 4 mm thick."""
MIN_BALANCE = 0.2
"""The smaller part has at least this share of the larger, else a lobe came off; a part that lies apart
without erosion may be a smaller lung."""
MIDLINE_SHARE = 0.25
"""If both sides of the midline hold this share of a single piece, it is two lungs."""

CLOSING_MM = 8.0
"""Radius of the closing: takes in vessels and nodules at the edge, while the heart, aorta and spine
are rounder than that and stay out."""
MAX_HOLE_MM2 = 700.0
"""Largest hole filled in an axial slice: a nodule of 30 mm. A larger one may be the liver's dome."""
MAX_DENT_WIDTH_MM = 50.0
MAX_DENT_DEPTH_MM = 30.0
MIN_DENT_DEPTH_MM = 4.0
"""Dents of the chest wall that are filled: tumours at the wall, but not the bulges of ribs."""

EDGE_MM = 2.5
"""The coarse boundary is right to within this; inside it, voxels are judged by their own HU."""

TOUCH_MM2 = 100.0
"""Least area in which a lung meets the edge of what was measured to be called cut off."""
MIN_TOTAL_ML = 1000.0
MAX_TOTAL_ML = 10000.0
"""Bounds for both lungs together, gas and tissue. From Quanjer et al. 1993 (Eur Respir J 6 Suppl 16:5):
the residual volume of a woman of 1.5 m is 1.0 L, the upper limit (mean + 1.64 SD) of the total lung
capacity of a man of 2.0 m is 10.0 L. Children, and scans of a part, are rightly pointed out."""
MIN_LUNG_RATIO = 0.1
"""A lung smaller than this share of the other counts as missing."""
MIN_USUAL_RATIO = 0.5
"""Below this the smaller lung is collapsed, drowned or partly removed: left to right is about 0.85."""
DENSE_HU = -320
MAX_DENSE_SHARE = 0.05
"""More of a lung that is denser is worth a look: vessels and small tumours make up 0.01 to 0.035."""
MAX_APART_SHARE = 0.05
"""More of a lung that does not hang together with its main piece is no lung."""
MAX_EXTENT_MM = (380.0, 280.0, 210.0)
BOX_SHARE = (0.2, 0.6)
"""No lung is higher, deeper or wider; lungs fill 0.30 to 0.45 of the box round them."""


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lungs of a volume: with their vessels, nodules and small bronchi, without the main bronchi."""

    mask: Volume
    """uint8 (z, y, x): 0 outside, RIGHT (the patient's right), LEFT; RIGHT where not told apart."""
    right_ml: float
    left_ml: float
    warnings: tuple[str, ...]
    """Words of errors.WARNINGS."""
    dense_share: float | None = None
    """Part of a lung, of that which has more of it, that is denser than DENSE_HU; None if not measured."""


def find_lungs(volume: Volume, *, margin_mm: float = 0.0) -> Lungs:
    """Find the right and the left lung.

    Main bronchi, gas in the stomach, bowel and oesophagus, and all air outside the body are left out.
    Lungs cut off by the ends of the scan or by the field of view are kept. Dense lung (consolidation,
    effusion, collapse) is taken in where aerated lung surrounds it; and at the base and the back of a
    patient on the back, where the other lung shows how far this one should reach (module `dense`).
    `dense_share` and the warning `dense-lung` say so.

    Parameters
    ----------
    volume
        int16 HU (z, y, x) along the patient's axes: z up is superior, y posterior, x the patient's left.
        Voxels equal to PADDING were not measured. Spacing may be anything up to about 5 mm.
    margin_mm
        Grow the mask by this much on every side, not into the other lung. The volumes in ml and the
        warnings are of the lungs without it.

    Raises
    ------
    ValueError
        The margin is not 0 or more.
    TypeError
        The volume is not int16.
    """
    if not margin_mm >= 0:
        raise ValueError(f"margin_mm must be 0 or more, not {margin_mm}")
    grid, tissue, outside = find_body(coarse_grid(volume))
    air = (grid.means < TISSUE_HU) & (grid.means != PADDING) & ~outside
    air_hu = _find_air_hu(grid, outside)
    midline = centre_of(tissue)[2] + grid.first[2]
    grid, air, tissue, outside = crop(air, grid, air, tissue, outside)
    gas = _find_gas(grid, air, air_hu)
    air &= ~gas
    cores = _find_cores(grid, air, air_hu, tissue, outside)

    grid, cores, air, gas, outside = crop(cores, grid, cores, air, gas, outside)
    lung = _reach(grid, cores, air)
    labels = _split(grid, cores, lung, midline - grid.first[2])
    never = outside | gas | (grid.means == PADDING)
    labels = _fill(grid, labels, never)
    labels, is_dense = dense.completed(grid.means, grid.spacing, labels, never)

    mask, right_ml, left_ml = _draw(volume, grid, labels, never)
    dense_share = _dense_share(grid, labels)
    is_dense |= dense_share > MAX_DENSE_SHARE
    warnings = _doubts(right_ml, left_ml, _is_cut_off(volume, grid, labels, mask), labels, grid.spacing, is_dense)
    return grown(Lungs(volume.with_array(mask), right_ml, left_ml, warnings, dense_share), margin_mm)


def grown(found: Lungs, margin_mm: float) -> Lungs:
    """The mask grown by a margin, in place; not into the other lung. Volumes and warnings stay."""
    if margin_mm > 0:
        _grow(found.mask.array, margin_mm, found.mask.spacing)
    return found


# ---------------------------------------------------------------------------------------------------
# Gas: what is not lung
# ---------------------------------------------------------------------------------------------------


def _find_air_hu(grid: Grid, outside: Mask) -> float:
    """HU that this scan gives to air: that of the air round the patient."""
    air = outside & (grid.means != PADDING) & (grid.means < MAX_AIR_HU)
    return masks.median_inside(grid.means, air) if air.any() else AIR_HU


def _find_gas(grid: Grid, air: Mask, air_hu: float) -> Mask:
    """Pockets of gas with tissue round them, and their walls: airway, stomach, bowel, pneumothorax.

    Gas with lung round it (small bronchi, bullae) is not among them.
    """
    lung_hu = masks.median_inside(grid.means, air) if air.any() else LUNG_HU
    gas_hu, sure_hu = (air_hu + share * (lung_hu - air_hu) for share in (GAS_SHARE, SURE_GAS_SHARE))
    pockets = Pieces.of(opened(air & (grid.means < gas_hu), GAS_MM, grid.spacing))
    is_gas = pockets.sizes * grid.voxel_ml >= MIN_GAS_ML
    is_gas &= pockets.counts(grid.means < sure_hu) >= MIN_SURE_GAS * pockets.sizes
    parenchyma = air & (grid.means >= gas_hu) & (grid.means < PARENCHYMA_HU[1])
    parenchyma = opened(parenchyma, SHELL_MM, grid.spacing)
    z, y, x = (math.ceil(RING_MM[1] / s) for s in grid.spacing)
    boxes = pockets.boxes(margin=(z, y, x))
    for pocket in np.flatnonzero(is_gas).tolist():
        box = boxes[pocket]
        is_pocket = pockets.piece(pocket, box)
        ring = near(is_pocket, RING_MM[1], grid.spacing) & ~near(is_pocket, RING_MM[0], grid.spacing)
        n_tissue = np.count_nonzero(ring & (grid.means[box] > TISSUE_HU))
        is_gas[pocket] = n_tissue > np.count_nonzero(ring & parenchyma[box])
    return near(pockets.chosen(is_gas), WALL_MM, grid.spacing)


# ---------------------------------------------------------------------------------------------------
# Lungs
# ---------------------------------------------------------------------------------------------------


def _find_cores(grid: Grid, air: Mask, air_hu: float, tissue: Mask, outside: Mask) -> Mask:
    """Middles of lungs: large enough, denser than gas, and enclosed by the body."""
    pieces = Pieces.of(erode(air, CORE_MM, grid.spacing))
    is_lung = pieces.sizes * grid.voxel_ml >= MIN_CORE_ML
    is_lung &= pieces.counts(grid.means > air_hu + MIN_LUNG_ABOVE_AIR) >= MIN_DENSE * pieces.sizes
    is_lung &= _are_enclosed(grid, pieces, pieces.chosen(is_lung), tissue, outside)
    is_main = is_lung & (pieces.sizes >= MIN_CORE_SHARE * pieces.sizes.max(where=is_lung, initial=0))
    return pieces.chosen(is_lung) & connected(air, pieces.chosen(is_main))


def _are_enclosed(grid: Grid, pieces: Pieces, where: Mask, tissue: Mask, outside: Mask) -> NDArray[np.bool_]:
    """Whether each piece touches the body, and hardly the outside, unlike foam under the patient.

    Only pieces in `where` are looked at.
    """
    # where the field of view cuts a lung open, the outside says nothing
    outside_air = outside & ~near(grid.means == PADDING, CONTACT_MM, grid.spacing)
    surroundings = tissue.view(np.uint8) + 2 * outside_air.view(np.uint8)
    nearest = nearer(surroundings, CORE_MM + CONTACT_MM, grid.spacing, where)
    at_body, at_outside = (pieces.counts(nearest == which) for which in (1, 2))
    return np.asarray((at_body > 0) & (at_outside <= MAX_OUTSIDE_CONTACT * at_body))


def _reach(grid: Grid, cores: Mask, air: Mask) -> Mask:
    """The cores with the thin parts of the lungs round them."""
    reached: Mask = connected(air & near(cores, CORE_MM + REACH_MM, grid.spacing), cores)
    return reached


def _split(grid: Grid, cores: Mask, lung: Mask, midline: float) -> Labels:
    """Tell the right lung from the left one.

    Lungs that touch are eroded until they come apart; each voxel goes to the nearer part, or, far from
    both, to the one on its side. A single lung is named by its side of the midline.
    """
    for erosion_mm in SPLIT_MM:
        seeds = _two_sides(grid, erode(cores, erosion_mm, grid.spacing), MIN_BALANCE)
        if seeds is not None:
            break
    else:
        erosion_mm, seeds = 0.0, _two_sides(grid, cores, MIN_CORE_SHARE)
    columns = np.arange(lung.shape[2])
    if seeds is None:
        n_left, n = (int(np.count_nonzero(part)) for part in (lung & (columns > midline), lung))
        return np.asarray(lung * np.uint8(LEFT if n_left > (1 - MIDLINE_SHARE) * n else RIGHT))
    nearest = nearer(seeds, CORE_MM + REACH_MM + erosion_mm, grid.spacing, lung)
    between = (centre_of(seeds == RIGHT)[2] + centre_of(seeds == LEFT)[2]) / 2
    by_side = np.where(columns > between, np.uint8(LEFT), np.uint8(RIGHT))
    return np.where(nearest > 0, nearest, by_side) * lung


def _two_sides(grid: Grid, cores: Mask, least_share: float) -> Labels | None:
    """The two largest pieces as RIGHT and LEFT, if balanced and side by side, else None."""
    pieces = Pieces.of(cores)
    if pieces.sizes.size < 2:
        return None
    order = np.argsort(-pieces.sizes, kind="stable")[:2]
    larger, smaller = (pieces.chosen(np.arange(pieces.sizes.size) == number) for number in order)
    if pieces.sizes[order[1]] < least_share * pieces.sizes[order[0]]:
        return None
    across = (centre_of(smaller) - centre_of(larger)) * grid.spacing
    if np.abs(across).argmax() != 2:
        return None  # two lobes, one above or behind the other
    right, left = (larger, smaller) if across[2] > 0 else (smaller, larger)
    return right * np.uint8(RIGHT) + left * np.uint8(LEFT)


def _fill(grid: Grid, labels: Labels, never: Mask) -> Labels:
    """Take into each lung its vessels and nodules, also those at its edge and at the chest wall."""
    filled = labels.copy()
    for side in (RIGHT, LEFT):
        if not (labels == side).any():
            continue
        box = box_of(labels == side, margin=1)
        lung = labels[box] == side
        _fill_wall_dents(lung, side, grid.spacing)
        lung = _fill_enclosed(closed(lung, CLOSING_MM, grid.spacing))
        masks.fill_holes(lung, MAX_HOLE_MM2 / (grid.spacing[1] * grid.spacing[2]))
        filled[box][lung & ~never[box] & (filled[box] == 0)] = side
    return filled


def _fill_wall_dents(mask: Mask, side: int, spacing: Triple) -> None:
    """Fill the dents that tumours at the chest wall make, in place.

    A dent has lung on its way to the middle, and somewhere below; the dome of the diaphragm has not.
    """
    filled = mask.copy()
    lateral = -1 if side == RIGHT else 1
    masks.fill_wall_dents(filled, lateral, spacing, MAX_DENT_WIDTH_MM, MIN_DENT_DEPTH_MM, MAX_DENT_DEPTH_MM)
    mask |= filled & np.logical_or.accumulate(mask, axis=0)


def _fill_enclosed(mask: Mask) -> Mask:
    """Fill what the mask encloses on all sides, however large: a tumour, never the heart."""
    ends = np.ones(mask.shape, np.bool_)
    ends[1:-1, 1:-1, 1:-1] = False
    return ~np.asarray(connected(~mask, ends))


def _draw(volume: Volume, grid: Grid, labels: Labels, never: Mask) -> tuple[Labels, float, float]:
    """Draw the lungs at full resolution; return the mask and the ml of each lung.

    Deep inside and where tissue was filled in, the coarse mask counts; at its edge, whether a voxel is
    air.
    """
    mask = np.zeros(volume.shape, np.uint8)
    is_lung = labels > 0
    solid = is_lung & (erode(is_lung, EDGE_MM, grid.spacing) | (grid.means >= TISSUE_HU))
    reach = nearer(labels, EDGE_MM, grid.spacing, ~never)
    _, *counts = masks.draw(volume.array, TISSUE_HU, reach, solid, grid.block, grid.first, mask)
    right_ml, left_ml = (float(count) * volume.voxel_ml for count in counts)
    return mask, right_ml, left_ml


def judged(mask: Volume) -> Lungs:
    """A mask that was found in another way, with its volumes and doubts.

    `mask` is uint8: 0 outside, RIGHT, LEFT; RIGHT where the two are not told apart.
    """
    right_ml, left_ml = (float(np.count_nonzero(mask.array == side)) * mask.voxel_ml for side in (RIGHT, LEFT))
    steps = tuple(max(1, round(GRID_MM / s)) for s in mask.spacing)
    coarse = np.ascontiguousarray(mask.array[tuple(slice(None, None, step) for step in steps)])
    z, y, x = (s * step for s, step in zip(mask.spacing, steps, strict=True))
    is_cut_off = _meets_a_face(mask.array, mask.spacing)
    return Lungs(mask, right_ml, left_ml, _doubts(right_ml, left_ml, is_cut_off, coarse, (z, y, x), is_dense=False))


def _doubts(
    right_ml: float, left_ml: float, is_cut_off: bool, labels: Labels, spacing: Triple, is_dense: bool
) -> tuple[str, ...]:
    """Words of errors.WARNINGS that fit; the shapes are those of coarse `labels`."""
    if right_ml + left_ml == 0:
        return ("lungs-not-found",)
    doubts = ["lungs-touch-border"] if is_cut_off else []
    smaller, larger = min(right_ml, left_ml), max(right_ml, left_ml)
    if smaller < MIN_LUNG_RATIO * larger:
        doubts.append("one-lung")
    is_lopsided = MIN_LUNG_RATIO <= smaller / larger < MIN_USUAL_RATIO
    if not MIN_TOTAL_ML <= right_ml + left_ml <= MAX_TOTAL_ML or is_lopsided:
        doubts.append("lung-volume-unlikely")
    if is_dense:
        doubts.append("dense-lung")
    lungs = [labels == side for side in (RIGHT, LEFT) if (labels == side).any()]
    if any(_share_apart(lung, 1 if len(lungs) == 2 else 2) > MAX_APART_SHARE for lung in lungs):
        doubts.append("lungs-in-pieces")
    if not is_cut_off and any(_is_no_lung(lung, spacing, 1 if len(lungs) == 2 else 2) for lung in lungs):
        doubts.append("lung-shape-unlikely")
    return tuple(doubts)


def _dense_share(grid: Grid, labels: Labels) -> float:
    """Part that is dense, in the lung that has more of it."""
    is_dense = grid.means > DENSE_HU
    shares = [0.0]
    for side in (RIGHT, LEFT):
        lung = labels == side
        if lung.any():
            shares.append(np.count_nonzero(lung & is_dense) / np.count_nonzero(lung))
    return max(shares)


def _share_apart(lung: Mask, n_lungs: int) -> float:
    """Part of a mask that lies apart from its `n_lungs` largest pieces."""
    sizes = np.sort(Pieces.of(lung).sizes)
    return 1 - float(sizes[-n_lungs:].sum() / sizes.sum())


def _is_no_lung(lung: Mask, spacing: Triple, n_lungs: int) -> bool:
    """Whether a mask is larger than lungs are in one direction, or fills more or less of its box."""
    shape = [side.stop - side.start for side in box_of(lung, margin=0)]
    limits = (MAX_EXTENT_MM[0], MAX_EXTENT_MM[1], n_lungs * MAX_EXTENT_MM[2])
    if any(n * s > limit for n, s, limit in zip(shape, spacing, limits, strict=True)):
        return True
    return not BOX_SHARE[0] <= np.count_nonzero(lung) / math.prod(shape) <= BOX_SHARE[1]


def _is_cut_off(volume: Volume, grid: Grid, labels: Labels, mask: Labels) -> bool:
    """Whether a lung meets the first or last slice, a side of the volume, or padding."""
    if _meets_a_face(mask, volume.spacing):
        return True
    padding = near(grid.means == PADDING, 1.5 * max(grid.spacing[1:]), grid.spacing)
    n_at_padding = np.count_nonzero(padding & (labels > 0))
    return bool(n_at_padding * grid.spacing[0] * min(grid.spacing[1:]) >= TOUCH_MM2)


def _meets_a_face(mask: Labels, spacing: Triple) -> bool:
    """Whether the mask meets the first or last slice or a side of its volume."""
    return any(
        np.count_nonzero(np.take(mask, end, axis=axis)) * math.prod(spacing) / spacing[axis] >= TOUCH_MM2
        for axis in range(3)
        for end in (0, -1)
    )


def _grow(mask: Labels, margin_mm: float, spacing: Triple) -> None:
    """Grow both lungs, in place; a voxel goes to the nearer one."""
    box = box_of(mask, margin=math.ceil(margin_mm / min(spacing)))
    mask[box] = nearer(np.ascontiguousarray(mask[box]), margin_mm, spacing)
