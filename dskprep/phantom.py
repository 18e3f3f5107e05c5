"""Synthetic chest CT patients: a volume with its true lungs, written as a real DICOM series.

A patient is drawn from a seed and described in millimetres, so the same seed with another spacing or
shape is another scan of the same patient. Nothing here comes from a person.

Body frame: x to the patient's left, y posterior, z superior, in mm of a patient of size 1; its origin
lies in the midline, amid the chest, at the height of the right dome of the diaphragm. Distances to
surfaces are negative inside, and approximate; every edge is blended over one voxel.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import pydicom
from numba import njit
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from dskprep import storage
from dskprep.volume import Triple, Volume

RIGHT_LUNG = 1
LEFT_LUNG = 2

RESCALE_INTERCEPT = -1024
STORED_PADDING = -2000
PADDING_HU = STORED_PADDING + RESCALE_INTERCEPT
"""HU outside the round field of view, as many scanners leave it."""

AIR, FAT, MUSCLE, ORGAN = -1000.0, -100.0, 48.0, 58.0
MARROW, CORTEX, CARTILAGE, WATER = 190.0, 620.0, 105.0, 12.0
FOAM, SHELL = -940.0, -150.0
"""HU of what a chest and its table are made of."""

FAR = 1e3  # a distance that is surely outside

Floats = NDArray[np.float64]
_F = TypeVar("_F", bound=Callable[..., Any])


def _compiled(function: _F) -> _F:
    """Compile with numba, without fast-math, so that the order of sums is as written."""
    return cast(_F, njit(cache=True, nogil=True)(function))


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic patient: `volume`, int16 HU, and `lungs`, uint8 on the same grid.

    Lungs are 0 outside, RIGHT_LUNG (the patient's right, smaller LPS x) or LEFT_LUNG, with the
    vessels, airways, nodules and consolidation inside them; without trachea and main bronchi.
    """

    volume: Volume
    lungs: Volume


class Anatomy(NamedTuple):
    """What differs between patients. Lengths in mm of the body frame; floats, so that numba takes it."""

    size: float
    """Millimetres of the patient per millimetre of the body frame."""
    lung_height: float
    """From the right dome of the diaphragm to the apex."""
    cage_width: float
    cage_front: float
    cage_back: float
    """Half-axes of the inner chest wall; the last two from its centre to the front and the back."""
    fat: float
    """Thickness of the fat under the skin."""
    junction: float
    """Half the distance between the lungs behind the sternum."""
    heart: float
    """Size of the heart relative to the usual."""
    left_dome: float
    """Height of the left dome of the diaphragm; the right one is at 0."""
    dome_width: float
    """The larger, the flatter the diaphragm."""
    rib_phase: float
    rib_slope: float
    texture_phase: float
    blood_hu: float
    lung_hu: float
    down: float
    """Sign of the y that gravity points to: +1 in a patient on the back, -1 in a prone one."""
    table: float
    """The middle of the table's surface is this far down."""
    arms: float
    """1 if they lie beside the trunk, 0 if they are held over the head."""
    removed_side: float
    """-1 right lung, +1 left lung, 0 none."""
    dense_side: float
    """Side of the consolidation and the effusion, as above."""
    dense_from: float
    """A lung is dense where `_dependence` is above this."""
    fluid_from: float
    """There is fluid instead of it where `_depth` is above this."""


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
    anatomy = _draw_anatomy(seed, remove_lung, table_touches_back)._replace(arms=float(arms_down))
    if prone:
        anatomy = anatomy._replace(down=-1.0, table=anatomy.table - 2 * BODY_CENTRE)
    places = [_places_in_lung(anatomy, side, np.random.default_rng([seed, 1])) for side in (-1, 1)]
    if consolidation + effusion > 0:
        if remove_lung != "none":
            dense_lung = "left" if remove_lung == "right" else "right"
        side = 1 if dense_lung == "left" or (dense_lung == "by seed" and seed % 2) else -1
        anatomy, places[side > 0] = _with_dense_lung(anatomy, side, places[side > 0], consolidation, effusion)

    affine, origin = _scan_geometry(seed, anatomy, spacing_mm, shape)
    step = np.array(spacing_mm) / anatomy.size
    hu = np.empty(shape, np.float32)
    lungs = np.empty(shape, np.uint8)
    _paint_body(hu, lungs, origin, step, anatomy)
    _paint_vessels_and_airways(hu, lungs, origin, step, anatomy, places, seed)
    _paint_nodules(hu, lungs, origin, step, places, seed)
    array = _reconstruct(hu, seed, pixel_mm=spacing_mm[1:])
    return Phantom(Volume(array, affine), Volume(lungs, affine))


