"""Prepare a series by the recipe that its settings name."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np

from dskprep.errors import UsageError
from dskprep.kernels import drawing, hulls, masks
from dskprep.kernels.compiled import ahead_of_use, is_kept
from dskprep.preparation.lungs import lungs
from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import Native, recipe
from dskprep.series.geometry import Layout
from dskprep.series.series import Decoded, Series, Stored
from dskprep.settings import PrepConfig, given
from dskprep.stopwatch import Stopwatch
from dskprep.volume import Grid, Volume

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
    TypeError
        The volume is not of int16.
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
    if isinstance(source, Volume) and source.array.dtype != np.int16:
        raise TypeError(f"expected a Volume of int16 HU, found {source.array.dtype}")
    return recipe(config.recipe).prepare(Native(source, clock), config, clock)


def is_warm() -> bool:
    """Tell whether the kernels that find the lungs are in the cache, so that little or nothing will be compiled."""
    return is_kept(drawing.draw_voxels)


def warm(config: PrepConfig | None = None) -> None:
    """Compile the kernels that these settings use, or load them, so that workers find them in the cache.

    About half of those that find the lungs are compiled in a second process at the same time. No function of the
    user's own is called: where one finds the lungs, what is compiled are those that dskprep finds.
    """
    config = config or PrepConfig()
    if isinstance(config.lungs, str):
        config = dataclasses.replace(config, lungs=True, mask_memory=PrepConfig.mask_memory, mask_slots=0)
    coarse: dict[str, Any] = {"spacing_mm": (8.0, 8.0, 8.0), "steps": ()}
    if config.lung_margin_mm:
        coarse["lung_margin_mm"] = WIDE_MM
    config = dataclasses.replace(config, **{name: coarse[name] for name in coarse if name in config.used()})
    with ahead_of_use():
        if "lungs" in config.used() and config.lungs and not is_warm():
            _warm_in_two(config)
        prepare(_chest(config), config).mean_lung_hu()


def _warm_in_two(config: PrepConfig) -> None:
    """Compile about half of the kernels here, and those that the lungs need first in a second process."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {__name__} import warm_lungs; warm_lungs()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # what goes wrong there goes wrong here too
    ) as beside:
        try:
            prepare(_chest(config), dataclasses.replace(config, lungs=False))
            voxel, label, spacing_mm = np.zeros((3, 3, 3), np.int16), np.ones((3, 3, 3), np.uint8), (1.0, 1.0, 1.0)
            drawing.draw(voxel, 0, label, label > 0, (1, 1, 1), (0, 0, 0), label)  # what the lungs need last
            masks.sum_inside(voxel, label)
            hulls.fill_wall_dents(label > 0, 1, spacing_mm, 1.0, 1.0, 1.0)
        except BaseException:
            beside.kill()
            raise


def warm_lungs() -> None:
    """Compile the kernels that find the lungs."""
    with ahead_of_use():
        lungs.find_lungs(_chest(PrepConfig()).decode().volume)


def _chest(config: PrepConfig) -> Series:
    """Return a coarse series of a chest with two lungs, and gas beside them, in slices of all kinds that are common."""
    chest = np.full((40, 48, 48), -1000, np.int16)
    chest[4:-4, 4:-4, 4:-4] = 40
    chest[10:-10, 10:-10, 10:20] = chest[10:-10, 10:-10, 28:38] = -850
    chest[14:20, 36:39, 22:26] = -1000
    chest[:, :4, :4] = chest[:, :4, -4:] = chest[:, -4:, :4] = chest[:, -4:, -4:] = -2024  # never measured
    stored = [np.frombuffer((plane + 1024).tobytes(), ("<i2", "<u2")[k % 2]) for k, plane in enumerate(chest)]
    affine = np.diag([9.0, 9.0, 9.0, 1.0])[[2, 1, 0, 3]]
    return Series(
        Layout(Grid(chest.shape, affine), tuple(range(len(chest))), ((0.0, 0.0),) * len(chest), 0.0, ()),
        len(chest),
        lambda: (Stored(values.reshape(48, 48), 1.0, -1024.0, (-1000, -1000)) for values in stored),
        facts={},
        first_gap_mm=9.0,
        warnings=(),
        doubt="",
        to_hu=recipe(config.recipe).to_hu,
        check_hu=False,
    )
