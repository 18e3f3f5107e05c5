"""The order of the steps."""

from __future__ import annotations

import numpy as np

from dskprep import lungs, own, resample
from dskprep.config import PrepConfig
from dskprep.intensity import ToHU
from dskprep.prepared import Prepared
from dskprep.recipes import grt123, luo_2017, tutorial, zuidhof
from dskprep.stopwatch import Stopwatch
from dskprep.volume import AIR_HU, PADDING, Volume

RECIPES = {"zuidhof": zuidhof.prepare, "luo-2017": luo_2017.prepare, "grt123": grt123.prepare}

RECIPE_HU: dict[str, ToHU] = {"zuidhof": tutorial.to_hu, "luo-2017": tutorial.to_hu, "grt123": grt123.to_hu}
"""How the recipes of 2017 make HU of stored values."""


def warm(config: PrepConfig | None = None) -> None:
    """Compile the kernels, or load them, so that workers started later find them in the cache."""
    tiny = np.full((40, 48, 48), -1000, np.int16)
    tiny[4:-4, 4:-4, 4:-4] = 40
    tiny[10:-10, 10:-10, 10:20] = tiny[10:-10, 10:-10, 28:38] = -850
    affine = (
        np.diag([2.0, 2.0, 2.0, 1.0]) if config is None or config.recipe != "grt123" else np.diag([9.0] * 3 + [1.0])
    )
    prepare(Volume(tiny, affine[[2, 1, 0, 3]]), config or PrepConfig()).mean_lung_hu()


def prepare(
    volume: Volume, config: PrepConfig, clock: Stopwatch | None = None, *, first_gap_mm: float | None = None
) -> Prepared:
    """Bring a native volume to its final form.

    For the default recipe `volume` is int16 HU along the patient's axes, PADDING outside the field of view;
    for a recipe of 2017 it is as series.assemble makes it with the recipe's HU, and `first_gap_mm` is how
    far the first two slices are apart along the patient, by default as far as the affine says.
    """
    clock = clock or Stopwatch()
    if config.recipe in RECIPES:
        gap = float(abs(volume.affine[2, 0])) if first_gap_mm is None else first_gap_mm
        return RECIPES[config.recipe](volume, gap, config, clock)
    return _default(volume, config, clock)


def _default(volume: Volume, config: PrepConfig, clock: Stopwatch) -> Prepared:
    with clock("resample"):
        image = resample.to_spacing(volume, config.spacing_mm, smooth=config.smooth)
    found = None
    if config.lungs:
        with clock("lungs"):
            found = _find_lungs(image, config)
    for plane in image.array:  # in place: the array is ours, and a copy would be the peak of a patient's memory
        plane[plane == PADDING] = AIR_HU
    for step in config.steps:
        with clock("steps"):
            image = own.apply(step, image, keep_grid=found is not None)
    if image.array.dtype == np.int16:
        return Prepared(image, found)
    return Prepared(image, found, values="own", fill=0)


def _find_lungs(image: Volume, config: PrepConfig) -> lungs.Lungs:
    if isinstance(config.lungs, str):
        return lungs.grown(own.find_lungs(config.lungs, image), config.lung_margin_mm)
    return lungs.find_lungs(image, margin_mm=config.lung_margin_mm)
