"""Draw a small picture of a volume in a few milliseconds, for pages that show thousands of them."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dskprep import sides
from dskprep.dataset import own
from dskprep.kernels import planes
from dskprep.kernels.masks import cast_shadows
from dskprep.preparation import resample
from dskprep.preparation.prepared import Prepared, Values
from dskprep.volume import Triple

WINDOWS: dict[Values, tuple[float, float]] = {"HU": (-1350, 150), "normalized": (-0.25, 0.57), "uint8": (0, 191)}
"""The values that are drawn black and white, for each kind of values: the lung window, -1350 to 150 HU."""

EDGE = 144
"""Pixels along each side of the square that a plane is fitted into."""

QUALITY = 60
"""Quality of the WebP, from 0 to 100; 60 makes about 4 KB per patient."""

LETTER_R = np.array(
    [[c == "#" for c in row] for row in ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#")]
)
"""The letter that marks the patient's right side, on the left of each square: 5 x 7 pixels."""

SAMPLES = 64
"""About how many voxels along each axis are looked at to find the middle of the lungs."""


def draw(prepared: Prepared) -> bytes:
    """Draw the axial and coronal plane through the middle of the lungs, side by side, with the lungs' outlines.

    Returns a WebP. The patient's left is on the right, and an R marks the right side; the front is up in the axial
    plane, the head in the coronal one. The same volume gives the same bytes.
    """
    image = prepared.image
    mask = None if prepared.lungs is None else prepared.lungs.mask.array
    z, y, _ = middle(image.shape, mask)
    z_mm, y_mm, x_mm = image.spacing
    window = WINDOWS.get(prepared.values) or (float(image.array[z].min()), float(image.array[z].max()) + 1e-6)
    axial = _tile(image.array[z], None if mask is None else mask[z], (y_mm, x_mm), window)
    coronal = _tile(image.array[::-1, y], None if mask is None else mask[::-1, y], (z_mm, x_mm), window)
    return bytes(
        imagecodecs.webp_encode(np.hstack([axial, coronal]), level=QUALITY, lossless=False, method=2, numthreads=1)
    )


def draw_label(
    mask: NDArray[np.bool_],
    first: tuple[int, int, int],
    shape: tuple[int, int, int],
    spacing_mm: Triple,
    rgb: tuple[int, int, int],
) -> bytes:
    """Draw a label as it lies over the thumbnail of its volume: outlines of its shadows from above and from the front.

    `mask` (z, y, x) is the box round the label that begins at voxel `first` of the volume, whose `shape` and spacing
    are given. Returns a lossless WebP of the size of a thumbnail, clear but for the outlines; no image is needed.
    """
    z_mm, y_mm, x_mm = spacing_mm
    z, y, x = first
    from_head = shape[0] - z - mask.shape[0]
    above, before = np.zeros(mask.shape[1:], np.uint8), np.zeros(mask.shape[::2], np.uint8)
    cast_shadows(mask.view(np.uint8), above, before)
    axial = _shadow(above, (y, x), (shape[1], shape[2]), (y_mm, x_mm))
    coronal = _shadow(before[::-1], (from_head, x), (shape[0], shape[2]), (z_mm, x_mm))
    both = np.hstack([axial, coronal])
    colour = np.zeros((*both.shape, 4), np.uint8)
    colour[both] = (*rgb, 255)
    return bytes(imagecodecs.webp_encode(colour, lossless=True, method=2, numthreads=1))