def _with_dense_lung(
    anatomy: Anatomy, side: int, places: Floats, consolidation: float, effusion: float
) -> tuple[Anatomy, Floats]:
    """The anatomy with fluid in one lung's space and a part of the lung solid; and the places left to the lung."""
    anatomy = anatomy._replace(dense_side=float(side))
    if effusion > 0:
        depth = np.array([_depth(x, y, z, anatomy.down) for x, y, z in places])
        anatomy = anatomy._replace(fluid_from=float(np.quantile(depth, 1 - effusion)))
        places = places[depth < anatomy.fluid_from]
    if consolidation > 0:
        dependence = np.array([_dependence(x, y, z, anatomy.down) for x, y, z in places])
        share = consolidation / (1 - effusion)
        anatomy = anatomy._replace(dense_from=float(np.quantile(dependence, 1 - share)))
    return anatomy, places


def _draw_anatomy(seed: int, remove_lung: str, table_touches_back: bool) -> Anatomy:
    rng = np.random.default_rng([seed, 0])
    size = rng.uniform(0.91, 1.06)
    contrast_agent = rng.random() < 0.4
    gap_mm = rng.uniform(2.0, 8.0)
    return Anatomy(
        size=size,
        lung_height=rng.uniform(188, 208),
        cage_width=rng.uniform(124, 134),
        cage_front=rng.uniform(76, 86),
        cage_back=rng.uniform(87, 94),
        fat=rng.uniform(5, 13),
        junction=rng.uniform(2.0, 5.0),
        heart=rng.uniform(0.92, 1.1),
        left_dome=rng.uniform(-20, -8),
        dome_width=rng.uniform(66, 88),
        rib_phase=rng.uniform(0, RIB_PERIOD),
        rib_slope=rng.uniform(0.3, 0.45),
        texture_phase=rng.uniform(0, 100),
        blood_hu=rng.uniform(130, 260) if contrast_agent else rng.uniform(36, 46),
        lung_hu=rng.uniform(-885, -850),
        down=1.0,
        table=BODY_BACK + (-0.5 if table_touches_back else gap_mm / size),
        arms=0.0,
        removed_side={"none": 0.0, "right": -1.0, "left": 1.0}[remove_lung],
        dense_side=0.0,
        dense_from=FAR,
        fluid_from=FAR,
    )


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


# ---------------------------------------------------------------------------------------------------
# Shapes: distances and HU at a point (x, y, z) of the body frame
# ---------------------------------------------------------------------------------------------------

SCAN_CENTRE_Z, SCAN_CENTRE_Y = 71.0, 12.0
BODY_WIDTH, BODY_DEPTH, BODY_CENTRE = 154.0, 119.0, 8.0
"""Half-axes of the trunk, and y of its centre."""
BODY_BACK = BODY_CENTRE + BODY_DEPTH
CAGE_CENTRE = 4.0
SKIN = 2.0
RIB_PERIOD, VERTEBRA_PERIOD = 25.0, 27.0
LUNG_FLOOR = -66.0
"""The deepest point of the lung, behind the diaphragm."""
CARINA = (0.0, 14.0, 112.0)
HILUM = ((-37.0, 14.0, 94.0), (42.0, 18.0, 90.0))
"""Where bronchi and vessels enter the right and the left lung."""


@_compiled
def _cover(distance: float, blur: float) -> float:
    """Part of a voxel of width `blur` that lies inside a surface at `distance`."""
    return min(1.0, max(0.0, 0.5 - distance / blur))


@_compiled
def _mix(old: float, new: float, part: float) -> float:
    return old + (new - old) * part


@_compiled
def _smooth_max(a: float, b: float, radius: float) -> float:
    """The larger of two distances, so that the edge where the surfaces meet is round."""
    h = max(0.0, radius - abs(a - b)) / radius
    return max(a, b) + h * h * radius * 0.25


@_compiled
def _oval(x: float, y: float, width: float, depth: float) -> float:
    """Distance to an oval with these half-axes, squarer than an ellipse, as a trunk is."""
    u, v = (x / width) ** 2, (y / depth) ** 2
    reach = math.sqrt(u + v - 0.3 * min(u * v, 1.0))
    return math.sqrt(x * x + y * y) * (1 - 1 / max(reach, 1e-6))


