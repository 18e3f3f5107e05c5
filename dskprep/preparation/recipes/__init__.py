"""The recipes: what can be done to the slices of a series. Each is one module, and its RECIPE says all of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.preparation.prepared import Prepared
from dskprep.series.hounsfield import ToHU
from dskprep.series.series import Decoded
from dskprep.settings import PrepConfig
from dskprep.stopwatch import Stopwatch
from dskprep.volume import Grid, Volume

ENCODING_SHARE = 2.3
"""Bytes per byte of an int16 image while it is encoded: itself, its mask (0.5), the encoded objects (up to 0.8)."""


class Native:
    """The slices of a series before they are resampled, to be had once: one by one, or as a volume.

    `first_gap_mm` is the distance of the first two slices along the patient's z axis.
    """

    def __init__(self, source: Volume | Decoded, clock: Stopwatch) -> None:
        self.grid: Grid = source.grid
        self.first_gap_mm = abs(float(source.affine[2, 0])) if isinstance(source, Volume) else source.first_gap_mm
        self._source, self._clock = source, clock

    def planes(self) -> Iterator[NDArray[np.int16]]:
        """Yield the slices in int16 HU (y, x); each is decoded when its turn comes."""
        planes = iter(self._source.array if isinstance(self._source, Volume) else self._source.planes())
        while True:
            with self._clock("decode"):
                plane = next(planes, None)
            if plane is None:
                return
            yield plane

    def volume(self) -> Volume:
        """Return the slices as one volume of int16 HU (z, y, x)."""
        with self._clock("decode"):
            return self._source if isinstance(self._source, Volume) else self._source.volume


class Memory(NamedTuple):
    """Peak bytes of preparing a series, beside what a patient of any size takes."""

    computing: float
    """While the image is computed, beside the native slices (2 bytes per voxel) if they are held."""
    encoding: float
    """While the image is encoded; the native slices are gone by then."""


@dataclass(frozen=True)
class Recipe:
    """All that differs between recipes, but for the settings that they use: those stand in `settings.RECIPES`."""

    name: str
    prepare: Callable[[Native, PrepConfig, Stopwatch], Prepared]
    """Makes the image and the lungs. The stopwatch takes the seconds of its stages."""
    memory: Callable[[int, float, PrepConfig], Memory]
    """Tells the memory that `prepare` takes, from the number of native and of output voxels, and the settings."""
    to_hu: ToHU | None = None
    """How stored values become HU; None for the common way.

    With one, slices stay as they were stored, padding is not marked, and a tilted gantry is refused.
    """
    streams: bool = False
    """Whether `prepare` is done with a slice once it is resampled, so that the files need not be held."""


def recipe(name: str) -> Recipe:
    """Return the recipe of that name, one of `settings.RECIPES`; its module is imported on first use."""
    found: Recipe = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").RECIPE
    return found
