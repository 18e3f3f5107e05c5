"""Compiled rays: what is met first to the front, the back and both sides of each voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

NOTHING, TISSUE, OPEN, UNKNOWN = 0, 1, 2, 3
"""What a ray goes through, and what it meets: tissue of the body, air outside of it, the edge of what was measured."""


def look_around(met: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return, as bool (z, y, x), where one of four rays meets OPEN first, and where those along y both meet TISSUE.

    `met` (z, y, x) holds the numbers above. A voxel that is not NOTHING meets itself; beyond the faces all is UNKNOWN.
    """
    front, back = (_met_along_y(met, step) for step in (1, -1))
    across = np.ascontiguousarray(met.transpose(0, 2, 1))
    is_open_across = (_met_along_y(across, 1) == OPEN) | (_met_along_y(across, -1) == OPEN)
    is_open = (front == OPEN) | (back == OPEN) | is_open_across.transpose(0, 2, 1)
    return is_open, (front == TISSUE) & (back == TISSUE)


def _met_along_y(met: NDArray[Any], step: int) -> NDArray[Any]:
    """Return what was met last by a ray that comes along y, up (step 1) or down (-1)."""
    found = np.empty_like(met)
    _meet(met, step, np.empty(met.shape[2], np.uint8), found)
    return found


@compiled
def _meet(met: NDArray[Any], step: int, last: NDArray[Any], found: NDArray[Any]) -> None:
    """Write what was met last; `last` (x) is scratch."""
    nz, ny, nx = met.shape
    for z in range(nz):
        for x in range(nx):
            last[x] = UNKNOWN
        y = 0 if step > 0 else ny - 1
        for _ in range(ny):
            for x in range(nx):
                last[x] = met[z, y, x] if met[z, y, x] != NOTHING else last[x]
                found[z, y, x] = last[x]
            y += step
