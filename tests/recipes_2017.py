"""The recipes of 2017, written straight from their rules with numpy, scipy and scikit-image."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage import measure
from skimage.morphology import convex_hull_image


def hounsfield(
    stored: NDArray, slopes: ArrayLike, intercepts: ArrayLike, *, padding: int | None = -2000
) -> NDArray[np.int16]:
    """Steps 3 and 4 of the tutorial."""
    image = np.stack([plane.astype(np.int16) for plane in stored])
    if padding is not None:
        image[image == padding] = 0
    for plane, slope, intercept in zip(image, np.asarray(slopes), np.asarray(intercepts), strict=True):
        if slope != 1:
            plane[...] = (slope * plane.astype(np.float64)).astype(np.int16)
        plane += np.int16(intercept)
    return image


def resample(image: NDArray, spacing: ArrayLike, target: ArrayLike = (1, 1, 1), order: int = 3) -> NDArray:
    """Step 5."""
    factor = np.asarray(spacing, np.float64) / np.asarray(target)
    shape = np.round(np.array(image.shape) * factor)
    return ndimage.zoom(image, shape / image.shape, order=order, mode="nearest")


def _most_common(labels: NDArray, background: int) -> int | None:
    values, counts = np.unique(labels, return_counts=True)
    counts, values = counts[values != background], values[values != background]
    return int(values[counts.argmax()]) if len(counts) else None


def segment(image: NDArray, fill: bool = True) -> NDArray:
    """Steps 7 to 10."""
    binary = np.array(image > -320, dtype=np.int8) + 1
    labels = measure.label(binary)
    binary[labels == labels[0, 0, 0]] = 2
    if fill:
        for plane in binary:
            pieces = measure.label(plane - 1)
            body = _most_common(pieces, 0)
            if body is not None:
                plane[pieces != body] = 1
    lung = 1 - (binary - 1)
    labels = measure.label(lung, background=0)
    largest = _most_common(labels, 0)
    if largest is not None:
        lung[labels != largest] = 0
    return lung


def normalize(image: NDArray) -> NDArray[np.float64]:
    """Steps 12 and 13."""
    scaled = (image.astype(np.float64) + 1000.0) / 1400.0
    scaled[scaled > 1] = 1.0
    scaled[scaled < 0] = 0.0
    return scaled - 0.25


class Grt123(NamedTuple):
    """What the recipe grt123 gives: the crop, where it begins, and the masks on the native grid."""

    image: NDArray[np.uint8]
    first: NDArray
    lungs: tuple[NDArray, NDArray]
    soft: NDArray
    erosions: int
    cut: int


def grt123(image: NDArray[np.int16], spacing: ArrayLike) -> Grt123 | None:
    """Steps 2 to 8; None where no lung is found."""
    spacing = np.asarray(spacing, np.float64)
    air = _air_in_slices(image, spacing)
    for cut in range(0, len(air), 2):
        lung = _choose(air, spacing, cut)
        if lung.any():
            break
    else:
        return None
    lung = _fill_holes(lung)
    first, second, erosions = _two_lungs(lung, spacing)
    soft = _soft(first) | _soft(second)
    grey = (np.clip((image + 1200.0) / 1800.0, 0, 1) * 255).astype(np.uint8)
    grey = grey * soft + 170 * (1 - soft).astype(np.uint8)
    ring = soft ^ (first | second)
    grey[grey * ring > 210] = 170
    whole = resample(grey, spacing, order=1)
    where = np.array(np.nonzero(first | second))
    begin = np.maximum(0, where.min(axis=1) * spacing - 5).astype(int)
    end = np.minimum(whole.shape, where.max(axis=1) * spacing + 10).astype(int)
    crop = whole[tuple(slice(a, b) for a, b in zip(begin, end, strict=True))]
    return Grt123(crop, begin, (first, second), soft, erosions, cut)


def _air_in_slices(image: NDArray, spacing: NDArray) -> NDArray:
    air = np.zeros(image.shape, bool)
    n = image.shape[1]
    x, y = np.meshgrid(*[np.linspace(-n / 2 + 0.5, n / 2 - 0.5, n)] * 2)
    circle = np.where(np.sqrt(x**2 + y**2) < n / 2, 1.0, np.nan)
    for k, plane in enumerate(image.astype(np.float32)):
        if len(np.unique(plane[:10, :10])) == 1:
            plane = plane * circle
        pieces = measure.label(ndimage.gaussian_filter(plane, 1, truncate=2.0) < -600)
        kept = [
            p.label
            for p in measure.regionprops(pieces)
            if p.area * spacing[1] * spacing[2] > 30 and p.eccentricity < 0.99
        ]
        air[k] = np.isin(pieces, kept)
    return air


def _choose(air: NDArray, spacing: NDArray, cut: int) -> NDArray:
    blanked = air.copy()
    if cut:
        blanked[-cut:] = False
    labels = measure.label(blanked, connectivity=1)
    middle = labels.shape[2] // 2
    corners = {labels[z, y, x] for z in (0, -1 - cut) for y in (0, -1) for x in (0, middle, -1)}
    offsets = [np.linspace(-n / 2 + 0.5, n / 2 - 0.5, n) for n in labels.shape[1:]]
    x, y = np.meshgrid(offsets[0] * spacing[1], offsets[1] * spacing[2])
    distance = np.sqrt(x**2 + y**2)
    kept = []
    for piece in measure.regionprops(labels):
        ml = piece.area * spacing.prod() / 1000
        if piece.label in corners or not 680 <= ml <= 7500:
            continue
        is_piece = labels == piece.label
        areas = is_piece.sum(axis=(1, 2)) * spacing[1] * spacing[2]
        wide = [np.where(plane, distance, distance.max()).min() for plane in is_piece[areas > 6000]]
        if wide and np.mean(wide) < 62:
            kept.append(piece.label)
    lung = np.isin(labels, kept)
    if not cut or not kept:
        return lung
    both = lung.copy()
    both[-cut:] = air[-cut:]
    both &= ndimage.binary_dilation(lung, iterations=cut)
    labels, joined = measure.label(lung, connectivity=1), measure.label(both, connectivity=1)
    names = {joined[tuple(piece.coords[0])] for piece in measure.regionprops(labels)}
    return np.isin(joined, list(names - {0}))


def _fill_holes(lung: NDArray) -> NDArray:
    labels = measure.label(~lung)
    outside = {labels[z, y, x] for z in (0, -1) for y in (0, -1) for x in (0, -1)}
    return ~np.isin(labels, list(outside))


def _by_area(mask: NDArray, connectivity: int | None = None) -> tuple[NDArray, list]:
    labels = measure.label(mask, connectivity=connectivity)
    return labels, sorted(measure.regionprops(labels), key=lambda p: p.area, reverse=True)


def _two_lungs(lung: NDArray, spacing: NDArray) -> tuple[NDArray, NDArray, int]:
    eroded, erosions = lung, 0
    while erosions < 22:
        labels, pieces = _by_area(eroded, 2)
        if len(pieces) > 1 and int(pieces[0].area) // int(pieces[1].area) < 4.8:
            break
        eroded = ndimage.binary_erosion(eroded)
        erosions += 1
    else:
        return _fill_slices(lung), np.zeros_like(lung), erosions
    to_first, to_second = (
        ndimage.distance_transform_edt(labels != piece.label, sampling=spacing) for piece in pieces[:2]
    )
    first, second = (_main(lung & nearer) for nearer in (to_first < to_second, to_second < to_first))
    return _fill_slices(first), _fill_slices(second), erosions


def _main(lung: NDArray) -> NDArray:
    kept = lung.copy()
    for k, plane in enumerate(lung):
        _, pieces = _by_area(plane)
        hulls, covered = np.zeros(plane.shape, bool), 0
        for piece in pieces:
            if covered >= 0.95 * plane.sum():
                break
            covered += piece.area
            y0, x0, y1, x1 = piece.bbox
            hulls[y0:y1, x0:x1] |= _convex(piece)
        kept[k] &= hulls
    labels, pieces = _by_area(kept)
    return labels == pieces[0].label


def _convex(piece: measure._regionprops.RegionProperties) -> NDArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pieces too thin for a hull
        return piece.image_convex


def _fill_slices(lung: NDArray) -> NDArray:
    for plane in lung:
        for piece in measure.regionprops(measure.label(plane)):
            y0, x0, y1, x1 = piece.bbox
            plane[y0:y1, x0:x1] |= piece.image_filled
    return lung


def _soft(lung: NDArray) -> NDArray:
    soft = lung.copy()
    for k, plane in enumerate(lung):
        if plane.any():
            hull = convex_hull_image(np.ascontiguousarray(plane))
            soft[k] = plane if hull.sum() > 2 * plane.sum() else hull
    return ndimage.binary_dilation(soft, structure=ndimage.generate_binary_structure(3, 1), iterations=10)
