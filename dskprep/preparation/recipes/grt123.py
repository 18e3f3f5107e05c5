"""Recipe `grt123`: the preprocessing of the winner of the Data Science Bowl 2017 (team grt123)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dskprep import sides
from dskprep.errors import Refusal
from dskprep.kernels import bits, hulls, runs
from dskprep.kernels import grt123 as kernels
from dskprep.kernels.runs import Runs
from dskprep.preparation import zoom
from dskprep.preparation.lungs import lungs
from dskprep.preparation.prepared import Crop, Prepared
from dskprep.preparation.recipes import ENCODING_SHARE, Memory, Native, Recipe, grt123_lungs, tutorial
from dskprep.preparation.recipes.grt123_lungs import Shape
from dskprep.settings import PrepConfig
from dskprep.stopwatch import Stopwatch
from dskprep.volume import Volume

MAX_HULL_RATIO = 2.0
"""A convex hull of more than so many times the area of the lung in its slice is left out."""
DILATIONS = 10
"""Voxels of the native grid that the soft mask is dilated by, whatever the spacing."""
WINDOW_HU = (-1200.0, 600.0)
"""HU that become 0 and 255."""
FILL = 170
"""Painted over what is outside the soft mask: grey of water, about."""
BONE = 210
"""What is brighter than this in the soft mask, but not in the lungs, is painted over too."""
BELOW_MM, ABOVE_MM = 5, 10
"""Kept before and behind the box of the lungs, along each axis."""
BOX_SHARE = 0.35
"""Part of a scan that the box of the lungs takes up, but for the narrowest fields of view."""
BOX_BYTES = 11
"""Bytes per voxel of that box while the lungs are parted: two distances, and masks."""


def to_hu(stored: NDArray[np.generic], slope: float, intercept: float, out: NDArray[np.int16]) -> None:
    """Write the HU of a slice of stored values (y, x) into `out`, as the tutorial does, but leave padding as it is."""
    out[...] = stored
    tutorial.rescale(out, slope, intercept)


def prepare(native: Native, config: PrepConfig, clock: Stopwatch) -> Prepared:  # noqa: ARG001
    """Make the image in uint8 at 1 mm, cut to the lungs, with what is far from them painted over.

    -1200..600 HU become 0..255; 170 outside the soft mask.
    The stored lungs are those before the hulls, sampled at the image's voxels.

    Defects kept: T2, T8, T10, T11, T16, and its own (see docs/recipes.md): the dilation is 10 voxels of the
    native grid, the area ratio of the lungs is an integer one, as in Python 2, and slices are taken for
    square. Raises Refusal: `no-thickness`, `no-lungs`, `not-square`.
    """
    volume = native.volume()
    _, ny, nx = volume.shape
    if ny != nx:
        raise Refusal("not-square", f"expected slices as wide as they are high, found {ny} x {nx} pixels")
    shape = tutorial.new_shape(volume, native.first_gap_mm)
    spacing = (native.first_gap_mm, *volume.spacing[1:])
    with clock("lungs"):
        found = grt123_lungs.find_lungs(volume.array, spacing)
        box = runs.box_of(found, volume.shape[1])
        masks = [runs.to_bits(lung, volume.shape) for lung in found]
        soft = np.bitwise_or(*(_soft_mask(lung, volume.shape) for lung in found))
    with clock("resample"):
        crop = [
            slice(max(0, int(begin * s - BELOW_MM)), min(n, int((end - 1) * s + ABOVE_MM)))
            for (begin, end), s, n in zip(box, spacing, shape, strict=True)
        ]
        z, y, x = (
            zoom.taps(n, n_out, order=1).part(outputs)
            for n, n_out, outputs in zip(volume.shape, shape, crop, strict=True)
        )
        both = masks[0] | masks[1]
        table, plane = grey_table(), np.empty(volume.shape[1:], np.uint8)

        def grey_plane(k: int) -> NDArray[np.uint8]:
            kernels.grey_plane(volume.array[k], table, both[k], soft[k], FILL, BONE, plane)
            return plane

        image = zoom.zoom(grey_plane, z, y, x, np.uint8)
        labels = np.zeros(image.shape, np.uint8)
        for mask, side in zip(masks, _sides(found, volume), strict=True):
            kernels.sample(mask, z.nearest, y.nearest, x.nearest, side, labels)
    affine = zoom.zoomed_affine(volume, shape)
    first = (crop[0].start, crop[1].start, crop[2].start)
    affine[:3, 3] += affine[:3, :3] @ first
    cropped = Volume(image, affine)
    return Prepared(cropped, lungs.judge(cropped.with_array(labels)), "uint8", FILL, Crop(first, shape))


def grey_table() -> NDArray[np.uint8]:
    """Return the uint8 of every int16 HU, from -32768 on; fractions are cut off."""
    low, high = WINDOW_HU
    share = np.clip((np.arange(-32768, 32768) - low) / (high - low), 0.0, 1.0)
    table: NDArray[np.uint8] = (share * 255).astype(np.uint8)
    return table


def _soft_mask(lung: Runs, shape: Shape) -> NDArray[np.uint64]:
    """Dilate the convex hull of each slice, unless it is too large: step 6. Returns bits."""
    soft: NDArray[np.uint64] = bits.dilate(hulls.fill_hulls(lung, shape, MAX_HULL_RATIO), shape[2], DILATIONS)
    return soft


def _sides(found: tuple[Runs, Runs], volume: Volume) -> tuple[int, int]:
    """Return RIGHT and LEFT in the order of the two lungs, by where their middles lie in the patient."""
    left_of = [_middle_mm(lung, volume) for lung in found]
    if left_of[1] is None or left_of[0] is None or left_of[0] < left_of[1]:
        return sides.RIGHT, sides.LEFT
    return sides.LEFT, sides.RIGHT


def _middle_mm(lung: Runs, volume: Volume) -> float | None:
    """Return the LPS x of a lung's middle, or None if it is empty."""
    ny = volume.shape[1]
    n = (lung.stops - lung.starts).astype(np.float64)
    if n.size == 0:
        return None
    rows = runs.rows_of(lung)
    places = np.stack([rows // ny, rows % ny, (lung.starts + lung.stops - 1) / 2], axis=1)
    return float(volume.to_patient(n @ places / n.sum())[0])


def memory(n_native: int, n_output: float, config: PrepConfig) -> Memory:  # noqa: ARG001
    """Return the memory of `prepare`: lungs are found on the native grid; a narrow crop is not counted on."""
    return Memory((0.5 + BOX_SHARE * BOX_BYTES) * n_native, ENCODING_SHARE * 2 * n_output)


RECIPE = Recipe("grt123", prepare, memory, to_hu)
