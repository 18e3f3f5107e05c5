"""Look from each place of a scan to the front, the back and both sides: is there the body, or the open?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import rays
from dskprep.preparation.bitmask import BitMask
from dskprep.preparation.body import TABLE_MM, Grid
from dskprep.preparation.morphology import Pieces, close_mask, enlarge, open_mask

RAY_MM = 4.0
"""Distance between rays, in mm."""
MIN_BODY_SHARE = 0.1
"""Smaller pieces of tissue, relative to the largest one, are bars of the table; a cut body may be in pieces."""
WALL_MM = 8.0
"""Half the distance, in mm, of ribs; in between the chest wall may be thinner than what TABLE_MM leaves."""
MAX_OPEN_SHARE = 0.1
"""Most of a lung that may look out of the body: seen 0.03; beside the body from 0.1 on."""
MAX_OPEN_OF_CLOSED = 0.2
"""The same relative to what is closed: the thinnest chest lets 0.18 through; beside the body nothing is closed."""
MIN_CLOSED_SHARE = 0.08
"""Least part of a lung with the body in front and behind.

Seen in most lungs that the field of view cuts 0.09; of air beside and under the body 0.0, where it is cut 0.06.
"""
MIN_CLOSED_OF_DENSE = 0.03
"""The same of pieces as dense as lung throughout: seen 0.04."""


class Views(NamedTuple):
    """What is seen from each voxel of a grid."""

    is_open: BitMask
    """A ray leaves the body."""
    is_closed: BitMask
    """There is tissue in front and behind. Rays that end at the edge of what was measured say nothing."""

    @classmethod
    def of(cls, grid: Grid, outside: BitMask) -> Views:
        """Send rays along y and x through tissue and through what is `outside`."""
        tissue = grid.tissue
        z, y, x = (max(1, round(RAY_MM / s)) for s in grid.spacing)
        spacing = (z * grid.spacing[0], y * grid.spacing[1], x * grid.spacing[2])
        pieces = Pieces.of(open_mask(tissue, TABLE_MM, grid.spacing).thin((z, y, x)))
        body = pieces.select(pieces.sizes >= MIN_BODY_SHARE * pieces.sizes.max(initial=0)).array
        body = close_mask(body, WALL_MM, spacing) & tissue.thin((z, y, x))
        met = body.view(np.uint8) * np.uint8(rays.TISSUE)
        met[outside.thin((z, y, x))] = rays.OPEN
        met[grid.padding.thin((z, y, x))] = rays.UNKNOWN
        is_open, is_closed = (enlarge(mask, (z, y, x), grid.means.shape) for mask in rays.look_around(met))
        return cls(is_open, is_closed)

    def are_enclosed(self, pieces: Pieces, is_dense: NDArray[np.bool_] | bool = False) -> NDArray[np.bool_]:
        """Return whether each piece lies in the body, unlike foam under the patient and air between body and arms.

        Of pieces that are as dense as lung throughout, less needs the body in front and behind.
        """
        open_, closed = (pieces.counts(mask) / np.maximum(1, pieces.sizes) for mask in (self.is_open, self.is_closed))
        is_hidden = open_ <= np.maximum(MAX_OPEN_SHARE, MAX_OPEN_OF_CLOSED * closed)
        return np.asarray(is_hidden & (closed >= np.where(is_dense, MIN_CLOSED_OF_DENSE, MIN_CLOSED_SHARE)))
