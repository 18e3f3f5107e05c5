"""Find the body in a chest CT, and what is outside of it: air, table, blankets.

On a coarse grid of block means, where noise is low and morphology is cheap.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import masks
from dskprep.preparation.bitmask import BitMask, Mask
from dskprep.preparation.morphology import (
    Pieces,
    box_of,
    dilate,
    enlarge,
    open_mask,
    select_largest,
)
from dskprep.volume import AIR_HU, PADDING, Triple, Volume

GRID_MM = 2.0
"""Edge of a coarse voxel, about, in mm: half the wall-to-wall width of a small bronchus."""

CROP_MARGIN_MM = 16.0
"""Kept round a box, in mm, so that morphology sees a neighbourhood: more than CORE_MM + REACH_MM of the lungs."""

TISSUE_HU = -400
"""More than this is tissue: midway between aerated lung (-850) and soft tissue (50), the edge of a blurred boundary."""
PARENCHYMA_HU = (-950, -500)
"""HU of aerated lung; -950 is the usual bound of emphysema (Gevenois et al. 1996, AJRCCM 154:187)."""

TABLE_MM = 4.0
"""Half the thickness, in mm, of table shells and blankets; the chest wall is thicker than twice this."""
SHELL_MM = 3.0
"""Half the thickness, in mm, of the paler shell that partial volume puts round gas and round the body."""
CELL_MM = 8.0
"""Edge of a cell, about, in mm, over which air is averaged: lung, even with emphysema, has vessels in most of them."""
MAX_AIR_HU = -945
"""Cells of air outside the body have no more than this: most scanners give -976 to -1004, few -950."""

PURE_HU = -890
"""Air stays below this in spite of noise; vessels of the lung lie above."""
MAX_DENSE_SHARE = 0.0205
"""A cell of air has less than this share above PURE_HU: 2 %, rounded."""
WIDE_CELLS = 1.5
"""Outside air is this many cells wide on every side of some cell; so are hardly any cells of air in a lung."""
MAX_FRONT_BACK_SHARE = 0.3
"""Most of outside air that has tissue in front and behind: seen 0.0; of lungs that the field of view cuts 0.6 and more.

Where it cuts their front or back, there is tissue on both sides."""
MAX_BETWEEN_SHARE = 0.7
"""Most of it that has tissue in front and behind, or on both sides: seen 0.45, beside an arm; of such lungs 0.84."""
SMALL_CELLS = 64
"""Air of fewer cells, 33 ml, may lie in a lung that the edge of a round field of view cuts: seen up to 42."""
BEYOND_CELLS = (1.2, 2.3)
"""How far from such air, in cells, it is seen what surrounds it: beyond the cells that hold some of both."""
A_CELL = (1.0, 1.0, 1.0)
"""Spacing of cells, in cells."""

MARGIN_MM = 8.0
"""Kept round the body by `only`, in mm: its skin, and what partial volume makes of it."""


class Grid(NamedTuple):
    """Block means of a volume, or a box of them. All is in the order (z, y, x)."""

    means: NDArray[np.int16]
    """Mean HU of each block of voxels, or PADDING."""
    tissue: BitMask
    """Where the mean is more than TISSUE_HU."""
    padding: BitMask
    """Where it is PADDING."""
    spacing: Triple
    """Edges of a block, in mm."""
    block: tuple[int, int, int]
    """Voxels of the volume along each edge of a block."""
    first: tuple[int, int, int]
    """Index of the box's first block in the whole grid."""

    @property
    def voxel_ml(self) -> float:
        """Volume of a block."""
        return math.prod(self.spacing) / 1000.0


def only(image: Volume) -> Volume:
    """Put air (AIR_HU) outside of the body; for the setting `steps = ["dskprep.body:only"]`.

    This saves three to five tenths of the bytes. The body is its tissue, and what outside air does not reach if it
    borders on more tissue than air, with MARGIN_MM round both. So lungs stay, also where the field of view cuts them;
    mattresses and the table's foam go. For chests: thin bone with air on both sides would go. Where no body is found,
    the image stays as it is.

    `image` is int16 HU (z, y, x) along the patient's axes; raises TypeError for anything else, so let this be the
    first of the steps.
    """
    whole = coarse_grid(image)
    grid, tissue, outside = find_body(whole)
    if not tissue.any():
        return image
    body = np.zeros(whole.means.shape, np.bool_)
    box = tuple(slice(first, first + n) for first, n in zip(grid.first, grid.means.shape, strict=True))
    body[box] = dilate(_without_foam(outside, tissue, grid.spacing), MARGIN_MM, grid.spacing).array
    array = np.full_like(image.array, AIR_HU)
    slices, rows, columns = (np.arange(n) // block for n, block in zip(image.shape, whole.block, strict=True))
    for k, plane, out in zip(slices, image.array, array, strict=True):
        np.copyto(out, plane, where=body[k][rows][:, columns])
    return image.with_array(array)


def _without_foam(outside: BitMask, tissue: BitMask, spacing: Triple) -> BitMask:
    """Return tissue, and the pieces beside it that outside air does not reach, if they border more on it."""
    pieces = Pieces.of(~outside & ~tissue)
    to_tissue, to_air = (pieces.counts(dilate(mask, max(spacing), spacing)) for mask in (tissue, outside))
    return tissue | pieces.select(to_tissue > to_air)


def _between(mask: Mask, axis: int) -> Mask:
    """Return what lies between two voxels of the mask along an axis."""
    before = np.logical_or.accumulate(mask, axis)
    after = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis), axis)
    found: Mask = before & after
    return found


