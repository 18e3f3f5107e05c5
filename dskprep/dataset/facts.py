"""What the record of a series is made of: sizes, the series as it was acquired, its volume's grid, its lungs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from dskprep.volume import Grid, TiltedGrid

if TYPE_CHECKING:
    from dskprep.preparation.lungs.lungs import Lungs

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
"""A number of slices, rows, voxels along an axis, or files."""
LARGEST_BYTES = 2**53
"""Any larger number, and sums of such, would not be exact everywhere."""
Bytes = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_BYTES)]
"""A size."""
Number = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
"""Millimetres, millilitres, HU or seconds: so many that no sum or square of them is beyond what a program can hold."""
Millimetres = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
"""A distance between voxels."""


class StoredObject(msgspec.Struct, frozen=True, rename={"n_bytes": "bytes"}):
    """The size and SHA-256 of an object that was written."""

    n_bytes: Bytes
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> StoredObject:
        """Return the size and SHA-256 of these bytes."""
        return cls(len(content), hashlib.sha256(content).hexdigest())


class Aside(msgspec.Struct, frozen=True):
    """The files of a series' folder that are not CT slices: how many of each kind, and the names of the first ones."""

    counts: dict[str, Count] = {}
    names: tuple[str, ...] = ()


class Source(msgspec.Struct, frozen=True):
    """The series as it was acquired: its slices and where the first one lies (LPS, mm), its scanner and protocol.

    `contrast` to `diameter_ratio` are read out of the header for the choice of a cohort (docs/cohort.md). They never
    refuse anything, and "unknown", "" or None is what the header does not say.
    """

    slices: Count
    rows: Count
    columns: Count
    step_mm: Number
    row_spacing_mm: Number
    column_spacing_mm: Number
    first_x_mm: Number
    first_y_mm: Number
    first_z_mm: Number
    manufacturer: str = ""
    model: str = ""
    kernel: str = ""
    kvp: str = ""
    slice_thickness_mm: str = ""
    patient_position: str = ""
    body_part: str = ""
    reconstruction_diameter_mm: str = ""
    contrast: str = ""
    contrast_phase: str = ""
    kernel_class: str = ""
    scanner: str = ""
    pet_ct: str = ""
    thickness_ratio: Number | None = None
    diameter_ratio: Number | None = None
    transfer_syntax: str = ""
    tilt_degrees: Number | None = None
    interpolated_mm: str | None = None
    left_out_mm: Number | None = None


class Crop(msgspec.Struct, frozen=True):
    """Where the written volume was cut out of a larger grid: its first voxel, and the shape of that grid (z, y, x)."""

    first: tuple[Count, Count, Count]
    of_shape: tuple[Count, Count, Count]


class Geometry(msgspec.Struct, frozen=True):
    """The grid of the written volume: shape and spacing along (z, y, x), and the rows of its affine (see `Volume`)."""

    shape: tuple[Count, Count, Count]
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres]
    affine: tuple[tuple[Number, ...], ...]
    crop: Crop | None = None

    def matrix(self) -> NDArray[np.float64]:
        """Return the affine as a new array, 4 x 4."""
        return np.array(self.affine, np.float64)


class Slices(msgspec.Struct, frozen=True):
    """A grid of slices, (slice, row, column), with those of filled gaps; LPS mm."""

    shape: tuple[Count, Count, Count]
    affine: tuple[tuple[Number, ...], ...]

    @classmethod
    def of(cls, grid: Grid) -> Slices:
        """Return what a record says of a grid."""
        return cls(grid.shape, tuple(tuple(row) for row in grid.affine.round(6).tolist()))

    def grid(self) -> Grid:
        """Return it as a grid."""
        return Grid(self.shape, np.array(self.affine, np.float64))


class Acquired(msgspec.Struct, frozen=True, omit_defaults=True):
    """The grid of the slices as they were acquired; of a tilted gantry, that onto which they were shifted.

    `askew` is then the grid of the slices before that.
    """

    shape: tuple[Count, Count, Count]
    affine: tuple[tuple[Number, ...], ...]
    askew: Slices | None = None

    @classmethod
    def of(cls, grid: Grid) -> Acquired:
        """Return what a record says of the grid of a series."""
        found = Slices.of(grid)
        return cls(found.shape, found.affine, Slices.of(grid.slices) if isinstance(grid, TiltedGrid) else None)

    def grid(self) -> Grid:
        """Return it as a grid."""
        grid = Slices(self.shape, self.affine).grid()
        return TiltedGrid(grid.shape, grid.affine, self.askew.grid()) if self.askew else grid


class LungFigures(msgspec.Struct, frozen=True):
    """The volume of each lung in ml, the mean HU of both, and which share of the denser lung is dense (0 to 1).

    `unsided_ml` is lung whose side is not known. `disagreed_ml` is where a mask of the user's own and that of dskprep
    differ. `missing_ml` is about what should be lung and was not found, and `missing_place` where, as in "right lower";
    None and "" where that was not measured.
    """

    right_ml: Number
    left_ml: Number
    unsided_ml: Number = 0.0
    mean_hu: Number | None = None
    dense_share: Number | None = None
    disagreed_ml: Number | None = None
    missing_ml: Number | None = None
    missing_place: str = ""

    @classmethod
    def of(cls, lungs: Lungs, mean_hu: float | None) -> LungFigures:
        """Return the figures of lungs that were found, rounded."""

        def rounded(value: float | None, digits: int = 1) -> float | None:
            return None if value is None else round(float(value), digits)

        return cls(
            right_ml=round(float(lungs.right_ml), 1),
            left_ml=round(float(lungs.left_ml), 1),
            unsided_ml=round(float(lungs.unsided_ml), 1),
            mean_hu=rounded(mean_hu),
            dense_share=rounded(lungs.dense_share, 4),
            disagreed_ml=rounded(lungs.disagreed_ml),
            missing_ml=rounded(lungs.missing_ml),
            missing_place=lungs.missing_place,
        )


class Curation(msgspec.Struct, frozen=True):
    """What is looked at when a cohort is chosen (see `preparation.curation`), measured before steps of the user's.

    `lungs_cut` are the faces at which a lung is cut off, None without lungs; `noise_hu` is None where there is too
    little soft tissue, `motion_step_mm` where too little of the lungs is seen.
    """

    arms: Literal["up", "down", "unknown"]
    body_cut_share: Number
    metal_share: Number
    lungs_cut: tuple[Literal["feet", "head", "front", "back", "right", "left"], ...] | None = None
    noise_hu: Number | None = None
    motion_step_mm: Number | None = None


def source_of(facts: Mapping[str, Any]) -> Source:
    """Make the part `source` of the facts of a series."""
    return Source(**facts)
