"""Tell the right lung from the left one, on the coarse grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dskprep.preparation.bitmask import BitMask
from dskprep.preparation.body import Grid
from dskprep.preparation.lungs.aerated import CORE_MM, MIN_CORE_SHARE, REACH_MM
from dskprep.preparation.morphology import Pieces, centre_of, erode, expand_labels
from dskprep.sides import LEFT, RIGHT

EROSIONS_MM = (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
"""Erosions that are tried until two lungs come apart, in mm; the junction lines are 1 to 4 mm thick."""
MIN_BALANCE = 0.2
"""The smaller part has at least this share of the larger, else a lobe came off.

A part that lies apart without erosion may be a smaller lung.
"""
MIDLINE_SHARE = 0.1
"""A piece with this share on either side of the midline is two lungs that touch: of one lung, seen 0.02."""
MIN_WHOLE_SHARE = 0.2
"""The midline is known if this share of the slices of the lungs holds the body from side to side."""

BONE_HU = 200
"""Bone lies above this."""
BONE_MM = 4.0
"""Bone is looked for on a grid of about this spacing."""
SPINE_MM = 22.0
"""Half the width of the spine."""
MIN_BONE_MM2 = 300.0
"""Least area of its bone in a slice, on average."""
MAX_RIB_SHARE = 0.7
"""Most that is elsewhere in such a width: seen 0.62; where the field of view cuts the spine off, 0.71 and more."""


def find_midline(grid: Grid, tissue: BitMask, lung: BitMask) -> float | None:
    """Return the column of the midline, or None if the field of view holds the body's whole width in too few slices.

    It is the median of the tissue's centres in the slices that hold lung and the whole width.
    """
    slices = np.flatnonzero(lung.counts())
    body = BitMask(tissue.words[slices], tissue.nx).array
    is_cut = body[:, :, [0, -1]].any(axis=(1, 2))
    if grid.padding.any():  # a body that the circle cuts lies next to padding, to its side
        padding = BitMask(grid.padding.words[slices], grid.padding.nx).array
        beside = (body[:, :, 1:] & padding[:, :, :-1]) | (body[:, :, :-1] & padding[:, :, 1:])
        is_cut |= beside.any(axis=(1, 2))
    if not slices.size or np.count_nonzero(~is_cut) < MIN_WHOLE_SHARE * slices.size:
        return None
    counts = body[~is_cut].sum(axis=1)
    return float(np.median(counts @ np.arange(tissue.nx) / np.maximum(1, counts.sum(axis=1))))


def find_spine(grid: Grid, lung: BitMask) -> float | None:
    """Return the column of the spine, or None if the field of view does not hold it.

    It is where most bone lies behind the middle of the lungs, over all their slices. Beside one lung it may be ribs:
    this tells no side.
    """
    slices = np.flatnonzero(lung.counts())
    rows = np.flatnonzero(lung.words.any(axis=(0, 2)))
    if not slices.size:
        return None
    z, y, x = (max(1, round(BONE_MM / s)) for s in grid.spacing)
    part = grid.means[slices[0] : slices[-1] + 1 : z, (rows[0] + rows[-1]) // 2 :: y, ::x]
    n_bone = (part > BONE_HU).sum(axis=(0, 1))
    half = round(SPINE_MM / (x * grid.spacing[2]))
    if n_bone.size <= 2 * half:
        return None
    sums = np.convolve(n_bone, np.ones(2 * half + 1, np.int64), "valid")
    first = int(sums.argmax())
    elsewhere = max(sums[: max(0, first - 2 * half)].max(initial=0), sums[first + 2 * half + 1 :].max(initial=0))
    area_mm2 = sums[first] * (y * grid.spacing[1]) * (x * grid.spacing[2]) / part.shape[0]
    if area_mm2 < MIN_BONE_MM2 or elsewhere > MAX_RIB_SHARE * sums[first]:
        return None
    columns = np.arange(first, first + 2 * half + 1)
    return float(n_bone[columns] @ columns / sums[first] * x)


def separate(grid: Grid, cores: BitMask, lung: BitMask, midline: float | None) -> tuple[NDArray[np.uint8], bool]:
    """Return the labels RIGHT and LEFT of the voxels of `lung`, and whether the sides are known; else all are RIGHT.

    Lungs that touch are eroded until they come apart; each voxel goes to the nearer part, or, far from both, to the
    one on its side. With a known `midline`, a column, parts are named by the side of it on which they lie. Nothing is
    known of a piece on both sides that does not come apart: it is two lungs, or one that has come over after surgery.
    Without a midline two parts are named by each other, and of one alone nothing is known.
    """
    for erosion_mm in EROSIONS_MM:
        eroded = erode(cores, erosion_mm, grid.spacing)
        seeds = _two_sides(grid, eroded, MIN_BALANCE) if midline is None else _sides_of(eroded, midline)
        if seeds is not None:
            break
    else:
        erosion_mm, seeds = 0.0, _two_sides(grid, cores, MIN_CORE_SHARE) if midline is None else None
    if seeds is None:
        return lung.array * np.uint8(RIGHT), False
    # the lung reaches CORE_MM + REACH_MM beyond its cores, and they the erosion beyond the seeds
    nearest = expand_labels(seeds, CORE_MM + REACH_MM + erosion_mm, grid.spacing, lung)
    between = (centre_of(seeds == RIGHT)[2] + centre_of(seeds == LEFT)[2]) / 2 if midline is None else midline
    by_side = np.where(np.arange(lung.nx) > between, np.uint8(LEFT), np.uint8(RIGHT))
    return np.where(nearest > 0, nearest, by_side) * lung.array, True


def _sides_of(cores: BitMask, midline: float) -> NDArray[np.uint8] | None:
    """Return the pieces as RIGHT and LEFT, or None if one lies on both sides of the midline."""
    pieces = Pieces.of(cores)
    is_left = BitMask.of_columns(cores.shape, np.arange(cores.nx) > midline)
    shares = pieces.counts(is_left) / np.maximum(1, pieces.sizes)
    if not pieces.sizes.size or (np.minimum(shares, 1 - shares) >= MIDLINE_SHARE).any():
        return None
    return _labels(pieces.select(shares < 0.5), pieces.select(shares >= 0.5))


def _two_sides(grid: Grid, cores: BitMask, min_share: float) -> NDArray[np.uint8] | None:
    """Return the two largest pieces as RIGHT and LEFT, or None unless they are balanced and side by side."""
    pieces = Pieces.of(cores)
    if pieces.sizes.size < 2:
        return None
    order = np.argsort(-pieces.sizes, kind="stable")[:2]  # of equals, the first
    larger, smaller = (pieces.select(np.arange(pieces.sizes.size) == number) for number in order)
    if pieces.sizes[order[1]] < min_share * pieces.sizes[order[0]]:
        return None
    across = (centre_of(smaller.array) - centre_of(larger.array)) * grid.spacing
    if np.abs(across).argmax() != 2:
        return None  # two lobes, one above or behind the other
    right, left = (larger, smaller) if across[2] > 0 else (smaller, larger)
    return _labels(right, left)


def _labels(right: BitMask, left: BitMask) -> NDArray[np.uint8]:
    return right.array * np.uint8(RIGHT) + left.array * np.uint8(LEFT)
