"""The lungs of the recipe `grt123`: steps 2 to 5 of its segmentation, on runs of voxels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.errors import Refusal
from dskprep.kernels import bits, components, distances, runs
from dskprep.kernels import grt123 as kernels
from dskprep.kernels.runs import Runs
from dskprep.volume import Triple

MAX_AIR_HU = -600.0
"""What is lower after smoothing is air."""
SMOOTHING = np.exp(-0.5 * np.arange(3.0) ** 2) / np.exp(-0.5 * np.arange(-2.0, 3.0) ** 2).sum()
"""A Gaussian of sigma 1 voxel, cut off at 2: its middle and one side."""

MIN_AREA_MM2 = 30.0
"""Smaller pieces of air in a slice are no lung."""
MAX_ECCENTRICITY = 0.99
"""Longer pieces of air in a slice are lines, and no lung."""
MIN_ML, MAX_ML = 680.0, 7500.0
"""The volume of a piece in space that may be lungs."""

WIDE_MM2 = 6000.0
"""A slice in which a piece has more than this is wide."""
MAX_DISTANCE_MM = 62.0
"""Lungs are nearer than this to the middle of their wide slices, on average."""
CUT_STEP = 2
"""Slices at the top that are blanked at a time until lungs are found."""
MAX_EROSIONS = 22
"""After so many erosions both lungs count as one."""
MAX_AREA_RATIO = 4.8
"""Two pieces are the two lungs if the larger is less than so many times the smaller, by integer division."""
MAIN_SHARE = 0.95
"""Part of a lung's area in a slice that its main pieces hold."""

Shape = tuple[int, int, int]


def find_lungs(array: NDArray[np.int16], spacing: Triple) -> tuple[Runs, Runs]:
    """Find both lungs in HU (z, y, x): steps 2 to 5. Raises Refusal `no-lungs`.

    The second is empty where they could not be parted.
    """
    shape = array.shape
    air = _find_air(array, spacing)
    return _part(_fill_holes(_choose(air, shape, spacing), shape), shape, spacing)


def _find_air(array: NDArray[np.int16], spacing: Triple) -> Runs:
    """Find pieces of air in each slice that are neither small nor lines: step 2."""
    ny = array.shape[1]
    found = kernels.smooth_air(array, MAX_AIR_HU, SMOOTHING.astype(np.float32), _round_field(ny))
    pieces = components.label(found, ny, components.IN_SLICE)
    areas = components.sizes(found, pieces) * (spacing[1] * spacing[2])
    is_kept = (areas > MIN_AREA_MM2) & (kernels.eccentricities(found, pieces, ny) < MAX_ECCENTRICITY)
    return runs.where(found, is_kept[pieces])


@lru_cache(maxsize=8)
def _round_field(n: int) -> NDArray[np.int64]:
    """Return columns (first, end) of each row of an n x n slice whose smoothing stays within the inscribed circle."""
    centred = np.arange(n) - (n - 1) / 2
    inside = np.hypot(centred[:, None], centred) < n / 2
    known = ~np.isnan(ndimage.gaussian_filter(np.where(inside, 1.0, np.nan), 1.0, truncate=2.0))
    return np.stack([known.argmax(axis=1), np.where(known.any(axis=1), n - known[:, ::-1].argmax(axis=1), 0)], axis=1)


def _choose(air: Runs, shape: Shape, spacing: Triple) -> Runs:
    """Choose the pieces that may be lungs; blank slices at the top until there are any: step 3."""
    nz, ny, _ = shape
    for cut in range(0, nz, CUT_STEP):
        remaining = runs.where(air, runs.rows_of(air) < (nz - cut) * ny) if cut else air
        chosen = _choose_likely(remaining, shape, spacing, nz - cut)
        if chosen.starts.size:
            return _restore(chosen, air, cut, shape) if cut else chosen
    raise Refusal(
        "no-lungs",
        f"expected air of {MIN_ML:g} to {MAX_ML:g} ml near the middle of the slices, found none, whatever number of "
        "slices at the top is left out",
    )


