"""Recipe `luo-2017`: the tutorial's image without its lung mask, in float64."""

from __future__ import annotations

from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import Native, Recipe, tutorial
from dskprep.settings import PrepConfig
from dskprep.stopwatch import Stopwatch


def prepare(native: Native, config: PrepConfig, clock: Stopwatch) -> Prepared:
    """Make the image by steps 3 to 5, 12 and 13 of the tutorial, as a run of 2017 did for 1,595 patients.

    The image is float64, or float32 (`config.dtype`).

    Defects kept: T2, T7, T8, T9, T10, T11, T16 (see docs/recipes.md). Raises Refusal `no-thickness` where
    the run of 2017 wrote an empty array.
    """
    volume = native.volume()
    with clock("resample"):
        image = tutorial.resample(volume, native.first_gap_mm, config.spacing_mm)
    with clock("normalize"):
        return tutorial.normalize(image, config.dtype)


RECIPE = Recipe("luo-2017", prepare, tutorial.memory, tutorial.to_hu)
