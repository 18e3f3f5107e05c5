"""Compiled loops that sample planes which lie oblique to a grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled


@compiled
def sample_planes(
    pixels: NDArray[Any],
    begins: NDArray[Any],
    shapes: NDArray[Any],
    corners: NDArray[Any],
    table: NDArray[Any],
    step: float,
    matrix: NDArray[Any],
    offset: NDArray[Any],
    n_sub: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the mean value of each voxel into float32 `out` (z, y, x), from `n_sub` (z, y, x) points per voxel.

    matrix @ (z, y, x) + offset are the place along the normal in mm, the row and the column of a voxel's centre.
    table[place // step] is the plane that lies there, or -1. Plane k has its `shapes[k]` pixels from begins[k] on in
    uint8 `pixels`; the first is centred on row and column corners[k]. Where no pixel is, the value is 0.
    """
    nz, ny, nx = out.shape
    weight = np.float32(1.0 / (n_sub[0] * n_sub[1] * n_sub[2]))
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                total = 0
                for a in range(n_sub[0]):
                    dz = z + (a + 0.5) / n_sub[0] - 0.5
                    for b in range(n_sub[1]):
                        dy = y + (b + 0.5) / n_sub[1] - 0.5
                        for c in range(n_sub[2]):
                            dx = x + (c + 0.5) / n_sub[2] - 0.5
                            along = (matrix[0, 0] * dz + matrix[0, 1] * dy + matrix[0, 2] * dx + offset[0]) / step
                            if not 0 <= along < table.size:
                                continue
                            k = table[int(along)]
                            if k < 0:
                                continue
                            row = matrix[1, 0] * dz + matrix[1, 1] * dy + matrix[1, 2] * dx + offset[1]
                            column = matrix[2, 0] * dz + matrix[2, 1] * dy + matrix[2, 2] * dx + offset[2]
                            i = int(np.floor(row - corners[k, 0] + 0.5))
                            j = int(np.floor(column - corners[k, 1] + 0.5))
                            if 0 <= i < shapes[k, 0] and 0 <= j < shapes[k, 1]:
                                total += pixels[begins[k] + i * shapes[k, 1] + j]
                out[z, y, x] = np.float32(total) * weight
