"""Recipe `luo-2017`: the tutorial's image without its lung mask, in float64."""

from __future__ import annotations

from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import tutorial
from dskprep.settings import PrepConfig
from dskprep.stopwatch import Stopwatch
from dskprep.volume import Volume


def prepare(volume: Volume, first_gap_mm: float, config: PrepConfig, clock: Stopwatch) -> Prepared:
    """Steps 3 to 5, 12 and 13 of the tutorial, as a run of 2017 wrote them for 1,595 patients.

    `volume` is int16 HU (z, y, x) by `tutorial.to_hu`, its slices from foot to head as they were stored;
    `first_gap_mm` is the distance of the first two. The result is float64, or float32 (`config.dtype`).

    Defects kept: T2, T7, T8, T9, T10, T11, T16 (see docs/recipes.md). Raises Refusal `no-thickness` where
    the run of 2017 wrote an empty array.
    """
    with clock("resample"):
        image = tutorial.resample(volume, first_gap_mm, config.spacing_mm)
    with clock("normalize"):
        return tutorial.finished(image, config.dtype)
