"""The anatomy of a synthetic patient: what differs between patients, and the distances to the surfaces of a chest.

Body frame: x to the patient's left, y to the back, z to the head, in mm of a patient of size 1. The origin lies in the
midline, in the middle of the chest, at the height of the right dome of the diaphragm. Distances to surfaces are
negative inside, and approximate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

Floats = NDArray[np.float64]
"""Numbers, places (x, y, z) or tubes, one per row."""

FAR = 1e3
"""A distance that is surely outside, in mm."""

SCAN_CENTRE = (71.0, 12.0, 0.0)
"""Middle of the scanned volume, (z, y, x)."""
BODY_WIDTH, BODY_DEPTH = 154.0, 119.0
"""Half-axes of the trunk."""
BODY_CENTRE = 8.0
"""y of the middle of the trunk."""
CAGE_CENTRE = 4.0
"""y of the middle of the space inside the ribs."""
RIB_PERIOD = 25.0
"""Distance along z from rib to rib."""
LUNG_FLOOR = -66.0
"""z of the deepest point of the lung, behind the diaphragm."""
CARINA = (0.0, 14.0, 112.0)
"""Where the trachea divides, (x, y, z)."""
HILUM = ((-37.0, 14.0, 94.0), (42.0, 18.0, 90.0))
"""Where bronchi and vessels enter the right and the left lung, (x, y, z)."""


class Anatomy(NamedTuple):
    """What differs between patients: lengths in mm of the body frame, sides as -1 (right) and +1 (left).

    Every field is a float, so that compiled code takes it.
    """

    size: float
    """Millimetres of the patient per millimetre of the body frame."""
    lung_height: float
    """From the right dome of the diaphragm to the apex."""
    cage_width: float
    """Half-axis of the inner chest wall."""
    cage_front: float
    """From the middle of the chest to its front wall."""
    cage_back: float
    """From the middle of the chest to its back wall."""
    fat: float
    """Thickness of the fat under the skin."""
    junction: float
    """Half the distance between the lungs behind the sternum."""
    heart: float
    """Size of the heart relative to the usual."""
    left_dome: float
    """z of the left dome of the diaphragm; the right one is at 0."""
    dome_width: float
    """The larger, the flatter the diaphragm."""
    rib_phase: float
    """Shift of all ribs along z."""
    rib_slope: float
    """How far a rib falls per mm towards the front."""
    texture_phase: float
    """Which part of the lungs' texture is seen."""
    blood_hu: float
    """Blood, with or without contrast agent."""
    lung_hu: float
    """Air-filled lung at mid-depth."""
    table: float
    """How far down the middle of the table's surface lies."""
    down: float = 1.0
    """Sign of the y that gravity points to: +1 in a supine patient, -1 in a prone one."""
    arms: float = 0.0
    """1 if the arms lie beside the trunk, 0 if they are held over the head."""
    removed_side: float = 0.0
    """Side of the lung that was taken out, 0 for none."""
    dense_side: float = 0.0
    """Side of the consolidation and the effusion, 0 for none."""
    dense_from: float = FAR
    """The lung is solid where `dependence` is above this."""
    fluid_from: float = FAR
    """There is fluid instead of lung where `fluid_depth` is above this."""


def draw_anatomy(seed: int, remove_lung: str, *, table_touches_back: bool) -> Anatomy:
    """Draw a supine patient with the arms held up."""
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
        table=BODY_CENTRE + BODY_DEPTH + (-0.5 if table_touches_back else gap_mm / size),
        removed_side={"none": 0.0, "right": -1.0, "left": 1.0}[remove_lung],
    )


def with_dense_lung(
    anatomy: Anatomy, side: int, places: Floats, consolidation: float, effusion: float
) -> tuple[Anatomy, Floats]:
    """Put fluid below one lung and make a part of the lung solid; return also the places that are still lung."""
    anatomy = anatomy._replace(dense_side=float(side))
    if effusion > 0:
        depths = np.array([fluid_depth(x, y, z, anatomy.down) for x, y, z in places])
        anatomy = anatomy._replace(fluid_from=float(np.quantile(depths, 1 - effusion)))
        places = places[depths < anatomy.fluid_from]
    if consolidation > 0:
        dependences = np.array([dependence(x, y, z, anatomy.down) for x, y, z in places])
        share = consolidation / (1 - effusion)
        anatomy = anatomy._replace(dense_from=float(np.quantile(dependences, 1 - share)))
    return anatomy, places


