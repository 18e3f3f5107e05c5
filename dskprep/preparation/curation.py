"""What is looked at when a cohort is chosen: where the scan cuts the patient, arms, metal, noise, motion.

Measured in a few milliseconds on a part of the voxels of the image, before the user's steps. Nothing here refuses or
changes anything. How well it works is in docs/cohort.md, by `benchmarks/curation.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dskprep.preparation.bitmask import Mask
from dskprep.preparation.morphology import dilate, open_mask, select_largest
from dskprep.preparation.motion import find_largest_step
from dskprep.volume import PADDING, Triple, Volume

FACES = {"feet": (0, 0), "head": (0, -1), "front": (1, 0), "back": (1, -1), "right": (2, 0), "left": (2, -1)}
"""The faces of a volume along the patient's axes, by the axis (z, y, x) and the end of it."""

SAMPLE_MM = 4.0
"""Every voxel about so far from the next is looked at for the body and its edges."""
TISSUE_HU = -300
"""More than this is tissue."""
THIN_MM = 6.0
"""Half the thickness, in mm, of tables and blankets, which are not the body."""

CUT_MM2 = 400.0
"""Least area in which a lung meets an edge to be cut there: a lung that ends 2 mm before it meets it nowhere."""
CONTACT_MM = 24.0
"""Least length along which an axial slice of the body meets the edge: a body that touches it at its widest has less."""

BONE_HU = 250
"""More than this is bone, here."""
LEAST_LUNGS_ML = 500.0
"""Where less of the lungs is seen, as above an abdomen, the chest is not, and ribs lie far to their side."""
BESIDE = 0.15
"""The bones of arms lie at least this part of both lungs' width beside the lungs; ribs lie within a tenth."""
DEPTH_MM = 40.0
"""Arms lie no farther than this in front of the lungs, and no lower than these, as tables do."""
ARM_BONE_MM2 = 90.0
"""Least area of bone in an axial slice of an arm; a humerus has 200 to 400."""
LEAST_HEIGHT = 0.6
"""An arm goes through at least this part of the middle third of the lungs' height."""

METAL_HU = 3000
"""More than this is metal: enamel has 2800, and many scanners store 3071 for all that is more."""
METAL_SAMPLE_MM = 2.0
"""Every plane and row of voxels so far from the next is searched for metal."""

NOISE_PLANES = 8
"""Axial planes in which noise is measured."""
BLOCK_MM = 6.0
"""Edge of the squares in each of which the standard deviation is taken."""
SOFT_HU = (0.0, 120.0)
"""Mean HU of squares of soft tissue; fat, vessels with contrast medium and bone vary by themselves."""
QUIET = 0.3
"""The share of the squares that vary less than the noise is said to be: those without any edge."""
LEAST_SQUARES = 50
"""Fewer squares say nothing of the noise."""


@dataclass(frozen=True)
class Curation:
    """What was measured.

    Attributes
    ----------
    lungs_cut
        The faces of `FACES` at which the scan or its field of view cuts a lung off; None without lungs.
    arms
        `down` if an arm lies beside the chest, `up` if none does, `unknown` if the field of view is too narrow to say.
    body_cut_share
        The share of axial slices in which the edge of the field of view cuts the body.
    metal_share
        The share of the body's voxels that are metal.
    noise_hu
        The noise: the standard deviation in quiet squares of soft tissue; None if there is too little of that.
    motion_step_mm
        The largest step of the chest between slices, in their plane; None if too little of the lungs is seen.
    """

    lungs_cut: tuple[str, ...] | None
    arms: str
    body_cut_share: float
    metal_share: float
    noise_hu: float | None
    motion_step_mm: float | None