def coarse_grid(volume: Volume) -> Grid:
    """Average the volume over blocks of about GRID_MM; along an axis with a larger spacing, a block is one voxel."""
    z, y, x = (max(1, round(GRID_MM / s)) for s in volume.spacing)
    means = masks.block_means(volume.hu, (z, y, x))
    sz, sy, sx = volume.spacing
    tissue, padding = BitMask.above(means, TISSUE_HU), BitMask.equal(means, PADDING)
    return Grid(means, tissue, padding, (z * sz, y * sy, x * sx), (z, y, x), (0, 0, 0))


def crop(mask: BitMask, grid: Grid, *others: BitMask) -> tuple[Any, ...]:
    """Cut the grid and other masks on it to the box of `mask` and CROP_MARGIN_MM."""
    box = box_of(mask, margin=math.ceil(CROP_MARGIN_MM / min(grid.spacing)))
    z, y, x = (f + b.start for f, b in zip(grid.first, box, strict=True))
    tissue, padding, *cropped = (other.crop(box) for other in (grid.tissue, grid.padding, *others))
    means = np.ascontiguousarray(grid.means[box])
    return (grid._replace(means=means, tissue=tissue, padding=padding, first=(z, y, x)), *cropped)


def find_body(grid: Grid) -> tuple[Grid, BitMask, BitMask]:
    """Return the part of the grid that holds the body and, on it, masks of its tissue and of what is outside of it."""
    # thicker than table shells and blankets
    tissue = select_largest(open_mask(grid.tissue, TABLE_MM, grid.spacing))
    # as dense as lung, and no thin shell: lungs, and foam of the table
    low, high = PARENCHYMA_HU
    parenchyma = open_mask(BitMask.between(grid.means, low, high), SHELL_MM, grid.spacing)
    grid, tissue, parenchyma = crop(tissue | parenchyma, grid, tissue, parenchyma)
    return grid, tissue, _flood_outside(grid, tissue, parenchyma)


def _flood_outside(grid: Grid, tissue: BitMask, parenchyma: BitMask) -> BitMask:
    """Return what the body does not enclose: air, table, blankets, padding.

    Air floods in from the sides and the padding, from cell to cell, through cells that hold nothing but air. So it does
    not enter a lung that the field of view cuts open, and stops in the trachea if it comes in through the mouth. Foam
    is not flooded either; `lungs.aerated` leaves it out.
    """
    z, y, x = (max(1, round(CELL_MM / s)) for s in grid.spacing)
    cells = masks.block_means(grid.means, (z, y, x))
    is_measured = cells != PADDING
    is_air = is_measured & (cells < MAX_AIR_HU)
    dense = BitMask.above(grid.means, PURE_HU)
    n_dense = masks.block_counts(dense.words, dense.nx, (z, y, x), is_air)
    is_air &= n_dense < MAX_DENSE_SHARE * _sizes(dense.shape, (z, y, x))
    wide = open_mask(is_air, WIDE_CELLS, A_CELL)
    edge = ~is_measured
    edge[:, [0, -1]] = True
    edge[:, :, [0, -1]] = True
    pieces = Pieces.of(wide)
    thin = tissue.thin((z, y, x))
    front_back = _between(thin, axis=1)
    is_outside = pieces.counts(dilate(edge, WIDE_CELLS, A_CELL)) > 0
    is_outside &= pieces.counts(front_back) < MAX_FRONT_BACK_SHARE * pieces.sizes
    is_outside &= pieces.counts(front_back | _between(thin, axis=2)) < MAX_BETWEEN_SHARE * pieces.sizes
    # round air in a lung there is more lung than wall
    is_small = is_outside & (pieces.sizes < SMALL_CELLS)
    _, n_lung, n_tissue = pieces.counts_around(is_small, *BEYOND_CELLS, A_CELL, parenchyma.thin((z, y, x)), thin)
    flooded = pieces.select(is_outside & (n_lung <= n_tissue)).array
    # cells at a wall hold some of it, and were not flooded
    reached = dilate(enlarge(flooded, (z, y, x), grid.means.shape), CELL_MM, grid.spacing)
    return reached & ~tissue & ~parenchyma | grid.padding


def _sizes(shape: tuple[int, ...], block: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return the number of voxels of each block (z, y, x) of a grid; blocks at the upper ends may be smaller."""
    z, y, x = (np.diff(np.append(np.arange(0, n, b), n)) for n, b in zip(shape, block, strict=True))
    found: NDArray[np.int64] = z[:, None, None] * y[:, None] * x
    return found
