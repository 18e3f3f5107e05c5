"""Synthetic chest CT patients: a scan with its true lungs.

A patient is drawn from a seed and described in millimetres, so the same seed with another spacing or
shape is another scan of the same patient. Nothing here comes from a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled
from dskprep.sides import LEFT, RIGHT
from dskprep.synthetic.anatomy import (
    BODY_CENTRE,
    FAR,
    SCAN_CENTRE,
    Anatomy,
    Floats,
    draw_anatomy,
    places_in_lung,
    to_cage,
    to_lung,
    to_skin,
    with_dense_lung,
)
from dskprep.synthetic.tissue import around_hu, cover, inner_hu, lung_hu, mix, spine, wall_hu
from dskprep.synthetic.tubes import Canvas, paint_nodules, paint_vessels_and_airways
from dskprep.volume import Triple, Volume

RESCALE_INTERCEPT = -1024
"""HU of a stored 0, as most scanners write."""
STORED_PADDING = -2000
"""Stored value outside the round field of view, as many scanners leave it."""
PADDING_HU = STORED_PADDING + RESCALE_INTERCEPT
"""HU that this becomes."""

BLUR_GAIN = 6 / 16
"""Standard deviation of white noise after the weights 1 2 1 along both axes of a slice."""


@dataclass(frozen=True)
class Nodule:
    """A nodule: its middle in LPS mm, and the radius of a ball about as large."""

    center_mm: Triple
    radius_mm: float


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic patient: `volume`, int16 HU, and `lungs`, uint8 on the same grid, both (z, y, x).

    Lungs are 0 outside, `sides.RIGHT` (at smaller LPS x) or `sides.LEFT`. They hold the vessels, airways, nodules and
    consolidation inside them, but neither trachea nor main bronchi.
    """

    volume: Volume
    lungs: Volume
    nodules: tuple[Nodule, ...] = ()


def make_phantom(
    *,
    seed: int,
    spacing_mm: Triple = (2.5, 1.0, 1.0),
    shape: tuple[int, int, int] = (120, 360, 360),
    remove_lung: Literal["none", "left", "right"] = "none",
    consolidation: float = 0.0,
    effusion: float = 0.0,
    dense_lung: Literal["by seed", "left", "right"] = "by seed",
    prone: bool = False,
    arms_down: bool = False,
    table_touches_back: bool = False,
) -> Phantom:
    """Make a patient and scan it.

    Parameters
    ----------
    seed
        Who it is; also the noise.
    spacing_mm, shape
        Grid of the scan, (z, y, x). About 290 x 350 x 350 mm cover a chest; a smaller grid cuts it.
    remove_lung
        A lung that was taken out; fluid fills its place.
    consolidation, effusion
        Fractions of one lung that are solid, and that fluid fills; 0.35 at most together. The solid part is at
        the base and on the side that lies down, the fluid below it. Both belong to the lung.
    dense_lung
        Which lung that is; if one was removed, it is the other.
    prone
        The patient lies on the front; the axes stay the patient's.
    arms_down
        The arms lie beside the trunk, as far as the field of view shows them.
    table_touches_back
        No air between the patient and the table.
    """
    if min(consolidation, effusion) < 0 or consolidation + effusion > 0.35:
        raise ValueError(f"consolidation and effusion must be from 0 to 0.35, not {consolidation} and {effusion}")
    anatomy = draw_anatomy(seed, remove_lung, table_touches_back=table_touches_back)._replace(arms=float(arms_down))
    if prone:
        anatomy = anatomy._replace(down=-1.0, table=anatomy.table - 2 * BODY_CENTRE)
    places = [places_in_lung(anatomy, side, np.random.default_rng([seed, 1])) for side in (-1, 1)]
    if consolidation + effusion > 0:
        if remove_lung != "none":
            dense_lung = "left" if remove_lung == "right" else "right"
        side = 1 if dense_lung == "left" or (dense_lung == "by seed" and seed % 2) else -1
        anatomy, places[side > 0] = with_dense_lung(anatomy, side, places[side > 0], consolidation, effusion)

    affine, origin = _scan_geometry(seed, anatomy, spacing_mm, shape)
    step = np.array(spacing_mm) / anatomy.size
    canvas = Canvas(np.empty(shape, np.float32), np.empty(shape, np.uint8), origin, step)
    _paint_body(canvas, anatomy)
    paint_vessels_and_airways(canvas, anatomy, places, seed)
    painted = paint_nodules(canvas, places, seed)
    array = _reconstruct(canvas.hu, seed, pixel_mm=spacing_mm[1:])
    volume = Volume(array, affine)
    indices = [(centre[::-1] - origin) / step for centre, _ in painted]  # centres are (x, y, z)
    places_mm = [volume.to_patient(index).tolist() for index in indices]
    size = float(np.mean(anatomy.size))
    nodules = tuple(Nodule((x, y, z), r * size) for (x, y, z), (_, r) in zip(places_mm, painted, strict=True))
    return Phantom(volume, Volume(canvas.lungs, affine), nodules)


