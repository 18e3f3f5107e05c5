"""What is written of a series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from dskprep.preparation.lungs.lungs import Lungs
from dskprep.series import hounsfield
from dskprep.volume import AIR_HU, Volume

Values = Literal["HU", "normalized", "uint8", "own"]
"""What the numbers of an image are: HU; HU brought to 0..1 and centred; the uint8 of grt123; those of a user's step."""


class Crop(NamedTuple):
    """A box cut out of a grid of `shape` voxels (z, y, x), from voxel `first` on."""

    first: tuple[int, int, int]
    shape: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image and, if asked for, the lungs on the same grid.

    `values` says what the image's numbers are and `fill` which of them is air; `crop`, if the image is a
    part of a larger grid, which part.
    """

    image: Volume
    lungs: Lungs | None
    values: Values = "HU"
    fill: float = AIR_HU
    crop: Crop | None = None

    def mean_lung_hu(self) -> float | None:
        """Mean HU over both lungs, or None where none were found, or the image holds other values."""
        if self.lungs is None or self.values != "HU":
            return None
        return hounsfield.mean_inside(self.image, self.lungs.mask.array)
