"""The body in a chest CT, and what is outside of it: air, table, blankets. On a coarse grid, in mm."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import masks
from dskprep.preparation.morphology import Mask, Pieces, box_of, connected, erode, largest, near, opened
from dskprep.volume import AIR_HU, PADDING, Triple, Volume

GRID_MM = 2.0
"""Edge of a coarse voxel, about: half the wall-to-wall width of a small bronchus."""

CROP_MARGIN_MM = 16.0
"""Kept round a box, so that morphology sees a neighbourhood: more than CORE_MM + REACH_MM of the lungs."""

TISSUE_HU = -400
"""Midway between aerated lung (-850) and soft tissue (50): the edge of a blurred boundary."""
PARENCHYMA_HU = (-950, -500)
"""Aerated lung; -950 is the usual bound of emphysema (Gevenois et al. 1996, AJRCCM 154:187)."""

TABLE_MM = 4.0
"""Half the thickness of table shells and blankets; the chest wall is thicker than twice this."""
SHELL_MM = 3.0
"""Half the thickness of the paler shell that partial volume puts round gas and round the body."""
LEAK_MM = 6.0
"""Outside air passes through gaps twice as wide as this; a thin chest wall has no such gap."""

MARGIN_MM = 8.0
"""Kept round the body: its skin, and what partial volume makes of it."""


class Grid(NamedTuple):
    """Means of blocks of voxels, or a box of them."""

    means: NDArray[np.int16]
    """Mean HU of each block of voxels, or PADDING."""
    spacing: Triple
    block: tuple[int, int, int]
    first: tuple[int, int, int]
    """Index of the first block in the whole grid."""

    @property
    def voxel_ml(self) -> float:
        return math.prod(self.spacing) / 1000.0


def only(image: Volume) -> Volume:
    """The body only, for the setting `steps = ["dskprep.body:only"]`: saves three to five tenths of the bytes.

    Air (AIR_HU) takes the place of what is outside of the body, more than MARGIN_MM from it and from all that outside
    air does not reach and that borders on more tissue than air: so lungs stay, also where the field of view cuts them,
    and mattresses and the table's foam go. For chests: thin bone with air on both sides would go. Where no body is
    found, all stays.

    `image` is int16 HU (z, y, x) along the patient's axes; raises TypeError for anything else, so let this be the
    first of the steps.
    """
    whole = coarse_grid(image)
    grid, tissue, outside = find_body(whole)
    if not tissue.any():
        return image
    body = np.zeros(whole.means.shape, np.bool_)
    box = tuple(slice(first, first + n) for first, n in zip(grid.first, grid.means.shape, strict=True))
    body[box] = near(_without_foam(outside, tissue, grid.spacing), MARGIN_MM, grid.spacing)
    array = np.full_like(image.array, AIR_HU)
    slices, rows, columns = (np.arange(n) // block for n, block in zip(image.shape, whole.block, strict=True))
    for k, plane, out in zip(slices, image.array, array, strict=True):
        np.copyto(out, plane, where=body[k][rows][:, columns])
    return image.with_array(array)


def _without_foam(outside: Mask, tissue: Mask, spacing: Triple) -> Mask:
    """Tissue, and the pieces beside it that outside air does not reach and that border on more tissue than air."""
    pieces = Pieces.of(~outside & ~tissue)
    to_tissue, to_air = (pieces.counts(near(mask, max(spacing), spacing)) for mask in (tissue, outside))
    return tissue | pieces.chosen(to_tissue > to_air)


def coarse_grid(volume: Volume) -> Grid:
    """Average the volume over blocks of about GRID_MM; a spacing that is larger stays."""
    z, y, x = (max(1, round(GRID_MM / s)) for s in volume.spacing)
    means = masks.block_means(volume.hu, (z, y, x))
    sz, sy, sx = volume.spacing
    return Grid(means, (z * sz, y * sy, x * sx), (z, y, x), (0, 0, 0))


def crop(mask: Mask, grid: Grid, *others: NDArray[Any]) -> tuple[Any, ...]:
    """The grid and other arrays on it, cut to the box of `mask` and a margin."""
    box = box_of(mask, margin=math.ceil(CROP_MARGIN_MM / min(grid.spacing)))
    z, y, x = (f + b.start for f, b in zip(grid.first, box, strict=True))
    cropped = grid._replace(means=np.ascontiguousarray(grid.means[box]), first=(z, y, x))
    return (cropped, *(np.ascontiguousarray(array[box]) for array in others))


def find_body(grid: Grid) -> tuple[Grid, Mask, Mask]:
    """The part of the grid that holds the body, its tissue, and what is outside of it."""
    tissue = _find_tissue(grid)
    parenchyma = _find_parenchyma(grid)
    grid, tissue, parenchyma = crop(tissue | parenchyma, grid, tissue, parenchyma)
    return grid, tissue, _flood_outside(grid, tissue, parenchyma)


def _find_tissue(grid: Grid) -> Mask:
    """The largest piece that is thicker than table shells and blankets."""
    return largest(opened(grid.means > TISSUE_HU, TABLE_MM, grid.spacing))


def _find_parenchyma(grid: Grid) -> Mask:
    """Everything of the density of lung that is no thin shell: lungs, and foam of the table."""
    low, high = PARENCHYMA_HU
    return opened((grid.means > low) & (grid.means < high), SHELL_MM, grid.spacing)


def _flood_outside(grid: Grid, tissue: Mask, parenchyma: Mask) -> Mask:
    """What is not enclosed by the body: air, table, blankets, padding.

    Air floods in from the sides and the padding, but only through wide gaps and not through
    parenchyma. So it does not enter a lung that the field of view cuts open, and stops in the trachea
    if it comes in through the mouth. Foam is not flooded either; module `lungs` leaves it out.
    """
    free = ~tissue & ~parenchyma
    sources = grid.means == PADDING
    sources[:, [0, -1]] = True
    sources[:, :, [0, -1]] = True
    flooded = connected(erode(free, LEAK_MM, grid.spacing), sources)
    return near(flooded, LEAK_MM, grid.spacing) & free
