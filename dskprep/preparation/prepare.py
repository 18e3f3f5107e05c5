"""Prepare a series by the recipe that its settings name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dskprep.errors import UsageError
from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import Native, recipe
from dskprep.series.series import Decoded, Series
from dskprep.settings import PrepConfig, given
from dskprep.stopwatch import Stopwatch
from dskprep.volume import Volume

WIDE_MM = 100.0
"""A lung margin so wide that the mask is grown by another kernel than for a narrow one, even on a coarse grid."""


def prepare(
    source: Volume | Series | Decoded, config: PrepConfig | None = None, clock: Stopwatch | None = None
) -> Prepared:
    """Bring a native volume, or the slices of a series, to their final form.

    Parameters
    ----------
    source
        A series as `read_series` gives it, or decoded; or a volume of int16 HU (z, y, x), PADDING outside the field of
        view. For a recipe of 2017 a volume must be as that recipe reads it: slices as stored, from foot to head,
        without PADDING.
    config
        The settings, which name the recipe; by default those of the preset `default`.
    clock
        Takes the seconds of each stage.

    Returns
    -------
    Prepared
        The image, and the lungs if they were asked for.

    Raises
    ------
    UsageError
        The source or the settings are of another kind.
    Refusal
        A slice cannot be decoded; or a recipe of 2017 finds no lungs, or slices that it cannot take.
    StepFailed
        A function of the user's own raised, or returned something that cannot be used.

    Examples
    --------
    >>> hu = np.full((4, 6, 6), 40, np.int16)
    >>> affine = np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]  # slices 2 mm apart
    >>> prepare(Volume(hu, affine), PrepConfig(lungs=False)).image.shape
    (8, 6, 6)
    """
    config, clock = given(config), clock or Stopwatch()
    if isinstance(source, Series):
        source = source.decode()
    if not isinstance(source, (Volume, Decoded)):
        raise UsageError(f"expected a Volume, or a series as read_series gives it, found {source!r:.100}")
    return recipe(config.recipe).prepare(Native(source, clock), config, clock)


def warm(config: PrepConfig | None = None) -> None:
    """Compile the kernels that these settings use, or load them, so that workers find them in the cache.

    A function of the user's own that finds the lungs is not called: what is compiled are those that dskprep finds.
    """
    config = config or PrepConfig()
    if isinstance(config.lungs, str):
        config = dataclasses.replace(config, lungs=True, mask_memory=PrepConfig.mask_memory, mask_slots=0)
    coarse: dict[str, Any] = {"spacing_mm": (8.0, 8.0, 8.0), "lung_margin_mm": WIDE_MM}
    config = dataclasses.replace(config, **{name: coarse[name] for name in coarse if name in config.used()})
    chest = np.full((40, 48, 48), -1000, np.int16)
    chest[4:-4, 4:-4, 4:-4] = 40
    chest[10:-10, 10:-10, 10:20] = chest[10:-10, 10:-10, 28:38] = -850
    prepare(Volume(chest, np.diag([9.0, 9.0, 9.0, 1.0])[[2, 1, 0, 3]]), config).mean_lung_hu()
