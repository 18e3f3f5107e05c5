"""Take vessels and nodules into each lung, also those at its edge and at the chest wall, on the coarse grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import components, hulls, runs
from dskprep.preparation.bitmask import Mask
from dskprep.preparation.body import Grid
from dskprep.preparation.morphology import box_of, close_mask, select_connected
from dskprep.sides import LEFT, RIGHT
from dskprep.volume import Triple

CLOSING_MM = 8.0
"""Radius of the closing, in mm.

It takes in vessels and nodules at the edge; the heart, aorta and spine are rounder than that and stay out.
"""
MAX_HOLE_MM2 = 700.0
"""Largest hole that is filled in an axial slice: a nodule of 30 mm. A larger one may be the liver's dome."""

MAX_DENT_WIDTH_MM = 50.0
"""Widest dent of the chest wall that is filled: tumours at the wall."""
MAX_DENT_DEPTH_MM = 30.0
"""Deepest dent of the chest wall that is filled: tumours at the wall."""
MIN_DENT_DEPTH_MM = 4.0
"""A dent of the chest wall that is nowhere this deep stays: it is the bulge of a rib."""


def fill_lungs(grid: Grid, labels: NDArray[np.uint8], never: Mask) -> NDArray[np.uint8]:
    """Return the labels with the vessels and nodules of each lung; nothing is taken from `never`."""
    filled = labels.copy()
    for side in (RIGHT, LEFT):
        if not (labels == side).any():
            continue
        box = box_of(labels == side, margin=1)  # so that the rest goes all round the lung
        lung = labels[box] == side
        _fill_wall_dents(lung, side, grid.spacing)
        lung = _fill_enclosed(close_mask(lung, CLOSING_MM, grid.spacing))
        fill_small_holes(lung, grid.spacing)
        filled[box][lung & ~never[box] & (filled[box] == 0)] = side
    return filled


def fill_small_holes(mask: Mask, spacing: Triple) -> None:
    """Fill holes of axial slices of less than MAX_HOLE_MM2, in place."""
    _, ny, nx = mask.shape
    rest = runs.of_mask(~mask)
    pieces = components.label(rest, ny, components.IN_SLICE_EDGES)
    is_small = components.sizes(rest, pieces)[pieces] < MAX_HOLE_MM2 / (spacing[1] * spacing[2])
    runs.paint(runs.where(rest, is_small & ~components.reaches_edge(rest, pieces, ny, nx)), 1, mask)


def _fill_wall_dents(mask: Mask, side: int, spacing: Triple) -> None:
    """Fill the dents that tumours at the chest wall make, in place.

    A dent has lung on its way to the middle, and somewhere below; the dome of the diaphragm has not.
    """
    filled = mask.copy()
    lateral = -1 if side == RIGHT else 1
    hulls.fill_wall_dents(filled, lateral, spacing, MAX_DENT_WIDTH_MM, MIN_DENT_DEPTH_MM, MAX_DENT_DEPTH_MM)
    mask |= filled & np.logical_or.accumulate(mask, axis=0)  # z is up: lung in this slice or in one below


def _fill_enclosed(mask: Mask) -> Mask:
    """Return the mask with all that it encloses on all sides, however large: a tumour, never the heart."""
    ends = np.ones(mask.shape, np.bool_)
    ends[1:-1, 1:-1, 1:-1] = False
    return ~select_connected(~mask, ends)
