"""Round things in a synthetic chest: vessels, airways, oesophagus, collar bones and nodules, painted as tubes.

A tube is a row of two ends, (x, y, z) in the body frame (see anatomy), and the radius at each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled
from dskprep.synthetic.anatomy import CARINA, HILUM, Anatomy, Floats
from dskprep.synthetic.tissue import AIR, CORTEX, MARROW, MUSCLE, cover, mix

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
"""Tubes of blood in the mediastinum."""
OESOPHAGUS = np.array([[6, 34, -40, 4, 38, 120, 7, 6.5], [4, 38, 120, 2, 24, 260, 6.5, 6]], np.float64)
"""Tubes of muscle, from the stomach to the neck."""
COLLAR_BONES = np.array([[14, -72, 168, 70, -66, 186, 7, 6], [70, -66, 186, 106, -40, 196, 6, 6]], np.float64)
"""The left one."""
CENTRAL_AIRWAYS = np.array(
    [
        [*CARINA, 0, 6, 165, 8.5, 8.5],  # trachea
        [0, 6, 165, 0, -6, 290, 8.5, 8.5],
        [*CARINA, *HILUM[0], 7.5, 6],  # main bronchi
        [*CARINA, *HILUM[1], 7, 5.5],
    ],
    np.float64,
)
"""Tubes of air outside the lungs."""

MIRROR = np.array([-1, 1, 1, -1, 1, 1, 1, 1], np.float64)
"""Factors that bring a tube to the other side of the body."""


class Canvas(NamedTuple):
    """A scan in the making: `hu` and the lungs' labels (z, y, x), the place (z, y, x) of the first voxel, and the step.

    Places and steps are in mm of the body frame.
    """

    hu: NDArray[np.float32]
    lungs: NDArray[np.uint8]
    origin: Floats
    step: Floats


def paint(canvas: Canvas, tubes: Floats, value: float, *, thicker: float = 0.0, lungs_only: bool = False) -> None:
    """Paint tubes with round ends in `value` HU; `thicker` mm are added to the radii.

    A tube thinner than a voxel is painted paler, as partial volume does.
    """
    _fill(canvas, tubes, value, thicker, lungs_only)


@compiled
def _fill(canvas: Canvas, tubes: Floats, value: float, thicker: float, lungs_only: bool) -> None:
    hu, lungs, origin, step = canvas
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


def _grow(root: Floats, leaves: Floats, leaf_radius: float) -> list[Floats]:
    """Return the tubes of a tree from `root` to all `leaves` (n, 3).

    Each branch heads for the middle of its leaves, then halves them across their widest extent. Its radius follows
    Murray's law (1926), nearly: the 2.9th power of a trunk's radius is the sum of those of its branches.
    """
    to_middle = leaves.mean(axis=0) - root
    end = root + to_middle * (0.4 if len(leaves) > 1 else 1.0)
    radius = leaf_radius * len(leaves) ** (1 / 2.9)
    tubes = [np.array([*root, *end, radius, radius * (0.85 if len(leaves) > 1 else 0.5)])]
    if len(leaves) > 1:
        offsets = leaves - leaves.mean(axis=0)
        ahead = to_middle / (np.linalg.norm(to_middle) + 1e-9)
        offsets = offsets - np.outer(offsets @ ahead, ahead)
        widest = np.linalg.eigh(offsets.T @ offsets)[1][:, 2]
        order = np.argsort(offsets @ widest, kind="stable")
        for half in np.split(order, [len(order) // 2]):
            tubes += _grow(end, leaves[half], leaf_radius)
    return tubes


def paint_vessels_and_airways(canvas: Canvas, anatomy: Anatomy, places: list[Floats], seed: int) -> None:
    """Paint the tubes of the mediastinum, and trees of arteries, veins and airways to `places` in each lung."""
    bones = np.concatenate([COLLAR_BONES, COLLAR_BONES * MIRROR])
    paint(canvas, bones, CORTEX)
    paint(canvas, bones, MARROW, thicker=-2.5)
    paint(canvas, OESOPHAGUS, MUSCLE - 10)
    paint(canvas, LARGE_VESSELS, MUSCLE, thicker=1.0)
    paint(canvas, LARGE_VESSELS, anatomy.blood_hu)

    rng = np.random.default_rng([seed, 3])
    airways = []
    for side, hilum, points in zip((-1, 1), np.array(HILUM), places, strict=True):
        if side == anatomy.removed_side:
            continue
        points = rng.permutation(points)
        vessels = _grow(hilum + (0, -8, 6), points[:450], 0.72) + _grow(hilum + (0, 3, -20), points[450:800], 0.72)
        paint(canvas, np.array(vessels), anatomy.blood_hu, lungs_only=True)
        airways += _grow(hilum, points[800:860], 0.9)
    paint(canvas, np.array(airways), 10.0, thicker=0.7, lungs_only=True)
    paint(canvas, CENTRAL_AIRWAYS, MUSCLE, thicker=1.6)
    paint(canvas, CENTRAL_AIRWAYS, AIR)
    paint(canvas, np.array(airways), AIR, lungs_only=True)


def paint_nodules(canvas: Canvas, places: list[Floats], seed: int) -> list[tuple[Floats, float]]:
    """Paint two to five nodules at some of `places` in the lungs; one in three is of ground glass.

    Returns the centre (x, y, z) and the radius of each, in the units of `places`.
    """
    rng = np.random.default_rng([seed, 4])
    found: list[tuple[Floats, float]] = []
    for _ in range(rng.integers(2, 6)):
        points = places[rng.integers(2)]
        centre = points[rng.integers(len(points))]
        radius = rng.uniform(2.5, 8.0)
        value = -600.0 if rng.random() < 1 / 3 else rng.uniform(10, 60)
        lobes = centre + rng.normal(0, 0.35 * radius, (5, 3))
        tubes = np.column_stack([np.tile(centre, (5, 1)), lobes, *[np.full(5, 0.75 * radius)] * 2])
        paint(canvas, tubes, value, lungs_only=True)
        found.append((np.mean([centre, lobes.mean(axis=0)], axis=0), radius))
    return found
