"""A volume: voxels and their place in the patient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

AIR_HU = -1024
"""HU of air at the lower end of the CT scale; padding becomes this value in an output."""
PADDING = -32768
"""Marks a voxel that was never measured (outside the field of view) in a native int16 volume."""

Triple = tuple[float, float, float]
"""One number per axis."""


def grid_in_words(shape: tuple[int, int, int], spacing: Triple) -> str:
    """Say how many voxels there are, and how large they are.

    >>> grid_in_words((332, 360, 360), (1.0, 1.0, 1.0))
    '332 x 360 x 360 voxels of 1 x 1 x 1 mm (z, y, x)'
    """
    return f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{mm:.4g}' for mm in spacing)} mm (z, y, x)"


def check_is_volume(given: object) -> None:
    """Raise TypeError unless this is a Volume."""
    if not isinstance(given, Volume):
        found = type(given).__name__
        raise TypeError(f"expected a Volume, found {found}; make one by Volume(array, affine), or load() a stored one")


class _Place:
    """The geometry that follows from an affine, for `Grid` and `Volume`."""

    affine: NDArray[np.float64]

    def _check(self, shape: tuple[int, ...]) -> None:
        """Replace `affine` by a read-only copy, so that no caller's array changes or is locked.

        Raises ValueError if there are no voxels along three axes, or the affine is not finite and invertible.
        """
        if len(shape) != 3 or min(shape) < 1:
            name = type(self).__name__.lower()
            raise ValueError(f"a {name} has voxels along three axes (z, y, x), not shape {shape}")
        affine = np.array(self.affine, np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
            raise ValueError("an affine is a finite 4 x 4 matrix that gives each axis a direction of its own")
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> Triple:
        """Distance between voxel centres along (z, y, x), in mm."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return z, y, x

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


@dataclass(frozen=True, eq=False, repr=False)
class Grid(_Place):
    """The place of a volume without its voxels: their number along (z, y, x), and an affine as in `Volume`."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        self._check(self.shape)

    def __repr__(self) -> str:
        return f"<Grid: {grid_in_words(self.shape, self.spacing)}>"


@dataclass(frozen=True, eq=False, repr=False)
class TiltedGrid(Grid):
    """The right-angled grid of a series whose gantry was tilted.

    `slices` is that of its pixels before each slice was shifted to its place, (slice, row, column): they lie askew.
    """

    slices: Grid


@dataclass(frozen=True, eq=False, repr=False)
class Volume(_Place):
    """Voxels in (z, y, x) order and their place in the patient.

    A new array means a new Volume; steps never write into their input.

    Parameters
    ----------
    array
        The voxels (z, y, x), of any type.
    affine
        4 x 4, float64. It maps an index (z, y, x, 1) of a voxel's centre to the patient's LPS millimetres
        (x, y, z, 1): +x is the patient's left, +y posterior, +z superior. The volume keeps a read-only copy.

    Raises
    ------
    ValueError
        If the array has no voxels along three axes, or the affine is not finite and invertible.

    Examples
    --------
    >>> volume = Volume(np.zeros((4, 5, 6), np.int16), np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])
    >>> volume
    <Volume: 4 x 5 x 6 voxels of 2 x 1 x 1 mm (z, y, x), int16>
    >>> volume.spacing
    (2.0, 1.0, 1.0)
    >>> volume.to_patient((3, 0, 0)).tolist()
    [0.0, 0.0, 6.0]
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        # The voxels stay writeable: numba would compile each kernel again for read-only arrays, and a copy of 100 MB
        # is too dear a guard.
        self._check(self.array.shape)
        if not self.array.dtype.isnative:  # the byte order of some files, that compiled loops do not take
            object.__setattr__(self, "array", self.array.astype(self.array.dtype.newbyteorder("=")))

    def __repr__(self) -> str:
        return f"<Volume: {grid_in_words(self.shape, self.spacing)}, {self.array.dtype}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along (z, y, x)."""
        z, y, x = self.array.shape
        return z, y, x

    @property
    def grid(self) -> Grid:
        """The place of the voxels, without them."""
        return Grid(self.shape, self.affine)

    @property
    def hu(self) -> NDArray[np.int16]:
        """The voxels of a volume of HU, which are int16; raises TypeError if they are not."""
        if self.array.dtype != np.int16:
            raise TypeError(f"expected int16 HU, found {self.array.dtype}")
        return self.array

    def with_array(self, array: NDArray[Any]) -> Volume:
        """Return the same place with other voxels of the same shape; raises ValueError if the shape differs."""
        if array.shape != self.array.shape:
            raise ValueError(f"shape {array.shape} does not fit {self.array.shape}")
        return replace(self, array=array)
