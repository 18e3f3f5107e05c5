"""What a synthetic chest is made of: the HU at a place of the body frame (see anatomy).

Every edge is blended over the width of one voxel, `blur`.
"""

from __future__ import annotations

import math

from dskprep.kernels.compiled import compiled
from dskprep.synthetic.anatomy import (
    BODY_WIDTH,
    RIB_PERIOD,
    Anatomy,
    dependence,
    fluid_depth,
    spine_y,
    to_dome,
    to_ellipsoid,
    to_heart,
    to_oval,
)

AIR, FAT, MUSCLE, ORGAN = -1000.0, -100.0, 48.0, 58.0
"""HU of air and of soft tissues."""
MARROW, CORTEX, CARTILAGE = 190.0, 620.0, 105.0
"""HU of the inside of a bone, its shell, and the front ends of the ribs."""
WATER = 12.0
"""HU of body fluids."""
FOAM, SHELL = -940.0, -150.0
"""HU of the inside of the table, and its surface."""

SKIN = 2.0
"""Thickness of the skin in mm."""
VERTEBRA_PERIOD = 27.0
"""Distance along z from vertebra to vertebra in mm."""


@compiled
def cover(distance: float, blur: float) -> float:
    """Return the part of a voxel of width `blur` that lies inside a surface at `distance`."""
    return min(1.0, max(0.0, 0.5 - distance / blur))


@compiled
def mix(old: float, new: float, part: float) -> float:
    """Return `old` with `part` of it, from 0 to 1, replaced by `new`."""
    return old + (new - old) * part


@compiled
def lung_hu(x: float, y: float, z: float, anatomy: Anatomy, blur: float) -> float:
    """Return the HU of the lung: denser towards the back, a little uneven, crossed by the oblique fissure."""
    side = 1.0 if x > 0 else -1.0
    if side == anatomy.removed_side:
        return WATER
    phase = anatomy.texture_phase
    uneven = math.sin(x / 9 + phase) * math.sin(y / 11 + z / 23) + math.sin(z / 13 - x / 17 + phase)
    hu = anatomy.lung_hu + 0.3 * anatomy.down * y + 9 * uneven
    fissure = 0.77 * (z - 72 - 0.06 * x * side) - 0.64 * (y - 10) + 3 * math.sin(x / 20)
    hu = mix(hu, -560.0, cover(abs(fissure) - 0.3, 2 * blur))
    if side == anatomy.dense_side:
        hu = mix(hu, 30.0, cover(anatomy.dense_from - dependence(x, y, z, anatomy.down), 4 * blur))
        hu = mix(hu, WATER, cover(anatomy.fluid_from - fluid_depth(x, y, z, anatomy.down), blur))
    return hu


@compiled
def wall_hu(x: float, y: float, z: float, skin: float, cage: float, anatomy: Anatomy, blur: float) -> float:
    """Return the HU of the chest wall from the skin to the pleura: fat, muscle, ribs, sternum and shoulder blades."""
    # muscle, with fat between its layers and in the armpits
    layers = abs(math.sin(0.2 * cage + 0.03 * abs(x) + 0.02 * z + 0.01 * y))
    muscle = mix(MUSCLE, -45.0, cover((layers - 0.1) * 8, 2.0))
    armpit = to_ellipsoid(abs(x) - 112, y + 14, z - 165, 24.0, 34.0, 55.0)
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
        sternum = max(to_oval(x, cage - 7.5, breadth, 5.5), z - top, 12 - z)
        bone = mix(CORTEX - 200, MARROW - 60, cover(sternum + 1.8, 1.5))
        return mix(hu, bone, cover(sternum, blur))
    blade = max(abs(cage - 16.5 - 0.0004 * (z - 130) ** 2) - 1.8, 22 - y, 62 - abs(x), 75 - z, z - 200)
    return mix(hu, CORTEX - 150, cover(blade, blur))


