"""Compiled rays: what is met first to the front, the back and both sides of each voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

NOTHING, TISSUE, OPEN, UNKNOWN = 0, 1, 2, 3
"""What a ray goes through, and what it meets: tissue of the body, air outside of it, the edge of what was measured."""


@compiled
def look_around(met: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return, as bool (z, y, x), where one of four rays meets OPEN first, and where those along y both meet TISSUE.

    `met` (z, y, x) holds the numbers above. A voxel that is not NOTHING meets itself; beyond the faces all is UNKNOWN.
    """
    nz, ny, nx = met.shape
    is_open = np.zeros(met.shape, np.bool_)
    is_closed = np.zeros(met.shape, np.bool_)
    front = np.empty((ny, nx), np.uint8)
    last = np.empty(nx, np.uint8)
    for z in range(nz):
        last[:] = UNKNOWN
        for y in range(ny):  # y goes to the back: what was met last lies in front
            for x in range(nx):
                if met[z, y, x] != NOTHING:
                    last[x] = met[z, y, x]
                front[y, x] = last[x]
        last[:] = UNKNOWN
        for y in range(ny - 1, -1, -1):
            for x in range(nx):
                if met[z, y, x] != NOTHING:
                    last[x] = met[z, y, x]
                is_open[z, y, x] = last[x] == OPEN or front[y, x] == OPEN
                is_closed[z, y, x] = last[x] == TISSUE and front[y, x] == TISSUE
            beside = UNKNOWN
            for x in range(nx):
                if met[z, y, x] != NOTHING:
                    beside = met[z, y, x]
                is_open[z, y, x] |= beside == OPEN
            beside = UNKNOWN
            for x in range(nx - 1, -1, -1):
                if met[z, y, x] != NOTHING:
                    beside = met[z, y, x]
                is_open[z, y, x] |= beside == OPEN
    return is_open, is_closed
