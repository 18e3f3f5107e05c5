"""The result of preparing a series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from dskprep.kernels import masks
from dskprep.preparation.curation import Curation
from dskprep.preparation.lungs.lungs import Lungs
from dskprep.volume import AIR_HU, Volume, grid_in_words

Values = Literal["HU", "normalized", "uint8", "own"]
"""What an image's numbers are: HU; HU scaled to 0..1 and centred; grey values of grt123; those of a user's step."""


class Crop(NamedTuple):
    """Where an image was cut out of a larger grid."""

    first: tuple[int, int, int]
    """The image's first voxel (z, y, x), as an index of the larger grid."""
    shape: tuple[int, int, int]
    """The shape (z, y, x) of the larger grid."""


@dataclass(frozen=True, eq=False, repr=False)
class Prepared:
    """An image and its lungs on the same grid, ready to be written.

    Attributes
    ----------
    image
        Voxels (z, y, x) and their place; int16 HU without PADDING, unless `values` says otherwise.
    lungs
        The mask of the lungs and what is known of them; None if they were not asked for.
    values
        What the image's numbers are.
    fill
        The number of voxels where nothing is shown: air, or what a recipe paints over them.
    crop
        For an image that was cut out of a larger grid: where.
    curation
        What is looked at when a cohort is chosen; None where the recipe does not measure it.
    """

    image: Volume
    lungs: Lungs | None
    values: Values = "HU"
    fill: float = AIR_HU
    crop: Crop | None = None
    curation: Curation | None = None

    def __repr__(self) -> str:
        image, values = self.image, self.values if self.values == "HU" else f"{self.values} values"
        return f"<Prepared: {grid_in_words(image.shape, image.spacing)}, {values}; {self.lungs or 'no lungs'}>"

    def mean_lung_hu(self) -> float | None:
        """Return the mean HU over both lungs; None if there are none, or the image does not hold HU."""
        if self.lungs is None or self.values != "HU":
            return None
        total, n = masks.sum_inside(self.image.array, self.lungs.mask.array)
        return total / n if n else None