@compiled
def spine(x: float, y: float, z: float, blur: float, hu: float) -> float:
    """Paint vertebrae, disks, the spinal canal and the processes over `hu`."""
    y -= spine_y(z)
    level = (z / VERTEBRA_PERIOD) % 1.0
    middle = (level - 0.6) * VERTEBRA_PERIOD  # height above the middle of the vertebra, whose disk is below
    disk = abs(level - 0.1) * VERTEBRA_PERIOD - 2.7
    waist = 1.5 * max(0.0, 1 - abs(middle) / 9)
    body = to_oval(x, y, 18.5 - waist, 14.5 - waist)
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
    """Return the HU below the diaphragm: liver, spleen, a stomach with a gas bubble, and bowel gas."""
    enhanced = 0.35 * max(0.0, anatomy.blood_hu - 45)
    hu = FAT
    liver = x - 34 + 0.35 * (y + 20) + 0.25 * abs(z + 40)
    hu = mix(hu, ORGAN + enhanced, cover(max(liver, y - 72), blur))
    spleen = to_ellipsoid(x - 86, y - 46, z + 62, 30.0, 36.0, 44.0)
    hu = mix(hu, ORGAN - 8 + enhanced, cover(spleen, blur))
    stomach = to_ellipsoid(x - 58, y + 18, z - anatomy.left_dome + 43, 36.0, 42.0, 38.0)
    hu = mix(hu, MUSCLE, cover(stomach, blur))
    gas = max(stomach + 3.5, anatomy.down * (y + 18) + 6)  # gas lies above, on a level fluid
    hu = mix(hu, mix(WATER + 10, AIR, cover(gas, blur)), cover(stomach + 3.5, blur))
    bowel = to_ellipsoid(x - 98, y + 22, z + 70, 15.0, 27.0, 13.0 + 3 * math.sin(y / 5))
    hu = mix(hu, MUSCLE, cover(bowel, blur))
    hu = mix(hu, AIR, cover(bowel + 2.5, blur))
    return mix(hu, MUSCLE, cover(-dome - 3.5, blur))  # the diaphragm itself


@compiled
def inner_hu(x: float, y: float, z: float, anatomy: Anatomy, blur: float) -> float:
    """Return the HU inside the chest wall but outside the lungs: mediastinum and belly."""
    dome = min(to_dome(x, y, z, anatomy), z + 24)
    # fat; towards the neck more nodes, glands and muscle; muscle beside and behind the spine
    uneven = math.sin(x / 9 + 2 * math.sin(y / 12 + z / 31)) * math.sin(y / 7 + 2 * math.sin(x / 13 - z / 23))
    tissue = uneven - 0.9 + 1.5 * min(1.0, max(0.0, z - 125) / 45)
    hu = mix(-85.0, MUSCLE - 15, cover(-tissue, 1.2))
    hu = mix(hu, MUSCLE - 5, cover(spine_y(z) - y + 2 + 0.03 * x * x, 3 * blur))
    if dome < blur:
        hu = mix(hu, _belly_hu(x, y, z, dome, anatomy, blur), cover(dome, blur))
    heart = to_heart(x, y, z, anatomy)
    if heart < blur:
        septum = abs(0.75 * x - 0.5 * y - 0.4 * z - 18) - 5
        chamber = max(heart + 10, -septum)
        hu = mix(hu, mix(MUSCLE, anatomy.blood_hu, cover(chamber, 4.0)), cover(heart, blur))
    return hu


@compiled
def around_hu(x: float, y: float, anatomy: Anatomy, blur: float) -> float:
    """Return the HU around the trunk: the table, a curved shell filled with foam, and arms with a bone."""
    depth = anatomy.down * y - anatomy.table + x * x / 1500
    outside = max(-depth, depth - 30 + x * x / 3000, abs(x) - 205)
    hu = mix(AIR, SHELL, cover(outside, blur))
    hu = mix(hu, FOAM, cover(outside + 2.2, blur))
    if anatomy.arms > 0:
        arm = to_oval(abs(x) - BODY_WIDTH - 37, y - 30, 38.0, 46.0)
        hu = mix(hu, FAT, cover(arm, blur))
        hu = mix(hu, MUSCLE, cover(arm + 9, blur))
        hu = mix(hu, CORTEX, cover(arm + 26, blur))
    return hu