def _scan_geometry(
    seed: int, anatomy: Anatomy, spacing_mm: Triple, shape: tuple[int, int, int]
) -> tuple[Floats, Floats]:
    """Return the affine (z, y, x, 1) to LPS mm, and the place (z, y, x) of the first voxel in the body frame."""
    rng = np.random.default_rng([seed, 2])
    isocentre_mm = np.round(rng.uniform([-9, -190, -420], [9, -140, -180]), 2)  # LPS (x, y, z)
    centre_mm = np.array(SCAN_CENTRE) * anatomy.size
    first_mm = centre_mm - np.array(spacing_mm) * (np.array(shape) - 1) / 2
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing_mm
    affine[:3, 3] = np.round(isocentre_mm + first_mm[::-1], 4)
    affine[3, 3] = 1.0
    return affine, first_mm / anatomy.size


@compiled
def _paint_body(canvas: Canvas, anatomy: Anatomy) -> None:
    """Fill the whole canvas with all but vessels, airways and nodules."""
    hu, lungs, origin, step = canvas
    blur = step[1]
    nz, ny, nx = hu.shape
    around = np.empty((ny, nx), np.float32)
    for j in range(ny):
        for i in range(nx):
            around[j, i] = around_hu(origin[2] + i * step[2], origin[1] + j * step[1], anatomy, blur)
    for k in range(nz):
        z = origin[0] + k * step[0]
        for j in range(ny):
            y = origin[1] + j * step[1]
            for i in range(nx):
                x = origin[2] + i * step[2]
                lungs[k, j, i] = 0
                skin = to_skin(x, y, z)
                if skin > blur:
                    hu[k, j, i] = around[j, i]
                    continue
                cage = to_cage(x, y, z, anatomy)
                lung = to_lung(x, y, z, anatomy) if cage < blur else FAR
                if lung < 0 and anatomy.removed_side * x <= 0:
                    lungs[k, j, i] = LEFT if x > 0 else RIGHT
                value = 0.0
                if lung > -blur:
                    if cage < blur:
                        value = inner_hu(x, y, z, anatomy, blur)
                    if cage > -blur:
                        wall = wall_hu(x, y, z, skin, cage, anatomy, blur)
                        value = mix(wall, value, cover(cage, blur))
                    if abs(x) < 36 and y > 30:
                        value = spine(x, y, z, blur, value)
                if lung < blur:
                    value = mix(value, lung_hu(x, y, z, anatomy, blur), cover(lung, blur))
                if skin > -blur:
                    value = mix(around[j, i], value, cover(skin, blur))
                hu[k, j, i] = value


def _reconstruct(hu: NDArray[np.float32], seed: int, *, pixel_mm: tuple[float, float]) -> NDArray[np.int16]:
    """Return int16 HU (z, y, x): the painted body with the noise, the blur and the field of view of a scanner."""
    rng = np.random.default_rng([seed, 5])
    gain = rng.uniform(10, 26) / BLUR_GAIN
    _, ny, nx = hu.shape
    radius = min(ny * pixel_mm[0], nx * pixel_mm[1]) / 2 / pixel_mm[0]
    y, x = np.arange(ny)[:, None] - (ny - 1) / 2, np.arange(nx) - (nx - 1) / 2
    is_outside = x * x + y * y > radius * radius
    array = np.empty(hu.shape, np.int16)
    for plane, out in zip(hu, array, strict=True):
        noise = rng.standard_normal(plane.shape, np.float32)
        rows = (0.25 * (_weigh(plane) + gain * _weigh(noise))).astype(np.float32)
        out[:] = np.floor(np.maximum(0.25 * _weigh(rows.T).T, RESCALE_INTERCEPT) + 0.5)
        out[is_outside] = PADDING_HU
    return array


def _weigh(plane: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sum of each pixel and its neighbours above and below, with the weights 1 2 1."""
    padded = np.pad(plane, ((1, 1), (0, 0)), "edge").astype(np.float64)
    return padded[:-2] + 2 * padded[1:-1] + padded[2:]
