"""Recipe `grt123`: the preprocessing of the winner of the Data Science Bowl 2017 (team grt123)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dskprep import sides
from dskprep.errors import Refusal
from dskprep.kernels import bits, components, distances, hulls, runs
from dskprep.kernels import grt123 as kernels
from dskprep.kernels.runs import Runs
from dskprep.preparation import zoom
from dskprep.preparation.lungs import lungs
from dskprep.preparation.prepared import Crop, Prepared
from dskprep.preparation.recipes import tutorial
from dskprep.settings import PrepConfig
from dskprep.stopwatch import Stopwatch
from dskprep.volume import Triple, Volume

AIR_HU = -600.0
SMOOTHING = np.exp(-0.5 * np.arange(3.0) ** 2) / np.exp(-0.5 * np.arange(-2.0, 3.0) ** 2).sum()
"""A Gaussian of sigma 1 voxel, cut off at 2."""

MIN_AREA_MM2, MAX_ECCENTRICITY = 30.0, 0.99
"""Pieces of a slice that may be lung."""

MIN_ML, MAX_ML = 680.0, 7500.0
WIDE_MM2, MAX_DISTANCE_MM = 6000.0, 62.0
"""Pieces that may be lungs: where a slice of theirs is wide, they come near its centre on average."""

CUT_STEP = 2
"""Slices at the top that are blanked at a time until lungs are found."""

MAX_EROSIONS, MAX_AREA_RATIO = 22, 4.8
MAIN_SHARE = 0.95
"""Part of a lung's area in a slice that its main pieces hold."""

MAX_HULL_RATIO = 2.0
DILATIONS = 10
WINDOW_HU = (-1200.0, 600.0)
FILL, BONE = 170, 210
BELOW_MM, ABOVE_MM = 5, 10
"""Kept round the box of the lungs, before and behind."""


Shape = tuple[int, int, int]


class Lungs(NamedTuple):
    """Two lungs on the native grid; the second is empty where they could not be parted."""

    first: Runs
    second: Runs


def to_hu(stored: NDArray[np.generic], slope: float, intercept: float, out: NDArray[np.int16]) -> None:
    """A slice of stored values (y, x) to HU in `out`, as in the tutorial, but with its padding left as it is."""
    out[...] = stored
    tutorial.rescale(out, slope, intercept)


