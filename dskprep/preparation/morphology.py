"""Morphology of masks (z, y, x) with balls, in mm, and their connected pieces.

Nothing lies beyond the edge of the grid: neither mask, into a dilation, nor background, into an erosion. A mask is
given as a bool array or as a BitMask, and what is made of it comes back in the same form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import bits, components, distances, masks, runs
from dskprep.kernels.bits import TOLERANCE
from dskprep.preparation.bitmask import BitMask, Box, Mask
from dskprep.volume import Triple

MAX_SEARCHED = 5000
"""Places round a voxel, about, that are searched for a label one by one; for more, distances are less work."""

_M = TypeVar("_M", Mask, BitMask)


def dilate(mask: _M, radius_mm: float, spacing: Triple) -> _M:
    """Return the voxels at most `radius_mm` from the mask."""
    return _change(mask, radius_mm, spacing, bits.dilate_ball)


def erode(mask: _M, radius_mm: float, spacing: Triple) -> _M:
    """Return the voxels that are further than `radius_mm` from the rest."""
    return _change(mask, radius_mm, spacing, bits.erode_ball)


def open_mask(mask: _M, radius_mm: float, spacing: Triple) -> _M:
    """Remove what a ball does not fit into: an erosion, then a dilation."""
    return _change(mask, radius_mm, spacing, bits.erode_ball, bits.dilate_ball)


def close_mask(mask: Mask, radius_mm: float, spacing: Triple) -> Mask:
    """Fill what a ball outside the mask does not fit into: a dilation, then an erosion.

    The grid is padded with its outermost voxels, so that a lung that the scan cuts off is closed there too.
    """
    widths = [math.ceil(radius_mm / s) for s in spacing]
    padded = np.pad(mask, [(w, w) for w in widths], mode="edge")
    closed = _change(padded, radius_mm, spacing, bits.dilate_ball, bits.erode_ball)
    return closed[tuple(slice(w, -w) for w in widths)] | mask


def _change(mask: _M, radius_mm: float, spacing: Triple, *steps: Callable[..., NDArray[np.uint64]]) -> _M:
    found = _as_bits(mask)
    words = found.words
    for step in steps:
        words = step(words, found.nx, radius_mm, spacing)
    return _in_form_of(mask, BitMask(words, found.nx))


def _as_bits(mask: Mask | BitMask) -> BitMask:
    return mask if isinstance(mask, BitMask) else BitMask.of(mask)


def _in_form_of(mask: _M, found: BitMask) -> _M:
    return found if isinstance(mask, BitMask) else found.array


class Pieces(NamedTuple):
    """The pieces of a mask, connected through faces, numbered from 0 on in the order of their first voxels."""

    runs: runs.Runs
    numbers: NDArray[np.int32]
    """Number of the piece that each run belongs to."""
    sizes: NDArray[np.int64]
    """Voxels of each piece."""
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, mask: Mask | BitMask) -> Pieces:
        """Find the pieces of a mask."""
        nz, ny, nx = mask.shape
        found = runs.of_bits(_as_bits(mask).words, nx)
        numbers, n = components.number(components.label(found, ny, components.FACES))
        sizes = np.bincount(numbers, found.stops - found.starts, minlength=n).astype(np.int64)
        return cls(found, numbers, sizes, (nz, ny, nx))

    def counts(self, mask: Mask | BitMask) -> NDArray[np.int64]:
        """Return the number of voxels of each piece that are in `mask`."""
        words = _as_bits(mask).words
        found: NDArray[np.int64] = components.counts(self.runs, self.numbers, self.sizes.size, words)
        return found

    def counts_around(
        self,
        is_selected: NDArray[np.bool_],
        from_mm: float,
        to_mm: float,
        spacing: Triple,
        first: Mask | BitMask,
        second: Mask | BitMask,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return how many voxels lie between these distances from each piece, and how many of them are in two masks.

        Pieces that are not selected have 0 of all.
        """
        kept = is_selected[self.numbers]
        found, numbers = runs.where(self.runs, kept), self.numbers[kept]
        near, wide = (_ball_rows(mm, spacing, self.shape) for mm in (from_mm, to_mm))
        both = _as_bits(first).words, _as_bits(second).words
        n_all, n_first, n_second = components.counts_around(
            found, numbers, self.sizes.size, near, wide, self.shape[2], *both
        )
        return n_all, n_first, n_second

    def heights(self) -> NDArray[np.int64]:
        """Return how many slices there are from the lowest to the highest of each piece."""
        order = np.argsort(self.numbers, kind="stable")  # runs go up, so the last one of a piece lies highest
        slices = runs.rows_of(self.runs)[order] // self.shape[1]
        n_runs = np.bincount(self.numbers, minlength=self.sizes.size)
        ends = np.cumsum(n_runs)
        heights: NDArray[np.int64] = slices[ends - 1] - slices[ends - n_runs] + 1
        return heights

    def select(self, is_selected: NDArray[np.bool_]) -> BitMask:
        """Return the mask of the pieces where `is_selected` (pieces) is set."""
        return BitMask(runs.to_bits(runs.where(self.runs, is_selected[self.numbers]), self.shape), self.shape[2])


