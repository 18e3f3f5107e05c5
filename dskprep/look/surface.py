"""Surfaces of a volume, lit: rays through the voxels, no mesh. numpy and scipy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.preparation import resample
from dskprep.volume import AIR_HU, PADDING, Volume

SURFACES_HU = {"tissue": -320, "bone": 400}
"""The two levels of the 2017 tutorial's surface plots: air to tissue, and bone ."""

VOXEL_MM = 1.5
"""Of the grid that rays pass through."""

LIGHTS = (((-0.45, -0.75, -0.5), 0.75), ((0.6, -0.7, 0.1), 0.25))
"""Directions from which light comes, and how much: over the viewer's left shoulder, and to fill from the right.

Seen from the viewer: (x to the right, y away, z down).
"""

AMBIENT = 0.18
GLOSS, GLOSS_POWER = 0.25, 24

FADE = 0.45
"""How much darker the farthest point is than the nearest: depth that shading alone does not show."""

COLOURS = {"tissue": (0.87, 0.67, 0.56), "bone": (0.93, 0.89, 0.78)}
LUNG_COLOURS = {1: (0.34, 0.71, 0.91), 2: (0.90, 0.62, 0.00)}


def of_hu(volume: Volume, kind: str, turn_degrees: float) -> NDArray[np.float64]:
    """The tissue or bone of int16 HU (z, y, x) as RGB in 0..1 (rows, columns, 3), seen from the front.

    The patient is turned by `turn_degrees` about the long axis, their left side towards the viewer.
    """
    filled = resample.fill_padding(volume) if (volume.array == PADDING).any() else volume
    grid = resample.to_spacing(filled, (VOXEL_MM, VOXEL_MM, VOXEL_MM)).array.astype(np.float32)
    turned = _turned(ndimage.gaussian_filter(grid, 0.7), turn_degrees, AIR_HU)
    return _lit(turned, SURFACES_HU[kind], lambda _hits: np.array(COLOURS[kind]))


def of_mask(mask: Volume, turn_degrees: float) -> NDArray[np.float64]:
    """The lungs of a uint8 mask (z, y, x): the right one blue, the left one orange; as `of_hu`."""
    labels = [
        resample.to_spacing(
            mask.with_array(np.where(mask.array == label, np.int16(1000), np.int16(0))), (VOXEL_MM,) * 3
        )
        for label in LUNG_COLOURS
    ]
    right, left = (
        _turned(ndimage.gaussian_filter(part.array.astype(np.float32), 0.7), turn_degrees, 0) for part in labels
    )

    def colour(hits: tuple[NDArray[Any], ...]) -> NDArray[np.float64]:
        is_right = (right[hits] >= left[hits])[:, None]
        return np.where(is_right, LUNG_COLOURS[1], LUNG_COLOURS[2])

    return _lit(right + left, 500, colour)


def _turned(array: NDArray[np.float32], degrees: float, outside: float) -> NDArray[np.float32]:
    """The array (z, y, x) with a rim of `outside`, head at row 0, turned about z."""
    array = np.pad(array[::-1], 2, constant_values=outside)
    turned: NDArray[np.float32] = (
        array if degrees == 0 else ndimage.rotate(array, degrees, axes=(1, 2), order=1, cval=outside)
    )
    return turned


def _lit(array: NDArray[np.float32], level: float, colour: Any) -> NDArray[np.float64]:
    """Rays along +y meet the first voxel above the level; the gradient there is the surface's normal."""
    above = array[:, 1:-1] > level
    depth = above.argmax(axis=1) + 1
    rows, columns = np.nonzero(above.any(axis=1))
    inside = (rows > 0) & (rows < array.shape[0] - 1) & (columns > 0) & (columns < array.shape[2] - 1)
    rows, columns = rows[inside], columns[inside]
    y = depth[rows, columns]
    hits = rows, y, columns
    picture = np.zeros((array.shape[0], array.shape[2], 3))
    if len(rows) == 0:
        return picture
    slopes = [
        array[rows, y, columns + 1] - array[rows, y, columns - 1],
        array[rows, y + 1, columns] - array[rows, y - 1, columns],
        array[rows + 1, y, columns] - array[rows - 1, y, columns],
    ]
    normal = -np.stack(slopes, axis=1).astype(np.float64)  # from dense to thin
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    light, gloss = np.full(len(rows), AMBIENT), np.zeros(len(rows))
    for direction, strength in LIGHTS:
        towards = np.array(direction) / np.linalg.norm(direction)
        light += strength * np.clip(normal @ towards, 0, 1)
        halfway = towards + (0, -1, 0)
        gloss += strength * np.clip(normal @ (halfway / np.linalg.norm(halfway)), 0, 1) ** GLOSS_POWER
    near, far = np.percentile(y, [1, 99])
    fade = 1 - FADE * np.clip((y - near) / max(far - near, 1), 0, 1)
    picture[rows, columns] = np.clip(colour(hits) * (light * fade)[:, None] + GLOSS * (gloss * fade)[:, None], 0, 1)
    return picture
