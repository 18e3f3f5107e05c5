"""The order of the steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dskprep import intensity, lungs, resample
from dskprep.config import PrepConfig
from dskprep.stopwatch import Stopwatch
from dskprep.volume import AIR_HU, PADDING, Volume


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is written of a series: int16 HU and, if asked for, the lungs on the same grid."""

    image: Volume
    lungs: lungs.Lungs | None

    def mean_lung_hu(self) -> float | None:
        """Mean HU over both lungs, or None where none were found."""
        return None if self.lungs is None else intensity.mean_inside(self.image, self.lungs.mask.array)


def warm() -> None:
    """Compile the kernels, or load them, so that workers started later find them in the cache."""
    tiny = np.full((40, 48, 48), -1000, np.int16)
    tiny[4:-4, 4:-4, 4:-4] = 40
    prepare(Volume(tiny, np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]]), PrepConfig()).mean_lung_hu()


def prepare(volume: Volume, config: PrepConfig, clock: Stopwatch | None = None) -> Prepared:
    """Bring a native volume (int16 HU, PADDING outside the field of view) to its final form."""
    clock = clock or Stopwatch()
    with clock("resample"):
        image = resample.to_spacing(volume, config.spacing_mm, smooth=config.smooth)
    found = None
    if config.lungs:
        with clock("lungs"):
            found = lungs.find_lungs(image, margin_mm=config.lung_margin_mm)
    for plane in image.array:  # in place: the array is ours, and a copy would be the peak of a patient's memory
        plane[plane == PADDING] = AIR_HU
    return Prepared(image, found)
