"""The order of the steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dskprep.preparation import resample, user_steps
from dskprep.preparation.lungs import lungs
from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import grt123, luo_2017, tutorial, zuidhof
from dskprep.series import upright
from dskprep.series.hounsfield import ToHU
from dskprep.series.series import Series
from dskprep.settings import PrepConfig
from dskprep.stopwatch import Stopwatch
from dskprep.volume import AIR_HU, PADDING, Volume

RECIPES = {"zuidhof": zuidhof.prepare, "luo-2017": luo_2017.prepare, "grt123": grt123.prepare}

RECIPE_HU: dict[str, ToHU] = {"zuidhof": tutorial.to_hu, "luo-2017": tutorial.to_hu, "grt123": grt123.to_hu}
"""How the recipes of 2017 make HU of stored values."""


WIDE_MM = 30.0
"""A margin that takes another way than a narrow one."""


def warm(config: PrepConfig | None = None) -> None:
    """Compile the kernels, or load them, so that workers started later find them in the cache."""
    tiny = np.full((40, 48, 48), -1000, np.int16)
    tiny[4:-4, 4:-4, 4:-4] = 40
    tiny[10:-10, 10:-10, 10:20] = tiny[10:-10, 10:-10, 28:38] = -850
    config = config or PrepConfig()
    affine = np.diag([9.0, 9.0, 9.0, 1.0] if config.recipe == "grt123" else [2.0, 2.0, 2.0, 1.0])
    if config.recipe not in RECIPES:
        config = dataclasses.replace(config, lung_margin_mm=WIDE_MM)
    prepare(Volume(tiny, affine[[2, 1, 0, 3]]), config).mean_lung_hu()


def prepare(source: Volume | Series, config: PrepConfig, clock: Stopwatch | None = None) -> Prepared:
    """Bring a native volume, or the slices of a series, to its final form.

    A Volume is int16 HU, PADDING outside the field of view; for a recipe of 2017 it is as the recipe reads it.
    Raises Refusal where a slice cannot be decoded, or a recipe of 2017 finds no lungs.
    """
    clock = clock or Stopwatch()
    if config.recipe not in RECIPES:
        return _default(source, config, clock)
    if isinstance(source, Volume):
        return RECIPES[config.recipe](source, float(abs(source.affine[2, 0])), config, clock)
    with clock("decode"):
        volume = source.volume
    return RECIPES[config.recipe](volume, source.first_gap_mm, config, clock)


def _default(source: Volume | Series, config: PrepConfig, clock: Stopwatch) -> Prepared:
    spacing_mm = dict(zip(upright.patient_order(source.affine), config.spacing_mm, strict=True))
    planes = source.array if isinstance(source, Volume) else _timed(source.planes(), clock)
    with clock("resample"):
        image = resample.of_planes(planes, source, (spacing_mm[0], spacing_mm[1], spacing_mm[2]), smooth=config.smooth)
        image = upright.to_patient_axes(image)
    found = None
    if config.lungs:
        with clock("lungs"):
            found = _find_lungs(image, config)
    for plane in image.array:  # in place: the array is ours, and a copy would be the peak of a patient's memory
        plane[plane == PADDING] = AIR_HU
    for step in config.steps:
        with clock("steps"):
            image = user_steps.apply(step, image, keep_grid=found is not None)
    if image.array.dtype == np.int16:
        return Prepared(image, found)
    return Prepared(image, found, values="own", fill=0)


def _find_lungs(image: Volume, config: PrepConfig) -> lungs.Lungs:
    if isinstance(config.lungs, str):
        return lungs.grow(user_steps.find_lungs(config.lungs, image), config.lung_margin_mm)
    return lungs.find_lungs(image, margin_mm=config.lung_margin_mm)


def _timed(planes: Iterator[NDArray[np.int16]], clock: Stopwatch) -> Iterator[NDArray[np.int16]]:
    while True:
        with clock("decode"):
            plane = next(planes, None)
        if plane is None:
            return
        yield plane