def _ball_rows(radius_mm: float, spacing: Triple, shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Return half the width along x, in voxels, of each row (z, y) of a ball, and -1 where it has none."""
    radius_mm *= TOLERANCE
    n_z, n_y, n_x = (min(int(radius_mm / s), n) for s, n in zip(spacing, shape, strict=True))
    z_mm, y_mm = np.arange(-n_z, n_z + 1)[:, None] * spacing[0], np.arange(-n_y, n_y + 1) * spacing[1]
    rest_mm2 = radius_mm**2 - z_mm**2 - y_mm**2  # what is left for x
    halves = np.minimum(np.sqrt(np.maximum(rest_mm2, 0)) / spacing[2], n_x)
    return np.where(rest_mm2 >= 0, halves, -1).astype(np.int32)


def enlarge(mask: Mask, block: tuple[int, int, int], shape: tuple[int, ...]) -> BitMask:
    """Return a mask of blocks of voxels (z, y, x) as one of voxels; the blocks at the upper ends may be smaller."""
    z, y, x = (np.arange(n) // b for n, b in zip(shape, block, strict=True))
    wide = BitMask.of(mask.take(x, axis=2))
    return BitMask(wide.words.take(y, axis=1).take(z, axis=0), wide.nx)


def select_connected(mask: _M, seeds: _M) -> _M:
    """Return the pieces of a mask that hold a voxel of `seeds`."""
    pieces = Pieces.of(mask)
    return _in_form_of(mask, pieces.select(pieces.counts(seeds) > 0))


def select_largest(mask: _M) -> _M:
    """Return the largest piece of a mask; of equals, the first."""
    pieces = Pieces.of(mask)
    is_largest = np.arange(pieces.sizes.size) == (pieces.sizes.argmax() if pieces.sizes.size else 0)
    return _in_form_of(mask, pieces.select(is_largest))


def expand_labels(
    labels: NDArray[np.uint8], limit_mm: float, spacing: Triple, where: Mask | BitMask | None = None
) -> NDArray[np.uint8]:
    """Return, in `where`, the label, 1 or 2, of the nearest labelled voxel within `limit_mm`, else 0.

    Both labels are dilated; distances are only compared where they meet. A tie goes to label 1.
    """
    nx = labels.shape[2]
    first, second = (bits.dilate_ball(bits.of_mask(labels == label), nx, limit_mm, spacing) for label in (1, 2))
    if where is not None:
        only = _as_bits(where).words
        first, second = first & only, second & only
    found: NDArray[np.uint8] = bits.to_mask(first, nx).view(np.uint8)
    found += 2 * bits.to_mask(second & ~first, nx).view(np.uint8)
    both = first & second
    if 4 * limit_mm**3 <= MAX_SEARCHED * math.prod(spacing):  # about 4/3 pi r^3 over the volume of a voxel
        distances.find_nearest_label(labels, runs.of_bits(both, nx), *_ball(limit_mm, spacing, labels.shape), found)
    else:
        _compare_distances(labels, limit_mm, spacing, bits.to_mask(both, nx), found)
    return found


def _compare_distances(
    labels: NDArray[np.uint8], limit_mm: float, spacing: Triple, where: Mask, found: NDArray[np.uint8]
) -> None:
    """Write the nearer label into `found`, in `where`, which has both, by the distances of all voxels round it."""
    reach = tuple(math.ceil(limit_mm / s) for s in spacing)
    box = box_of(where, margin=0)
    wide = tuple(slice(max(0, b.start - n), b.stop + n) for b, n in zip(box, reach, strict=True))
    inner = tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, wide, strict=True))
    nearer = distances.find_nearer_label(np.ascontiguousarray(labels[wide]), limit_mm, spacing)
    np.copyto(found[box], nearer[inner], where=where[box])


def _ball(limit_mm: float, spacing: Triple, shape: tuple[int, ...]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the places (n, 3) within a ball, nearest first, and their squared distances (n) in mm2.

    Places that no two voxels of a grid of `shape` are apart are left out.
    """
    reach = [min(int(limit_mm * TOLERANCE / s), n - 1) for s, n in zip(spacing, shape, strict=True)]
    axes = np.meshgrid(*(np.arange(-n, n + 1, dtype=np.int32) for n in reach), indexing="ij")
    offsets = np.stack(axes, axis=-1).reshape(-1, 3)
    squared = np.round(((offsets * spacing) ** 2).sum(axis=1), 6)  # so that ties are ties
    order = np.argsort(squared, kind="stable")
    order = order[squared[order] <= (limit_mm * TOLERANCE) ** 2]
    return offsets[order], squared[order]


def centre_of(mask: Mask) -> NDArray[np.float64]:
    """Return the centre of mass as an index (z, y, x)."""
    return np.array([n @ np.arange(n.size) / max(1, n.sum()) for n in masks.counts_along(mask.view(np.uint8))])


def box_of(mask: NDArray[Any] | BitMask, margin: int) -> Box:
    """Return the smallest box round the mask, wider by `margin` voxels on every side; empty if the mask is."""
    sides = []
    for n in mask.planes() if isinstance(mask, BitMask) else masks.counts_along(mask.view(np.uint8)):
        (where,) = np.nonzero(n)
        first, last = (where[0], where[-1] + 1) if where.size else (0, 0)
        sides.append(slice(max(0, int(first) - margin), min(n.size, int(last) + margin)))
    z, y, x = sides
    return z, y, x