def measure(image: Volume, lungs: Volume | None) -> Curation:
    """Measure an image of int16 HU (z, y, x) along the patient's axes, PADDING where nothing was measured.

    `lungs` is their mask on its grid.
    """
    steps = tuple(max(1, round(SAMPLE_MM / s)) for s in image.spacing)
    some = tuple(slice(min(step, n) // 2, None, step) for step, n in zip(steps, image.shape, strict=True))
    hu = np.ascontiguousarray(image.hu[some])
    z, y, x = (s * step for s, step in zip(image.spacing, steps, strict=True))
    spacing = (z, y, x)
    is_edge = _edge_of(hu)
    body = select_largest(open_mask(hu > TISSUE_HU, THIN_MM, spacing))
    is_cut = y * np.count_nonzero(body & is_edge, axis=(1, 2)) >= CONTACT_MM
    mask = None if lungs is None else lungs.array
    sampled = None if mask is None or not mask.any() else np.ascontiguousarray(mask[some]) > 0
    return Curation(
        lungs_cut=None if mask is None or sampled is None else _find_cuts(mask, image.spacing, sampled, hu, spacing),
        arms=_find_arms(hu, is_cut, sampled, spacing),
        body_cut_share=round(float(is_cut.mean()), 4),
        metal_share=_metal_share(image, dilate(body, SAMPLE_MM, spacing), steps),
        noise_hu=_noise_hu(image, body, steps),
        motion_step_mm=None if sampled is None else find_largest_step(hu, sampled, spacing),
    )


def _edge_of(hu: NDArray[np.int16]) -> Mask:
    """Return the outermost voxels of what was measured in each axial slice."""
    padding: Mask = hu == PADDING
    edge = padding.copy()
    for axis in (1, 2):
        for towards in (1, -1):
            edge |= np.roll(padding, towards, axis)
    edge[:, [0, -1]] = True
    edge[:, :, [0, -1]] = True
    edge &= ~padding
    return edge


def _find_cuts(
    mask: NDArray[np.uint8], spacing: Triple, sampled: Mask, hu: NDArray[np.int16], coarse: Triple
) -> tuple[str, ...]:
    """Return the faces at which lungs are cut: those of the volume, and the edge of a round field of view near one."""
    area = dict.fromkeys(FACES, 0.0)
    for name, (axis, end) in FACES.items():
        face = np.take(mask, end, axis)[::2, ::2]
        first, second = (s for k, s in enumerate(spacing) if k != axis)
        area[name] = 4 * first * second * np.count_nonzero(face)
    padding = hu == PADDING
    if padding.any():
        middle = [(n - 1) / 2 for n in hu.shape]
        for axis in (1, 2):
            for towards, (name, _) in zip((1, -1), [item for item in FACES.items() if item[1][0] == axis], strict=True):
                beside = np.argwhere(sampled & np.roll(padding, towards, axis))
                out = (beside - middle) * coarse
                is_nearest = np.abs(out[:, axis]) >= np.abs(out[:, 3 - axis])
                area[name] += coarse[0] * coarse[3 - axis] * np.count_nonzero(is_nearest)
    return tuple(name for name in FACES if area[name] >= CUT_MM2)


def _find_arms(hu: NDArray[np.int16], is_cut: Mask, lungs: Mask | None, spacing: Triple) -> str:
    """Look for the bones of arms, farther to the side than ribs are, in the middle third of the lungs' height."""
    if lungs is None or np.count_nonzero(lungs) * float(np.prod(spacing)) < 1000 * LEAST_LUNGS_ML:
        return "unknown"
    rows, across_y, across_x = (np.flatnonzero(lungs.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    third = rows.size // 3
    slab = slice(int(rows[0]) + third, int(rows[-1]) + 1 - third)
    depth = slice(max(0, int(across_y[0]) - round(DEPTH_MM / spacing[1])), int(across_y[-1]) + 1)
    beyond = round(BESIDE * across_x.size)
    bone = hu[slab, depth] > BONE_HU
    sides = (bone[:, :, : max(0, int(across_x[0]) - beyond)], bone[:, :, int(across_x[-1]) + 1 + beyond :])
    for side in sides:
        area_mm2 = np.count_nonzero(side, axis=(1, 2)) * spacing[1] * spacing[2]
        if np.mean(area_mm2 >= ARM_BONE_MM2) >= LEAST_HEIGHT:
            return "down"
    return "unknown" if np.mean(is_cut[slab]) > 1 - LEAST_HEIGHT else "up"


def _metal_share(image: Volume, body: Mask, steps: tuple[int, ...]) -> float:
    """Return the share of the body's voxels that are metal. What lies outside, as in the table, does not count."""
    z, y = (max(1, round(METAL_SAMPLE_MM / s)) for s in image.spacing[:2])
    n_body = np.count_nonzero(body) * float(np.prod(steps)) / (z * y)
    places = (np.arange(n) // step for n, step in zip(image.shape, steps, strict=True))
    slices, rows, columns = (np.minimum(at, n - 1) for at, n in zip(places, body.shape, strict=True))
    n_metal = 0
    for plane, k in zip(image.hu[::z, ::y], slices[::z], strict=True):
        bright = plane > METAL_HU
        if bright.any():
            n_metal += int(np.count_nonzero(bright & body[k][rows[::y]][:, columns]))
    return round(float(n_metal / n_body), 7) if n_body else 0.0


def _noise_hu(image: Volume, body: Mask, steps: tuple[int, ...]) -> float | None:
    """Return the standard deviation in squares of soft tissue, about the slope of each, of which QUIET have less.

    It is the idea of the global noise level (Christianson et al. 2015, AJR 205:W93). Many squares have an edge in them
    and vary more.
    """
    rows = np.flatnonzero(body.any(axis=(1, 2)))
    if not rows.size:
        return None
    chosen = np.linspace(rows[0], rows[-1], NOISE_PLANES + 2)[1:-1] * steps[0]
    planes = image.hu[np.minimum(chosen.astype(int), image.shape[0] - 1)]
    n_y, n_x = (max(3, round(BLOCK_MM / s)) for s in image.spacing[1:])
    n_rows, n_columns = planes.shape[1] // n_y, planes.shape[2] // n_x
    squares = planes[:, : n_rows * n_y, : n_columns * n_x].reshape(len(planes), n_rows, n_y, n_columns, n_x)
    mean = squares.mean(axis=(2, 4), dtype=np.float32)
    is_soft = (mean > SOFT_HU[0]) & (mean < SOFT_HU[1])
    if np.count_nonzero(is_soft) < LEAST_SQUARES:
        return None
    values = squares.transpose(0, 1, 3, 2, 4)[is_soft].astype(np.float32) - mean[is_soft][:, None, None]
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in (n_y, n_x))
    slopes = ((values * along).mean(axis=(1, 2)) / along.std() for along in (y[:, None], x))
    variance = np.square(values).mean(axis=(1, 2)) - sum(np.square(slope) for slope in slopes)
    n = n_y * n_x
    return round(float(np.quantile(np.sqrt(np.maximum(variance, 0) * n / (n - 3)), QUIET)), 2)
