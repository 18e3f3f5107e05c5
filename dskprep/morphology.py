"""Morphology of masks with balls, in mm; nothing lies beyond the edge of the grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import bits, masks
from dskprep.volume import Triple

Mask = NDArray[np.bool_]


def near(mask: Mask, radius_mm: float, spacing: Triple) -> Mask:
    """Dilate: voxels at most `radius_mm` from the mask."""
    nx = mask.shape[2]
    found: Mask = bits.to_mask(bits.near(bits.of_mask(mask), nx, radius_mm, spacing), nx)
    return found


def erode(mask: Mask, radius_mm: float, spacing: Triple) -> Mask:
    """Keep what is further than `radius_mm` from the rest."""
    return ~near(~mask, radius_mm, spacing)


def opened(mask: Mask, radius_mm: float, spacing: Triple) -> Mask:
    """Remove what a ball does not fit into."""
    return near(erode(mask, radius_mm, spacing), radius_mm, spacing)


def closed(mask: Mask, radius_mm: float, spacing: Triple) -> Mask:
    """Fill what a ball outside the mask does not fit into; the mask goes on beyond its edges."""
    widths = [math.ceil(radius_mm / s) for s in spacing]
    padded = np.pad(mask, [(w, w) for w in widths], mode="edge")
    whole = erode(near(padded, radius_mm, spacing), radius_mm, spacing)
    return whole[tuple(slice(w, -w) for w in widths)] | mask


def centre_of(mask: Mask) -> NDArray[np.float64]:
    """Centre of mass (z, y, x), as an index."""
    return np.array([n @ np.arange(n.size) / max(1, n.sum()) for n in masks.counts_along(mask)])


def box_of(mask: NDArray[Any], margin: int) -> tuple[slice, slice, slice]:
    """Smallest box round the mask, grown by `margin` voxels; empty if the mask is."""
    sides = []
    for n in masks.counts_along(mask):
        (where,) = np.nonzero(n)
        first, last = (where[0], where[-1] + 1) if where.size else (0, 0)
        sides.append(slice(max(0, int(first) - margin), min(n.size, int(last) + margin)))
    z, y, x = sides
    return z, y, x