@_compiled
def _ellipsoid(x: float, y: float, z: float, width: float, depth: float, height: float) -> float:
    """Distance to an ellipsoid with these half-axes."""
    reach = math.sqrt((x / width) ** 2 + (y / depth) ** 2 + (z / height) ** 2)
    return math.sqrt(x * x + y * y + z * z) * (1 - 1 / max(reach, 1e-6))


@_compiled
def _body(x: float, y: float, z: float) -> float:
    """Distance to the skin: a trunk that narrows towards the neck and lies flat on its back."""
    rise = max(0.0, z - 120) / 105
    narrowing = 0.26 * rise * rise
    depth = BODY_DEPTH * (1 - 0.8 * narrowing)
    centre = BODY_CENTRE + 0.7 * (BODY_DEPTH - depth)
    return _oval(x, y - centre, BODY_WIDTH * (1 - narrowing), depth)


@_compiled
def _cage(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Distance to the inner side of the chest wall."""
    rise = max(0.0, z - 45) / (anatomy.lung_height - 30)
    narrowing = 0.5 * rise * rise
    y -= CAGE_CENTRE + 8 * narrowing
    depth = anatomy.cage_front if y < 0 else anatomy.cage_back
    return _oval(x, y, anatomy.cage_width * (1 - narrowing), depth * (1 - 0.9 * narrowing))


@_compiled
def _spine_y(z: float) -> float:
    """y of the middle of the vertebral bodies: a curve, most posterior amid the chest."""
    return 72 - 12 * ((z - 85) / 120) ** 2


@_compiled
def _heart(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Distance to the heart, whose apex points to the left and to the front."""
    x, y, z = (x - 20) / anatomy.heart, (y + 28) / anatomy.heart, (z - 34) / anatomy.heart
    along, across = 0.85 * x - 0.53 * y, 0.53 * x + 0.85 * y
    along, z = 0.94 * along - 0.34 * z, 0.34 * along + 0.94 * z
    return _ellipsoid(along, across, z, 63.0, 40.0, 46.0) * anatomy.heart


@_compiled
def _dome(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Distance to the diaphragm of this side of the body, negative in the belly."""
    top = anatomy.left_dome if x > 0 else 0.0
    across, along = abs(x) - 62, y + 14
    width = anatomy.dome_width if across > 0 else 230.0  # flat towards the middle
    length = 118.0 if along > 0 else 210.0  # and towards the front
    surface = top - across * across / width - along * along / length
    slope = math.sqrt(1 + (2 * across / width) ** 2 + (2 * along / length) ** 2)
    return (z - surface) / slope


@_compiled
def _lung(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Distance to the pleura of the lung of this side."""
    inside = _smooth_max(_cage(x, y, z, anatomy), -_dome(x, y, z, anatomy), 3.0)
    if inside > 30:
        return inside
    # the apex: narrow, and beside the spine
    across, along = abs(x) - 42, y - 20
    slope = math.sqrt(1 + (across / 29) ** 2 + (along / 36) ** 2)
    apex = (z - anatomy.lung_height + across * across / 58 + along * along / 72) / slope
    inside = _smooth_max(inside, apex, 10.0)
    inside = _smooth_max(inside, LUNG_FLOOR - z, 8.0)
    # the mediastinum: narrow behind the sternum, wide at the great vessels, then the spine and the aorta
    bulge = (y + 1) / 42
    width = anatomy.junction + (29 - anatomy.junction) / (1 + bulge**4)
    hollow = abs(x) - width
    behind = min(0.0, y - _spine_y(z) + 2)
    hollow = min(hollow, math.sqrt(x * x + behind * behind) - 23)
    if x > 0:
        above = max(0.0, z - 122)  # of the aorta, the end of its arch
        hollow = min(hollow, math.sqrt((x - 18) ** 2 + (y - 46) ** 2 + above * above) - 17.5)
    hollow = min(hollow, _heart(x, y, z, anatomy) - 4)
    return _smooth_max(inside, -hollow, 9.0)


@_compiled
def _dependence(x: float, y: float, z: float, down: float) -> float:
    """How low a place of the lung lies: larger at the base, and at the back of a patient on the back."""
    return 0.7 * down * y - 0.7 * z + 5 * math.sin(x / 11) + 5 * math.sin((y - z) / 15)


@_compiled
def _depth(x: float, y: float, z: float, down: float) -> float:
    """How low a place lies for fluid, which is thicker towards the base and has a curved surface."""
    return 0.95 * down * y - 0.3 * z + 0.0015 * (abs(x) - 60) ** 2


@_compiled
def _lung_hu(x: float, y: float, z: float, anatomy: Anatomy, blur: float) -> float:
    """Parenchyma: denser towards the back, a little uneven, crossed by the oblique fissure."""
    side = 1.0 if x > 0 else -1.0
    if side == anatomy.removed_side:
        return WATER
    phase = anatomy.texture_phase
    uneven = math.sin(x / 9 + phase) * math.sin(y / 11 + z / 23) + math.sin(z / 13 - x / 17 + phase)
    hu = anatomy.lung_hu + 0.3 * anatomy.down * y + 9 * uneven
    fissure = 0.77 * (z - 72 - 0.06 * x * side) - 0.64 * (y - 10) + 3 * math.sin(x / 20)
    hu = _mix(hu, -560.0, _cover(abs(fissure) - 0.3, 2 * blur))
    if side == anatomy.dense_side:
        hu = _mix(hu, 30.0, _cover(anatomy.dense_from - _dependence(x, y, z, anatomy.down), 4 * blur))
        hu = _mix(hu, WATER, _cover(anatomy.fluid_from - _depth(x, y, z, anatomy.down), blur))
    return hu


@_compiled
def _wall_hu(x: float, y: float, z: float, skin: float, cage: float, anatomy: Anatomy, blur: float) -> float:
    """The chest wall from the skin to the pleura: fat, muscle, ribs, sternum and shoulder blades."""
    # muscle, with fat between its layers and in the armpits
    layers = abs(math.sin(0.2 * cage + 0.03 * abs(x) + 0.02 * z + 0.01 * y))
    muscle = _mix(MUSCLE, -45.0, _cover((layers - 0.1) * 8, 2.0))
    armpit = _ellipsoid(abs(x) - 112, y + 14, z - 165, 24.0, 34.0, 55.0)
    muscle = _mix(muscle, FAT, _cover(armpit, 3 * blur))
    fat = anatomy.fat * (1.05 - 0.25 * min(1.0, max(-1.0, y / 60)))  # thicker in front
    hu = _mix(FAT, muscle, _cover(skin + SKIN + fat, blur))
    hu = _mix(hu, 5.0, _cover(-skin - SKIN, blur))
    if cage > 28:
        return hu
    # ribs fall towards the front, where they end in cartilage
    height = z - anatomy.rib_slope * y + anatomy.rib_phase
    height -= RIB_PERIOD * math.floor(height / RIB_PERIOD + 0.5)
    rib = math.sqrt(height * height + (1.5 * (cage - 5.5)) ** 2) - 6.0
    rib = max(rib, z - anatomy.lung_height - 4)
    if y > 0:
        rib = max(rib, 27 - abs(x))
    if rib < 2:
        bone = _mix(CORTEX, MARROW, _cover(rib + 2.2, 1.5))
        bone = _mix(bone, CARTILAGE, _cover(y + 52, 6.0))
        hu = _mix(hu, bone, _cover(rib, blur))
    if y < 0:
        top = anatomy.lung_height - 42
        breadth = 15 + 8 * max(0.0, 1 - abs(z - top + 20) / 30)
        sternum = max(_oval(x, cage - 7.5, breadth, 5.5), z - top, 12 - z)
        bone = _mix(CORTEX - 200, MARROW - 60, _cover(sternum + 1.8, 1.5))
        return _mix(hu, bone, _cover(sternum, blur))
    blade = max(abs(cage - 16.5 - 0.0004 * (z - 130) ** 2) - 1.8, 22 - y, 62 - abs(x), 75 - z, z - 200)
    return _mix(hu, CORTEX - 150, _cover(blade, blur))


@_compiled
def _spine(x: float, y: float, z: float, blur: float, hu: float) -> float:
    """Paint vertebrae, disks, the spinal canal and the processes over `hu`."""
    y -= _spine_y(z)
    level = (z / VERTEBRA_PERIOD) % 1.0
    middle = (level - 0.6) * VERTEBRA_PERIOD  # height above the middle of the vertebra, whose disk is below
    disk = abs(level - 0.1) * VERTEBRA_PERIOD - 2.7
    waist = 1.5 * max(0.0, 1 - abs(middle) / 9)
    body = _oval(x, y, 18.5 - waist, 14.5 - waist)
    x = abs(x)
    canal = math.sqrt(x * x + (y - 23) ** 2) - 8
    arch = max(abs(canal - 2) - 2, abs(middle) - 9)
    spinous = max(x - 3.2, abs(y - 37) - 8, abs(middle + 2 + 0.3 * (y - 37)) - 6)
    transverse = max(abs(y - 21 - 0.2 * x) - 4.5, abs(x - 22) - 12, abs(middle - 3) - 5)
    bone = min(arch, spinous, transverse)
    hu = _mix(hu, _mix(CORTEX, MARROW + 40, _cover(bone + 2, 2.0)), _cover(bone, blur))
    hu = _mix(hu, 28.0, _cover(canal, blur))
    inside = _mix(CORTEX - 80, MARROW, _cover(max(body, -disk) + 1.8, 1.5))
    return _mix(hu, _mix(inside, 85.0, _cover(disk, 1.5)), _cover(body, blur))


@_compiled
def _belly_hu(x: float, y: float, z: float, dome: float, anatomy: Anatomy, blur: float) -> float:
    """Below the diaphragm: liver, spleen, a stomach with a gas bubble, and bowel gas."""
    enhanced = 0.35 * max(0.0, anatomy.blood_hu - 45)
    hu = FAT
    liver = x - 34 + 0.35 * (y + 20) + 0.25 * abs(z + 40)
    hu = _mix(hu, ORGAN + enhanced, _cover(max(liver, y - 72), blur))
    spleen = _ellipsoid(x - 86, y - 46, z + 62, 30.0, 36.0, 44.0)
    hu = _mix(hu, ORGAN - 8 + enhanced, _cover(spleen, blur))
    stomach = _ellipsoid(x - 58, y + 18, z - anatomy.left_dome + 43, 36.0, 42.0, 38.0)
    hu = _mix(hu, MUSCLE, _cover(stomach, blur))
    gas = max(stomach + 3.5, anatomy.down * (y + 18) + 6)  # gas lies above, on a level fluid
    hu = _mix(hu, _mix(WATER + 10, AIR, _cover(gas, blur)), _cover(stomach + 3.5, blur))
    bowel = _ellipsoid(x - 98, y + 22, z + 70, 15.0, 27.0, 13.0 + 3 * math.sin(y / 5))
    hu = _mix(hu, MUSCLE, _cover(bowel, blur))
    hu = _mix(hu, AIR, _cover(bowel + 2.5, blur))
    return _mix(hu, MUSCLE, _cover(-dome - 3.5, blur))  # the diaphragm itself


@_compiled
def _inner_hu(x: float, y: float, z: float, anatomy: Anatomy, blur: float) -> float:
    """Inside the chest wall, beside the lungs: mediastinum and belly."""
    dome = min(_dome(x, y, z, anatomy), z + 24)
    # fat; towards the neck more nodes, glands and muscle; muscle beside and behind the spine
    uneven = math.sin(x / 9 + 2 * math.sin(y / 12 + z / 31)) * math.sin(y / 7 + 2 * math.sin(x / 13 - z / 23))
    tissue = uneven - 0.9 + 1.5 * min(1.0, max(0.0, z - 125) / 45)
    hu = _mix(-85.0, MUSCLE - 15, _cover(-tissue, 1.2))
    hu = _mix(hu, MUSCLE - 5, _cover(_spine_y(z) - y + 2 + 0.03 * x * x, 3 * blur))
    if dome < blur:
        hu = _mix(hu, _belly_hu(x, y, z, dome, anatomy, blur), _cover(dome, blur))
    heart = _heart(x, y, z, anatomy)
    if heart < blur:
        septum = abs(0.75 * x - 0.5 * y - 0.4 * z - 18) - 5
        chamber = max(heart + 10, -septum)
        hu = _mix(hu, _mix(MUSCLE, anatomy.blood_hu, _cover(chamber, 4.0)), _cover(heart, blur))
    return hu


@_compiled
def _around_hu(x: float, y: float, anatomy: Anatomy, blur: float) -> float:
    """Round the trunk: the table, a hollow curved shell with foam in it, and arms with a bone."""
    depth = anatomy.down * y - anatomy.table + x * x / 1500
    outside = max(-depth, depth - 30 + x * x / 3000, abs(x) - 205)
    hu = _mix(AIR, SHELL, _cover(outside, blur))
    hu = _mix(hu, FOAM, _cover(outside + 2.2, blur))
    if anatomy.arms > 0:
        arm = _oval(abs(x) - BODY_WIDTH - 37, y - 30, 38.0, 46.0)
        hu = _mix(hu, FAT, _cover(arm, blur))
        hu = _mix(hu, MUSCLE, _cover(arm + 9, blur))
        hu = _mix(hu, CORTEX, _cover(arm + 26, blur))
    return hu


@_compiled
def _paint_body(
    hu: NDArray[np.float32], lungs: NDArray[np.uint8], origin: Floats, step: Floats, anatomy: Anatomy
) -> None:
    """Fill `hu` and `lungs` (z, y, x) with all but vessels, airways and nodules."""
    blur = step[1]
    nz, ny, nx = hu.shape
    around = np.empty((ny, nx), np.float32)
    for j in range(ny):
        for i in range(nx):
            around[j, i] = _around_hu(origin[2] + i * step[2], origin[1] + j * step[1], anatomy, blur)
    for k in range(nz):
        z = origin[0] + k * step[0]
        for j in range(ny):
            y = origin[1] + j * step[1]
            for i in range(nx):
                x = origin[2] + i * step[2]
                lungs[k, j, i] = 0
                skin = _body(x, y, z)
                if skin > blur:
                    hu[k, j, i] = around[j, i]
                    continue
                cage = _cage(x, y, z, anatomy)
                lung = _lung(x, y, z, anatomy) if cage < blur else FAR
                if lung < 0 and anatomy.removed_side * x <= 0:
                    lungs[k, j, i] = LEFT_LUNG if x > 0 else RIGHT_LUNG
                value = 0.0
                if lung > -blur:
                    if cage < blur:
                        value = _inner_hu(x, y, z, anatomy, blur)
                    if cage > -blur:
                        wall = _wall_hu(x, y, z, skin, cage, anatomy, blur)
                        value = _mix(wall, value, _cover(cage, blur))
                    if abs(x) < 36 and y > 30:
                        value = _spine(x, y, z, blur, value)
                if lung < blur:
                    value = _mix(value, _lung_hu(x, y, z, anatomy, blur), _cover(lung, blur))
                if skin > -blur:
                    value = _mix(around[j, i], value, _cover(skin, blur))
                hu[k, j, i] = value


@_compiled
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
                    radius = _mix(tube[6], tube[7], along) + thicker
                    part = _cover(math.sqrt(off) - radius, blur) * min(1.0, 2 * radius / blur)
                    hu[k, j, i] = _mix(hu[k, j, i], value, part)


# ---------------------------------------------------------------------------------------------------
# Trees and nodules
# ---------------------------------------------------------------------------------------------------

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


@_compiled
def _lung_distances(points: Floats, anatomy: Anatomy) -> Floats:
    """Distance of each point (x, y, z) to the pleura."""
    distances = np.empty(len(points))
    for n in range(len(points)):
        distances[n] = _lung(points[n, 0], points[n, 1], points[n, 2], anatomy)
    return distances


def _places_in_lung(anatomy: Anatomy, side: int, rng: np.random.Generator) -> Floats:
    """Draw points (x, y, z) evenly over the lung of one side; they do not depend on the grid."""
    points = rng.uniform([0, -95, LUNG_FLOOR], [135, 100, anatomy.lung_height], (9000, 3))
    points[:, 0] *= side
    return points[_lung_distances(points, anatomy) < 0]


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


# ---------------------------------------------------------------------------------------------------
# The scanner
# ---------------------------------------------------------------------------------------------------

BLUR_GAIN = 6 / 16
"""Standard deviation of white noise after the weights 1 2 1 along both axes of a slice."""


@_compiled
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


# ---------------------------------------------------------------------------------------------------
# DICOM
# ---------------------------------------------------------------------------------------------------

ENCODINGS = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless)


def series_files(
    phantom: Phantom, *, name: str, seed: int, transfer_syntax: str = ExplicitVRLittleEndian
) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of each slice, as a scanner would write the phantom.

    The UIDs follow from `name`, `seed` and the grid, so the same arguments give the same bytes. The
    slices come bottom up; their file names are shuffled.

    Parameters
    ----------
    name
        Becomes the patient's id.
    transfer_syntax
        Explicit or implicit VR little endian, or RLE lossless.
    """
    if transfer_syntax not in ENCODINGS:
        raise ValueError(f"cannot write transfer syntax {transfer_syntax}, only {', '.join(ENCODINGS)}")
    volume = phantom.volume
    slice_mm, row_mm, column_mm = volume.spacing
    header = _patient_header(name, seed)
    grid = f"{volume.shape} {volume.spacing}"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SeriesInstanceUID = _uid(name, seed, "series", grid)
    header.SeriesNumber = 2
    header.SeriesDescription = "Chest axial"
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
    header.SliceThickness = _decimal(slice_mm)
    header.SpacingBetweenSlices = _decimal(slice_mm)
    header.ScanOptions = "HELICAL MODE"
    field_mm = min(volume.shape[1] * row_mm, volume.shape[2] * column_mm)
    header.ReconstructionDiameter = _decimal(round(field_mm, 3))
    count = len(volume.array)
    numbers = np.random.default_rng([seed, 6]).permutation(count)
    for k, plane in enumerate(volume.array):
        x, y, z = volume.to_patient((k, 0, 0))
        header.SOPInstanceUID = _uid(name, seed, "slice", grid, str(k))
        header.InstanceNumber = count - k
        header.ImagePositionPatient = [_decimal(x), _decimal(y), _decimal(z)]
        header.SliceLocation = _decimal(z)
        header.XRayTubeCurrent = int(180 + 60 * math.cos(k / count * math.tau))
        yield f"IM{numbers[k]:05d}.dcm", _encode(header, plane, transfer_syntax)


def localizer_file(phantom: Phantom, *, name: str, seed: int) -> tuple[str, bytes]:
    """Return (file name, content) of a localizer: the phantom seen from the front, with its own series."""
    volume = phantom.volume
    slice_mm, _, column_mm = volume.spacing
    header = _patient_header(name, seed)
    header.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    header.SeriesInstanceUID = _uid(name, seed, "localizer series")
    header.SOPInstanceUID = _uid(name, seed, "localizer")
    header.SeriesNumber = 1
    header.InstanceNumber = 1
    header.SeriesDescription = "Localizer"
    header.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    middle = (volume.shape[1] - 1) / 2
    header.ImagePositionPatient = [_decimal(v) for v in volume.to_patient((volume.shape[0] - 1, middle, 0))]
    header.PixelSpacing = [_decimal(slice_mm), _decimal(column_mm)]
    header.ScanOptions = "SCOUT MODE"
    projection = np.maximum(volume.array[::-1], RESCALE_INTERCEPT).mean(axis=1)
    return "SCOUT001.dcm", _encode(header, np.rint(projection).astype(np.int16), ExplicitVRLittleEndian)


def write_patients(
    target_url: str,
    count: int,
    *,
    seed: int = 0,
    spacing_mm: Triple = (3.0, 1.1, 1.1),
    shape: tuple[int, int, int] = (100, 320, 320),
    broken: bool = True,
) -> list[str]:
    """Write `count` patients as <target>/<patient id>/<file>.dcm; return the ids.

    They are no clean set. The first patient's folder also holds a localizer. With `broken`, and two
    patients or more, the last one lacks a slice amid the stack. Some have finer or coarser slices, a
    consolidation, one lung, or a back on the table. An existing file of the same name is replaced.

    Parameters
    ----------
    target_url
        A local folder or any fsspec URL, such as s3://bucket/scans.
    seed
        Patient number i has the seed `seed` + i.
    spacing_mm, shape
        The usual grid, (z, y, x).
    """
    last = count - 1 if broken and count > 1 else None
    return [
        write_patient(index, target_url, seed=seed, spacing_mm=spacing_mm, shape=shape, broken=index == last)
        for index in range(count)
    ]


def write_patient(
    index: int,
    target_url: str,
    *,
    seed: int = 0,
    spacing_mm: Triple = (3.0, 1.1, 1.1),
    shape: tuple[int, int, int] = (100, 320, 320),
    broken: bool = False,
) -> str:
    """Write the patient number `index` of a set that `write_patients` describes; return its id."""
    name = f"phantom-{index:03d}"
    phantom = _demo_patient(index, seed + index, spacing_mm, shape)
    files = list(series_files(phantom, name=name, seed=seed + index))
    if broken:
        del files[len(files) // 2]
    if index == 0:
        files.append(localizer_file(phantom, name=name, seed=seed + index))
    storage.write_many(storage.join(storage.absolute(target_url), name), dict(files))
    return name


def _demo_patient(index: int, seed: int, spacing_mm: Triple, shape: tuple[int, int, int]) -> Phantom:
    """Make the patient number `index` of a set: every few differ in the scan or in the chest."""
    slice_factor = {1: 0.8, 3: 1.25}.get(index % 5, 1.0)
    slice_mm = round(spacing_mm[0] * slice_factor, 4)
    return make_phantom(
        seed=seed,
        spacing_mm=(slice_mm, *spacing_mm[1:]),
        shape=(round(shape[0] * spacing_mm[0] / slice_mm), *shape[1:]),
        remove_lung="left" if index % 12 == 8 else "none",
        consolidation=0.2 if index % 6 == 4 else 0.0,
        table_touches_back=index % 4 == 2,
    )


def _uid(name: str, seed: int, *parts: str) -> str:
    return str(generate_uid(entropy_srcs=["dskprep phantom", name, str(seed), *parts]))


def _decimal(value: float) -> str:
    """A number as DICOM's decimal string, of 16 characters at most."""
    return format_number_as_ds(float(value))


def _patient_header(name: str, seed: int) -> Dataset:
    """What all images of a patient's study share; its identity is plainly synthetic."""
    rng = np.random.default_rng([seed, 7])
    date, time = f"20200{rng.integers(1, 10)}{rng.integers(10, 29)}", f"{rng.integers(8, 18):02d}1530.000"
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    for kind in ("Study", "Series", "Acquisition", "Content", "InstanceCreation"):
        setattr(header, f"{kind}Date", date)
        setattr(header, f"{kind}Time", time)
    header.SOPClassUID = CTImageStorage
    header.StudyInstanceUID = _uid(name, seed, "study")
    header.FrameOfReferenceUID = _uid(name, seed, "frame of reference")
    header.Modality = "CT"
    header.Manufacturer = "dskprep"
    header.ManufacturerModelName = "Phantom"
    header.DeviceSerialNumber = "0"
    header.SoftwareVersions = "synthetic"
    header.InstitutionName = "SYNTHETIC"
    header.StationName = "PHANTOM"
    header.ReferringPhysicianName = ""
    header.AccessionNumber = f"SYN{seed:06d}"
    header.StudyID = str(seed)
    header.StudyDescription = "Synthetic chest CT"
    header.ProtocolName = "Chest"
    header.PatientName = f"Phantom^N{seed}"
    header.PatientID = name
    header.PatientBirthDate = ""
    header.PatientSex = ("F", "M")[rng.integers(2)]
    header.PatientAge = f"{rng.integers(40, 80):03d}Y"
    header.PatientWeight = str(rng.integers(55, 95))
    header.PatientPosition = "HFS"
    header.BodyPartExamined = "CHEST"
    header.KVP = 120
    header.DataCollectionDiameter = 500
    header.DistanceSourceToDetector = 949
    header.DistanceSourceToPatient = 541
    header.GantryDetectorTilt = 0
    header.TableHeight = 150
    header.RotationDirection = "CW"
    header.ExposureTime = 500
    header.XRayTubeCurrent = 200
    header.Exposure = 100
    header.FilterType = "BODY"
    header.GeneratorPower = 24
    header.FocalSpots = "0.7"
    header.ConvolutionKernel = "STANDARD"
    header.RevolutionTime = 0.5
    header.SingleCollimationWidth = 0.625
    header.TotalCollimationWidth = 40.0
    header.SpiralPitchFactor = 0.984
    header.AcquisitionNumber = 1
    header.PositionReferenceIndicator = "SN"
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = 16
    header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = 1
    header.PixelPaddingValue = STORED_PADDING
    header.WindowCenter = [40, -600]
    header.WindowWidth = [400, 1500]
    header.RescaleIntercept = RESCALE_INTERCEPT
    header.RescaleSlope = 1
    header.RescaleType = "HU"
    header.BurnedInAnnotation = "NO"
    procedure = Dataset()
    procedure.CodeValue = "CTCHEST"
    procedure.CodingSchemeDesignator = "99PHANTOM"
    procedure.CodeMeaning = "CT of the chest"
    header.ProcedureCodeSequence = [procedure]
    private = header.private_block(0x0009, "DSKPREP_PHANTOM", create=True)
    private.add_new(0x01, "LO", "synthetic, of no person")
    private.add_new(0x02, "SL", seed)
    return header


def _encode(header: Dataset, hu: NDArray[np.int16], transfer_syntax: str) -> bytes:
    """Put the pixels of one image, int16 HU (y, x), into the header and write it as a DICOM file."""
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.Rows, header.Columns = hu.shape
    stored = (hu - RESCALE_INTERCEPT).astype("<i2")
    header.add_new("PixelData", "OW", stored.tobytes())
    if transfer_syntax == RLELossless:
        header.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    header.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    content = io.BytesIO()
    pydicom.dcmwrite(content, header, enforce_file_format=True)
    return content.getvalue()