def _shadow(
    part: NDArray[Any], first: tuple[int, int], shape: tuple[int, int], pixel_mm: tuple[float, float]
) -> NDArray[np.bool_]:
    """Return the outline of a shadow in a square of EDGE x EDGE pixels; a pixel has it if any of its voxels has.

    The shadow is `part` of a plane of this shape, from `first` on. Only its pixels are looked at.
    """
    fitted, begin = _fit(shape, pixel_mm), []
    for axis, (n, low) in enumerate(zip(fitted, first, strict=True)):
        starts = np.arange(n) * shape[axis] // n
        of_first, of_last = np.searchsorted(starts, [low, low + part.shape[axis] - 1], side="right") - 1
        at = int(np.searchsorted(starts, starts[of_first]))  # where pixels are finer than voxels, the first of several
        part = np.logical_or.reduceat(part, np.maximum(starts[at : of_last + 1] - low, 0), axis)
        begin.append((EDGE - n) // 2 + at)
    square = np.zeros((EDGE, EDGE), np.bool_)
    square[begin[0] : begin[0] + part.shape[0], begin[1] : begin[1] + part.shape[1]] = _rim(part)
    return square


def _rim(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask that have a neighbour outside of it."""
    around = np.pad(inside, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    rim: NDArray[np.bool_] = inside & ~inner
    return rim


def read(
    picture: bytes, shape: tuple[int, int, int], spacing_mm: Triple
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the two planes of a thumbnail that `draw` made, in colours (rows, columns, 3), without what is round them.

    Raises ValueError if it is none.
    """
    if not own.is_thumbnail(picture[: own.THUMBNAIL_HEAD_BYTES]):
        raise ValueError("expected a thumbnail that dskprep drew")
    try:
        both = imagecodecs.webp_decode(picture)
    except imagecodecs.WebpError as error:
        raise ValueError(f"the thumbnail is damaged: {error}") from error
    if both.shape[:2] != (EDGE, 2 * EDGE):
        raise ValueError(f"expected {2 * EDGE} x {EDGE} pixels, found {both.shape}")
    (n_z, n_y, n_x), (z_mm, y_mm, x_mm) = shape, spacing_mm
    found = []
    for tile, plane, pixel_mm in (
        (both[:, :EDGE], (n_y, n_x), (y_mm, x_mm)),
        (both[:, EDGE:], (n_z, n_x), (z_mm, x_mm)),
    ):
        rows, columns = _fit(plane, pixel_mm)
        top, left = (EDGE - rows) // 2, (EDGE - columns) // 2
        found.append(tile[top : top + rows, left : left + columns, :3])
    return found[0], found[1]


def middle(shape: tuple[int, int, int], mask: NDArray[np.uint8] | None) -> tuple[int, int, int]:
    """Return the index (z, y, x) whose planes show most: the middle of the lungs, along x of the right one.

    Without lungs it is the middle of the volume.
    """
    steps = [max(1, n // SAMPLES) for n in shape]
    if mask is not None:
        some = mask[tuple(slice(step // 2, None, step) for step in steps)]
        if some.any():
            right = some == sides.RIGHT if (some == sides.RIGHT).any() else some > 0
            halves = (_half(some > 0, 0), _half(some > 0, 1), _half(right, 2))
            z, y, x = (half * step + step // 2 for half, step in zip(halves, steps, strict=True))
            return z, y, x
    z, y, x = (n // 2 for n in shape)
    return z, y, x


def _half(mask: NDArray[np.bool_], axis: int) -> int:
    """Return the plane along an axis that has half of the mask on either side."""
    along = mask.sum(axis=tuple(a for a in range(3) if a != axis)).cumsum()
    return int(np.searchsorted(along, along[-1] / 2))


def _fit(shape: tuple[int, ...], pixel_mm: tuple[float, float]) -> tuple[int, int]:
    """Return the rows and columns that a plane takes of its square."""
    size_mm = np.multiply(shape, pixel_mm)
    rows, columns = (max(1, round(EDGE * mm / size_mm.max())) for mm in size_mm)
    return rows, columns


def _tile(
    plane: NDArray[Any], mask: NDArray[np.uint8] | None, pixel_mm: tuple[float, float], window: tuple[float, float]
) -> NDArray[np.uint8]:
    """Draw a plane in colour into a black square of EDGE x EDGE pixels, with equal millimetres along both axes."""
    rows, columns = _fit(plane.shape, pixel_mm)
    y, x = (
        resample.axis_taps(n, n / n_out, smooth=True) for n, n_out in zip(plane.shape, (rows, columns), strict=True)
    )
    low, high = window
    small = np.empty((rows, columns), np.float32)
    planes.weigh_plane(np.ascontiguousarray(plane), y.start, y.weights, x.start, x.weights, small)
    grey = (np.clip((small - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    if mask is not None:
        labels = mask[np.ix_(y.nearest, x.nearest)]
        for label, rgb in sides.RGB.items():
            colour[_rim(labels == label)] = rgb
    tile = np.zeros((EDGE, EDGE, 3), np.uint8)
    top, left = (EDGE - rows) // 2, (EDGE - columns) // 2
    tile[top : top + rows, left : left + columns] = colour
    _mark_right(tile)
    return tile


def _mark_right(tile: NDArray[np.uint8]) -> None:
    """Write a white R with a black rim into the left edge of a tile, in the middle of its height."""
    letter = np.pad(LETTER_R, 1)
    rows, columns = letter.shape
    top = (EDGE - rows) // 2
    place = tile[top : top + rows, 2 : 2 + columns]
    place[sliding_window_view(np.pad(letter, 1), (3, 3)).any(axis=(2, 3))] = 0
    place[letter] = 255
