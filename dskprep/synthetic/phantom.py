"""Synthetic chest CT patients: a scan with its true lungs.

A patient is drawn from a seed and described in millimetres, so the same seed with another spacing or
shape is another scan of the same patient. Nothing here comes from a person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled
from dskprep.synthetic.anatomy import (
    AIR,
    BODY_CENTRE,
    CARINA,
    CORTEX,
    FAR,
    HILUM,
    MARROW,
    MUSCLE,
    SCAN_CENTRE_Y,
    SCAN_CENTRE_Z,
    Anatomy,
    Floats,
    around_hu,
    cover,
    draw_anatomy,
    inner_hu,
    lung_hu,
    mix,
    places_in_lung,
    spine,
    to_cage,
    to_lung,
    to_skin,
    wall_hu,
    with_dense_lung,
)
from dskprep.volume import Triple, Volume

RIGHT_LUNG = 1
LEFT_LUNG = 2

RESCALE_INTERCEPT = -1024
STORED_PADDING = -2000
PADDING_HU = STORED_PADDING + RESCALE_INTERCEPT
"""HU outside the round field of view, as many scanners leave it."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic patient: `volume`, int16 HU, and `lungs`, uint8 on the same grid.

    Lungs are 0 outside, RIGHT_LUNG (the patient's right, smaller LPS x) or LEFT_LUNG, with the
    vessels, airways, nodules and consolidation inside them; without trachea and main bronchi.
    """

    volume: Volume
    lungs: Volume


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
        A lung that was taken out; its place is filled with fluid.
    consolidation, effusion
        Fractions (0 to 0.35 together) of the space of one lung that are solid, at its base and on the side
        that lies down, and that fluid fills, below those. Both belong to the lung.
    dense_lung
        Which lung; if one was removed, the other.
    prone
        The patient lies on the front; the axes stay the patient's.
    arms_down
        Arms lie at the sides, as far as the field of view shows them.
    table_touches_back
        No air between the patient and the table.
    """
    if min(consolidation, effusion) < 0 or consolidation + effusion > 0.35:
        raise ValueError(f"consolidation and effusion must be from 0 to 0.35, not {consolidation} and {effusion}")
    anatomy = draw_anatomy(seed, remove_lung, table_touches_back)._replace(arms=float(arms_down))
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
    hu = np.empty(shape, np.float32)
    lungs = np.empty(shape, np.uint8)
    _paint_body(hu, lungs, origin, step, anatomy)
    _paint_vessels_and_airways(hu, lungs, origin, step, anatomy, places, seed)
    _paint_nodules(hu, lungs, origin, step, places, seed)
    array = _reconstruct(hu, seed, pixel_mm=spacing_mm[1:])
    return Phantom(Volume(array, affine), Volume(lungs, affine))


def _scan_geometry(
    seed: int, anatomy: Anatomy, spacing_mm: Triple, shape: tuple[int, int, int]
) -> tuple[Floats, Floats]:
    """Return the affine to LPS mm, and the place (z, y, x) of the first voxel in the body frame."""
    rng = np.random.default_rng([seed, 2])
    isocentre_mm = np.round(rng.uniform([-9, -190, -420], [9, -140, -180]), 2)  # LPS (x, y, z)
    centre_mm = np.array([SCAN_CENTRE_Z, SCAN_CENTRE_Y, 0.0]) * anatomy.size
    first_mm = centre_mm - np.array(spacing_mm) * (np.array(shape) - 1) / 2
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing_mm
    affine[:3, 3] = np.round(isocentre_mm + first_mm[::-1], 4)
    affine[3, 3] = 1.0
    return affine, first_mm / anatomy.size


@compiled
def _paint_body(
    hu: NDArray[np.float32], lungs: NDArray[np.uint8], origin: Floats, step: Floats, anatomy: Anatomy
) -> None:
    """Fill `hu` and `lungs` (z, y, x) with all but vessels, airways and nodules."""
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
                    lungs[k, j, i] = LEFT_LUNG if x > 0 else RIGHT_LUNG
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


@compiled
def _paint_tubes(
    hu: NDArray[np.float32],
    lungs: NDArray[np.uint8],
    origin: Floats,
    step: Floats,
    tubes: Floats,
    thicker: float,
    value: float,
    lungs_only: bool,
) -> None:
    """Paint round tubes with round ends.

    A row of `tubes` is two ends (x, y, z) and the radius at each; `thicker` mm are added to the radii.
    A tube thinner than a voxel is painted paler, as partial volume does.
    """
    blur = (step[0] * step[1] * step[2]) ** (1 / 3)
    low = np.empty(3, np.int64)
    high = np.empty(3, np.int64)
    for t in range(len(tubes)):
        tube = tubes[t]
        reach = max(tube[6], tube[7]) + thicker + blur
        for axis in range(3):
            a, b = tube[2 - axis], tube[5 - axis]
            low[axis] = max(0, math.ceil((min(a, b) - reach - origin[axis]) / step[axis]))
            last = math.floor((max(a, b) + reach - origin[axis]) / step[axis])
            high[axis] = min(hu.shape[axis], last + 1)
        dx, dy, dz = tube[3] - tube[0], tube[4] - tube[1], tube[5] - tube[2]
        length2 = dx * dx + dy * dy + dz * dz + 1e-9
        for k in range(low[0], high[0]):
            z = origin[0] + k * step[0] - tube[2]
            for j in range(low[1], high[1]):
                y = origin[1] + j * step[1] - tube[1]
                for i in range(low[2], high[2]):
                    if lungs_only and lungs[k, j, i] == 0:
                        continue
                    x = origin[2] + i * step[2] - tube[0]
                    along = min(1.0, max(0.0, (x * dx + y * dy + z * dz) / length2))
                    off = (x - along * dx) ** 2 + (y - along * dy) ** 2 + (z - along * dz) ** 2
                    radius = mix(tube[6], tube[7], along) + thicker
                    part = cover(math.sqrt(off) - radius, blur) * min(1.0, 2 * radius / blur)
                    hu[k, j, i] = mix(hu[k, j, i], value, part)


LARGE_VESSELS = np.array(
    [
        # from (x, y, z)       to (x, y, z)        radii
        [-10, -24, 60, -15, -32, 100, 15, 15],  # ascending aorta
        [-15, -32, 100, -6, -20, 128, 15, 14],
        [-6, -20, 128, 12, 10, 136, 14, 13],  # arch
        [12, 10, 136, 19, 38, 124, 13, 12.5],
        [19, 38, 124, 20, 46, 100, 12.5, 12],  # descending aorta
        [20, 46, 100, 21, 44, 40, 12, 11.5],
        [21, 44, 40, 12, 29, -75, 11.5, 11],
        [12, 29, -75, 8, 20, -120, 11, 10],
        [-19, -8, 55, -19, -16, 145, 9, 9],  # superior vena cava
        [-19, -16, 145, -30, -20, 240, 8, 6],
        [-19, -16, 143, 22, -30, 165, 7, 7],  # left brachiocephalic vein
        [10, -42, 70, 20, -14, 98, 14, 12],  # pulmonary trunk
        [20, -14, 98, -34, 2, 96, 10, 8],  # right and left pulmonary artery
        [20, -14, 98, 42, 14, 102, 11, 8],
        [0, -14, 140, -24, -4, 240, 5.5, 4.5],  # arteries of head and arms
        [6, -2, 142, 16, 2, 240, 4, 4],
        [12, 8, 140, 26, 14, 240, 4.5, 4],
        [-8, 24, 66, -38, 18, 74, 7, 6],  # pulmonary veins
        [10, 24, 66, 44, 20, 72, 7, 6],
        [-14, -5, 10, -22, 5, -120, 11, 11],  # inferior vena cava
    ],
    np.float64,
)
OESOPHAGUS = np.array([[6, 34, -40, 4, 38, 120, 7, 6.5], [4, 38, 120, 2, 24, 260, 6.5, 6]], np.float64)
COLLAR_BONES = np.array([[14, -72, 168, 70, -66, 186, 7, 6], [70, -66, 186, 106, -40, 196, 6, 6]], np.float64)
TRACHEA = np.array([[*CARINA, 0, 6, 165, 8.5, 8.5], [0, 6, 165, 0, -6, 290, 8.5, 8.5]], np.float64)
MAIN_BRONCHI = np.array([[*CARINA, *HILUM[0], 7.5, 6], [*CARINA, *HILUM[1], 7, 5.5]], np.float64)

MIRRORED = np.array([-1, 1, 1, -1, 1, 1, 1, 1], np.float64)


def _grow_tree(root: Floats, leaves: Floats, leaf_radius: float, segments: list[list[float]]) -> None:
    """Grow a tree from `root` to all `leaves` (n, 3); append its segments.

    Each branch heads for the middle of its leaves, then halves them across their widest extent. Its
    radius follows Murray's law, so a trunk carries what its branches carry.
    """
    to_middle = leaves.mean(axis=0) - root
    end = root + to_middle * (0.4 if len(leaves) > 1 else 1.0)
    radius = leaf_radius * len(leaves) ** (1 / 2.9)
    segments.append([*root, *end, radius, radius * (0.85 if len(leaves) > 1 else 0.5)])
    if len(leaves) > 1:
        offsets = leaves - leaves.mean(axis=0)
        ahead = to_middle / (np.linalg.norm(to_middle) + 1e-9)
        offsets = offsets - np.outer(offsets @ ahead, ahead)
        widest = np.linalg.eigh(offsets.T @ offsets)[1][:, 2]
        order = np.argsort(offsets @ widest, kind="stable")
        for half in (order[: len(order) // 2], order[len(order) // 2 :]):
            _grow_tree(end, leaves[half], leaf_radius, segments)


def _tree(root: tuple[float, float, float], leaves: Floats, leaf_radius: float) -> Floats:
    segments: list[list[float]] = []
    _grow_tree(np.array(root), leaves, leaf_radius, segments)
    return np.array(segments)


def _paint_vessels_and_airways(
    hu: NDArray[np.float32],
    lungs: NDArray[np.uint8],
    origin: Floats,
    step: Floats,
    anatomy: Anatomy,
    places: list[Floats],
    seed: int,
) -> None:
    def paint(tubes: Floats, value: float, *, thicker: float = 0.0, lungs_only: bool = False) -> None:
        _paint_tubes(hu, lungs, origin, step, tubes, thicker, value, lungs_only)

    rng = np.random.default_rng([seed, 3])
    blood = anatomy.blood_hu
    bones = np.concatenate([COLLAR_BONES, COLLAR_BONES * MIRRORED])
    paint(bones, CORTEX)
    paint(bones, MARROW, thicker=-2.5)
    paint(OESOPHAGUS, MUSCLE - 10)
    paint(LARGE_VESSELS, MUSCLE, thicker=1.0)
    paint(LARGE_VESSELS, blood)

    airways = []
    for side, (x, y, z), points in zip((-1, 1), HILUM, places, strict=True):
        if side == anatomy.removed_side:
            continue
        points = rng.permutation(points)
        arteries = _tree((x, y - 8, z + 6), points[:450], 0.72)
        veins = _tree((x, y + 3, z - 20), points[450:800], 0.72)
        paint(np.concatenate([arteries, veins]), blood, lungs_only=True)
        airways.append(_tree((x, y, z), points[800:860], 0.9))
    if airways:
        paint(np.concatenate(airways), 10.0, thicker=0.7, lungs_only=True)
    central = np.concatenate([TRACHEA, MAIN_BRONCHI])
    paint(central, MUSCLE, thicker=1.6)
    paint(central, AIR)
    if airways:
        paint(np.concatenate(airways), AIR, lungs_only=True)


def _paint_nodules(
    hu: NDArray[np.float32],
    lungs: NDArray[np.uint8],
    origin: Floats,
    step: Floats,
    places: list[Floats],
    seed: int,
) -> None:
    """Paint two to five nodules, one in three of them of ground glass."""
    rng = np.random.default_rng([seed, 4])
    for _ in range(rng.integers(2, 6)):
        points = places[rng.integers(2)]
        centre = points[rng.integers(len(points))]
        radius = rng.uniform(2.5, 8.0)
        value = -600.0 if rng.random() < 1 / 3 else rng.uniform(10, 60)
        lobes = centre + rng.normal(0, 0.35 * radius, (5, 3))
        tubes = np.column_stack([np.tile(centre, (5, 1)), lobes, *[np.full(5, 0.75 * radius)] * 2])
        _paint_tubes(hu, lungs, origin, step, tubes, 0.0, value, True)


BLUR_GAIN = 6 / 16
"""Standard deviation of white noise after the weights 1 2 1 along both axes of a slice."""


@compiled
def _finish_slice(
    hu: NDArray[np.float32], noise: NDArray[np.float32], gain: float, circle2: float, out: NDArray[np.int16]
) -> None:
    """Add noise, blur both with the weights 1 2 1, round, and cut the round field of view."""
    ny, nx = hu.shape
    rows = np.empty((ny, nx), np.float32)
    for j in range(ny):
        above, below = max(j - 1, 0), min(j + 1, ny - 1)
        for i in range(nx):
            rows[j, i] = 0.25 * (
                hu[above, i] + 2 * hu[j, i] + hu[below, i]
                + gain * (noise[above, i] + 2 * noise[j, i] + noise[below, i])
            )  # fmt: skip
    for j in range(ny):
        y = j - (ny - 1) / 2
        for i in range(nx):
            x = i - (nx - 1) / 2
            if x * x + y * y > circle2:
                out[j, i] = PADDING_HU
                continue
            value = 0.25 * (rows[j, max(i - 1, 0)] + 2 * rows[j, i] + rows[j, min(i + 1, nx - 1)])
            out[j, i] = math.floor(max(value, float(RESCALE_INTERCEPT)) + 0.5)


def _reconstruct(hu: NDArray[np.float32], seed: int, *, pixel_mm: tuple[float, float]) -> NDArray[np.int16]:
    """Give the painted body (z, y, x) the blur, the noise and the field of view of a scanner."""
    rng = np.random.default_rng([seed, 5])
    noise_hu = rng.uniform(10, 26)
    _, ny, nx = hu.shape
    radius = min(ny * pixel_mm[0], nx * pixel_mm[1]) / 2 / pixel_mm[0]
    array = np.empty(hu.shape, np.int16)
    for plane, out in zip(hu, array, strict=True):
        noise = rng.standard_normal(plane.shape, np.float32)
        _finish_slice(plane, noise, noise_hu / BLUR_GAIN, radius * radius, out)
    return array