@compiled
def _lung_distances(points: Floats, anatomy: Anatomy) -> Floats:
    """Return the distance of each point (x, y, z) to the pleura."""
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
def _smooth_max(a: float, b: float, radius: float) -> float:
    """Return the larger of two distances, with a round edge where the surfaces meet."""
    h = max(0.0, radius - abs(a - b)) / radius
    return max(a, b) + h * h * radius * 0.25


@compiled
def to_oval(x: float, y: float, width: float, depth: float) -> float:
    """Return the distance to an oval with these half-axes, squarer than an ellipse, as a trunk is."""
    u, v = (x / width) ** 2, (y / depth) ** 2
    reach = math.sqrt(u + v - 0.3 * min(u * v, 1.0))
    return math.sqrt(x * x + y * y) * (1 - 1 / max(reach, 1e-6))


@compiled
def to_ellipsoid(x: float, y: float, z: float, width: float, depth: float, height: float) -> float:
    """Return the distance to an ellipsoid with these half-axes."""
    reach = math.sqrt((x / width) ** 2 + (y / depth) ** 2 + (z / height) ** 2)
    return math.sqrt(x * x + y * y + z * z) * (1 - 1 / max(reach, 1e-6))


@compiled
def to_skin(x: float, y: float, z: float) -> float:
    """Return the distance to the skin: a trunk that narrows towards the neck and lies flat on its back."""
    rise = max(0.0, z - 120) / 105
    narrowing = 0.26 * rise * rise
    depth = BODY_DEPTH * (1 - 0.8 * narrowing)
    centre = BODY_CENTRE + 0.7 * (BODY_DEPTH - depth)
    return to_oval(x, y - centre, BODY_WIDTH * (1 - narrowing), depth)


@compiled
def to_cage(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Return the distance to the inner side of the chest wall."""
    rise = max(0.0, z - 45) / (anatomy.lung_height - 30)
    narrowing = 0.5 * rise * rise
    y -= CAGE_CENTRE + 8 * narrowing
    depth = anatomy.cage_front if y < 0 else anatomy.cage_back
    return to_oval(x, y, anatomy.cage_width * (1 - narrowing), depth * (1 - 0.9 * narrowing))


@compiled
def spine_y(z: float) -> float:
    """Return y of the middle of the vertebral bodies: a curve, most posterior in the middle of the chest."""
    return 72 - 12 * ((z - 85) / 120) ** 2


@compiled
def to_heart(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Return the distance to the heart, whose apex points to the left and to the front."""
    x, y, z = (x - 20) / anatomy.heart, (y + 28) / anatomy.heart, (z - 34) / anatomy.heart
    along, across = 0.85 * x - 0.53 * y, 0.53 * x + 0.85 * y
    along, z = 0.94 * along - 0.34 * z, 0.34 * along + 0.94 * z
    return to_ellipsoid(along, across, z, 63.0, 40.0, 46.0) * anatomy.heart


@compiled
def to_dome(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Return the distance to the diaphragm of this side of the body, negative in the belly."""
    top = anatomy.left_dome if x > 0 else 0.0
    across, along = abs(x) - 62, y + 14
    width = anatomy.dome_width if across > 0 else 230.0  # flat towards the middle
    length = 118.0 if along > 0 else 210.0  # and towards the front
    surface = top - across * across / width - along * along / length
    slope = math.sqrt(1 + (2 * across / width) ** 2 + (2 * along / length) ** 2)
    return (z - surface) / slope


@compiled
def to_lung(x: float, y: float, z: float, anatomy: Anatomy) -> float:
    """Return the distance to the pleura of the lung of this side."""
    inside = _smooth_max(to_cage(x, y, z, anatomy), -to_dome(x, y, z, anatomy), 3.0)
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
    behind = min(0.0, y - spine_y(z) + 2)
    hollow = min(hollow, math.sqrt(x * x + behind * behind) - 23)
    if x > 0:
        above = max(0.0, z - 122)  # of the aorta, the end of its arch
        hollow = min(hollow, math.sqrt((x - 18) ** 2 + (y - 46) ** 2 + above * above) - 17.5)
    hollow = min(hollow, to_heart(x, y, z, anatomy) - 4)
    return _smooth_max(inside, -hollow, 9.0)


@compiled
def dependence(x: float, y: float, z: float, down: float) -> float:
    """Return how low a place of the lung lies: larger at the base, and at the back of a supine patient."""
    return 0.7 * down * y - 0.7 * z + 5 * math.sin(x / 11) + 5 * math.sin((y - z) / 15)


@compiled
def fluid_depth(x: float, y: float, z: float, down: float) -> float:
    """Return how low a place lies for fluid, which is thicker towards the base and has a curved surface."""
    return 0.95 * down * y - 0.3 * z + 0.0015 * (abs(x) - 60) ** 2
