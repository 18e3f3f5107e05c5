"""Look from each place of a scan to the front, the back and both sides: is there the body, or the open?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import rays
from dskprep.preparation.body import TABLE_MM, TISSUE_HU, Grid
from dskprep.preparation.morphology import Mask, Pieces, enlarge, open_mask
from dskprep.volume import PADDING

RAY_MM = 4.0
"""Distance between rays, in mm."""
MAX_OPEN_SHARE = 0.1
"""Most of a lung that may look out of the body: seen 0.03; beside the body from 0.1 on."""
MIN_CLOSED_SHARE = 0.05
"""Least part of a lung with the body in front and behind: seen in lungs that are cut off 0.08; under the body 0.08."""
MIN_OF_BEST = 0.15
"""Least part of it relative to the piece with the most: seen in lungs 0.22, under the body, beside lungs, 0.08."""

MIN_LARGE = 0.05
"""Pieces with less of the largest one's voxels are not looked at for that."""


class Views(NamedTuple):
    """What is seen from each voxel of a grid."""

    is_open: Mask
    """A ray leaves the body."""
    is_closed: Mask
    """There is tissue in front and behind. Rays that end at the edge of what was measured say nothing."""

    @classmethod
    def of(cls, grid: Grid, outside: Mask) -> Views:
        """Send rays along y and x through tissue and through what is `outside`."""
        tissue = open_mask(grid.means > TISSUE_HU, TABLE_MM, grid.spacing)
        z, y, x = (max(1, round(RAY_MM / s)) for s in grid.spacing)
        thin = np.s_[::z, ::y, ::x]
        met = tissue[thin].view(np.uint8) * np.uint8(rays.TISSUE)
        met[outside[thin]] = rays.OPEN
        met[grid.means[thin] == PADDING] = rays.UNKNOWN
        is_open, is_closed = (enlarge(mask, (z, y, x), grid.means.shape) for mask in rays.look_around(met))
        return cls(is_open, is_closed)

    def are_enclosed(self, pieces: Pieces) -> NDArray[np.bool_]:
        """Return whether each piece lies in the body, unlike foam under the patient and air between body and arms."""
        is_large = pieces.sizes >= MIN_LARGE * pieces.sizes.max(initial=0)
        closed = pieces.counts(self.is_closed) / np.maximum(1, pieces.sizes)
        is_hidden = pieces.counts(self.is_open) <= MAX_OPEN_SHARE * pieces.sizes
        best = closed.max(where=is_large & is_hidden, initial=0.0)
        return np.asarray(is_hidden & (closed >= max(MIN_CLOSED_SHARE, MIN_OF_BEST * best)))