def prepare(volume: Volume, first_gap_mm: float, config: PrepConfig, clock: Stopwatch) -> Prepared:  # noqa: ARG001
    """The image in uint8 at 1 mm, cut to the lungs, with what is far from them painted over.

    `volume` is int16 HU (z, y, x) by `to_hu`, its slices from foot to head as they were stored;
    `first_gap_mm` is the distance of the first two. -1200..600 HU become 0..255; 170 outside the soft mask.
    The lungs are the recipe's before their hulls, sampled at the same places. The crop says where the image
    lies in the whole one.

    Defects kept: T2, T8, T10, T11, T16, and its own (see docs/recipes.md): the dilation is 10 voxels of the
    native grid, the area ratio of the lungs is an integer one, as in Python 2, and slices are taken for
    square. Raises Refusal: `no-thickness`, `no-lungs`, `not-square`.
    """
    _check_square(volume)
    shape = tutorial.new_shape(volume, first_gap_mm)
    spacing = (first_gap_mm, *volume.spacing[1:])
    with clock("lungs"):
        found = find_lungs(volume.array, spacing)
        box = _box(found, volume.shape[1])
        masks = [runs.to_bits(lung, volume.shape) for lung in found]
        soft = np.bitwise_or(*(_soft_mask(lung, volume.shape) for lung in found))
    with clock("resample"):
        crop = [
            slice(max(0, int(begin * s - BELOW_MM)), min(n, int(last * s + ABOVE_MM)))
            for (begin, last), s, n in zip(box, spacing, shape, strict=True)
        ]
        z, y, x = (
            zoom.part(zoom.taps(n, n_out, order=1), part)
            for n, n_out, part in zip(volume.shape, shape, crop, strict=True)
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
    """The uint8 of every int16 HU, from -32768 on; fractions are cut off."""
    low, high = WINDOW_HU
    share = np.clip((np.arange(-32768, 32768) - low) / (high - low), 0.0, 1.0)
    table: NDArray[np.uint8] = (share * 255).astype(np.uint8)
    return table


def find_lungs(array: NDArray[np.int16], spacing: Triple) -> Lungs:
    """Steps 2 to 5 on HU (z, y, x). Raises Refusal `no-lungs`."""
    shape = array.shape
    air = _air_in_slices(array, spacing)
    return _part(_fill_holes(_choose(air, shape, spacing), shape), shape, spacing)


def _check_square(volume: Volume) -> None:
    _, ny, nx = volume.shape
    if ny != nx:
        raise Refusal("not-square", f"expected slices as wide as they are high, found {ny} x {nx} pixels")


def _air_in_slices(array: NDArray[np.int16], spacing: Triple) -> Runs:
    """Step 2: pieces of air in each slice that are neither small nor lines."""
    ny = array.shape[1]
    found = kernels.smooth_air(array, AIR_HU, SMOOTHING.astype(np.float32), _round_field(ny))
    pieces = components.label(found, ny, components.IN_SLICE)
    areas = components.sizes(found, pieces) * (spacing[1] * spacing[2])
    is_kept = (areas > MIN_AREA_MM2) & (kernels.eccentricities(found, pieces, ny) < MAX_ECCENTRICITY)
    return runs.where(found, is_kept[pieces])


@lru_cache(maxsize=8)
def _round_field(n: int) -> NDArray[np.int64]:
    """Columns (first, end) of each row of an n x n slice whose smoothing stays within the inscribed circle."""
    centred = np.arange(n) - (n - 1) / 2
    inside = np.hypot(centred[:, None], centred) < n / 2
    known = ~np.isnan(ndimage.gaussian_filter(np.where(inside, 1.0, np.nan), 1.0, truncate=2.0))
    return np.stack([known.argmax(axis=1), np.where(known.any(axis=1), n - known[:, ::-1].argmax(axis=1), 0)], axis=1)


def _choose(air: Runs, shape: Shape, spacing: Triple) -> Runs:
    """Step 3: the pieces that may be lungs; slices at the top are blanked until there are any."""
    nz, ny, _ = shape
    for cut in range(0, nz, CUT_STEP):
        remaining = _without_top(air, cut, ny)
        chosen = _likely_lungs(remaining, shape, spacing, nz - cut)
        if chosen.starts.size:
            return _restored(chosen, air, cut, shape) if cut else chosen
    raise Refusal(
        "no-lungs",
        f"expected air of {MIN_ML:g} to {MAX_ML:g} ml near the middle of the slices, found none, whatever number of "
        "slices at the top is left out",
    )


def _without_top(mask: Runs, cut: int, ny: int) -> Runs:
    """The mask without its last `cut` slices."""
    n_runs = mask.first[mask.first.size - 1 - cut * ny]
    return Runs(np.minimum(mask.first, n_runs), mask.starts[:n_runs], mask.stops[:n_runs])


def _likely_lungs(mask: Runs, shape: Shape, spacing: Triple, n_slices: int) -> Runs:
    """Pieces that do not touch the corners and middles of the end slices, of a lung's size, near the middle."""
    _, ny, nx = shape
    pieces = components.label(mask, ny, components.FACES)
    sizes = components.sizes(mask, pieces)
    for z in (0, n_slices - 1):
        for y in (0, ny - 1):
            for x in (0, nx // 2, nx - 1):
                run = runs.run_at(mask, z * ny + y, x)
                if run >= 0:
                    sizes[pieces[run]] = 0
    ml = sizes * (spacing[0] * spacing[1] * spacing[2] / 1000)
    (candidates,) = np.nonzero((ml >= MIN_ML) & (ml <= MAX_ML))
    names = np.full(pieces.size, -1, np.int64)
    names[candidates] = np.arange(candidates.size)
    counts, distances = kernels.slice_profiles(mask, pieces, names, candidates.size, shape, spacing[1:])
    is_wide = counts * (spacing[1] * spacing[2]) > WIDE_MM2
    is_lung = np.zeros(pieces.size, np.bool_)
    for candidate, wide, distance in zip(candidates, is_wide, distances, strict=True):
        is_lung[candidate] = bool(wide.any()) and distance[wide].mean() < MAX_DISTANCE_MM
    return runs.where(mask, is_lung[pieces])


def _restored(chosen: Runs, air: Runs, cut: int, shape: Shape) -> Runs:
    """What was blanked comes back as far as `cut` dilations of the chosen pieces reach, and is joined to them."""
    _, ny, nx = shape
    near = bits.dilate(runs.to_bits(chosen, shape), nx, cut)
    near[:-cut] = runs.to_bits(chosen, shape)[:-cut]
    near[-cut:] &= runs.to_bits(air, shape)[-cut:]
    restored = runs.of_bits(near, nx)
    pieces = components.label(restored, ny, components.FACES)
    is_kept = np.zeros(pieces.size, np.bool_)
    roots = np.unique(components.label(chosen, ny, components.FACES))
    rows = np.searchsorted(chosen.first, roots, side="right") - 1
    for row, root in zip(rows.tolist(), roots.tolist(), strict=True):
        is_kept[pieces[runs.run_at(restored, row, int(chosen.starts[root]))]] = True
    return runs.where(restored, is_kept[pieces])


def _fill_holes(lung: Runs, shape: Shape) -> Runs:
    """Step 4: what is connected to no corner is lung too."""
    nz, ny, nx = shape
    rest = runs.invert(lung, nx)
    pieces = components.label(rest, ny, components.CORNERS)
    is_outside = np.zeros(pieces.size, np.bool_)
    for z in (0, nz - 1):
        for y in (0, ny - 1):
            for x in (0, nx - 1):
                run = runs.run_at(rest, z * ny + y, x)
                if run >= 0:
                    is_outside[pieces[run]] = True
    return runs.invert(runs.where(rest, is_outside[pieces]), nx)


def _part(both: Runs, shape: Shape, spacing: Triple) -> Lungs:
    """Step 5, on the box of the lungs only, to which nothing outside it matters."""
    nz, ny, _ = shape
    (z, z_last), (y, y_last), (x, x_last) = _box((both,), ny)
    box = (z_last + 1 - z, y_last + 1 - y, x_last + 1 - x)
    boxed = runs.shift(both, ny, (-z, -y, -x), *box[:2])
    first, second = (runs.shift(lung, box[1], (z, y, x), nz, ny) for lung in _two_lungs(boxed, box, spacing))
    return Lungs(first, second)


def _two_lungs(both: Runs, shape: Shape, spacing: Triple) -> Lungs:
    """Erode until two pieces of like size remain; each voxel goes to the nearer of them."""
    _, ny, nx = shape
    seeds = both
    eroded = runs.to_bits(both, shape)
    for _ in range(MAX_EROSIONS):
        pieces = components.label(seeds, ny, components.EDGES)
        sizes = components.sizes(seeds, pieces)
        first, second = np.argsort(-np.append(sizes, [0, 0]), kind="stable")[:2]
        if second < sizes.size and sizes[second] and sizes[first] // sizes[second] < MAX_AREA_RATIO:
            break
        eroded = bits.erode(eroded, nx)
        seeds = runs.of_bits(eroded, nx)
    else:
        nothing = Runs(np.zeros_like(both.first), both.starts[:0], both.stops[:0])
        return Lungs(_holes_filled(both, shape), nothing)
    labels = np.zeros(shape, np.uint8)
    runs.paint(runs.where(seeds, pieces == first), 1, labels)
    runs.paint(runs.where(seeds, pieces == second), 2, labels)
    nearer = distances.find_nearer_seed(labels, spacing)
    labels[...] = 0
    runs.paint(both, 1, labels)
    labels *= nearer
    return Lungs(*(_main_lung(runs.of_mask(labels == label), shape) for label in (1, 2)))


def _main_lung(lung: Runs, shape: Shape) -> Runs:
    """The main pieces of a lung in each slice, the largest of them in space, its holes filled."""
    ny = shape[1]
    lung = kernels.main_parts(lung, components.label(lung, ny, components.IN_SLICE), shape, MAIN_SHARE)
    return _holes_filled(components.largest(lung, components.label(lung, ny, components.CORNERS)), shape)


def _holes_filled(lung: Runs, shape: Shape) -> Runs:
    """The lung with the holes of each slice."""
    _, ny, nx = shape
    rest = runs.invert(lung, nx)
    is_open = components.reaches_edge(rest, components.label(rest, ny, components.IN_SLICE), ny, nx)
    return runs.invert(runs.where(rest, is_open), nx)


def _soft_mask(lung: Runs, shape: Shape) -> NDArray[np.uint64]:
    """Step 6: the convex hull of each slice, unless it is too large, dilated; as bits."""
    soft: NDArray[np.uint64] = bits.dilate(hulls.fill_hulls(lung, shape, MAX_HULL_RATIO), shape[2], DILATIONS)
    return soft


def _box(masks: tuple[Runs, ...], ny: int) -> list[tuple[int, int]]:
    """First and last (z, y, x) of the voxels in any of the masks."""
    rows = np.concatenate([np.flatnonzero(np.diff(mask.first)) for mask in masks])
    starts, stops = (np.concatenate([mask[k] for mask in masks]) for k in (1, 2))
    pairs = ((rows // ny, rows // ny), (rows % ny, rows % ny), (starts, stops - 1))
    return [(int(begins.min()), int(lasts.max())) for begins, lasts in pairs]


def _sides(found: Lungs, volume: Volume) -> tuple[int, int]:
    """RIGHT and LEFT in the order of the two lungs, by where their middles lie in the patient."""
    left_of = [_middle_mm(lung, volume) for lung in found]
    if left_of[1] is None or left_of[0] is None or left_of[0] < left_of[1]:
        return sides.RIGHT, sides.LEFT
    return sides.LEFT, sides.RIGHT


def _middle_mm(lung: Runs, volume: Volume) -> float | None:
    """LPS x of a lung's middle."""
    ny = volume.shape[1]
    n = (lung.stops - lung.starts).astype(np.float64)
    if n.size == 0:
        return None
    rows = np.repeat(np.arange(lung.first.size - 1), np.diff(lung.first))
    places = np.stack([rows // ny, rows % ny, (lung.starts + lung.stops - 1) / 2], axis=1)
    return float(volume.to_patient(n @ places / n.sum())[0])
