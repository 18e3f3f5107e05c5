"""Masks (z, y, x): morphology with balls, in mm, and connected pieces. Nothing lies beyond the edge of the grid."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import bits, masks, runs
from dskprep.volume import Triple

MAX_LOOKED_AT = 5000
"""Places round a voxel, about, that are looked at one by one; for more, distances are less work."""

Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]


def near(mask: Mask, radius_mm: float, spacing: Triple) -> Mask:
    """Dilate: voxels at most `radius_mm` from the mask."""
    nx = mask.shape[2]
    found: Mask = bits.to_mask(bits.near(bits.of_mask(mask), nx, radius_mm, spacing), nx)
    return found


def erode(mask: Mask, radius_mm: float, spacing: Triple) -> Mask:
    """Keep what is further than `radius_mm` from the rest."""
    nx = mask.shape[2]
    found: Mask = bits.to_mask(bits.far(bits.of_mask(mask), nx, radius_mm, spacing), nx)
    return found


def opened(mask: Mask, radius_mm: float, spacing: Triple) -> Mask:
    """Remove what a ball does not fit into."""
    nx = mask.shape[2]
    eroded = bits.far(bits.of_mask(mask), nx, radius_mm, spacing)
    found: Mask = bits.to_mask(bits.near(eroded, nx, radius_mm, spacing), nx)
    return found


def closed(mask: Mask, radius_mm: float, spacing: Triple) -> Mask:
    """Fill what a ball outside the mask does not fit into; the mask goes on beyond its edges."""
    widths = [math.ceil(radius_mm / s) for s in spacing]
    padded = np.pad(mask, [(w, w) for w in widths], mode="edge")
    nx = padded.shape[2]
    grown = bits.near(bits.of_mask(padded), nx, radius_mm, spacing)
    whole: Mask = bits.to_mask(bits.far(grown, nx, radius_mm, spacing), nx)
    return whole[tuple(slice(w, -w) for w in widths)] | mask


class Pieces(NamedTuple):
    """The pieces of a mask, connected through faces, numbered from 0 on in the order of their first voxels."""

    runs: runs.Runs
    numbers: NDArray[np.int32]
    """Number of the piece that each run belongs to."""
    sizes: NDArray[np.int64]
    """Voxels of each piece."""
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, mask: Mask) -> Pieces:
        nz, ny, nx = mask.shape
        found = runs.of_mask(mask)
        joined = runs.label(found, ny, runs.FACES)
        numbers, n = runs.numbered(joined)
        sizes = np.bincount(numbers, found.stops - found.starts, minlength=n).astype(np.int64)
        return cls(found, numbers, sizes, (nz, ny, nx))

    def counts(self, mask: Mask) -> NDArray[np.int64]:
        """Voxels of each piece that are in `mask`."""
        found: NDArray[np.int64] = runs.counts(self.runs, self.numbers, self.sizes.size, mask)
        return found

    def boxes(self, margin: tuple[int, int, int]) -> list[Box]:
        """The box of each piece, grown by `margin` voxels on every side."""
        found = runs.boxes(self.runs, self.numbers, self.sizes.size, self.shape[1])
        firsts = np.maximum(found[:, 0] - margin, 0).tolist()
        stops = np.minimum(found[:, 1] + margin, self.shape).tolist()
        return [
            (slice(z, z_end), slice(y, y_end), slice(x, x_end))
            for (z, y, x), (z_end, y_end, x_end) in zip(firsts, stops, strict=True)
        ]

    def piece(self, number: int, box: Box) -> Mask:
        """The mask of one piece in a box."""
        mask = np.zeros([side.stop - side.start for side in box], np.bool_)
        first = tuple(side.start for side in box)
        runs.paint_piece(self.runs, self.numbers, number, self.shape[1], first, mask)
        return mask

    def chosen(self, is_chosen: NDArray[np.bool_]) -> Mask:
        """The mask of the pieces that are chosen."""
        mask = np.zeros(self.shape, np.bool_)
        runs.paint(runs.where(self.runs, is_chosen[self.numbers]), 1, mask)
        return mask


def connected(mask: Mask, seeds: Mask) -> Mask:
    """The pieces of a mask, connected through faces, that hold a voxel of `seeds`."""
    pieces = Pieces.of(mask)
    return pieces.chosen(pieces.counts(seeds) > 0)


def largest(mask: Mask) -> Mask:
    """The largest piece, connected through faces; of equals, the first."""
    pieces = Pieces.of(mask)
    return pieces.chosen(np.arange(pieces.sizes.size) == (pieces.sizes.argmax() if pieces.sizes.size else 0))


def nearer(labels: NDArray[np.uint8], limit_mm: float, spacing: Triple, where: Mask | None = None) -> NDArray[np.uint8]:
    """Give each voxel of `where` the label, 1 or 2, of the nearest labelled voxel within `limit_mm`, else 0.

    Of two that are as near, 1. Distances are only compared where both labels reach.
    """
    nx = labels.shape[2]
    first, second = (bits.near(bits.of_mask(labels == label), nx, limit_mm, spacing) for label in (1, 2))
    if where is not None:
        only = bits.of_mask(where)
        first, second = first & only, second & only
    found: NDArray[np.uint8] = bits.to_mask(first, nx).view(np.uint8)
    found += 2 * bits.to_mask(second & ~first, nx).view(np.uint8)
    both = first & second
    if 4 * limit_mm**3 <= MAX_LOOKED_AT * math.prod(spacing):
        masks.nearest_label(labels, runs.of_bits(both, nx), *_ball(limit_mm, spacing, labels.shape), found)
    else:
        _settle(labels, limit_mm, spacing, bits.to_mask(both, nx), found)
    return found


def _settle(labels: NDArray[np.uint8], limit_mm: float, spacing: Triple, where: Mask, found: NDArray[np.uint8]) -> None:
    """Put the nearest label into `found`, in place, by distances of all voxels round `where`."""
    reach = tuple(math.ceil(limit_mm / s) for s in spacing)
    box = box_of(where, margin=0)
    wide = tuple(slice(max(0, b.start - n), b.stop + n) for b, n in zip(box, reach, strict=True))
    inner = tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, wide, strict=True))
    nearest = masks.grow(np.ascontiguousarray(labels[wide]), limit_mm, spacing)
    np.copyto(found[box], nearest[inner], where=where[box])


def _ball(limit_mm: float, spacing: Triple, shape: tuple[int, ...]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The places (n, 3) within a ball, nearest first, as far as they fit into `shape`; and their squared distances."""
    reach = [min(int(limit_mm * (1 + 1e-6) / s), n - 1) for s, n in zip(spacing, shape, strict=True)]
    axes = np.meshgrid(*(np.arange(-n, n + 1, dtype=np.int32) for n in reach), indexing="ij")
    offsets = np.stack(axes, axis=-1).reshape(-1, 3)
    squared = np.round(((offsets * spacing) ** 2).sum(axis=1), 6)
    order = np.argsort(squared, kind="stable")
    order = order[squared[order] <= (limit_mm * (1 + 1e-6)) ** 2]
    return offsets[order], squared[order]


def centre_of(mask: Mask) -> NDArray[np.float64]:
    """Centre of mass (z, y, x), as an index."""
    return np.array([n @ np.arange(n.size) / max(1, n.sum()) for n in masks.counts_along(mask)])


def box_of(mask: NDArray[Any], margin: int) -> Box:
    """Smallest box round the mask, grown by `margin` voxels; empty if the mask is."""
    sides = []
    for n in masks.counts_along(mask):
        (where,) = np.nonzero(n)
        first, last = (where[0], where[-1] + 1) if where.size else (0, 0)
        sides.append(slice(max(0, int(first) - margin), min(n.size, int(last) + margin)))
    z, y, x = sides
    return z, y, x
