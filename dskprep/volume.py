"""A volume: voxels and their place in the patient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

AIR_HU = -1024
"""HU of air at the lower end of the CT scale; what padding becomes in an output."""

PADDING = -32768
"""Marks a voxel that was never measured (outside the field of view) in a native int16 volume."""

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels in (z, y, x) order and their place in the patient.

    `affine` (4 x 4, float64) maps an index (z, y, x, 1) of a voxel's centre to the patient's LPS
    millimetres (x, y, z, 1): +x is the patient's left, +y posterior, +z superior. Spacing is
    derived from it. A new array means a new Volume; steps never write into their input.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or not self.array.size:
            raise ValueError(f"a volume has voxels along three axes (z, y, x), not shape {self.array.shape}")
        is_finite = self.affine.shape == (4, 4) and np.isfinite(self.affine).all()
        if not is_finite or not np.linalg.det(self.affine[:3, :3]):
            raise ValueError("an affine is a finite 4 x 4 matrix that gives each axis a direction of its own")
        if not self.array.dtype.isnative:  # the byte order of some files, that compiled loops do not take
            object.__setattr__(self, "array", self.array.astype(self.array.dtype.newbyteorder("=")))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along (z, y, x)."""
        z, y, x = self.array.shape
        return z, y, x

    @property
    def spacing(self) -> Triple:
        """Distance between voxel centres along (z, y, x), in mm."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def hu(self) -> NDArray[np.int16]:
        """The voxels of a volume of HU, which are int16; raises TypeError if they are not."""
        if self.array.dtype != np.int16:
            raise TypeError(f"expected int16 HU, found {self.array.dtype}")
        return self.array

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def to_patient(self, index: ArrayLike) -> NDArray[np.float64]:
        """Map indices (..., 3) in (z, y, x) to LPS millimetres (..., 3) in (x, y, z)."""
        index = np.asarray(index, dtype=np.float64)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, point_mm: ArrayLike) -> NDArray[np.float64]:
        """Map LPS millimetres (..., 3) in (x, y, z) to fractional indices (..., 3) in (z, y, x)."""
        offset = np.asarray(point_mm, dtype=np.float64) - self.affine[:3, 3]
        return offset @ np.linalg.inv(self.affine[:3, :3]).T

    def with_array(self, array: NDArray[Any]) -> Volume:
        """The same place with other voxels of the same shape."""
        if array.shape != self.array.shape:
            raise ValueError(f"shape {array.shape} does not fit {self.array.shape}")
        return replace(self, array=array)