def _choose_likely(mask: Runs, shape: Shape, spacing: Triple, n_slices: int) -> Runs:
    """Choose pieces of a lung's size, near the middle, that avoid the corners and middles of the end slices."""
    _, ny, nx = shape
    pieces = components.label(mask, ny, components.FACES)
    sizes = components.sizes(mask, pieces)
    sizes[_pieces_at(mask, pieces, ny, (0, n_slices - 1), (0, nx // 2, nx - 1))] = 0
    ml = sizes * (spacing[0] * spacing[1] * spacing[2] / 1000)
    (candidates,) = np.nonzero((ml >= MIN_ML) & (ml <= MAX_ML))
    names = np.full(pieces.size, -1, np.int64)
    names[candidates] = np.arange(candidates.size)
    counts, distances_mm = kernels.slice_profiles(mask, pieces, names, candidates.size, shape, spacing[1:])
    is_wide = counts * (spacing[1] * spacing[2]) > WIDE_MM2
    is_lung = np.zeros(pieces.size, np.bool_)
    for candidate, wide, distance in zip(candidates, is_wide, distances_mm, strict=True):
        is_lung[candidate] = bool(wide.any()) and distance[wide].mean() < MAX_DISTANCE_MM
    return runs.where(mask, is_lung[pieces])


def _pieces_at(
    mask: Runs, pieces: NDArray[np.int32], ny: int, slices: tuple[int, int], columns: tuple[int, ...]
) -> list[int]:
    """Return the pieces that lie in these columns of the first and the last row of these slices."""
    found = [runs.run_at(mask, z * ny + y, x) for z in slices for y in (0, ny - 1) for x in columns]
    return [int(pieces[run]) for run in found if run >= 0]


def _restore(chosen: Runs, air: Runs, cut: int, shape: Shape) -> Runs:
    """Bring back what was blanked, as far as `cut` dilations of the chosen pieces reach, and join it to them."""
    _, ny, nx = shape
    words = runs.to_bits(chosen, shape)
    near = bits.dilate(words, nx, cut)
    near[:-cut] = words[:-cut]
    near[-cut:] &= runs.to_bits(air, shape)[-cut:]
    restored = runs.of_bits(near, nx)
    pieces = components.label(restored, ny, components.FACES)
    # each chosen run lies within a restored one
    starts, chosen_starts = (runs.rows_of(mask) * nx + mask.starts for mask in (restored, chosen))
    kept = pieces[np.searchsorted(starts, chosen_starts, side="right") - 1]
    return runs.where(restored, np.isin(pieces, kept))


def _fill_holes(lung: Runs, shape: Shape) -> Runs:
    """Add what is connected to no corner: step 4."""
    nz, ny, nx = shape
    rest = runs.invert(lung, nx)
    pieces = components.label(rest, ny, components.CORNERS)
    is_outside = np.zeros(pieces.size, np.bool_)
    is_outside[_pieces_at(rest, pieces, ny, (0, nz - 1), (0, nx - 1))] = True
    return runs.invert(runs.where(rest, is_outside[pieces]), nx)


def _part(both: Runs, shape: Shape, spacing: Triple) -> tuple[Runs, Runs]:
    """Part the two lungs: step 5, on their box only, since nothing outside it matters."""
    nz, ny, _ = shape
    (z, z_end), (y, y_end), (x, x_end) = runs.box_of([both], ny)
    box = (z_end - z, y_end - y, x_end - x)
    boxed = runs.shift(both, ny, (-z, -y, -x), *box[:2])
    first, second = (runs.shift(lung, box[1], (z, y, x), nz, ny) for lung in _part_in_box(boxed, box, spacing))
    return first, second


def _part_in_box(both: Runs, shape: Shape, spacing: Triple) -> tuple[Runs, Runs]:
    """Erode until two pieces of like size remain; give each voxel to the nearer of them."""
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
        return _fill_slices(both, shape), nothing
    labels = np.zeros(shape, np.uint8)
    runs.paint(runs.where(seeds, pieces == first), 1, labels)
    runs.paint(runs.where(seeds, pieces == second), 2, labels)
    nearer = distances.find_nearer_seed(labels, spacing)
    labels[...] = 0
    runs.paint(both, 1, labels)
    labels *= nearer
    first_lung, second_lung = (_main_lung(runs.of_mask(labels == label), shape) for label in (1, 2))
    return first_lung, second_lung


def _main_lung(lung: Runs, shape: Shape) -> Runs:
    """Keep the main pieces of a lung in each slice, of these the largest in space, and fill its holes."""
    ny = shape[1]
    lung = kernels.main_parts(lung, components.label(lung, ny, components.IN_SLICE), shape, MAIN_SHARE)
    return _fill_slices(components.largest(lung, components.label(lung, ny, components.CORNERS)), shape)


def _fill_slices(lung: Runs, shape: Shape) -> Runs:
    """Fill the holes of a lung in each slice."""
    _, ny, nx = shape
    rest = runs.invert(lung, nx)
    is_open = components.reaches_edge(rest, components.label(rest, ny, components.IN_SLICE), ny, nx)
    return runs.invert(runs.where(rest, is_open), nx)
