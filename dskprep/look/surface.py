"""Lit surfaces of a volume: a mesh at one level, drawn from the front or turned."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from dskprep import sides
from dskprep.kernels.compiled import compiled
from dskprep.preparation import resample
from dskprep.volume import AIR_HU, PADDING, Volume

SURFACES = {"bone": (400, (237, 227, 199)), "tissue": (-320, (222, 171, 143))}
"""The levels in HU of the 2017 tutorial's surface plots, bone and air to tissue, and the colour of each surface."""
VOXEL_MM = 1.5
"""Edge of the voxels that the surface is found in."""
PIXEL_MM = 1.0
"""Edge of a pixel of the picture."""
SMOOTHING_VOXELS = 0.7
"""Standard deviation of the blur before the surface is found: it takes away steps and noise."""

LIGHTS = (((-0.45, -0.75, -0.5), 0.75), ((0.6, -0.7, 0.1), 0.25))
"""Direction to each light as the viewer sees it (x to the right, y away, z down), and its strength.

The first shines over the viewer's left shoulder, the second lightens shadows from the right.
"""
AMBIENT = 0.18
"""Light that falls on every point, whatever its direction."""
GLOSS = 0.25
"""Strength of the highlights."""
GLOSS_POWER = 24
"""Exponent of the highlights: the larger, the smaller they are (Blinn 1977)."""
FADE = 0.45
"""How much darker the farthest point is than the nearest: it shows depth, which shading alone does not."""


class Mesh(NamedTuple):
    """Triangles in one colour: `faces` (m, 3) index `vertices_mm` and their outward `normals`, (n, 3) as (z, y, x)."""

    vertices_mm: NDArray[np.float32]
    normals: NDArray[np.float32]
    faces: NDArray[np.int32]
    rgb: tuple[int, int, int]


def of_hu(volume: Volume, kind: str) -> list[Mesh]:
    """Return the surface of the `tissue` or the `bone` of an int16 HU volume (z, y, x)."""
    filled = resample.fill_padding(volume) if (volume.array == PADDING).any() else volume
    level, rgb = SURFACES[kind]
    return _meshes(filled, level, AIR_HU, rgb)


def of_mask(mask: Volume) -> list[Mesh]:
    """Return the surfaces of the lungs in a uint8 mask (z, y, x), each in its colour."""
    return [
        mesh
        for side, rgb in sides.RGB.items()
        for mesh in _meshes(mask.with_array(np.where(mask.array == side, np.int16(1000), np.int16(0))), 500, 0, rgb)
    ]


def _meshes(volume: Volume, level: float, outside: float, rgb: tuple[int, int, int]) -> list[Mesh]:
    """Return where a volume crosses `level`, closed at its edges by voxels of value `outside`; none if it does not."""
    grid = resample.to_spacing(volume, (VOXEL_MM,) * 3)
    array = np.pad(ndimage.gaussian_filter(grid.array.astype(np.float32), SMOOTHING_VOXELS), 1, constant_values=outside)
    if array.max() <= level:
        return []
    vertices, faces, normals, _ = measure.marching_cubes(array, level, spacing=grid.spacing)  # type: ignore[no-untyped-call]
    return [Mesh(vertices, normals, faces, rgb)]


def draw(meshes: list[Mesh], turn_degrees: float) -> NDArray[np.float64]:
    """Draw meshes as RGB from 0 to 1 (rows, columns, 3): from the front, head up, the patient's left on the right.

    The patient is turned by `turn_degrees` about the long axis, their left side towards the viewer.
    """
    if not meshes:
        return np.zeros((1, 1, 3))
    sin, cos = np.sin(np.deg2rad(turn_degrees)), np.cos(np.deg2rad(turn_degrees))
    to_view = np.array([[0, 0, -1], [sin, cos, 0], [cos, -sin, 0]], np.float32)  # x right, y away, z down
    points = [mesh.vertices_mm @ to_view / PIXEL_MM for mesh in meshes]
    first = np.min([p.min(axis=0) for p in points], axis=0) - 1
    columns, _, rows = (np.max([p.max(axis=0) for p in points], axis=0) - first).astype(int) + 2
    depth = np.full((rows, columns), np.inf, np.float32)
    normals, colours = np.zeros((rows, columns, 3), np.float32), np.zeros((rows, columns, 3), np.float32)
    for mesh, place in zip(meshes, points, strict=True):
        behind = depth.copy()
        _rasterise(place - first, mesh.normals @ to_view, mesh.faces, depth, normals)
        colours[depth < behind] = np.array(mesh.rgb) / 255
    picture = np.zeros((rows, columns, 3))
    is_lit = np.isfinite(depth)
    if is_lit.any():
        picture[is_lit] = _light(colours[is_lit], normals[is_lit], depth[is_lit])
    return picture


@compiled
def _rasterise(
    points: NDArray[np.float32],
    point_normals: NDArray[np.float32],
    faces: NDArray[np.int32],
    depth: NDArray[np.float32],
    normals: NDArray[np.float32],
) -> None:
    """Set depth (rows, columns) and normal (rows, columns, 3) of each pixel whose centre a triangle covers first.

    `points` are (x, away from the viewer, row), in pixels.
    """
    for face in range(len(faces)):
        p, q, r = faces[face]
        x0, y0, z0 = points[p]
        x1, y1, z1 = points[q]
        x2, y2, z2 = points[r]
        area = (x1 - x0) * (z2 - z0) - (z1 - z0) * (x2 - x0)
        if area == 0:
            continue
        for row in range(math.ceil(min(z0, z1, z2)), math.floor(max(z0, z1, z2)) + 1):
            for column in range(math.ceil(min(x0, x1, x2)), math.floor(max(x0, x1, x2)) + 1):
                # barycentric weights: the pixel's centre is inside if none is negative
                u = ((x1 - column) * (z2 - row) - (z1 - row) * (x2 - column)) / area
                v = ((x2 - column) * (z0 - row) - (z2 - row) * (x0 - column)) / area
                w = 1 - u - v
                away = u * y0 + v * y1 + w * y2
                if min(u, v, w) >= 0 and away < depth[row, column]:
                    depth[row, column] = away
                    for axis in range(3):
                        normals[row, column, axis] = (
                            u * point_normals[p, axis] + v * point_normals[q, axis] + w * point_normals[r, axis]
                        )


def _light(
    colours: NDArray[np.float32], normals: NDArray[np.float32], depth: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the lit colours (n, 3) of points with these normals, darker with depth (Blinn and Phong's shading)."""
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    light, gloss = np.full(len(normals), AMBIENT), np.zeros(len(normals))
    for direction, strength in LIGHTS:
        towards = np.array(direction) / np.linalg.norm(direction)
        halfway = towards + (0, -1, 0)
        light += strength * np.clip(normals @ towards, 0, 1)
        gloss += strength * np.clip(normals @ (halfway / np.linalg.norm(halfway)), 0, 1) ** GLOSS_POWER
    near, far = np.percentile(depth, [1, 99])
    fade = 1 - FADE * np.clip((depth - near) / max(far - near, 1), 0, 1)
    lit: NDArray[np.float64] = np.clip(colours * (light * fade)[:, None] + GLOSS * (gloss * fade)[:, None], 0, 1)
    return lit
