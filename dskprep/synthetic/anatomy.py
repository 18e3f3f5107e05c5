"""Who a synthetic patient is: the shapes of a chest in millimetres, and the HU of what it is made of.

Body frame: x to the patient's left, y posterior, z superior, in mm of a patient of size 1; its origin
lies in the midline, amid the chest, at the height of the right dome of the diaphragm. Distances to
surfaces are negative inside, and approximate; every edge is blended over one voxel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

Floats = NDArray[np.float64]

AIR, FAT, MUSCLE, ORGAN = -1000.0, -100.0, 48.0, 58.0
MARROW, CORTEX, CARTILAGE, WATER = 190.0, 620.0, 105.0, 12.0
FOAM, SHELL = -940.0, -150.0
"""HU of what a chest and its table are made of."""

FAR = 1e3  # a distance that is surely outside

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


def draw_anatomy(seed: int, remove_lung: str, table_touches_back: bool) -> Anatomy:
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


def with_dense_lung(
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


@compiled
def _lung_distances(points: Floats, anatomy: Anatomy) -> Floats:
    """Distance of each point (x, y, z) to the pleura."""
    distances = np.empty(len(points))
    for n in range(len(points)):
        distances[n] = to_lung(points[n, 0], points[n, 1], points[n, 2], anatomy)
    return distances


def places_in_lung(anatomy: Anatomy, side: int, rng: np.random.Generator) -> Floats:
    """Draw points (x, y, z) evenly over the lung of one side; they do not depend on the grid."""
    points = rng.uniform([0, -95, LUNG_FLOOR], [135, 100, anatomy.lung_height], (9000, 3))
    points[:, 0] *= side
    return points[_lung_distances(points, anatomy) < 0]


@compiled
def cover(distance: float, blur: float) -> float:
    """Part of a voxel of width `blur` that lies inside a surface at `distance`."""
    return min(1.0, max(0.0, 0.5 - distance / blur))


@compiled
def mix(old: float, new: float, part: float) -> float:
    return old + (new - old) * part


@compiled
def _smooth_max(a: float, b: float, radius: float) -> float:
    """The larger of two distances, so that the edge where the surfaces meet is round."""
    h = max(0.0, radius - abs(a - b)) / radius
    return max(a, b) + h * h * radius * 0.25


@compiled
def _oval(x: float, y: float, width: float, depth: float) -> float:
    """Distance to an oval with these half-axes, squarer than an ellipse, as a trunk is."""
    u, v = (x / width) ** 2, (y / depth) ** 2
    reach = math.sqrt(u + v - 0.3 * min(u * v, 1.0))
    return math.sqrt(x * x + y * y) * (1 - 1 / max(reach, 1e-6))


@compiled
def _ellipsoid(x: float, y: float, z: float, width: float, depth: float, height: float) -> float:
    """Distance to an ellipsoid with these half-axes."""
    reach = math.sqrt((x / width) ** 2 + (y / depth) ** 2 + (z / height) ** 2)
    return math.sqrt(x * x + y * y + z * z) * (1 - 1 / max(reach, 1e-6))


@compiled
def to_skin(x: float, y: float, z: float) -> float:
    """Distance to the skin: a trunk that narrows towards the neck and lies flat on its back."""
    rise = max(0.0, z - 120) / 105
    narrowing = 0.26 * rise * rise
    depth = BODY_DEPTH * (1 - 0.8 * narrowing)
    centre = BODY_CENTRE + 0.7 * (BODY_DEPTH - depth)
    return _oval(x, y - centre, BODY_WIDTH * (1 - narrowing), depth)


@compiled
def to_cage(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Distance to the inner side of the chest wall."""
    rise = max(0.0, z - 45) / (anatomy.lung_height - 30)
    narrowing = 0.5 * rise * rise
    y -= CAGE_CENTRE + 8 * narrowing
    depth = anatomy.cage_front if y < 0 else anatomy.cage_back
    return _oval(x, y, anatomy.cage_width * (1 - narrowing), depth * (1 - 0.9 * narrowing))


@compiled
def _spine_y(z: float) -> float:
    """y of the middle of the vertebral bodies: a curve, most posterior amid the chest."""
    return 72 - 12 * ((z - 85) / 120) ** 2


@compiled
def _heart(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Distance to the heart, whose apex points to the left and to the front."""
    x, y, z = (x - 20) / anatomy.heart, (y + 28) / anatomy.heart, (z - 34) / anatomy.heart
    along, across = 0.85 * x - 0.53 * y, 0.53 * x + 0.85 * y
    along, z = 0.94 * along - 0.34 * z, 0.34 * along + 0.94 * z
    return _ellipsoid(along, across, z, 63.0, 40.0, 46.0) * anatomy.heart


@compiled
def _dome(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Distance to the diaphragm of this side of the body, negative in the belly."""
    top = anatomy.left_dome if x > 0 else 0.0
    across, along = abs(x) - 62, y + 14
    width = anatomy.dome_width if across > 0 else 230.0  # flat towards the middle
    length = 118.0 if along > 0 else 210.0  # and towards the front
    surface = top - across * across / width - along * along / length
    slope = math.sqrt(1 + (2 * across / width) ** 2 + (2 * along / length) ** 2)
    return (z - surface) / slope


@compiled
def to_lung(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Distance to the pleura of the lung of this side."""
    inside = _smooth_max(to_cage(x, y, z, anatomy), -_dome(x, y, z, anatomy), 3.0)
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


@compiled
def _dependence(x: float, y: float, z: float, down: float) -> float:
    """How low a place of the lung lies: larger at the base, and at the back of a patient on the back."""
    return 0.7 * down * y - 0.7 * z + 5 * math.sin(x / 11) + 5 * math.sin((y - z) / 15)


@compiled
def _depth(x: float, y: float, z: float, down: float) -> float:
    """How low a place lies for fluid, which is thicker towards the base and has a curved surface."""
    return 0.95 * down * y - 0.3 * z + 0.0015 * (abs(x) - 60) ** 2


@compiled
def lung_hu(x: float, y: float, z: float, anatomy: Anatomy, blur: float) -> float:
    """Parenchyma: denser towards the back, a little uneven, crossed by the oblique fissure."""
    side = 1.0 if x > 0 else -1.0
    if side == anatomy.removed_side:
        return WATER
    phase = anatomy.texture_phase
    uneven = math.sin(x / 9 + phase) * math.sin(y / 11 + z / 23) + math.sin(z / 13 - x / 17 + phase)
    hu = anatomy.lung_hu + 0.3 * anatomy.down * y + 9 * uneven
    fissure = 0.77 * (z - 72 - 0.06 * x * side) - 0.64 * (y - 10) + 3 * math.sin(x / 20)
    hu = mix(hu, -560.0, cover(abs(fissure) - 0.3, 2 * blur))
    if side == anatomy.dense_side:
        hu = mix(hu, 30.0, cover(anatomy.dense_from - _dependence(x, y, z, anatomy.down), 4 * blur))
        hu = mix(hu, WATER, cover(anatomy.fluid_from - _depth(x, y, z, anatomy.down), blur))
    return hu


@compiled
def wall_hu(x: float, y: float, z: float, skin: float, cage: float, anatomy: Anatomy, blur: float) -> float:
    """The chest wall from the skin to the pleura: fat, muscle, ribs, sternum and shoulder blades."""
    # muscle, with fat between its layers and in the armpits
    layers = abs(math.sin(0.2 * cage + 0.03 * abs(x) + 0.02 * z + 0.01 * y))
    muscle = mix(MUSCLE, -45.0, cover((layers - 0.1) * 8, 2.0))
    armpit = _ellipsoid(abs(x) - 112, y + 14, z - 165, 24.0, 34.0, 55.0)
    muscle = mix(muscle, FAT, cover(armpit, 3 * blur))
    fat = anatomy.fat * (1.05 - 0.25 * min(1.0, max(-1.0, y / 60)))  # thicker in front
    hu = mix(FAT, muscle, cover(skin + SKIN + fat, blur))
    hu = mix(hu, 5.0, cover(-skin - SKIN, blur))
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
        bone = mix(CORTEX, MARROW, cover(rib + 2.2, 1.5))
        bone = mix(bone, CARTILAGE, cover(y + 52, 6.0))
        hu = mix(hu, bone, cover(rib, blur))
    if y < 0:
        top = anatomy.lung_height - 42
        breadth = 15 + 8 * max(0.0, 1 - abs(z - top + 20) / 30)
        sternum = max(_oval(x, cage - 7.5, breadth, 5.5), z - top, 12 - z)
        bone = mix(CORTEX - 200, MARROW - 60, cover(sternum + 1.8, 1.5))
        return mix(hu, bone, cover(sternum, blur))
    blade = max(abs(cage - 16.5 - 0.0004 * (z - 130) ** 2) - 1.8, 22 - y, 62 - abs(x), 75 - z, z - 200)
    return mix(hu, CORTEX - 150, cover(blade, blur))


@compiled
def spine(x: float, y: float, z: float, blur: float, hu: float) -> float:
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
    hu = mix(hu, mix(CORTEX, MARROW + 40, cover(bone + 2, 2.0)), cover(bone, blur))
    hu = mix(hu, 28.0, cover(canal, blur))
    inside = mix(CORTEX - 80, MARROW, cover(max(body, -disk) + 1.8, 1.5))
    return mix(hu, mix(inside, 85.0, cover(disk, 1.5)), cover(body, blur))


@compiled
def _belly_hu(x: float, y: float, z: float, dome: float, anatomy: Anatomy, blur: float) -> float:
    """Below the diaphragm: liver, spleen, a stomach with a gas bubble, and bowel gas."""
    enhanced = 0.35 * max(0.0, anatomy.blood_hu - 45)
    hu = FAT
    liver = x - 34 + 0.35 * (y + 20) + 0.25 * abs(z + 40)
    hu = mix(hu, ORGAN + enhanced, cover(max(liver, y - 72), blur))
    spleen = _ellipsoid(x - 86, y - 46, z + 62, 30.0, 36.0, 44.0)
    hu = mix(hu, ORGAN - 8 + enhanced, cover(spleen, blur))
    stomach = _ellipsoid(x - 58, y + 18, z - anatomy.left_dome + 43, 36.0, 42.0, 38.0)
    hu = mix(hu, MUSCLE, cover(stomach, blur))
    gas = max(stomach + 3.5, anatomy.down * (y + 18) + 6)  # gas lies above, on a level fluid
    hu = mix(hu, mix(WATER + 10, AIR, cover(gas, blur)), cover(stomach + 3.5, blur))
    bowel = _ellipsoid(x - 98, y + 22, z + 70, 15.0, 27.0, 13.0 + 3 * math.sin(y / 5))
    hu = mix(hu, MUSCLE, cover(bowel, blur))
    hu = mix(hu, AIR, cover(bowel + 2.5, blur))
    return mix(hu, MUSCLE, cover(-dome - 3.5, blur))  # the diaphragm itself


@compiled
def inner_hu(x: float, y: float, z: float, anatomy: Anatomy, blur: float) -> float:
    """Inside the chest wall, beside the lungs: mediastinum and belly."""
    dome = min(_dome(x, y, z, anatomy), z + 24)
    # fat; towards the neck more nodes, glands and muscle; muscle beside and behind the spine
    uneven = math.sin(x / 9 + 2 * math.sin(y / 12 + z / 31)) * math.sin(y / 7 + 2 * math.sin(x / 13 - z / 23))
    tissue = uneven - 0.9 + 1.5 * min(1.0, max(0.0, z - 125) / 45)
    hu = mix(-85.0, MUSCLE - 15, cover(-tissue, 1.2))
    hu = mix(hu, MUSCLE - 5, cover(_spine_y(z) - y + 2 + 0.03 * x * x, 3 * blur))
    if dome < blur:
        hu = mix(hu, _belly_hu(x, y, z, dome, anatomy, blur), cover(dome, blur))
    heart = _heart(x, y, z, anatomy)
    if heart < blur:
        septum = abs(0.75 * x - 0.5 * y - 0.4 * z - 18) - 5
        chamber = max(heart + 10, -septum)
        hu = mix(hu, mix(MUSCLE, anatomy.blood_hu, cover(chamber, 4.0)), cover(heart, blur))
    return hu


@compiled
def around_hu(x: float, y: float, anatomy: Anatomy, blur: float) -> float:
    """Round the trunk: the table, a hollow curved shell with foam in it, and arms with a bone."""
    depth = anatomy.down * y - anatomy.table + x * x / 1500
    outside = max(-depth, depth - 30 + x * x / 3000, abs(x) - 205)
    hu = mix(AIR, SHELL, cover(outside, blur))
    hu = mix(hu, FOAM, cover(outside + 2.2, blur))
    if anatomy.arms > 0:
        arm = _oval(abs(x) - BODY_WIDTH - 37, y - 30, 38.0, 46.0)
        hu = mix(hu, FAT, cover(arm, blur))
        hu = mix(hu, MUSCLE, cover(arm + 9, blur))
        hu = mix(hu, CORTEX, cover(arm + 26, blur))
    return hu
